/** What it takes to know who asks: with a session, without one, and what 50 requests a second without one do to everybody else. */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { Agent, Client } from '../test/support/client.ts'
import { type ClusterNode, startCluster } from '../test/support/cluster.ts'
import { median } from './load.ts'

const AGENTS = 500
const SAMPLES = 50
const COLD_PER_SECOND = 50
const SECONDS = 8
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
    await using cluster = await startCluster({ nodes: 1, workers: 1, settings: { ...settings, ...verifier } })
    const redis = new Redis(cluster.redis.adminUrl)
    const [node] = cluster.nodes as [ClusterNode]
    try {
      const client = new Client(node.url)
      const operator = await client.registerOperator()
      const agents: Agent[] = []
      while (agents.length < AGENTS) {
        const wanted = Math.min(10, AGENTS - agents.length)
        agents.push(...(await Promise.all(Array.from({ length: wanted }, () => operator.registerAgent()))))
      }
      const clients = Array.from({ length: CLIENTS }, () => new Client(node.url))
      const spread = agents.map(({ address, token }, index) => {
        return new Agent(clients[index % CLIENTS] as Client, address, token)
      })
      figures[name] = await measure(node, redis, spread)
    } finally {
      redis.disconnect()
    }
  }
  return figures
}

async function measure(node: ClusterNode, redis: Redis, agents: readonly Agent[]): Promise<Record<string, number>> {
  const forget = async () => {
    const keys = await redis.keys('session:*')
    if (keys.length > 0) await redis.del(keys)
  }
  const timed = async (agent: Agent) => {
    const begin = performance.now()
    const { status } = await agent.request('GET', '/v1/state/_capacity')
    return { ms: performance.now() - begin, status }
  }
  const oneByOne = async () => {
    const times: number[] = []
    for (const agent of agents.slice(0, SAMPLES)) times.push((await timed(agent)).ms)
    return median(times)
  }
  await forget()
  const cold = await oneByOne()
  const warm = await oneByOne()

  await forget()
  // Reading the metric begins a new measurement of it.
  await eventLoopDelay(node)
  const answers: Promise<{ ms: number; status: number }>[] = []
  const begin = performance.now()
  for (let index = 0; index < COLD_PER_SECOND * SECONDS; index++) {
    const wait = begin + (1_000 * index) / COLD_PER_SECOND - performance.now()
    if (wait > 0) await sleep(wait)
    answers.push(timed(agents[index % agents.length] as Agent))
  }
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
