/**
 * One run: a cluster of real processes, agents at work, faults by a schedule; and the history of it
 * all.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, Answer, Client } from '../client.ts'
import {
  type Cluster,
  type ClusterNode,
  type Places,
  type Settings,
  startCluster,
} from '../cluster.ts'
import type { Event } from '../kernel.ts'
import { createTestAuthority, startReceiver } from '../receiver.ts'
import { makeDirectory, removeDirectory } from '../servers/directory.ts'
import { startTcpProxy } from '../tcp-proxy.ts'
import { startWatcher, type Transport, type Watcher } from '../watcher.ts'
import { Clocks } from './clock.ts'
import { FAULTS, type Fault, type Link } from './faults.ts'
import type { Crash, FaultRecord, History, NodeView, ObserverView, Watch } from './history.ts'
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
const OBSERVERS = 2
/** Those who watch. They begin at the beginning of the log, each at another observer. */
const WATCHES: readonly { name: string; transport: Transport; types?: readonly string[] }[] = [
  { name: 'a WebSocket', transport: 'WebSocket' },
  { name: 'Server-Sent Events', transport: 'SSE' },
  {
    name: 'a WebSocket for some types',
    transport: 'WebSocket',
    types: ['message_sent', 'state_deleted'],
  },
]
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
  /**
   * Of the faults that can be made here, those to make: each begins when the one before is mended
   * and its calm is over.
   */
  readonly plan: (possible: readonly Fault[]) => readonly PlannedFault[]
  readonly paceMs: number
  readonly say: (text: string) => void
}

export interface Run {
  readonly history: History
  /** What all processes have printed. */
  readonly output: string
}

/**
 * The cluster could not be mended: a process did not become ready, or the end could not be read.
 */
export class RunFailed extends Error {
  override name = 'RunFailed'
  /** What all processes had printed. */
  readonly output: string

  constructor(output: string, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.output = output
  }
}

/**
 * Starts the cluster, lets the agents work while it is broken and mended as planned, and ends it.
 * Throws `RunFailed` where it cannot be mended.
 */
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
        faults.push({
          name,
          hits,
          began,
          repaired: performance.now(),
          ...(shows !== undefined && { seen }),
        })
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
 * Lets agents work on a cluster that was started with `WORKLOAD_SETTINGS`, until `during` is over,
 * which notes what it breaks, and answers have settled. Resolves to what they saw, and how it
 * ended.
 */
export async function observe(
  {
    cluster,
    capacityBytes = SCARCE_BYTES,
    ...options
  }: Omit<WorkloadOptions, 'client' | 'agents'> & {
    cluster: Cluster<Places>
    capacityBytes?: number
  },
  during: (faults: FaultRecord[]) => Promise<void>,
): Promise<History> {
  const workload = new Workload({
    ...options,
    client: new Client(cluster.baseUrl),
    agents: POLLING_AGENTS,
  })
  const watching = watchAt(cluster.observers)
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
    ...(await settle(cluster, workload.registered, watching)),
  }
}

type Watching = readonly (Pick<Watch, 'name' | 'types'> & { readonly watcher: Watcher })[]

function watchAt(observers: readonly ClusterNode[]): Watching {
  if (observers.length === 0) return []
  const urls = observers.map(({ url }) => url)
  return WATCHES.map(({ name, transport, types }, index) => ({
    name,
    types,
    watcher: startWatcher({
      transport,
      urls: [...urls.slice(index % urls.length), ...urls.slice(0, index % urls.length)],
      ...(types && { types }),
    }),
  }))
}

/** Ends those who watch when they have seen the end of the log, or should have by now. */
async function endWatches(watching: Watching, events: readonly Event[]): Promise<Watch[]> {
  const deadline = performance.now() + SETTLE_DEADLINE_MS
  const end = events.at(-1)?.seq ?? 0
  return Promise.all(
    watching.map(async ({ name, types, watcher }) => {
      const last = events.findLast(({ type }) => types?.includes(type) ?? true)?.seq ?? 0
      while ((watcher.seen.at(-1)?.seq ?? 0) < last && performance.now() < deadline)
        await sleep(SETTLE_POLL_MS)
      await watcher.stop()
      const seen = watcher.seen.filter(({ seq }) => seq <= end)
      return { name, since: 0, types, seen, connections: watcher.connections }
    }),
  )
}

/**
 * Until the signal aborts: who has ended by itself. It is started again, so that the run goes on.
 */
async function watchForCrashes(
  { nodes, workers, observers }: Cluster<Places>,
  over: AbortSignal,
): Promise<Crash[]> {
  const crashes: Crash[] = []
  while (!over.aborted) {
    for (const member of [...nodes, ...workers, ...observers]) {
      if (!member.process.crashed) continue
      crashes.push({
        name: member.name,
        at: performance.now(),
        output: member.output().slice(-CRASH_OUTPUT),
      })
      // Where it ends again it is found again.
      await member.restart().catch(() => {})
    }
    await sleep(CRASH_POLL_MS, undefined, { signal: over }).catch(() => {})
  }
  return crashes
}

/**
 * Until the signal aborts: when this process, and so probably the others, got no processor for
 * longer than they wait for each other.
 */
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

/**
 * A cluster whose nodes, workers and observers reach each server through a network of their own,
 * and have a clock that can jump.
 */
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
  const throughTo = async (
    from: string,
    { postgres, nats }: { postgres: string; nats: string },
  ) => ({
    DATABASE_URL: await through(from, 'postgres', postgres),
    NATS_URL: (await Promise.all(nats.split(',').map((url) => through(from, 'nats', url)))).join(
      ',',
    ),
  })
  const routesOf = async (from: string): Promise<Settings> => ({
    ...(await throughTo(from, { postgres: cluster.postgres.appUrl, nats: cluster.nats.url })),
    REDIS_URL: await through(from, 'redis', cluster.redis.url),
  })
  for (let number = 1; number <= WORKERS; number++)
    await cluster.startWorker(await routesOf(`worker-${number}`))
  for (let number = 1; number <= API_NODES; number++)
    await cluster.startNode(await routesOf(`api-${number}`))
  const asObserver = { postgres: cluster.postgres.observerUrl, nats: cluster.nats.observerUrl }
  for (let number = 1; number <= OBSERVERS; number++)
    await cluster.startObserver(await throughTo(`observe-${number}`, asObserver))
  const owner = stack.move()
  return { cluster, links, clocks, [Symbol.asyncDispose]: () => owner.disposeAsync() }
}

/**
 * What the log says, and what each node, each observer and `verify` do, when deliveries are
 * recorded and projections have caught up.
 */
async function settle(cluster: Cluster<Places>, agents: readonly Agent[], watching: Watching) {
  const deadline = performance.now() + SETTLE_DEADLINE_MS
  for (;;) {
    // Past a pooler, which keeps no temporary tables.
    const direct = { DATABASE_URL: cluster.postgres.appUrl, DATABASE_POOL_MODE: 'session' }
    const { code, output } = await cluster.run('verify', [], direct)
    const isLate = performance.now() > deadline
    if (code !== 0 && !isLate) continue
    const [reader] = agents
    if (reader === undefined) throw new Error('nobody has registered')
    const nodes = await Promise.all(
      cluster.nodes.map((node) => untilAvailable(() => viewOf(node, reader))),
    )
    const refusedTokens: string[] = []
    for (const agent of agents) {
      const { status } = await untilAvailable(() => agent.request('GET', '/v1/state?limit=1'))
      if (status !== 200) refusedTokens.push(agent.address)
    }
    const { events, observers } = await observed(cluster)
    return {
      events,
      nodes,
      observers,
      watches: await endWatches(watching, events),
      refusedTokens,
      ...(code !== 0 && { differences: output }),
    }
  }
}

/**
 * Nothing is broken any more, but a machine that others use may hold up an answer: an attempt that
 * failed is made again.
 */
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

/**
 * The log, and what observers answer of it, when all that was asked for until now has been
 * recorded.
 */
async function observed(
  cluster: Cluster<Places>,
): Promise<{ events: Event[]; observers: ObserverView[] }> {
  const deadline = performance.now() + SETTLE_DEADLINE_MS
  for (;;) {
    const observers = await Promise.all(
      cluster.observers.map((observer) => observerViewOf(observer, deadline)),
    )
    const events = await cluster.events()
    if (observers.every((view) => view.events === events.length) || performance.now() > deadline)
      return { events, observers }
    await sleep(SETTLE_POLL_MS)
  }
}

async function observerViewOf({ name, url }: ClusterNode, deadline: number): Promise<ObserverView> {
  const ask = async <T>(path: string): Promise<T> => {
    for (;;) {
      const response = await fetch(`${url}/observe/${path}`).catch(() => undefined)
      if (response?.ok) return (await response.json()) as T
      if (performance.now() > deadline)
        throw new Error(`${name} answered ${path} with ${response?.status}`)
      await sleep(SETTLE_POLL_MS)
    }
  }
  const { total: agents } = await ask<{ total: number }>('agents?limit=1')
  const { buckets } = await ask<{ buckets: { total: number }[] }>(
    'activity?buckets=1&to=2100-01-01T00:00:00Z',
  )
  return { observer: name, agents, events: buckets.reduce((sum, { total }) => sum + total, 0) }
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
