/** Every endpoint of the agent API under load, one after the other. */
import { randomUUID } from 'node:crypto'
import { Client, keyPath, solvePipeline } from '../test/support/client.ts'
import { type Ask, CONNECTIONS, type Figures, load } from './load.ts'

/** Agents that share the load, so that no row of the database and no queue is the bottleneck. */
const AGENTS = 64
const KEYS = 1_000
const CONTENT = 'x'.repeat(200)
const VALUE = 'x'.repeat(1_000)
/** Challenges solved ahead for the registering of agents. */
const CHALLENGES = 400

export async function measureEndpoints(
  baseUrl: string,
  pids: Readonly<Record<string, number>>,
  seconds: number,
): Promise<Record<string, Figures>> {
  const client = new Client(baseUrl)
  const operator = await client.registerOperator()
  const agents = await Promise.all(Array.from({ length: AGENTS }, () => operator.registerAgent()))
  const agentOf = (index: number) => agents[index % AGENTS] as (typeof agents)[number]
  const run = randomUUID().slice(0, 8)
  const key = (index: number) => `bench/${run}/${index % KEYS}`
  const figures: Record<string, Figures> = {}
  const measure = async (name: string, next: (index: number) => Ask | undefined) => {
    figures[name] = await load(baseUrl, seconds, next, pids)
  }
  const get = (path: string) => (index: number) => ({ method: 'GET', path, token: agentOf(index).token }) as const

  await measure('GET /v1/health', () => ({ method: 'GET', path: '/v1/health' }))
  await measure('GET /v1/agents/me', get('/v1/agents/me'))
  await measure('PUT /v1/state/{key}', (index) => ({
    method: 'PUT',
    path: keyPath(key(index)),
    token: agentOf(index).token,
    json: { value: VALUE },
  }))
  for (let first = 0; first < KEYS; first += CONNECTIONS) {
    await Promise.all(
      Array.from({ length: Math.min(CONNECTIONS, KEYS - first) }, (_, offset) =>
        agentOf(offset).write(key(first + offset), VALUE),
      ),
    )
  }
  await measure('GET /v1/state/{key}', (index) => ({
    method: 'GET',
    path: keyPath(key(index)),
    token: agentOf(index).token,
  }))
  await measure('GET /v1/state?prefix=', get(`/v1/state?prefix=bench/${run}/&limit=50`))
  await measure('GET /v1/state/_capacity', get('/v1/state/_capacity'))
  await measure('GET /v1/registry', get('/v1/registry?limit=50'))
  await measure('POST /v1/messages', (index) => ({
    method: 'POST',
    path: '/v1/messages',
    token: agentOf(index).token,
    json: { to: agentOf(index + 1).address, content: CONTENT },
  }))
  await measure('GET /v1/messages', get('/v1/messages?limit=1'))
  await measure('GET /v1/messages (empty)', await drained())
  let removed = 0
  await measure('DELETE /v1/state/{key}', () =>
    removed < KEYS ? { method: 'DELETE', path: keyPath(key(removed++)), token: agentOf(removed).token } : undefined,
  )
  await measure('GET …/verification-challenge', () => ({
    method: 'GET',
    path: '/v1/agents/verification-challenge',
    token: operator.token,
  }))
  const solved = await Promise.all(
    Array.from({ length: CHALLENGES }, async () => {
      const { challenge_id, challenge_data } = await operator.challenge()
      return { verification_response: { challenge_id, response: solvePipeline(challenge_data) } }
    }),
  )
  await measure('POST /v1/agents', (index) =>
    index < solved.length
      ? { method: 'POST', path: '/v1/agents', token: operator.token, json: solved[index] }
      : undefined,
  )
  await measure('POST /v1/operators', () => ({
    method: 'POST',
    path: '/v1/operators',
    json: { contact_hash: 'bench', accept_terms: true },
  }))
  return figures

  /** Nobody has a message left when this resolves. */
  async function drained() {
    await Promise.all(agents.map((agent) => agent.receiveAll()))
    return get('/v1/messages?limit=1')
  }
}
