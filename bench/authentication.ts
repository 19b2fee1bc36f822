/**
 * What it takes to know who asks: with a session, without one, what 50 requests a second without
 * one do to everybody else, and what one operator's registrations do to the log-ins of another's
 * agents.
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { Agent, Client, Operator, solvePipeline } from '../lab/client.ts'
import { type ClusterNode, startCluster } from '../lab/cluster.ts'
import { median } from './load.ts'

const AGENTS = 500
const SAMPLES = 50
const COLD_PER_SECOND = 50
const SECONDS = 8
const REGISTRATIONS = 1_000
const LOG_INS = 120
/**
 * One operator's, beside the registrations: as many as two processors verify with time to spare.
 */
const LOG_INS_PER_SECOND = 10
/** A client has so many connections at most that requests would wait for one. */
const CLIENTS = 8
/** The product's defaults: other benches take cheaper ones. */
const VERIFIERS = {
  'bcrypt, cost 10': { AUTH_VERIFIER: 'bcrypt', BCRYPT_COST: '10' },
  hmac: { AUTH_VERIFIER: 'hmac', AUTH_HMAC_KEY: randomBytes(32).toString('hex') },
}

export async function benchAuthentication(
  settings: Readonly<Record<string, string>>,
): Promise<Record<string, Record<string, number>>> {
  const figures: Record<string, Record<string, number>> = {}
  for (const [name, verifier] of Object.entries(VERIFIERS)) {
    await using cluster = await startCluster({
      nodes: 1,
      workers: 1,
      settings: { ...settings, ...verifier },
    })
    const redis = new Redis(cluster.redis.adminUrl)
    const [node] = cluster.nodes as [ClusterNode]
    try {
      const client = new Client(node.url)
      const operator = await client.registerOperator()
      const agents: Agent[] = []
      while (agents.length < AGENTS) {
        const wanted = Math.min(10, AGENTS - agents.length)
        agents.push(
          ...(await Promise.all(Array.from({ length: wanted }, () => operator.registerAgent()))),
        )
      }
      const clients = Array.from({ length: CLIENTS }, () => new Client(node.url))
      const spread = agents.map(({ address, token }, index) => {
        return new Agent(clients[index % CLIENTS] as Client, address, token)
      })
      figures[name] = await measure(node, redis, spread)
      if (verifier.AUTH_VERIFIER === 'bcrypt')
        Object.assign(figures[name], await measureBesideRegistrations(node, redis, spread))
    } finally {
      redis.disconnect()
    }
  }
  return figures
}

interface Timed {
  readonly ms: number
  readonly status: number
}

async function timed(agent: Agent): Promise<Timed> {
  const begin = performance.now()
  const { status } = await agent.request('GET', '/v1/state/_capacity')
  return { ms: performance.now() - begin, status }
}

/**
 * One request after the other, so many a second, whether those before have been answered or not.
 */
async function timedAtPace(
  agents: readonly Agent[],
  count: number,
  perSecond: number,
): Promise<Promise<Timed>[]> {
  const answers: Promise<Timed>[] = []
  const begin = performance.now()
  for (let index = 0; index < count; index++) {
    const wait = begin + (1_000 * index) / perSecond - performance.now()
    if (wait > 0) await sleep(wait)
    answers.push(timed(agents[index % agents.length] as Agent))
  }
  return answers
}

/** Ends all sessions. */
async function forgetAll(redis: Redis): Promise<void> {
  const keys = await redis.keys('session:*')
  if (keys.length > 0) await redis.del(keys)
}

/** Log-ins of agents, alone and while another operator registers as many agents as it can. */
async function measureBesideRegistrations(
  node: ClusterNode,
  redis: Redis,
  agents: readonly Agent[],
): Promise<Record<string, number>> {
  const logIn = async () => {
    await forgetAll(redis)
    return Promise.all(await timedAtPace(agents, LOG_INS, LOG_INS_PER_SECOND))
  }
  const medianMs = (all: readonly Timed[]) =>
    round(median(all.filter(({ status }) => status === 200).map(({ ms }) => ms)))
  const alone = await logIn()
  const { id, token } = await new Client(node.url).registerOperator()
  // One operator, over many connections.
  const greedy = Array.from(
    { length: 2 * CLIENTS },
    () => new Operator(new Client(node.url), id, token),
  )
  const registrations = Array.from({ length: REGISTRATIONS }, (_, index) => {
    return register(greedy[index % greedy.length] as Operator)
  })
  const beside = await logIn()
  const registered = await Promise.all(registrations)
  return {
    'log-ins alone, median': medianMs(alone),
    'log-ins beside registrations, median': medianMs(beside),
    'log-ins beside registrations, 503': beside.filter(({ status }) => status === 503).length,
    'registered meanwhile and after': registered.filter((status) => status === 201).length,
  }
}

/** The status of the registration, or of the challenge where there was none. */
async function register(operator: Operator): Promise<number> {
  const issued = await operator.request('GET', '/v1/agents/verification-challenge')
  if (issued.status !== 200) return issued.status
  const { challenge_id, challenge_data } = issued.json as {
    challenge_id: string
    challenge_data: unknown
  }
  return (await operator.answerChallenge(challenge_id, solvePipeline(challenge_data))).status
}

async function measure(
  node: ClusterNode,
  redis: Redis,
  agents: readonly Agent[],
): Promise<Record<string, number>> {
  const oneByOne = async () => {
    const times: number[] = []
    for (const agent of agents.slice(0, SAMPLES)) times.push((await timed(agent)).ms)
    return median(times)
  }
  await forgetAll(redis)
  const cold = await oneByOne()
  const warm = await oneByOne()

  await forgetAll(redis)
  // Reading the metric begins a new measurement of it.
  await eventLoopDelay(node)
  const answers = await timedAtPace(agents, COLD_PER_SECOND * SECONDS, COLD_PER_SECOND)
  const delay = await eventLoopDelay(node)
  const done = await Promise.all(answers)
  const served = done.filter(({ status }) => status === 200)
  return {
    'warm, median': round(warm),
    'cold, median': round(cold),
    'event-loop delay p99 under 50 cold/s': round(delay),
    'of these answered 200': served.length,
    'of these answered 503': done.filter(({ status }) => status === 503).length,
    'median of the answered': round(median(served.map(({ ms }) => ms))),
  }
}

/** 99th percentile since it was asked last, in ms. */
async function eventLoopDelay({ internalUrl }: ClusterNode): Promise<number> {
  const text = await (await fetch(`${internalUrl}/metrics`)).text()
  return 1_000 * Number(/^tabulum_nodejs_eventloop_lag_p99_seconds (\S+)/m.exec(text)?.[1])
}

function round(value: number): number {
  return Number(value.toFixed(2))
}
