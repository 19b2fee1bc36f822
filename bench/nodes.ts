/**
 * What a request costs in CPU as nodes are added: the same requests on one, two and four api nodes,
 * once in the same number for each node, and once in the same number for all nodes together. (The
 * more a process has to do at once, the less each thing costs: it reads and writes once for all.)
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, Client } from '../lab/client.ts'
import { startCluster } from '../lab/cluster.ts'
import { cpuTimes } from './load.ts'

/** All of them below what one node can do on one processor. */
const LOADS = [
  { nodes: 1, perSecond: 100 },
  { nodes: 2, perSecond: 200 },
  { nodes: 4, perSecond: 400 },
  { nodes: 1, perSecond: 400 },
  { nodes: 2, perSecond: 400 },
] as const
type Load = (typeof LOADS)[number]
const MOST_NODES = 4
const AGENTS = 32
/** The loads take turns, so that all meet the same moods of the machine. */
const ROUNDS = 3
const WARM_UP_S = 1
/**
 * Of each node before anything is measured: V8 compiles what has run often enough, and a node among
 * four runs everything a quarter as often.
 */
const WARM_UP_REQUESTS = 8_000
const WARM_UP_AT_ONCE = 32

/**
 * By the load: CPU ms a request, of the api nodes and of nodes and worker together, less what they
 * use idle.
 */
export async function benchNodes(
  seconds: number,
  settings: Readonly<Record<string, string>>,
): Promise<Record<string, Record<string, number>>> {
  await using cluster = await startCluster({ nodes: MOST_NODES, workers: 1, settings })
  const agents = await new Client(cluster.baseUrl).registerAgents(AGENTS)
  const urls = cluster.nodes.map(({ url }) => url)
  const pids = {
    api: () => cluster.nodes.map(({ pid }) => pid),
    worker: () => cluster.workers.map(({ pid }) => pid),
  }
  for (const url of urls) await warmUp(new Client(url), agents)
  const spent = async (run: () => Promise<number>) => {
    const before = cpuTimes(pids)
    const begin = performance.now()
    const requests = await run()
    const after = cpuTimes(pids)
    const used = (name: string) => (after[name] ?? 0) - (before[name] ?? 0)
    return {
      requests,
      api: used('api'),
      all: used('api') + used('worker'),
      ms: performance.now() - begin,
    }
  }
  const idle = await spent(async () => {
    await sleep(seconds * 1_000)
    return 0
  })
  const sums = new Map(LOADS.map((load) => [load, { requests: 0, api: 0, all: 0 }]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const load of round % 2 === 0 ? LOADS : LOADS.toReversed()) {
      const clients = urls.slice(0, load.nodes).map((url) => new Client(url))
      await mixedLoad(clients, agents, load.perSecond, WARM_UP_S)
      const { requests, api, all, ms } = await spent(() =>
        mixedLoad(clients, agents, load.perSecond, seconds),
      )
      const sum = sumOf(load)
      sum.requests += requests
      sum.api += api - (idle.api * ms) / idle.ms
      sum.all += all - (idle.all * ms) / idle.ms
    }
  }
  return Object.fromEntries(
    LOADS.map((load) => [
      `${load.nodes} api nodes, ${load.perSecond} requests/s`,
      {
        'api ms': rounded(cost(load, 'api'), 3),
        'api and worker ms': rounded(cost(load, 'all'), 3),
        'four nodes to this': rounded(cost(LOADS[2], 'all') / cost(load, 'all'), 2),
        'idle ms a second, a node': rounded(((idle.api / idle.ms) * 1_000) / MOST_NODES, 1),
      },
    ]),
  )

  function sumOf(load: Load) {
    return sums.get(load) as { requests: number; api: number; all: number }
  }

  function cost(load: Load, of: 'api' | 'all'): number {
    const sum = sumOf(load)
    return sum[of] / sum.requests
  }
}

function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits))
}

async function warmUp(client: Client, agents: readonly Agent[]): Promise<void> {
  let index = 0
  await Promise.all(
    Array.from({ length: WARM_UP_AT_ONCE }, async () => {
      while (index < WARM_UP_REQUESTS) await ask(client, agents, index++)
    }),
  )
}

/** What a living society asks, so many requests a second. Resolves to how many there were. */
async function mixedLoad(
  clients: readonly Client[],
  agents: readonly Agent[],
  perSecond: number,
  seconds: number,
): Promise<number> {
  const begin = performance.now()
  const total = perSecond * seconds
  const asked: Promise<unknown>[] = []
  for (let index = 0; index < total; index++) {
    const wait = begin + (1_000 * index) / perSecond - performance.now()
    if (wait > 0) await sleep(wait)
    asked.push(ask(clients[index % clients.length] as Client, agents, index))
  }
  await Promise.all(asked)
  return total
}

/** In turn: two polls, a message, three reads, a write, a page of the registry. */
async function ask(client: Client, agents: readonly Agent[], index: number): Promise<void> {
  const { token } = agents[index % agents.length] as Agent
  const { address } = agents[(index + 1) % agents.length] as Agent
  const key = `/v1/state/nodes%2F${index % 100}`
  const answer = await [
    () => client.request('GET', '/v1/messages?limit=20', { token }),
    () => client.request('GET', key, { token }),
    () =>
      client.request('POST', '/v1/messages', {
        token,
        json: { to: address, content: 'x'.repeat(200) },
      }),
    () => client.request('GET', key, { token }),
    () => client.request('PUT', key, { token, json: { value: 'x'.repeat(500) } }),
    () => client.request('GET', '/v1/messages?limit=20', { token }),
    () => client.request('GET', key, { token }),
    () => client.request('GET', '/v1/registry?limit=20', { token }),
  ][index % 8]?.()
  if (answer === undefined || (answer.status >= 300 && answer.status !== 404))
    throw new Error(`${answer}`)
}
