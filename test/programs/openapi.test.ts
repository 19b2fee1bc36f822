/** The document at /v1/openapi.json: well-formed, complete, and what a running kernel does. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import {
  type Agent,
  Client,
  type Operator,
  percentEncode,
  type RequestOptions,
  solvePipeline,
} from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'

const CAPACITY = 2_000
/** Requests that an agent has of each kind, so few that a test can use them up. */
const ALLOWANCE = 15

const kernel = await startKernel({
  STATE_CAPACITY_BYTES: String(CAPACITY),
  RATE_LIMIT_MESSAGE_PER_MIN: String(ALLOWANCE),
  RATE_LIMIT_STATE_READ_PER_MIN: String(ALLOWANCE),
  RATE_LIMIT_STATE_WRITE_PER_MIN: String(ALLOWANCE),
  RATE_LIMIT_REGISTRY_READ_PER_MIN: String(ALLOWANCE),
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: String(ALLOWANCE),
})
afterAll(() => kernel[Symbol.asyncDispose]())
const client = new Client(kernel.baseUrl)

/** JSON Schema 2020-12, as far as `z.fromJSONSchema` reads it. */
const jsonSchema = z.record(z.string(), z.unknown())
const header = z.strictObject({ description: z.string().min(1), schema: jsonSchema })
const json = z.strictObject({
  'application/json': z.strictObject({ schema: jsonSchema, example: z.unknown() }),
})
const response = z.strictObject({
  description: z.string().min(1),
  headers: z.record(z.string(), header).optional(),
  content: json,
})
const parameter = z.strictObject({
  name: z.string().min(1),
  in: z.enum(['query', 'header', 'path', 'cookie']),
  description: z.string().min(1),
  schema: jsonSchema,
  required: z.boolean().optional(),
})
const operation = z.strictObject({
  operationId: z.string().regex(/^[a-z][A-Za-z]+$/),
  summary: z.string().min(1),
  description: z.string().min(1).optional(),
  security: z.array(z.record(z.string(), z.array(z.string()))),
  parameters: z.array(parameter),
  requestBody: z.strictObject({ required: z.literal(true), content: json }).optional(),
  responses: z.record(z.string().regex(/^[2-5]\d\d$/), response),
})
const document = z.strictObject({
  openapi: z.string().regex(/^3\.1\.\d+$/),
  info: z.strictObject({
    title: z.string().min(1),
    version: z.string().min(1),
    description: z.string().min(1),
    termsOfService: z.string().optional(),
    license: z.strictObject({ name: z.string(), identifier: z.string() }),
  }),
  paths: z.record(
    z.string().regex(/^\/v1\//),
    z.partialRecord(
      z.enum(['get', 'put', 'post', 'delete', 'options', 'head', 'patch', 'trace']),
      operation,
    ),
  ),
  components: z.strictObject({
    securitySchemes: z.record(
      z.string(),
      z.strictObject({
        type: z.literal('http'),
        scheme: z.literal('bearer'),
        description: z.string(),
      }),
    ),
  }),
})

const answer = await client.request('GET', '/v1/openapi.json')
const parsed = document.safeParse(answer.status === 200 ? answer.json : undefined)
const operations = Object.entries(parsed.data?.paths ?? {}).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, definition]) => ({
    method: method.toUpperCase(),
    path,
    ...definition,
  })),
)
const byId = new Map(operations.map((entry) => [entry.operationId, entry]))

/**
 * What the contract says of each endpoint: its method and path, and the statuses that it may answer
 * with.
 */
const CONTRACT: Record<
  string,
  { endpoint: string; statuses: number[]; level?: 'operator' | 'agent'; limited?: true }
> = {
  getHealth: { endpoint: 'GET /v1/health', statuses: [200] },
  registerOperator: {
    endpoint: 'POST /v1/operators',
    statuses: [201, 400, 413, 415, 429, 500, 503],
    limited: true,
  },
  getChallenge: {
    endpoint: 'GET /v1/agents/verification-challenge',
    statuses: [200, 401, 500, 503],
    level: 'operator',
  },
  registerAgent: {
    endpoint: 'POST /v1/agents',
    statuses: [201, 400, 401, 403, 413, 415, 500, 503],
    level: 'operator',
  },
  getMe: {
    endpoint: 'GET /v1/agents/me',
    statuses: [200, 401, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  listAgents: {
    endpoint: 'GET /v1/registry',
    statuses: [200, 400, 401, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  sendMessage: {
    endpoint: 'POST /v1/messages',
    statuses: [202, 400, 401, 404, 413, 415, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  receiveMessages: {
    endpoint: 'GET /v1/messages',
    statuses: [200, 401, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  listKeys: {
    endpoint: 'GET /v1/state',
    statuses: [200, 400, 401, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  getCapacity: {
    endpoint: 'GET /v1/state/_capacity',
    statuses: [200, 401, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  readState: {
    endpoint: 'GET /v1/state/{key}',
    statuses: [200, 400, 401, 404, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
  writeState: {
    endpoint: 'PUT /v1/state/{key}',
    statuses: [200, 400, 401, 413, 415, 429, 500, 503, 507],
    level: 'agent',
    limited: true,
  },
  deleteState: {
    endpoint: 'DELETE /v1/state/{key}',
    statuses: [200, 400, 401, 404, 429, 500, 503],
    level: 'agent',
    limited: true,
  },
}
const CODES: Record<number, string> = {
  400: 'bad_request',
  401: 'unauthorized',
  403: 'verification_failed',
  404: 'not_found',
  413: 'value_too_large',
  415: 'unsupported_media_type',
  429: 'rate_limited',
  500: 'internal_error',
  503: 'unavailable',
  507: 'store_full',
}
const LIMIT_HEADERS = ['X-RateLimit-Limit', 'X-RateLimit-Remaining', 'X-RateLimit-Reset']

type JsonSchema = Parameters<typeof z.fromJSONSchema>[0]
function expectToMatch(value: unknown, schema: z.infer<typeof jsonSchema>, what: string): void {
  const { error } = z.fromJSONSchema(schema as JsonSchema).safeParse(value)
  expect(error, `${what}: ${error && z.prettifyError(error)}`).toBeUndefined()
}

describe('the document', () => {
  it('is served to everybody as JSON', () => {
    expect(answer.status).toBe(200)
    expect(answer.headers['content-type']).toMatch(/^application\/json\b/)
  })

  it('is built as OpenAPI 3.1 asks', () => {
    expect(parsed.error && z.prettifyError(parsed.error)).toBeUndefined()
  })

  it('has just the endpoints of the contract, under ids of their own', () => {
    const expected = Object.entries(CONTRACT).map(([id, { endpoint }]) => `${id}: ${endpoint}`)
    expect(
      operations.map(({ operationId, method, path }) => `${operationId}: ${method} ${path}`).sort(),
    ).toEqual(expected.sort())
  })

  it('names the contract version that /v1/health names', async () => {
    const health = (await client.request('GET', '/v1/health')).as(
      200,
      z.object({ version: z.string() }),
    )
    expect(parsed.data?.info.version).toBe(health.version)
  })

  it('uses no security scheme that it does not define', () => {
    const defined = Object.keys(parsed.data?.components.securitySchemes ?? {})
    expect(defined.sort()).toEqual(['agent', 'operator'])
    for (const { security } of operations) {
      for (const name of security.flatMap((requirement) => Object.keys(requirement)))
        expect(defined).toContain(name)
    }
  })
})

describe.each(Object.entries(CONTRACT))('%s', (id, { statuses, level, limited }) => {
  const entry = byId.get(id)
  const responses = Object.entries(entry?.responses ?? {})

  it('has all answers, and no others', () => {
    expect(responses.map(([status]) => Number(status))).toEqual(statuses)
  })

  it('says which token it needs', () => {
    expect(entry?.security).toEqual(level ? [{ [level]: [] }] : [])
  })

  it('declares the parameters of its path, required, and no others', () => {
    const named = [...(entry?.path ?? '').matchAll(/\{([^}]+)\}/g)].map(([, name]) => name)
    const declared = entry?.parameters.filter((candidate) => candidate.in === 'path') ?? []
    expect(declared.map(({ name, required }) => ({ name, required }))).toEqual(
      named.map((name) => ({ name, required: true })),
    )
    const places = entry?.parameters.map((candidate) => `${candidate.in} ${candidate.name}`) ?? []
    expect(new Set(places).size).toBe(places.length)
  })

  it('has examples that its schemas allow', () => {
    const request = entry?.requestBody?.content['application/json']
    if (request) expectToMatch(request.example, request.schema, 'the request')
    for (const [status, { content }] of responses) {
      const { example, schema } = content['application/json']
      expectToMatch(example, schema, status)
      if (Number(status) >= 400) expect(example).toMatchObject({ error: CODES[Number(status)] })
    }
  })

  it('has rate-limit headers where it is limited, and Retry-After where one should wait', () => {
    for (const [status, { headers = {} }] of responses) {
      const names = Object.keys(headers)
      if (!limited)
        expect(names, status).not.toEqual(
          expect.arrayContaining([expect.stringMatching(/^X-RateLimit/)]),
        )
      // Who is not known has no bucket.
      else if (status !== '401')
        expect(names, status).toEqual(expect.arrayContaining(LIMIT_HEADERS))
      expect(names.includes('Retry-After'), status).toBe(status === '429' || status === '503')
    }
  })
})

describe('a running kernel answers as the document says', () => {
  let operator: Operator
  let peer: Agent
  beforeAll(async () => {
    operator = await client.registerOperator()
    peer = await operator.registerAgent()
  })

  /** One request, given an agent that has not done anything yet. */
  type Probe = (
    agent: Agent,
  ) => Promise<[path: string, options: RequestOptions]> | [string, RequestOptions]

  const asOperator = (path: string, options: RequestOptions = {}): Probe => {
    return () => [path, { token: operator.token, ...options }]
  }
  const asAgent = (path: string, options: RequestOptions = {}): Probe => {
    return (agent) => [path, { token: agent.token, ...options }]
  }
  const registration = (response?: string): Probe => {
    return async () => {
      const { challenge_id, challenge_data } = await operator.challenge()
      const verification = { challenge_id, response: response ?? solvePipeline(challenge_data) }
      return [
        '/v1/agents',
        { token: operator.token, json: { verification_response: verification } },
      ]
    }
  }
  const headers = { 'Content-Type': 'application/json' }
  const tooLarge = { headers, body: `"${'x'.repeat(8_000_000)}"` }
  const notJson = { headers: { 'Content-Type': 'text/plain' }, body: '{}' }
  const noToken = { token: undefined }
  const operatorBody = { contact_hash: 'x', accept_terms: true }
  // Its own address, so that using up its allowance takes nothing from others.
  const from = '127.0.0.9'

  const PROBES: Record<string, Record<number, Probe[]>> = {
    getHealth: { 200: [() => ['/v1/health', {}]] },
    registerOperator: {
      201: [() => ['/v1/operators', { json: operatorBody }]],
      400: [
        () => ['/v1/operators', { json: {} }],
        () => ['/v1/operators', { headers, body: '{' }],
        () => ['/v1/operators', { json: { ...operatorBody, accept_terms: false } }],
      ],
      413: [() => ['/v1/operators', tooLarge]],
      415: [() => ['/v1/operators', notJson]],
      429: [() => ['/v1/operators', { json: operatorBody, from }]],
    },
    getChallenge: {
      200: [asOperator('/v1/agents/verification-challenge')],
      401: [asAgent('/v1/agents/verification-challenge')],
    },
    registerAgent: {
      201: [registration()],
      400: [
        asOperator('/v1/agents', { json: {} }),
        asOperator('/v1/agents', {
          json: {
            verification_response: { challenge_id: 'x', response: 'x' },
            webhook_url: 'http://127.0.0.1/',
          },
        }),
      ],
      401: [() => ['/v1/agents', { json: {} }]],
      403: [registration('wrong')],
      413: [asOperator('/v1/agents', tooLarge)],
      415: [asOperator('/v1/agents', notJson)],
    },
    getMe: {
      200: [asAgent('/v1/agents/me')],
      401: [asOperator('/v1/agents/me')],
      429: [asAgent('/v1/agents/me')],
    },
    listAgents: {
      200: [asAgent('/v1/registry'), asAgent('/v1/registry?limit=1')],
      400: [asAgent('/v1/registry?cursor=never-issued')],
      401: [asAgent('/v1/registry', noToken)],
      429: [asAgent('/v1/registry')],
    },
    sendMessage: {
      202: [
        ({ token }) => ['/v1/messages', { token, json: { to: peer.address, content: 'hello' } }],
        ({ token }) => [
          '/v1/messages',
          {
            token,
            json: { to: peer.address, content: 'hello' },
            headers: { 'Idempotency-Key': 'one' },
          },
        ],
      ],
      400: [asAgent('/v1/messages', { json: { to: 'x', content: '' } })],
      401: [asAgent('/v1/messages', { ...noToken, json: {} })],
      404: [asAgent('/v1/messages', { json: { to: `tab_${'0'.repeat(20)}`, content: 'hello' } })],
      413: [asAgent('/v1/messages', tooLarge)],
      415: [asAgent('/v1/messages', notJson)],
      429: [asAgent('/v1/messages', { json: {} })],
    },
    receiveMessages: {
      200: [
        asAgent('/v1/messages'),
        async (agent) => {
          await agent.send(agent.address, 'a note to myself')
          return ['/v1/messages', { token: agent.token }]
        },
      ],
      401: [asAgent('/v1/messages', noToken)],
      429: [asAgent('/v1/messages')],
    },
    listKeys: {
      200: [asAgent('/v1/state'), asAgent('/v1/state/'), asAgent('/v1/state?prefix=none')],
      400: [asAgent('/v1/state?cursor=never-issued')],
      401: [asAgent('/v1/state', noToken)],
      429: [asAgent('/v1/state')],
    },
    getCapacity: {
      200: [asAgent('/v1/state/_capacity')],
      401: [asAgent('/v1/state/_capacity', noToken)],
      429: [asAgent('/v1/state/_capacity')],
    },
    readState: {
      200: [
        async (agent) => {
          await agent.write('read/ä', 'a value')
          return [`/v1/state/${percentEncode('read/ä')}`, { token: agent.token }]
        },
      ],
      400: [asAgent(`/v1/state/${'k'.repeat(1_025)}`), asAgent('/v1/state/%ff')],
      401: [asAgent('/v1/state/read', noToken)],
      404: [asAgent('/v1/state/none')],
      429: [asAgent('/v1/state/none')],
    },
    writeState: {
      200: [asAgent('/v1/state/written', { json: { value: '' } })],
      400: [
        asAgent('/v1/state/written', { json: {} }),
        asAgent('/v1/state/_capacity', { json: { value: 'x' } }),
      ],
      401: [asAgent('/v1/state/written', { ...noToken, json: { value: 'x' } })],
      413: [
        asAgent('/v1/state/written', { json: { value: 'x'.repeat(1_048_577) } }),
        asAgent('/v1/state/x', tooLarge),
      ],
      415: [asAgent('/v1/state/written', notJson)],
      429: [asAgent('/v1/state/written', { json: {} })],
      507: [asAgent('/v1/state/written', { json: { value: 'x'.repeat(CAPACITY + 1) } })],
    },
    deleteState: {
      200: [
        async (agent) => {
          await agent.write('deleted', 'x')
          return ['/v1/state/deleted', { token: agent.token }]
        },
      ],
      400: [asAgent('/v1/state/_capacity')],
      401: [asAgent('/v1/state/deleted', noToken)],
      404: [asAgent('/v1/state/none')],
      429: [asAgent('/v1/state/none')],
    },
  }

  it('is asked for every documented answer but those of an outage', () => {
    const probed = Object.entries(PROBES).map(([id, probes]) => [id, Object.keys(probes)])
    const documented = operations.map(({ operationId, responses }) => [
      operationId,
      Object.keys(responses).filter((status) => status !== '500' && status !== '503'),
    ])
    expect(Object.fromEntries(probed)).toEqual(Object.fromEntries(documented))
  })

  const cases = Object.entries(PROBES).flatMap(([id, probes]) =>
    Object.entries(probes).flatMap(([status, list]) =>
      list.map((probe) => ({ id, status: Number(status), probe })),
    ),
  )
  it.each(cases)('$id: $status', async ({ id, status, probe }) => {
    const entry = byId.get(id)
    const documented = entry?.responses[status]
    if (!entry || !documented) throw new Error(`${id} has no ${status}`)
    const [path, options] = await probe(await operator.registerAgent())

    if (status === 429) {
      for (let used = 0; used < ALLOWANCE; used++) await client.request(entry.method, path, options)
    }
    let actual = await client.request(entry.method, path, options)
    // One more is allowed every few seconds, so a machine that is slow has to send some more.
    for (let more = 0; status === 429 && actual.status !== 429 && more < 10 * ALLOWANCE; more++)
      actual = await client.request(entry.method, path, options)

    expect(actual.status, String(actual)).toBe(status)
    expect(actual.headers['content-type']).toMatch(/^application\/json\b/)
    expectToMatch(actual.json, documented.content['application/json'].schema, String(actual))
    if (status >= 400) expect(actual.error).toBe(CODES[status])
    const request = entry.requestBody?.content['application/json']
    if (request && status < 300) expectToMatch(options.json, request.schema, 'the request')
    for (const [name, { schema }] of Object.entries(documented.headers ?? {})) {
      const value = actual.headers[name.toLowerCase()]
      // A header is text; what is to be a number is made of digits.
      expectToMatch(/^\d+$/.test(String(value)) ? Number(value) : value, schema, name)
    }
    const undocumented = Object.keys(actual.headers).filter(
      (name) =>
        /^(x-ratelimit|retry-after|www-authenticate)/.test(name) &&
        !Object.keys(documented.headers ?? {}).some((known) => known.toLowerCase() === name),
    )
    expect(undocumented).toEqual([])
  })
})
