/** Every endpoint of the agent API under load, one after the other. */
import { randomUUID } from 'node:crypto'
import { Client, keyPath, type Operator, solvePipeline } from '../test/support/client.ts'
import { type Ask, CONNECTIONS, type Figures, load, type Pids } from './load.ts'

/** Agents that share the load, so that no row of the database and no queue is the bottleneck. */
const AGENTS = 64
const KEYS = 1_000
/** Of keys that are there only to be deleted: more than are in the time. */
const DELETED_KEYS = 10_000
const CONTENT = 'x'.repeat(200)
const VALUE = 'x'.repeat(1_000)
/** Challenges solved ahead for the registering of agents. */
const CHALLENGES = 400

/** A server under measurement, with the processes whose CPU time its requests cost. */
export interface Measured {
  readonly url: string
  readonly pids: Pids
}

export interface EndpointFigures {
  readonly kernel: Figures
  /** Of the same requests to the floor. */
  readonly floor?: Figures | undefined
  /** And to the floor that applies changes in the order of the log, where that differs. */
  readonly orderedFloor?: Figures | undefined
}

export interface Floors {
  readonly floor: Measured
  readonly orderedFloor: Measured
}

type Next = (index: number) => Ask | undefined

/** Of what changes messages or state, or where the same requests cannot be made twice, each is asked for its own. */
type NextOfEach = Partial<Record<keyof EndpointFigures, Next>> & { kernel: Next }

interface Comparison {
  readonly figures: Record<string, EndpointFigures>
  /** The same requests to the kernel and to the floor. */
  measure(name: string, next: Next): Promise<void>
  measureEach(name: string, next: NextOfEach): Promise<void>
}

function comparison({ url, pids }: Measured, seconds: number, floors?: Floors): Comparison {
  const figures: Record<string, EndpointFigures> = {}
  const measureEach = async (name: string, next: NextOfEach) => {
    const kernel = await load(url, seconds, next.kernel, pids)
    const of = async (which: keyof Floors) => {
      const [floor, ask] = [floors?.[which], next[which]]
      return floor && ask && (await load(floor.url, seconds, ask, floor.pids))
    }
    figures[name] = { kernel, floor: await of('floor'), orderedFloor: await of('orderedFloor') }
  }
  return { figures, measureEach, measure: (name, next) => measureEach(name, { kernel: next, floor: next }) }
}

/** Each endpoint of the kernel, and right after it the same requests to the floor, so that both meet the same mood of the machine. */
export async function measureEndpoints(
  kernel: Measured,
  seconds: number,
  floors?: Floors,
): Promise<Record<string, EndpointFigures>> {
  const client = new Client(kernel.url)
  const operator = await client.registerOperator()
  const agents = await Promise.all(Array.from({ length: AGENTS }, () => operator.registerAgent()))
  const agentOf = (index: number) => agents[index % AGENTS] as (typeof agents)[number]
  const run = randomUUID().slice(0, 8)
  const key = (index: number) => `bench/${run}/${index % KEYS}`
  const { figures, measure, measureEach } = comparison(kernel, seconds, floors)
  const measureChange = async (name: string, next: Next) =>
    measureEach(name, { kernel: next, floor: next, orderedFloor: next })
  /** The floor checks no token, so it is told who asks. */
  const as = (index: number) => ({ token: agentOf(index).token, headers: { 'X-Agent': agentOf(index).address } })
  const get = (path: string) => (index: number) => ({ method: 'GET', path, ...as(index) }) as const

  await measure('GET /v1/health', () => ({ method: 'GET', path: '/v1/health' }))
  await measure('GET /v1/agents/me', get('/v1/agents/me'))
  await measureChange('PUT /v1/state/{key}', (index) => ({
    method: 'PUT',
    path: keyPath(key(index)),
    ...as(index),
    json: { value: VALUE },
  }))
  await eachOf(KEYS, (index) => agentOf(index).write(key(index), VALUE))
  await measure('GET /v1/state/{key}', (index) => ({
    method: 'GET',
    path: keyPath(key(index)),
    ...as(index),
  }))
  await measure('GET /v1/state?prefix=', get(`/v1/state?prefix=bench/${run}/&limit=50`))
  await measure('GET /v1/state/_capacity', get('/v1/state/_capacity'))
  await measure('GET /v1/registry', get('/v1/registry?limit=50'))
  await measureChange('POST /v1/messages', (index) => ({
    method: 'POST',
    path: '/v1/messages',
    ...as(index),
    json: { to: agentOf(index + 1).address, content: CONTENT },
  }))
  // No more than were sent, so that each finds one.
  const sent = figures['POST /v1/messages']
  const upTo = (count = 0) => {
    const next = get('/v1/messages?limit=1')
    return (index: number) => (index < count ? next(index) : undefined)
  }
  await measureEach('GET /v1/messages', {
    kernel: upTo(sent?.kernel.requests),
    floor: upTo(sent?.floor?.requests),
    orderedFloor: upTo(sent?.orderedFloor?.requests),
  })
  await Promise.all(agents.map((agent) => agent.receiveAll()))
  if (floors) await drain(floors.floor)
  await measure('GET /v1/messages (empty)', get('/v1/messages?limit=1'))
  const doomed = (index: number) => `bench/${run}/doomed/${index}`
  await eachOf(DELETED_KEYS, (index) => agentOf(index).write(doomed(index), VALUE))
  for (const { url } of Object.values(floors ?? {})) {
    await eachOf(DELETED_KEYS, async (index) => {
      const { headers } = as(index)
      const body = JSON.stringify({ value: VALUE })
      const answer = await fetch(`${url}${keyPath(doomed(index))}`, { method: 'PUT', headers, body })
      await answer.arrayBuffer()
    })
  }
  const removal = () => {
    let removed = 0
    return (): Ask | undefined =>
      removed < DELETED_KEYS ? { method: 'DELETE', path: keyPath(doomed(removed++)), ...as(removed) } : undefined
  }
  await measureEach('DELETE /v1/state/{key}', { kernel: removal(), floor: removal(), orderedFloor: removal() })
  await measure('GET …/verification-challenge', () => ({
    method: 'GET',
    path: '/v1/agents/verification-challenge',
    token: operator.token,
  }))
  await measureRegistrations(operator, measure)
  return figures

  /** Nobody has a message left there when this resolves. */
  async function drain({ url }: Measured): Promise<void> {
    for (const { address } of agents) {
      for (let remaining = 1; remaining > 0; ) {
        const answer = await fetch(`${url}/v1/messages?limit=1000`, { headers: { 'X-Agent': address } })
        remaining = ((await answer.json()) as { remaining: number }).remaining
      }
    }
  }
}

/** Only those that make a token, and so a bcrypt hash. */
export async function measureRegistering(
  kernel: Measured,
  seconds: number,
  floors: Floors,
): Promise<Record<string, EndpointFigures>> {
  const { figures, measure } = comparison(kernel, seconds, floors)
  await measureRegistrations(await new Client(kernel.url).registerOperator(), measure)
  return figures
}

async function measureRegistrations(operator: Operator, measure: Comparison['measure']): Promise<void> {
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
}

/** Calls it for 0 to count - 1, some at a time. */
async function eachOf(count: number, call: (index: number) => Promise<unknown>): Promise<void> {
  let next = 0
  await Promise.all(
    Array.from({ length: CONNECTIONS }, async () => {
      while (next < count) await call(next++)
    }),
  )
}
