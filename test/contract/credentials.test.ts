import { randomBytes } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { agentToken, Client, operatorToken } from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'
import { sharedTarget } from '../support/target.ts'
import { expectRefusal, inParallel } from './support.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)

/** One whose files can be searched. */
const kernel = await startKernel()
afterAll(() => kernel[Symbol.asyncDispose]())
const operator = await client.registerOperator()
const agent = await client.registerAgent()

interface Endpoint {
  method: string
  path: string
  json?: unknown
}

/** Every request is one that would succeed, or be refused for another reason than its token. */
const OPERATOR_ENDPOINTS: Endpoint[] = [
  { method: 'GET', path: '/v1/agents/verification-challenge' },
  {
    method: 'POST',
    path: '/v1/agents',
    json: { verification_response: { challenge_id: crypto.randomUUID(), response: 'x' } },
  },
]
const AGENT_ENDPOINTS: Endpoint[] = [
  { method: 'GET', path: '/v1/agents/me' },
  { method: 'GET', path: '/v1/registry' },
  { method: 'POST', path: '/v1/messages', json: { to: agent.address, content: 'x' } },
  { method: 'GET', path: '/v1/messages' },
  { method: 'GET', path: '/v1/state' },
  { method: 'GET', path: '/v1/state/' },
  { method: 'GET', path: '/v1/state/_capacity' },
  { method: 'GET', path: '/v1/state/some/key' },
  { method: 'PUT', path: '/v1/state/some/key', json: { value: 'x' } },
  { method: 'DELETE', path: '/v1/state/some/key' },
]

const named = (endpoints: Endpoint[]) =>
  endpoints.map((endpoint) => [`${endpoint.method} ${endpoint.path}`, endpoint] as const)

function ask(
  { method, path, json }: Endpoint,
  options: { token?: string; headers?: Record<string, string> },
) {
  return client.request(method, path, json === undefined ? options : { json, ...options })
}

describe('tokens', () => {
  it('of operators are sk_live_ and 64 hex, of agents at_live_ and 64 hex', () => {
    operatorToken.parse(operator.token)
    agentToken.parse(agent.token)
  })

  it('carry random bits: no two share any part', async () => {
    const agents = await client.registerAgents(20)
    const parts = agents.flatMap(
      ({ token }) => token.slice('at_live_'.length).match(/.{16}/g) ?? [],
    )
    expect(new Set(parts).size).toBe(20 * 4)
  })

  it('are shown once: no later answer and no event has them', async () => {
    const answers = await Promise.all(
      [...AGENT_ENDPOINTS.filter(({ method }) => method === 'GET')].map((endpoint) =>
        ask(endpoint, { token: agent.token }),
      ),
    )
    const shown = [
      ...answers.map(({ body }) => body.toString()),
      JSON.stringify(await target.events()),
    ].join('\n')
    expect(shown).not.toContain(agent.token.slice('at_live_'.length))
    expect(shown).not.toContain(operator.token.slice('sk_live_'.length))
  })

  it('are not stored: no file holds one', async () => {
    const own = new Client(kernel.baseUrl)
    const tokens = [(await own.registerOperator()).token, (await own.registerAgent()).token]
    const proof = `proof-${crypto.randomUUID()}`
    await (await own.registerAgent()).write('key', proof)
    await kernel.stop()
    const paths = (await readdir(kernel.dataDir, { recursive: true, withFileTypes: true }))
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
    const stored = await Promise.all(paths.map((path) => readFile(path)))
    expect(stored.some((bytes) => bytes.includes(proof))).toBe(true)
    for (const token of tokens) {
      const secret = token.slice('at_live_'.length)
      expect(
        stored.some(
          (bytes) => bytes.includes(secret) || bytes.includes(Buffer.from(secret, 'hex')),
        ),
      ).toBe(false)
    }
  })
})

describe('an operator token on an agent endpoint is 401', () => {
  it.each(named(AGENT_ENDPOINTS))('%s', async (_, endpoint) => {
    expectRefusal(await ask(endpoint, { token: operator.token }), 401)
  })
})

describe('an agent token on an operator endpoint is 401', () => {
  it.each(named(OPERATOR_ENDPOINTS))('%s', async (_, endpoint) => {
    expectRefusal(await ask(endpoint, { token: agent.token }), 401)
  })
})

describe.each([
  ['operator', OPERATOR_ENDPOINTS, operator.token, 'sk_live_'],
  ['agent', AGENT_ENDPOINTS, agent.token, 'at_live_'],
] as const)('401 unauthorized on %s endpoints', (_, endpoints, token, prefix) => {
  it.each(named([...endpoints]))('with a missing token: %s', async (_name, endpoint) => {
    expectRefusal(await ask(endpoint, {}), 401)
  })

  it.each(named([...endpoints]))('with a malformed token: %s', async (_name, endpoint) => {
    const malformed = [
      '',
      'Bearer',
      'Bearer ',
      token,
      `Basic ${token}`,
      `Basic ${Buffer.from(`${token}:`).toString('base64')}`,
      `Bearer ${token.slice(0, -1)}`,
      `Bearer ${token}0`,
      `Bearer ${token} ${token}`,
      `Bearer ${prefix}`,
      `Bearer ${token.slice(prefix.length)}`,
      `Bearer ${prefix}${'g'.repeat(64)}`,
      `Bearer ${prefix}${'\u00e9'.repeat(64)}`,
      `Bearer ${'x'.repeat(8_000)}`,
      'Bearer null',
    ]
    for (const Authorization of malformed) {
      expectRefusal(await ask(endpoint, { headers: { Authorization } }), 401)
    }
  })

  it.each(named([...endpoints]))('with an unknown token: %s', async (_name, endpoint) => {
    expectRefusal(await ask(endpoint, { token: prefix + randomBytes(32).toString('hex') }), 401)
  })

  it.each(named([...endpoints]))(
    "with the other level's bits under this level's prefix: %s",
    async (_name, endpoint) => {
      const bits = (token === agent.token ? operator.token : agent.token).slice(prefix.length)
      expectRefusal(await ask(endpoint, { token: prefix + bits }), 401)
    },
  )

  it.each(named([...endpoints]))(
    'with a token that differs in one character: %s',
    async (_name, endpoint) => {
      const last = token.endsWith('0') ? '1' : '0'
      expectRefusal(await ask(endpoint, { token: token.slice(0, -1) + last }), 401)
    },
  )
})

describe('a refused token', () => {
  it('is refused every time, also right after the true one was taken', async () => {
    const answers = await inParallel(40, (index) =>
      ask(
        { method: 'GET', path: '/v1/agents/me' },
        { token: index % 2 === 0 ? agent.token : operator.token },
      ),
    )
    expect(answers.map(({ status }) => status)).toEqual(
      answers.map((_, index) => (index % 2 === 0 ? 200 : 401)),
    )
  })

  it('has no effect', async () => {
    const key = `unauthorised/${crypto.randomUUID()}`
    expectRefusal(
      await client.request('PUT', `/v1/state/${key}`, {
        token: operator.token,
        json: { value: 'x' },
      }),
      401,
    )
    expectRefusal(await agent.tryRead(key), 404)
  })
})

describe('a restart', () => {
  it('leaves tokens as they were', async () => {
    await agent.write('before-restart', 'kept')
    await target.restart()
    const fresh = new Client(target.baseUrl)
    const answer = await fresh.request('GET', '/v1/state/before-restart', { token: agent.token })
    expect(answer.json).toMatchObject({ value: 'kept', last_modified_by: agent.address })
    const challenge = await fresh.request('GET', '/v1/agents/verification-challenge', {
      token: operator.token,
    })
    expect(challenge.status).toBe(200)
    expectRefusal(await fresh.request('GET', '/v1/agents/me', { token: operator.token }), 401)
  })
})
