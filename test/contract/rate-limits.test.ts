import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import {
  type Agent,
  type Answer,
  Client,
  messagesPage,
  type RequestOptions,
} from '../../lab/client.ts'
import { ownTarget } from '../support/target.ts'
import { expectRefusal, inParallel, lastSeq, ofType } from './support.ts'

/** The limits as the contract has them. */
const defaults = await ownTarget({}, { limits: 'default' })
const client = new Client(defaults.baseUrl)

/** Limits of 2, which refill so slowly that a test does not see it. */
const tight = await ownTarget({
  RATE_LIMIT_MESSAGE_PER_MIN: '2',
  RATE_LIMIT_STATE_READ_PER_MIN: '2',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '2',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '2',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '2',
})
const tightClient = new Client(tight.baseUrl)

/** By so much the clock that limits go by may differ from that of these tests. */
const CLOCK_TOLERANCE_MS = 250

const behindProxies = await ownTarget({
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1',
  TRUSTED_PROXIES: '127.0.0.0/8,198.51.100.0/24',
})

interface Endpoint {
  method: string
  path: string
  /** A body that succeeds, and one that is refused with 400. */
  json?: (agent: Agent) => unknown
  invalid?: string
}
interface Category {
  name: string
  perMinute: number
  endpoints: [Endpoint, ...Endpoint[]]
}

const CATEGORIES: Category[] = [
  {
    name: 'message',
    perMinute: 60,
    endpoints: [
      { method: 'GET', path: '/v1/messages' },
      {
        method: 'POST',
        path: '/v1/messages',
        json: ({ address }) => ({ to: address, content: 'x' }),
        invalid: '{"to":7}',
      },
    ],
  },
  {
    name: 'state read',
    perMinute: 300,
    endpoints: [
      { method: 'GET', path: '/v1/state' },
      { method: 'GET', path: '/v1/state/' },
      { method: 'GET', path: '/v1/state/limited' },
      { method: 'GET', path: '/v1/state/_capacity' },
    ],
  },
  {
    name: 'state write',
    perMinute: 60,
    endpoints: [
      {
        method: 'PUT',
        path: '/v1/state/limited',
        json: () => ({ value: 'x' }),
        invalid: '{"value":7}',
      },
      { method: 'DELETE', path: '/v1/state/limited' },
    ],
  },
  {
    name: 'registry read',
    perMinute: 30,
    endpoints: [
      { method: 'GET', path: '/v1/registry' },
      { method: 'GET', path: '/v1/agents/me' },
    ],
  },
]
const ENDPOINTS = CATEGORIES.flatMap((category) =>
  category.endpoints.map(
    (endpoint) => [`${endpoint.method} ${endpoint.path}`, category, endpoint] as const,
  ),
)

function ask(
  agent: Agent,
  { method, path, json }: Endpoint,
  more: RequestOptions = {},
): Promise<Answer> {
  return agent.request(method, path, {
    ...(json === undefined ? {} : { json: json(agent) }),
    ...more,
  })
}

interface LimitHeaders {
  limit: number
  remaining: number
  /** Unix seconds. */
  reset: number
}

/** The three headers that each response of a limited endpoint carries, all whole numbers. */
function limitHeaders(answer: Answer): LimitHeaders {
  const read = (name: string) => {
    const value = answer.headers[name]
    expect(value, `${name} of ${answer}`).toMatch(/^\d+$/)
    return Number(value)
  }
  return {
    limit: read('x-ratelimit-limit'),
    remaining: read('x-ratelimit-remaining'),
    reset: read('x-ratelimit-reset'),
  }
}

/**
 * Expects the 429 of the contract, whose X-RateLimit-Reset says the same as its Retry-After, and
 * returns the latter in seconds.
 */
function retryAfter(answer: Answer): number {
  expectRefusal(answer, 429)
  expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/)
  const seconds = Number(answer.headers['retry-after'])
  // `Date` is of the same clock, a moment later.
  const answeredAt = Date.parse(answer.headers.date ?? '') / 1_000
  expect(
    Math.abs(Number(answer.headers['x-ratelimit-reset']) - answeredAt - seconds),
  ).toBeLessThanOrEqual(2)
  return seconds
}

/**
 * Registers an operator from an address of this machine. Every test has its own, as their
 * allowances last an hour.
 */
const registerFrom = (own: Client, from: string, headers: Record<string, string> = {}) =>
  own.request('POST', '/v1/operators', {
    from,
    headers: { ...headers },
    json: { contact_hash: 'x', accept_terms: true },
  })

describe('the defaults', () => {
  it.each(ENDPOINTS)('%s has the limit of its category', async (_, category, endpoint) => {
    const agent = await client.registerAgent()
    const before = Date.now() / 1_000
    const { limit, remaining, reset } = limitHeaders(await ask(agent, endpoint))
    expect({ limit, remaining }).toEqual({
      limit: category.perMinute,
      remaining: category.perMinute - 1,
    })
    expect(reset).toBeGreaterThanOrEqual(Math.floor(before))
    expect(reset).toBeLessThanOrEqual(Date.now() / 1_000 + 62)
  })

  it.each(CATEGORIES)(
    'the bucket of $name holds a full minute’s allowance: $perMinute',
    async ({ perMinute, endpoints }) => {
      const agent = await client.registerAgent()
      const start = performance.now()
      let allowed = 0
      let refused: Answer | undefined
      while (refused === undefined && allowed < 2 * perMinute) {
        const answers = await inParallel(10, () => ask(agent, endpoints[0]))
        allowed += answers.filter(({ status }) => status !== 429).length
        refused = answers.find(({ status }) => status === 429)
      }
      const refilled = ((performance.now() - start) / 60_000) * perMinute
      expect(allowed).toBeGreaterThanOrEqual(perMinute)
      expect(allowed).toBeLessThanOrEqual(perMinute + Math.ceil(refilled) + 1)
      expect(refused?.status).toBe(429)
    },
  )

  it('the bucket refills at a constant rate, and Retry-After says when', async () => {
    const agent = await client.registerAgent()
    const endpoint = { method: 'GET', path: '/v1/messages' }
    const drain = async () => {
      for (;;) {
        const answer = await ask(agent, endpoint)
        if (answer.status === 429) return answer
      }
    }
    for (let round = 0; round < 3; round++) {
      const seconds = retryAfter(await drain())
      expect(seconds).toBe(1)
      await sleep(seconds * 1_000)
      expect((await ask(agent, endpoint)).status).toBe(200)
    }
    // One a second, where asking all the time is no help and no harm.
    const beforeEmpty = performance.now()
    await drain()
    const start = performance.now()
    let allowed = 0
    while (performance.now() - start < 3_000) {
      if ((await ask(agent, endpoint)).status === 200) allowed++
      await sleep(5)
    }
    const elapsed = performance.now() - start
    // What has come due and was not asked for yet, as a machine may be held up for longer than a
    // second.
    while ((await ask(agent, endpoint)).status === 200) allowed++
    expect(allowed).toBeGreaterThanOrEqual(Math.floor((elapsed - CLOCK_TOLERANCE_MS) / 1_000))
    expect(allowed).toBeLessThanOrEqual(Math.ceil((performance.now() - beforeEmpty) / 1_000) + 1)
  })

  it('operator registration: 5 an hour for a client IP', async () => {
    const answers: Answer[] = []
    for (let count = 0; count < 7; count++) answers.push(await registerFrom(client, '127.0.0.20'))
    expect(answers.map(({ status }) => status)).toEqual([201, 201, 201, 201, 201, 429, 429])
    expect(answers.map((answer) => limitHeaders(answer).limit)).toEqual(Array(7).fill(5))
    expect(answers.map((answer) => limitHeaders(answer).remaining)).toEqual([4, 3, 2, 1, 0, 0, 0])
    const last = answers.at(-1) as Answer
    expect(retryAfter(last)).toBeLessThanOrEqual(3_600 / 5)
    expect(retryAfter(last)).toBeGreaterThan(600)
    expect(limitHeaders(last).reset).toBeLessThanOrEqual(Date.now() / 1_000 + 3_602)
  })

  it('GET /v1/health has no limit', async () => {
    const answers = await inParallel(500, () => client.request('GET', '/v1/health'))
    expect(answers.filter(({ status }) => status !== 200)).toEqual([])
    expect(answers[0]?.headers).not.toHaveProperty('x-ratelimit-limit')
  })

  it('challenges and agent registrations have no limit', async () => {
    const operator = await client.registerOperator()
    const answers = await inParallel(100, () =>
      operator.request('GET', '/v1/agents/verification-challenge'),
    )
    expect(answers.filter(({ status }) => status !== 200)).toEqual([])
    expect(answers[0]?.headers).not.toHaveProperty('x-ratelimit-limit')
    await inParallel(40, () => operator.registerAgent())
  })
})

describe('endpoints that draw on a category', () => {
  it.each(ENDPOINTS)('%s', async (_, category, endpoint) => {
    const agent = await tightClient.registerAgent()
    const [first] = category.endpoints
    expect(limitHeaders(await ask(agent, endpoint))).toMatchObject({ limit: 2, remaining: 1 })
    expect(limitHeaders(await ask(agent, first))).toMatchObject({ limit: 2, remaining: 0 })
    for (const each of category.endpoints) retryAfter(await ask(agent, each))
    for (const other of CATEGORIES) {
      if (other !== category) expect((await ask(agent, other.endpoints[0])).status).not.toBe(429)
    }
  })
})

describe('a bucket', () => {
  it("is one agent's, and equal for all agents", async () => {
    const [one, two] = await tightClient.registerAgents(2)
    const endpoint = { method: 'GET', path: '/v1/messages' }
    for (const agent of [one, two] as Agent[]) {
      const answers: Answer[] = []
      for (let count = 0; count < 4; count++) answers.push(await ask(agent, endpoint))
      expect(answers.map(({ status }) => status)).toEqual([200, 200, 429, 429])
      expect(answers.map((answer) => limitHeaders(answer).remaining)).toEqual([1, 0, 0, 0])
    }
  })

  it('gives no more when asked many times at once', async () => {
    const agent = await tightClient.registerAgent()
    const answers = await inParallel(40, () => ask(agent, { method: 'GET', path: '/v1/messages' }))
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(2)
    for (const answer of answers.filter(({ status }) => status !== 200)) retryAfter(answer)
  })
})

describe('each response of a limited endpoint carries the headers', () => {
  it.each(ENDPOINTS)('success and 429: %s', async (_, _category, endpoint) => {
    const agent = await tightClient.registerAgent()
    for (let count = 0; count < 2; count++) limitHeaders(await ask(agent, endpoint))
    const refused = await ask(agent, endpoint)
    const seconds = retryAfter(refused)
    expect(seconds).toBeLessThanOrEqual(30)
    expect(limitHeaders(refused)).toMatchObject({ limit: 2, remaining: 0 })
    expect(limitHeaders(refused).reset).toBeGreaterThanOrEqual(Math.floor(Date.now() / 1_000))
  })

  it.each<[number, string, string, RequestOptions]>([
    [400, 'POST', '/v1/messages', { json: { to: 7 } }],
    [400, 'POST', '/v1/messages', { headers: { 'Content-Type': 'application/json' }, body: '{' }],
    [400, 'PUT', '/v1/state/limited', { json: { value: 7 } }],
    [400, 'PUT', '/v1/state/%zz', { json: { value: 'x' } }],
    [400, 'GET', '/v1/state/%zz', {}],
    [400, 'DELETE', '/v1/state/%zz', {}],
    [400, 'GET', `/v1/state/${'k'.repeat(1_025)}`, {}],
    [400, 'GET', '/v1/state?cursor=garbage', {}],
    [400, 'GET', '/v1/registry?cursor=garbage', {}],
    [404, 'POST', '/v1/messages', { json: { to: `tab_${'0'.repeat(20)}`, content: 'x' } }],
    [404, 'GET', '/v1/state/absent', {}],
    [404, 'DELETE', '/v1/state/absent', {}],
    [413, 'PUT', '/v1/state/limited', { json: { value: 'x'.repeat(1_048_577) } }],
    [413, 'PUT', '/v1/state/limited', { json: { value: 'x'.repeat(16_000_000) } }],
    [415, 'POST', '/v1/messages', { body: '{}' }],
    [415, 'PUT', '/v1/state/limited', { body: '{}' }],
  ])('%i: %s %s', async (status, method, path, options) => {
    const agent = await client.registerAgent()
    const answer = await agent.request(method, path, options)
    expectRefusal(answer, status)
    limitHeaders(answer)
  })

  it('201, 400, 415 and 429 of POST /v1/operators', async () => {
    const from = '127.0.0.30'
    const post = (options: RequestOptions) =>
      tightClient.request('POST', '/v1/operators', { from, ...options })
    const success = await registerFrom(tightClient, from)
    expect(limitHeaders(success)).toMatchObject({ limit: 2, remaining: 1 })
    limitHeaders(await post({ json: {} }))
    limitHeaders(await post({ body: 'x' }))
    for (;;) {
      const answer = await registerFrom(tightClient, from)
      limitHeaders(answer)
      if (answer.status === 429) {
        retryAfter(answer)
        break
      }
    }
  })
})

describe('a request over the limit has no effect', () => {
  it('writes and removes nothing, sends nothing, and leaves no event', async () => {
    const [agent, other] = (await tightClient.registerAgents(2)) as [Agent, Agent]
    await agent.write('over-the-limit', 'first')
    await agent.write('over-the-limit', 'second')
    await agent.send(other.address, 'first')
    await agent.send(other.address, 'second')
    const since = await lastSeq(tight)
    retryAfter(await agent.tryWrite('over-the-limit', 'third'))
    retryAfter(await agent.tryRemove('over-the-limit'))
    retryAfter(await agent.trySend(other.address, 'third'))
    expect((await other.read('over-the-limit')).value).toBe('second')
    // They may come a bit later than they are acknowledged. This agent may ask twice, and then once
    // in half a minute.
    const received: string[] = []
    while (received.length < 2) {
      const answer = await other.request('GET', '/v1/messages')
      if (answer.status === 429) await sleep(retryAfter(answer) * 1_000)
      else received.push(...answer.as(200, messagesPage).messages.map(({ content }) => content))
    }
    expect(received).toEqual(['first', 'second'])
    expect(
      ofType(await tight.events(since), 'state_written', 'state_deleted', 'message_sent'),
    ).toEqual([])
  })

  it('registers no operator', async () => {
    const from = '127.0.0.31'
    for (let count = 0; count < 2; count++)
      expect((await registerFrom(tightClient, from)).status).toBe(201)
    const since = await lastSeq(tight)
    retryAfter(await registerFrom(tightClient, from))
    expect(ofType(await tight.events(since), 'operator_created')).toEqual([])
  })
})

describe('the client IP', () => {
  it("is the peer's address: another peer has an allowance of its own", async () => {
    for (const from of ['127.0.0.40', '127.0.0.41']) {
      const answers: Answer[] = []
      for (let count = 0; count < 3; count++) answers.push(await registerFrom(tightClient, from))
      expect(answers.map(({ status }) => status)).toEqual([201, 201, 429])
    }
  })

  it('X-Forwarded-For from a peer that is no trusted proxy is ignored', async () => {
    const statuses: number[] = []
    for (const forged of [
      '203.0.113.1',
      '203.0.113.2',
      '203.0.113.3, 203.0.113.4',
      '127.0.0.1',
      '::1',
    ]) {
      statuses.push(
        (await registerFrom(tightClient, '127.0.0.42', { 'X-Forwarded-For': forged })).status,
      )
    }
    expect(statuses).toEqual([201, 201, 429, 429, 429])
  })

  it('is the right-most X-Forwarded-For entry not written by a trusted proxy', async () => {
    const proxied = new Client(behindProxies.baseUrl)
    const status = async (forwardedFor: string) =>
      (await registerFrom(proxied, '127.0.0.50', { 'X-Forwarded-For': forwardedFor })).status
    // The first of each client is taken, any other is over its limit.
    expect(await status('203.0.113.1')).toBe(201)
    expect(await status('203.0.113.1')).toBe(429)
    expect(await status('203.0.113.2')).toBe(201)
    // What the client wrote itself, to the left, changes nothing.
    expect(await status('192.0.2.77, 203.0.113.1')).toBe(429)
    expect(await status('garbage, 203.0.113.1')).toBe(429)
    expect(await status('203.0.113.3,203.0.113.2')).toBe(429)
    // Entries of trusted proxies, to the right, are passed over.
    expect(await status('203.0.113.1, 198.51.100.7')).toBe(429)
    expect(await status('203.0.113.1, 198.51.100.7, 198.51.100.8')).toBe(429)
    expect(await status('203.0.113.4, 198.51.100.7')).toBe(201)
    expect(await status('203.0.113.4')).toBe(429)
  })
})
