/** One run: a cluster of real processes, agents at work, faults by a schedule; and the history of it all. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, Answer, Client } from '../client.ts'
import { type Cluster, type ClusterNode, type Places, type Settings, startCluster } from '../cluster.ts'
import { createTestAuthority, startReceiver } from '../receiver.ts'
import { makeDirectory, removeDirectory } from '../servers/directory.ts'
import { startTcpProxy } from '../tcp-proxy.ts'
import { Clocks } from './clock.ts'
import { FAULTS, type Fault, type Link } from './faults.ts'
import type { Crash, FaultRecord, History, NodeView } from './history.ts'
import type { PlannedFault } from './schedule.ts'
import {
  AMPLE_BYTES,
  LIMIT_PER_MINUTE,
  SCARCE_BYTES,
  WORKLOAD_SETTINGS,
  Workload,
  type WorkloadOptions,
} from './workload.ts'

const API_NODES = 3
const WORKERS = 2
const POLLING_AGENTS = 6
const PUSHED_AGENTS = 2
/** Room for the logs of an hour. */
const NATS_DISK_MIB = 2_048
/** Of a process: what the image has in a container of 512 MiB. One that needs more ends. */
const HEAP_MIB = 170
const FIRST_CALM_MS = 1_000
/** After the last repair, until answers must have settled. */
const LAST_CALM_MS = 6_000
const SETTLE_DEADLINE_MS = 15_000
const SETTLE_POLL_MS = 100
const CRASH_POLL_MS = 100
const STALL_POLL_MS = 20
/** Nodes give Redis up after half a second. */
const STALL_MS = 400
/** Of what a process printed before it ended by itself, so many characters. */
const CRASH_OUTPUT = 2_000
const SHIFTED_CLOCK = new URL('shifted-clock.ts', import.meta.url).href

export interface RunOptions {
  readonly random: () => number
  /** Of the faults that can be made here, those to make: each begins when the one before is mended and its calm is over. */
  readonly plan: (possible: readonly Fault[]) => readonly PlannedFault[]
  readonly paceMs: number
  readonly say: (text: string) => void
}

export interface Run {
  readonly history: History
  /** What all processes have printed. */
  readonly output: string
}

/** The cluster could not be mended: a process did not become ready, or the end could not be read. */
export class RunFailed extends Error {
  override name = 'RunFailed'
  /** What all processes had printed. */
  readonly output: string

  constructor(output: string, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.output = output
  }
}

/** Starts the cluster, lets the agents work while it is broken and mended as planned, and ends it. Throws `RunFailed` where it cannot be mended. */
export async function run({ random, plan, paceMs, say }: RunOptions): Promise<Run> {
  await using authority = await createTestAuthority()
  await using receiver = await startReceiver({ authority })
  const capacityBytes = random() < 0.5 ? SCARCE_BYTES : AMPLE_BYTES
  say(`the state may have ${capacityBytes} bytes`)
  await using stage = await setUp({
    WEBHOOK_ALLOW_CIDRS: '127.0.0.0/8',
    WEBHOOK_CA_FILE: authority.caFile,
    STATE_CAPACITY_BYTES: String(capacityBytes),
  })
  const { cluster, links, clocks } = stage
  const possible = FAULTS.filter(({ name, impossible }) => {
    const reason = impossible?.(cluster)
    if (reason !== undefined) say(`left out: ${name}, as ${reason}`)
    return reason === undefined
  })
  const planned = plan(possible)
  const history = await observe(
    { cluster, random, paceMs, capacityBytes, webhooks: { receiver, agents: PUSHED_AGENTS } },
    async (faults) => {
      for (const { name, victim, durationMs, calmMs } of planned) {
        const fault = possible.find((candidate) => candidate.name === name)
        if (fault === undefined) throw new Error(`a fault was planned that there is not: ${name}`)
        const { hits, shows, begin } = fault
        const began = performance.now()
        say(`${seconds(began)} ${name}, for ${seconds(durationMs)}`)
        let seen = 0
        const saw = (times: number) => {
          seen += times
        }
        const repair = await begin({ cluster, links, clocks, victim, saw })
        await sleep(durationMs)
        await repair()
        faults.push({ name, hits, began, repaired: performance.now(), ...(shows !== undefined && { seen }) })
        if (shows !== undefined && seen === 0) throw new Error(`${name}: there were no ${shows}`)
        await sleep(calmMs)
      }
    },
  ).catch((error: unknown) => {
    throw new RunFailed(cluster.output(), error)
  })
  return { history, output: cluster.output() }
}

/**
 * Lets agents work on a cluster that was started with `WORKLOAD_SETTINGS`, until `during` is over, which notes what it breaks, and answers have
 * settled. Resolves to what they saw, and how it ended.
 */
export async function observe(
  {
    cluster,
    capacityBytes = SCARCE_BYTES,
    ...options
  }: Omit<WorkloadOptions, 'client' | 'agents'> & { cluster: Cluster<Places>; capacityBytes?: number },
  during: (faults: FaultRecord[]) => Promise<void>,
): Promise<History> {
  const workload = new Workload({ ...options, client: new Client(cluster.baseUrl), agents: POLLING_AGENTS })
  const faults: FaultRecord[] = []
  const over = new AbortController()
  const crashing = watchForCrashes(cluster, over.signal)
  const stalling = watchForStalls(over.signal)
  await workload.start()
  await sleep(FIRST_CALM_MS)
  await during(faults)
  await sleep(Math.max(0, (faults.at(-1)?.repaired ?? 0) + LAST_CALM_MS - performance.now()))
  await workload.stop()
  over.abort()
  return {
    operations: workload.operations,
    pushes: workload.pushes,
    faults: [...faults, ...(await stalling)],
    crashes: await crashing,
    capacityBytes,
    limitPerMinute: LIMIT_PER_MINUTE,
    ...(await settle(cluster, workload.registered)),
  }
}

/** Until the signal aborts: who has ended by itself. It is started again, so that the run goes on. */
async function watchForCrashes({ nodes, workers }: Cluster<Places>, over: AbortSignal): Promise<Crash[]> {
  const crashes: Crash[] = []
  while (!over.aborted) {
    for (const member of [...nodes, ...workers]) {
      if (!member.process.crashed) continue
      crashes.push({ name: member.name, at: performance.now(), output: member.output().slice(-CRASH_OUTPUT) })
      // Where it ends again it is found again.
      await member.restart().catch(() => {})
    }
    await sleep(CRASH_POLL_MS, undefined, { signal: over }).catch(() => {})
  }
  return crashes
}

/** Until the signal aborts: when this process, and so probably the others, got no processor for longer than they wait for each other. */
async function watchForStalls(over: AbortSignal): Promise<FaultRecord[]> {
  const stalls: FaultRecord[] = []
  for (let before = performance.now(); !over.aborted; ) {
    await sleep(STALL_POLL_MS, undefined, { signal: over }).catch(() => {})
    const now = performance.now()
    if (now - before > STALL_MS)
      stalls.push({ name: 'machine stalled', hits: ['machine'], began: before, repaired: now })
    before = now
  }
  return stalls
}

interface Stage extends AsyncDisposable {
  readonly cluster: Cluster
  readonly links: readonly Link[]
  readonly clocks: Clocks
}

/** A cluster whose nodes and workers reach each server through a network of their own, and have a clock that can jump. */
async function setUp(settings: Settings): Promise<Stage> {
  await using stack = new AsyncDisposableStack()
  const directory = makeDirectory('clocks')
  stack.defer(() => removeDirectory(directory))
  const clocks = new Clocks(directory)
  const cluster = stack.use(
    await startCluster({
      nodes: 0,
      workers: 0,
      natsDiskMiB: NATS_DISK_MIB,
      settings: {
        ...WORKLOAD_SETTINGS,
        ...settings,
        NODE_OPTIONS: `--import=${SHIFTED_CLOCK} --max-old-space-size=${HEAP_MIB}`,
        CLOCK_FILE: clocks.file,
      },
    }),
  )
  const links: Link[] = []
  const through = async (from: string, to: Link['to'], url: string) => {
    const target = new URL(url)
    const proxy = stack.use(await startTcpProxy(Number(target.port)))
    links.push({ from, to, proxy })
    target.port = String(proxy.port)
    return target.href
  }
  const routesOf = async (from: string): Promise<Settings> => ({
    DATABASE_URL: await through(from, 'postgres', cluster.postgres.appUrl),
    REDIS_URL: await through(from, 'redis', cluster.redis.url),
    NATS_URL: (await Promise.all(cluster.nats.url.split(',').map((url) => through(from, 'nats', url)))).join(','),
  })
  for (let number = 1; number <= WORKERS; number++) await cluster.startWorker(await routesOf(`worker-${number}`))
  for (let number = 1; number <= API_NODES; number++) await cluster.startNode(await routesOf(`api-${number}`))
  const owner = stack.move()
  return { cluster, links, clocks, [Symbol.asyncDispose]: () => owner.disposeAsync() }
}

/** What the log says, and what each node and `verify` do, when deliveries are recorded and projections have caught up. */
async function settle(cluster: Cluster<Places>, agents: readonly Agent[]) {
  const deadline = performance.now() + SETTLE_DEADLINE_MS
  for (;;) {
    // Past a pooler, which keeps no temporary tables.
    const direct = { DATABASE_URL: cluster.postgres.appUrl, DATABASE_POOL_MODE: 'session' }
    const { code, output } = await cluster.run('verify', [], direct)
    const isLate = performance.now() > deadline
    if (code !== 0 && !isLate) continue
    const [reader] = agents
    if (reader === undefined) throw new Error('nobody has registered')
    const nodes = await Promise.all(cluster.nodes.map((node) => untilAvailable(() => viewOf(node, reader))))
    const refusedTokens: string[] = []
    for (const agent of agents) {
      const { status } = await untilAvailable(() => agent.request('GET', '/v1/state?limit=1'))
      if (status !== 200) refusedTokens.push(agent.address)
    }
    return {
      events: await cluster.events(),
      nodes,
      refusedTokens,
      ...(code !== 0 && { differences: output }),
    }
  }
}

/** Nothing is broken any more, but a machine that others use may hold up an answer: an attempt that failed is made again. */
async function untilAvailable<T>(attempt: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + SETTLE_DEADLINE_MS
  for (;;) {
    const isLate = performance.now() > deadline
    try {
      const result = await attempt()
      if (isLate || !(result instanceof Answer) || result.status !== 503) return result
    } catch (error) {
      if (isLate) throw error
    }
    await sleep(SETTLE_POLL_MS)
  }
}

async function viewOf(node: ClusterNode, { address, token }: Agent): Promise<NodeView> {
  const reader = new Agent(new Client(node.url), address, token)
  const state: Record<string, string> = {}
  for (const key of await reader.keys()) state[key] = (await reader.read(key)).value
  const { used_bytes, key_count } = await reader.capacity()
  const answer = await reader.request('GET', '/v1/registry?limit=1')
  return {
    node: node.name,
    state,
    usedBytes: used_bytes,
    keyCount: key_count,
    agents: (answer.json as { total: number }).total,
  }
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
