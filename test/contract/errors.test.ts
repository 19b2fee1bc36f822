import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { Client, type RequestOptions, solvePipeline } from '../../lab/client.ts'
import { sharedTarget } from '../support/target.ts'
import { expectRefusal, inParallel, receiveSoon } from './support.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)
const operator = await client.registerOperator()
const agent = await client.registerAgent()

type Level = 'none' | 'operator' | 'agent'
const token = (level: Level) =>
  ({ none: undefined, operator: operator.token, agent: agent.token })[level]

/** The endpoints that take a body, with one that succeeds but for what a test makes wrong in it. */
const BODY_ENDPOINTS: [string, string, Level, Record<string, unknown>][] = [
  ['POST', '/v1/operators', 'none', { contact_hash: 'x', accept_terms: true }],
  [
    'POST',
    '/v1/agents',
    'operator',
    { verification_response: { challenge_id: crypto.randomUUID(), response: 'x' } },
  ],
  ['POST', '/v1/messages', 'agent', { to: agent.address, content: 'x' }],
  ['PUT', '/v1/state/errors', 'agent', { value: 'x' }],
]
const JSON_TYPE = { 'Content-Type': 'application/json' }

const MEBIBYTE = 1_048_576

describe('400 bad_request', () => {
  describe.each(BODY_ENDPOINTS)('%s %s', (method, path, level, valid) => {
    const send = (body: string | Buffer) =>
      client.request(method, path, { token: token(level), headers: JSON_TYPE, body })

    it.each([
      '',
      ' ',
      '{',
      '}',
      '{"a"',
      '{"a":}',
      '{"a":1,}',
      "{'a':1}",
      '{a:1}',
      'undefined',
      'NaN',
      '{"a":01}',
      '{"a":1}{"b":2}',
      '{"a":"\u0001"}',
      '{"a":"\\x"}',
      '{"a":"\\u12"}',
      '[1,2',
      '"unterminated',
    ])('is for malformed JSON: %j', async (body) => {
      expectRefusal(await send(body), 400)
    })

    it.each(['null', 'true', '7', '"text"', '[]', '[{}]', '{}'])(
      'is for a body without the fields: %s',
      async (body) => {
        expectRefusal(await send(body), 400)
      },
    )

    it.each([
      ['a byte that is never in UTF-8', [0xff]],
      ['a lone continuation byte', [0x80]],
      ['an overlong form', [0xc0, 0x80]],
      ['a surrogate', [0xed, 0xa0, 0x80]],
      ['a surrogate pair', [0xed, 0xa0, 0xbd, 0xed, 0xb8, 0x80]],
      ['beyond U+10FFFF', [0xf4, 0x90, 0x80, 0x80]],
      ['a character cut short', [0xe2, 0x82]],
    ])('is for a body that is not UTF-8, %s', async (_, bytes) => {
      const text = JSON.stringify(valid)
      const place = text.lastIndexOf('"x"') + 1
      const body = Buffer.concat([
        Buffer.from(text.slice(0, place)),
        Buffer.from(bytes),
        Buffer.from(text.slice(place)),
      ])
      expectRefusal(await send(body), 400)
    })

    it.each(['\\ud800', '\\udc00', '\\udc00\\ud800', 'a\\ud83d', '\\ud83dx\\ude00'])(
      'is for a lone surrogate, which is not UTF-8: %s',
      async (escaped) => {
        const text = JSON.stringify(valid)
        const place = text.lastIndexOf('"x"') + 1
        expectRefusal(await send(text.slice(0, place) + escaped + text.slice(place)), 400)
      },
    )
  })

  it.each([
    ['arrays in arrays', `{"value":${'['.repeat(3_000_000)}${']'.repeat(3_000_000)}}`],
    ['arrays', `{"value":"","more":[${'[],'.repeat(400)}${'{},'.repeat(400)}1]}`],
    ['members', `{"value":""${',"x":1'.repeat(1_000)}}`],
    ['strings', `{"value":${'""'.repeat(1_000)}}`],
    ['values', `{"value":"\\\\","more":[${'1,'.repeat(1_000)}1]}`],
  ])('is for a body that would become many times its size: %s', async (_, body) => {
    const options = { token: agent.token, headers: JSON_TYPE, body }
    const answer = await client.request('PUT', '/v1/state/errors', options)
    const message = 'the body must not have more than 1000 names and values'
    expect([answer.status, answer.json]).toEqual([400, { error: 'bad_request', message }])
  })

  it('is not for a value that looks like one, nor for fields that nobody asked for', async () => {
    for (const value of [
      '{"[],'.repeat(1_000),
      '[{},'.repeat(1_000),
      `${'[,'.repeat(1_000)}\\`,
      '\\"['.repeat(1_000),
    ]) {
      const answer = await agent.request('PUT', '/v1/state/errors', {
        json: { value, more: [1, { x: [] }] },
      })
      expect(answer.status).toBe(200)
      expect((await agent.read('errors')).value).toBe(value)
    }
  })

  it.each<[string, string, Level, unknown]>([
    ['POST', '/v1/operators', 'none', { contact_hash: 1, accept_terms: true }],
    ['POST', '/v1/messages', 'agent', { content: 'x' }],
    ['POST', '/v1/messages', 'agent', { to: 'TO' }],
    ['POST', '/v1/messages', 'agent', { to: 7, content: 'x' }],
    ['POST', '/v1/messages', 'agent', { to: null, content: 'x' }],
    ['POST', '/v1/messages', 'agent', { to: ['TO'], content: 'x' }],
    ['POST', '/v1/messages', 'agent', { to: 'TO', content: 7 }],
    ['POST', '/v1/messages', 'agent', { to: 'TO', content: null }],
    ['POST', '/v1/messages', 'agent', { to: 'TO', content: ['x'] }],
    ['POST', '/v1/messages', 'agent', { to: 'TO', content: { text: 'x' } }],
    ['PUT', '/v1/state/errors', 'agent', { value: 7 }],
    ['PUT', '/v1/state/errors', 'agent', { value: null }],
    ['PUT', '/v1/state/errors', 'agent', { value: true }],
    ['PUT', '/v1/state/errors', 'agent', { value: ['x'] }],
    ['PUT', '/v1/state/errors', 'agent', { value: { x: 1 } }],
    ['PUT', '/v1/state/errors', 'agent', { Value: 'x' }],
  ])(
    'is for a missing or wrongly typed field: %s %s as %s %j',
    async (method, path, level, json) => {
      const body = JSON.stringify(json).replaceAll('"TO"', JSON.stringify(agent.address))
      expectRefusal(
        await client.request(method, path, { token: token(level), headers: JSON_TYPE, body }),
        400,
      )
    },
  )

  it.each<[string, string, Level, unknown, string]>([
    ['POST', '/v1/operators', 'none', { accept_terms: true }, 'contact_hash: is missing'],
    ['POST', '/v1/agents', 'operator', {}, 'verification_response: is missing'],
    ['POST', '/v1/messages', 'agent', { to: 'TO' }, 'content: is missing'],
    ['POST', '/v1/messages', 'agent', { to: 7, content: 'x' }, 'to: must be a string'],
    ['POST', '/v1/messages', 'agent', [], 'the body: must be a JSON object'],
    ['PUT', '/v1/state/errors', 'agent', {}, 'value: is missing'],
    ['PUT', '/v1/state/errors', 'agent', { value: null }, 'value: must be a string'],
  ])(
    'says which field is wrong, and what would be right: %s %s as %s %j',
    async (method, path, level, json, message) => {
      const answer = await client.request(method, path, { token: token(level), json })
      expect(answer.json).toEqual({ error: 'bad_request', message })
    },
  )

  it('does not take a field from the prototype', async () => {
    const body = '{"__proto__":{"value":"x"},"constructor":{"prototype":{"value":"x"}}}'
    const answer = await agent.request('PUT', '/v1/state/errors', { headers: JSON_TYPE, body })
    expectRefusal(answer, 400)
    expectRefusal(await agent.tryWrite('errors', undefined), 400)
  })

  it('is for nesting however deep', async () => {
    const depth = 100_000
    const body = `{"value":${'['.repeat(depth)}${']'.repeat(depth)}}`
    expectRefusal(await agent.request('PUT', '/v1/state/errors', { headers: JSON_TYPE, body }), 400)
  })
})

describe('404 not_found', () => {
  it.each([
    '/',
    '/v1',
    '/v1/',
    '/v2/health',
    '/health',
    '/V1/health',
    '/v1/nothing',
    '/v1/healthz',
    '/v1/agents/nobody',
    '/v1/messages/7',
    '/v1/registryx',
    '/v1/statement',
    '/v1//health',
    '/v1/./health',
    '/v1/messages/../health',
    '/v1/messages/%2e%2e/health',
    '/favicon.ico',
    '/events',
    '/metrics',
    '/livez',
    '/observe/health',
    '/v1/%2e%2e/x',
    '/__proto__',
    '/v1/constructor',
  ])('is for no such route: %s', async (path) => {
    for (const level of ['none', 'agent'] as const) {
      expectRefusal(await client.request('GET', path, { token: token(level) }), 404)
    }
    expectRefusal(await client.request('POST', path, { json: {} }), 404)
  })
})

describe('405 method_not_allowed', () => {
  const PATHS: [string, string[], Level][] = [
    ['/v1/health', ['GET'], 'none'],
    ['/v1/operators', ['POST'], 'none'],
    ['/v1/agents/verification-challenge', ['GET'], 'operator'],
    ['/v1/agents', ['POST'], 'operator'],
    ['/v1/agents/me', ['GET'], 'agent'],
    ['/v1/registry', ['GET'], 'agent'],
    ['/v1/messages', ['GET', 'POST'], 'agent'],
    ['/v1/state', ['GET'], 'agent'],
    ['/v1/state/', ['GET', 'PUT', 'DELETE'], 'agent'],
    ['/v1/state/some/key', ['GET', 'PUT', 'DELETE'], 'agent'],
    ['/v1/state/..', ['GET', 'PUT', 'DELETE'], 'agent'],
  ]
  const METHODS = ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'PROPFIND', 'TRACE']
  const OTHERS = PATHS.flatMap(([path, allowed, level]) =>
    METHODS.filter((method) => !allowed.includes(method)).map(
      (method) => [method, path, level] as const,
    ),
  )

  it.each(OTHERS)('is for a known path and another method: %s %s', async (method, path, level) => {
    const body: RequestOptions = ['POST', 'PUT', 'PATCH'].includes(method) ? { json: {} } : {}
    expectRefusal(await client.request(method, path, { token: token(level), ...body }), 405)
  })

  it.each(PATHS)('is for OPTIONS too, as there is no CORS: %s', async (path, allowed, level) => {
    const headers = {
      Origin: 'https://example.com',
      'Access-Control-Request-Method': allowed[0] ?? '',
    }
    for (const options of [{ headers }, { headers, token: token(level) }]) {
      const answer = await client.request('OPTIONS', path, options)
      expectRefusal(answer, 405)
      expect(
        Object.keys(answer.headers).filter((name) => name.startsWith('access-control-')),
      ).toEqual([])
    }
  })

  const WITHOUT_HEAD = PATHS.filter(
    ([path, allowed]) => path === '/v1/messages' || !allowed.includes('GET'),
  )

  it.each(WITHOUT_HEAD)(
    'is for HEAD where it would take messages, or GET is not served: %s',
    async (path, _, level) => {
      const answer = await client.request('HEAD', path, { token: token(level) })
      expect(answer.status).toBe(405)
      expect(answer.headers['content-type']).toBe('application/json')
      expect(answer.headers.allow).not.toContain('HEAD')
      expect(answer.body).toHaveLength(0)
    },
  )

  it.each(PATHS.filter(([path]) => path !== '/v1/state/some/key' && path !== '/v1/state/..'))(
    'says what is served: %s',
    async (path, allowed, level) => {
      const answer = await client.request('PATCH', path, { token: token(level), json: {} })
      const head = path !== '/v1/messages' && allowed.includes('GET') ? ['HEAD'] : []
      expect(answer.headers.allow?.toString().split(', ').toSorted()).toEqual(
        [...allowed, ...head].toSorted(),
      )
    },
  )
})

describe('HEAD', () => {
  it.each<[string, Level]>([
    ['/v1/health', 'none'],
    ['/v1/openapi.json', 'none'],
    ['/docs', 'none'],
    ['/v1/agents/verification-challenge', 'operator'],
    ['/v1/agents/me', 'agent'],
    ['/v1/registry', 'agent'],
    ['/v1/state', 'agent'],
    ['/v1/state/_capacity', 'agent'],
    ['/v1/state/absent', 'agent'],
    ['/v1/nothing', 'none'],
  ])('is answered as GET, without the body: %s', async (path, level) => {
    const [head, get] = await Promise.all(
      ['HEAD', 'GET'].map((method) => client.request(method, path, { token: token(level) })),
    )
    expect(head?.status).toBe(get?.status)
    expect(head?.headers['content-type']).toBe(get?.headers['content-type'])
    expect(head?.body).toHaveLength(0)
  })

  it('takes no message', async () => {
    const { message_id } = await agent.send(agent.address, 'not for HEAD')
    expect((await agent.request('HEAD', '/v1/messages')).status).toBe(405)
    const received = await receiveSoon(agent, 1)
    expect(received.map((message) => message.message_id)).toContain(message_id)
  })
})

describe('401 unauthorized', () => {
  it.each(BODY_ENDPOINTS.filter(([, , level]) => level !== 'none'))(
    'says how to authenticate: %s %s',
    async (method, path) => {
      for (const wrong of [
        undefined,
        'nonsense',
        `at_live_${'0'.repeat(64)}`,
        `sk_live_${'0'.repeat(64)}`,
      ]) {
        const answer = await client.request(method, path, { token: wrong, json: {} })
        expectRefusal(answer, 401)
        expect(answer.headers['www-authenticate']).toBe('Bearer')
      }
    },
  )
})

describe('an empty cursor', () => {
  it.each(['/v1/registry', '/v1/state'])('is the first page: %s', async (path) => {
    for (const query of ['?cursor=', '?cursor', '?cursor=&limit=1000']) {
      const answer = await agent.request('GET', path + query)
      expect(answer.status, String(answer)).toBe(200)
    }
    expectRefusal(await agent.request('GET', `${path}?cursor=+`), 400)
  })
})

describe('no answer has CORS headers', () => {
  it.each(['/v1/health', '/v1/nothing', '/v1/state'])('%s', async (path) => {
    const answer = await client.request('GET', path, { headers: { Origin: 'https://example.com' } })
    expect(
      Object.keys(answer.headers).filter((name) => name.startsWith('access-control-')),
    ).toEqual([])
  })
})

describe('413 value_too_large', () => {
  it.each(BODY_ENDPOINTS)(
    "is for a body over the route's limit: %s %s",
    async (method, path, level, valid) => {
      const json = { ...valid, padding: 'x'.repeat(16 * MEBIBYTE) }
      for (const chunked of [false, true]) {
        const answers = await inParallel(4, () =>
          client.request(method, path, { token: token(level), json, chunked }),
        )
        for (const answer of answers) expectRefusal(answer, 413)
      }
    },
  )

  it('closes no connection that it said it would keep', async () => {
    const own = new Client(target.baseUrl)
    const answers = await inParallel(20, () =>
      own.request('POST', '/v1/operators', {
        json: { contact_hash: 'x', padding: 'x'.repeat(300_000) },
      }),
    )
    for (const answer of answers) expectRefusal(answer, 413)
    // Long enough for a server that gives up on the rest of the bodies: requests after that go over
    // the same connections.
    await sleep(1_000)
    const next = await inParallel(20, () => own.request('GET', '/v1/health'))
    expect(next.filter(({ status }) => status !== 200)).toEqual([])
  })

  it('leaves the server able to answer the next request', async () => {
    for (let round = 0; round < 5; round++) {
      const json = { value: 'x'.repeat(16 * MEBIBYTE) }
      expectRefusal(await agent.request('PUT', '/v1/state/errors', { json }), 413)
      expect((await agent.tryWrite('errors', 'small')).status).toBe(200)
    }
  })
})

describe('415 unsupported_media_type', () => {
  describe.each(BODY_ENDPOINTS)('%s %s', (method, path, level, valid) => {
    const send = (headers: Record<string, string>) =>
      client.request(method, path, { token: token(level), headers, body: JSON.stringify(valid) })

    it.each([
      'text/plain',
      'text/json',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'application/jsonp',
      'application/json5',
      'application/problem+json',
      'application/jsonapplication/json',
      'application',
      'json',
      'text/plain; application/json',
      '*/*',
    ])('is for a Content-Type that is not application/json: %s', async (type) => {
      expectRefusal(await send({ 'Content-Type': type }), 415)
    })

    it('is for a missing Content-Type', async () => {
      expectRefusal(await send({}), 415)
    })

    it.each(['gzip', 'deflate', 'identity', 'br, gzip', ''])(
      'is for a Content-Encoding: %j',
      async (encoding) => {
        expectRefusal(await send({ ...JSON_TYPE, 'Content-Encoding': encoding }), 415)
      },
    )

    it.each([
      'application/json; charset=utf-8',
      'application/json;charset=UTF-8',
      'application/json ; charset="utf-8"',
      'Application/JSON',
    ])('is not for application/json with parameters or in other letters: %s', async (type) => {
      const answer = await send({ 'Content-Type': type })
      const expected = {
        '/v1/operators': 201,
        '/v1/agents': 403,
        '/v1/messages': 202,
        '/v1/state/errors': 200,
      }
      expect(answer.status, String(answer)).toBe(expected[path as keyof typeof expected])
    })
  })
})

describe('no stack trace, no internal name, no secret ever appears in an error', () => {
  it('of any of these', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    const requests: [string, string, RequestOptions][] = [
      ['GET', '/v1/nothing', { token: agent.token }],
      ['GET', '/v1/agents/me', { token: operator.token }],
      ['GET', '/v1/agents/me', { token: `${agent.token}0` }],
      ['PATCH', '/v1/messages', { token: agent.token }],
      ['POST', '/v1/messages', { token: agent.token, headers: JSON_TYPE, body: '{' }],
      ['POST', '/v1/messages', { token: agent.token, body: 'x' }],
      [
        'POST',
        '/v1/messages',
        { token: agent.token, json: { to: `tab_${'z'.repeat(20)}`, content: 'x' } },
      ],
      ['POST', '/v1/messages', { token: agent.token, json: { to: 7, content: [] } }],
      ['POST', '/v1/messages', { token: agent.token, json: { to: '\u0000', content: '\u0000' } }],
      ['PUT', '/v1/state/x', { token: agent.token, json: {} }],
      ['PUT', '/v1/state/%zz', { token: agent.token, json: { value: 'x' } }],
      ['GET', '/v1/state/absent', { token: agent.token }],
      ['GET', '/v1/state?cursor=garbage', { token: agent.token }],
      ['GET', '/v1/registry?cursor=garbage', { token: agent.token }],
      ['POST', '/v1/operators', { json: { contact_hash: 7 } }],
      ['POST', '/v1/agents', { token: operator.token, json: { verification_response: 7 } }],
      [
        'POST',
        '/v1/agents',
        {
          token: operator.token,
          json: { verification_response: { challenge_id, response: 'wrong' } },
        },
      ],
      [
        'POST',
        '/v1/agents',
        {
          token: operator.token,
          json: {
            verification_response: { challenge_id, response: 'x' },
            webhook_url: 'https://localhost/',
          },
        },
      ],
    ]
    const solution = solvePipeline(challenge_data)
    for (const [method, path, options] of requests) {
      const answer = await client.request(method, path, options)
      expect(answer.status, String(answer)).toBeGreaterThanOrEqual(400)
      expect(answer.error).not.toBe('internal_error')
      const text = answer.body.toString()
      expect(text).not.toMatch(
        /\n\s*at |node_modules|\.ts\b|\.js\b|node:|file:|\bError:|\/src\/|ZodError|SyntaxError/,
      )
      expect(text).not.toMatch(
        /pglite|postgres|kysely|hono|redis|jetstream|bcrypt|\bselect\b|\binsert\b|\brelation\b/i,
      )
      for (const secret of [agent.token, operator.token, solution])
        expect(text).not.toContain(secret)
    }
  })
})
