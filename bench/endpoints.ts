/** Every endpoint of the agent API under load, one after the other. */
import { randomUUID } from 'node:crypto'
import { Client, keyPath, type Operator, solvePipeline } from '../lab/client.ts'
import {
  type Ask,
  CONNECTIONS,
  type Figures,
  figuresOf,
  load,
  median,
  type Pids,
  type Stretch,
} from './load.ts'

/** Agents that share the load, so that no row of the database and no queue is the bottleneck. */
const AGENTS = 64
const KEYS = 1_000
/** Of keys that are there only to be deleted: more than are in the time. */
const DELETED_KEYS = 40_000
const CONTENT = 'x'.repeat(200)
const VALUE = 'x'.repeat(1_000)
/** Challenges solved ahead for the registering of agents. */
const CHALLENGES = 5_000
/** One operator may have 1,000 open. */
const CHALLENGES_EACH = 800
/**
 * The kernel and its floors take turns, so that all meet the same moods of the machine; of the
 * ratios of each round the median counts.
 */
const ROUNDS = 5
/** Of each before anything is measured: V8 compiles what has run often enough. */
const WARM_UP_S = 2

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
  /** Requests a second of the kernel to those of a floor: the median of all rounds. */
  readonly ratios: Readonly<Record<keyof Floors, number | undefined>>
}

export interface Floors {
  readonly floor: Measured
  readonly orderedFloor?: Measured
}

type Name = 'kernel' | keyof Floors
type Next = (index: number) => Ask | undefined

/**
 * Of what changes messages or state, or where the same requests cannot be made twice, each is asked
 * for its own.
 */
type NextOfEach = Partial<Record<Name, Next>> & { kernel: Next }

interface Comparison {
  readonly figures: Record<string, EndpointFigures>
  /** The same requests to the kernel and to the floor. */
  measure(name: string, next: Next): Promise<void>
  measureEach(name: string, next: NextOfEach): Promise<void>
}

function comparison(kernel: Measured, seconds: number, floors?: Floors): Comparison {
  const figures: Record<string, EndpointFigures> = {}
  const measureEach = async (name: string, next: NextOfEach) => {
    const subjects = Object.entries({ kernel, ...floors }).flatMap(([subject, { url, pids }]) => {
      const ask = next[subject as Name]
      return ask
        ? [
            {
              subject,
              run: (length: number) => load(url, { seconds: length, warmUpSeconds: 0 }, ask, pids),
            },
          ]
        : []
    })
    const stretches: Partial<Record<string, Stretch[]>> = {}
    for (const { run } of subjects) await run(WARM_UP_S)
    for (let round = 0; round < ROUNDS; round++) {
      for (const { subject, run } of round % 2 === 0 ? subjects : subjects.toReversed()) {
        stretches[subject] ??= []
        stretches[subject].push(await run(seconds / ROUNDS))
      }
    }
    const { kernel: ours = [], floor, orderedFloor } = stretches
    figures[name] = {
      kernel: figuresOf(ours),
      floor: floor && figuresOf(floor),
      orderedFloor: orderedFloor && figuresOf(orderedFloor),
      ratios: {
        floor: floor && medianRatio(ours, floor),
        orderedFloor: orderedFloor && medianRatio(ours, orderedFloor),
      },
    }
  }
  return {
    figures,
    measureEach,
    measure: (name, next) => measureEach(name, { kernel: next, floor: next }),
  }
}

/**
 * Of the rates of two, round by round. A round in which one had nothing left to ask is left out.
 */
function medianRatio(ours: readonly Stretch[], theirs: readonly Stretch[]): number {
  const rate = (stretch?: Stretch) => (stretch ? stretch.latencies.length / stretch.seconds : 0)
  const ratios = ours.map((stretch, round) => rate(stretch) / rate(theirs[round]))
  return median(ratios.filter((ratio) => ratio > 0 && ratio < Number.POSITIVE_INFINITY))
}

/** The first `count` of what there is to ask, over all rounds. */
function only(count: number, next: (index: number) => Ask): Next {
  let asked = 0
  return () => (asked < count ? next(asked++) : undefined)
}

/** Each endpoint of the kernel beside its floors. */
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
  const compared = comparison(kernel, seconds, floors)
  const { figures, measure, measureEach } = compared
  const measureChange = async (name: string, next: Next) =>
    measureEach(name, { kernel: next, floor: next, orderedFloor: next })
  /** The floor checks no token, so it is told who asks. */
  const as = (index: number) => ({
    token: agentOf(index).token,
    headers: { 'X-Agent': agentOf(index).address },
  })
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
  const sent = { kernel: 0, floor: 0, orderedFloor: 0 }
  const sending = (name: Name) => (index: number) => {
    sent[name]++
    const json = { to: agentOf(index + 1).address, content: CONTENT }
    return { method: 'POST', path: '/v1/messages', ...as(index), json } as const
  }
  await measureEach('POST /v1/messages', {
    kernel: sending('kernel'),
    floor: sending('floor'),
    orderedFloor: sending('orderedFloor'),
  })
  // No more than were sent, so that each finds one.
  const receiving = (name: Name) => only(sent[name], get('/v1/messages?limit=1'))
  await measureEach('GET /v1/messages', {
    kernel: receiving('kernel'),
    floor: receiving('floor'),
    orderedFloor: receiving('orderedFloor'),
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
      const answer = await fetch(`${url}${keyPath(doomed(index))}`, {
        method: 'PUT',
        headers,
        body,
      })
      await answer.arrayBuffer()
    })
  }
  const removal = () =>
    only(DELETED_KEYS, (index) => ({
      method: 'DELETE',
      path: keyPath(doomed(index)),
      ...as(index),
    }))
  await measureEach('DELETE /v1/state/{key}', {
    kernel: removal(),
    floor: removal(),
    orderedFloor: removal(),
  })
  await measure('GET …/verification-challenge', () => ({
    method: 'GET',
    path: '/v1/agents/verification-challenge',
    token: operator.token,
  }))
  await measureRegistrations(client, compared)
  return figures

  /** Nobody has a message left there when this resolves. */
  async function drain({ url }: Measured): Promise<void> {
    for (const { address } of agents) {
      for (let remaining = 1; remaining > 0; ) {
        const answer = await fetch(`${url}/v1/messages?limit=1000`, {
          headers: { 'X-Agent': address },
        })
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
  const compared = comparison(kernel, seconds, floors)
  await measureRegistrations(new Client(kernel.url), compared)
  return compared.figures
}

async function measureRegistrations(
  client: Client,
  { measure, measureEach }: Comparison,
): Promise<void> {
  const operators: Operator[] = []
  const solved: { token: string; json: object }[] = []
  await eachOf(Math.ceil(CHALLENGES / CHALLENGES_EACH), async () => {
    operators.push(await client.registerOperator())
  })
  await eachOf(CHALLENGES, async (index) => {
    const operator = operators[index % operators.length] as Operator
    const { challenge_id, challenge_data } = await operator.challenge()
    const proof = { challenge_id, response: solvePipeline(challenge_data) }
    solved.push({ token: operator.token, json: { verification_response: proof } })
  })
  const registration = () =>
    only(CHALLENGES, (index) => ({
      method: 'POST',
      path: '/v1/agents',
      ...solved[index],
    }))
  await measureEach('POST /v1/agents', { kernel: registration(), floor: registration() })
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
