/**
 * A whole cluster for tests: private servers, api nodes and workers as processes of their own,
 * HAProxy in front. Everything is gone after `await using`, and also when the test process is
 * killed.
 */
import { get } from 'node:http'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { type Event, readEvents } from './kernel.ts'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './servers/directory.ts'
import { Process } from './servers/process.ts'
import {
  type BackendNode,
  type HaproxyServer,
  type NatsAccount,
  type NatsCluster,
  type PostgresDatabase,
  type PostgresServer,
  type RedisDatabase,
  type RedisServer,
  sharedNats,
  sharedPostgres,
  sharedRedis,
  startHaproxy,
  startNats,
  startPostgres,
  startRedis,
} from './servers.ts'

const MAIN = join(import.meta.dirname, '..', 'src', 'main.ts')
/** Several processes start at once, on a machine that may be busy with other tests. */
const START_DEADLINE_MS = 180_000
const COMMAND_DEADLINE_MS = 120_000
const BALANCED_DEADLINE_MS = 60_000
/**
 * The exit code of a process that could not use one of its servers, which answer too late on a
 * machine that is very busy.
 */
const CANNOT_START = 2
const STARTS = 5

export type Settings = Readonly<Record<string, string>>

/** A kernel process. */
export interface ClusterProcess {
  readonly name: string
  readonly pid: number
  /** Metrics, /livez, /readyz, and of a node the event log. */
  readonly internalUrl: string
  readonly process: Process
  /** What it has printed, over all its starts. */
  output(): string
  /** SIGTERM; resolves to the exit code. */
  stop(): Promise<number | null>
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  /**
   * Stops it if it runs, starts it on the same ports, and waits until it is ready. Settings are
   * those it had, and these.
   */
  restart(settings?: Settings): Promise<void>
}

export interface ClusterNode extends ClusterProcess {
  /** The agent API of this one node, past the load balancer. */
  readonly url: string
}

/** What a command printed, and its exit code (null when a signal ended it). */
export interface CommandResult {
  readonly code: number | null
  readonly output: string
}

/** `S`: on servers of its own, or in places on those that several clusters use. */
export interface Cluster<S extends Places = Servers> extends AsyncDisposable {
  /** The agent API through the load balancer, without a path. */
  readonly baseUrl: string
  readonly nodes: readonly ClusterNode[]
  readonly workers: readonly ClusterProcess[]
  /** Of the observation service; their `url` is what it serves. */
  readonly observers: readonly ClusterNode[]
  readonly postgres: S['postgres']
  readonly redis: S['redis']
  readonly nats: S['nats']
  readonly haproxy: HaproxyServer
  /** One more node, which the load balancer uses when this resolves. */
  startNode(settings?: Settings): Promise<ClusterNode>
  /** One with settings of its own, which the load balancer does not know. */
  startNodeApart(settings: Settings): Promise<ClusterNode>
  startWorker(settings?: Settings): Promise<ClusterProcess>
  /** A process of the observation service, with the rights of one. */
  startObserver(settings?: Settings): Promise<ClusterNode>
  /** Runs a command such as `verify` to its end. */
  run(command: string, args?: readonly string[], settings?: Settings): Promise<CommandResult>
  /**
   * The event log after `since` (exclusive), read through the first node that runs and is not
   * frozen.
   */
  events(since?: number): Promise<Event[]>
  /** What all kernel processes have printed. */
  output(): string
}

export interface ClusterOptions<S extends Places = Servers> {
  readonly nodes?: number
  readonly workers?: number
  /** For all kernel processes, over the defaults: warnings only, the cheapest bcrypt. */
  readonly settings?: Settings
  /**
   * Where they reach the servers instead of directly, such as through a TCP proxy: what to set, by
   * the servers' urls. The stack ends with the cluster.
   */
  readonly route?: (servers: S, stack: AsyncDisposableStack) => Promise<Settings>
}

export interface Places {
  readonly postgres: PostgresDatabase
  readonly redis: RedisDatabase
  readonly nats: NatsAccount
}

export interface Servers extends Places {
  readonly postgres: PostgresServer
  readonly redis: RedisServer
  readonly nats: NatsCluster
}

/**
 * Starts a cluster with servers of its own, for those who stop, break or configure them, and waits
 * until every node is in use. `natsDiskMiB`: of a disk for each NATS server, see `startNats`.
 */
export function startCluster({
  natsDiskMiB,
  ...options
}: ClusterOptions & { readonly natsDiskMiB?: number } = {}): Promise<Cluster> {
  return startOn(
    {
      postgres: () => startPostgres({ migrated: true }),
      redis: startRedis,
      nats: () => startNats({ diskMiB: natsDiskMiB }),
    },
    options,
  )
}

/**
 * The same on the servers that several share, where it has a database, a Redis and a log of its
 * own.
 */
export function startSharedCluster(options: ClusterOptions<Places> = {}): Promise<Cluster<Places>> {
  return startOn({ postgres: sharedPostgres, redis: sharedRedis, nats: sharedNats }, options)
}

async function startOn<S extends Places>(
  opening: { readonly [K in keyof S]: () => Promise<S[K]> },
  {
    nodes: nodeCount = 3,
    workers: workerCount = 1,
    settings = {},
    route = async () => ({}),
  }: ClusterOptions<S>,
): Promise<Cluster<S>> {
  await using stack = new AsyncDisposableStack()
  let owner = stack
  const owned = async <T extends AsyncDisposable>(start: Promise<T>) => stack.use(await start)
  const [postgres, redis, nats] = await allOver([
    owned<S['postgres']>(opening.postgres()),
    owned<S['redis']>(opening.redis()),
    owned<S['nats']>(opening.nats()),
  ])
  const environment: Settings = {
    PATH: process.env.PATH ?? '',
    NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? '',
    HOST: '127.0.0.1',
    LOG_LEVEL: 'warn',
    BCRYPT_COST: '4',
    DATABASE_URL: postgres.appUrl,
    REDIS_URL: redis.url,
    NATS_URL: nats.url,
    TRUSTED_PROXIES: '127.0.0.1/32',
    ...(await route({ postgres, redis, nats } as S, stack)),
    ...settings,
  }
  const nodes: ClusterNode[] = []
  const workers: ClusterProcess[] = []
  const observers: ClusterNode[] = []
  /** Members that are not ready yet. */
  const starting = new Set<Pick<ClusterProcess, 'name' | 'output'>>()
  const commands: Process[] = []
  let apart = 0
  const run = async (command: string, args: readonly string[] = [], overrides: Settings = {}) => {
    const directory = makeDirectory(command)
    const child = new Process({
      name: command,
      file: process.execPath,
      args: [MAIN, command, ...args],
      env: { ...environment, ...overrides },
      directory,
    })
    commands.push(child)
    child.start()
    const timeout = setTimeout(() => child.kill(), COMMAND_DEADLINE_MS)
    const code = await child.exited()
    clearTimeout(timeout)
    await removeDirectory(directory)
    return { code, output: child.output() }
  }
  if (!postgres.isMigrated) {
    const migrated = await run('migrate', [], { DATABASE_URL: postgres.ownerUrl })
    if (migrated.code !== 0)
      throw new Error(`migrate ended with ${migrated.code}. It printed:\n${migrated.output}`)
  }

  const start = async (command: 'api' | 'worker' | 'observe', number: number, own: Settings) => {
    const ports = await reservePorts(2)
    const [port, internalPort] = ports as [number, number]
    const name = `${command}-${number}`
    const directory = makeDirectory(name)
    const addresses = {
      PORT: String(port),
      OBSERVE_PORT: String(port),
      INTERNAL_PORT: String(internalPort),
    }
    owner.defer(async () => {
      await removeDirectory(directory)
      releasePorts(ports)
    })
    const started = kernelProcess(name, command, directory, {
      ...environment,
      ...addresses,
      ...own,
    })
    starting.add(started)
    await started.restart().finally(() => starting.delete(started))
    return Object.assign(started, {
      url: `http://127.0.0.1:${port}`,
      internalUrl: `http://127.0.0.1:${internalPort}`,
    })
  }
  const counted = (count: number) => Array.from({ length: count }, (_, index) => index + 1)
  // Two at a time: a start is mostly the loading of code, and more at once than there are
  // processors only wait for each other.
  await eachOf(2, [
    ...counted(workerCount).map(
      (number) => async () => void workers.push(await start('worker', number, {})),
    ),
    ...counted(nodeCount).map(
      (number) => async () => void nodes.push(await start('api', number, {})),
    ),
  ])
  nodes.sort((one, other) => one.name.localeCompare(other.name, 'en', { numeric: true }))
  const haproxy = stack.use(await startHaproxy({ nodes: nodes.map(backendOf) }))
  await balanced(haproxy)

  owner = stack.move()
  return {
    baseUrl: haproxy.url,
    nodes,
    workers,
    observers,
    postgres,
    redis,
    nats,
    haproxy,
    async startNode(own = {}) {
      const node = await start('api', nodes.length + 1, own)
      nodes.push(node)
      await haproxy.setNodes(nodes.map(backendOf))
      await balanced(haproxy, backendOf(node))
      return node
    },
    startNodeApart: (own) => start('api', nodes.length + ++apart, own),
    async startWorker(own = {}) {
      const worker = await start('worker', workers.length + 1, own)
      workers.push(worker)
      return worker
    },
    async startObserver(own = {}) {
      const rights = {
        DATABASE_URL: postgres.observerUrl,
        NATS_URL: nats.observerUrl,
        REDIS_URL: '',
      }
      const observer = await start('observe', observers.length + 1, { ...rights, ...own })
      observers.push(observer)
      return observer
    },
    run,
    events(since = 0) {
      const node = nodes.find(({ process }) => process.running && !process.frozen)
      if (node === undefined) throw new Error('No node runs that could read the event log')
      return readEvents(node.internalUrl, since)
    },
    output: () =>
      [...nodes, ...workers, ...observers, ...starting, ...commands]
        .map((member) => `--- ${member.name}\n${member.output()}`)
        .join('\n'),
    [Symbol.asyncDispose]: () => owner.disposeAsync(),
  }
}

function kernelProcess(
  name: string,
  command: string,
  directory: string,
  first: Settings,
): Omit<ClusterProcess, 'internalUrl'> {
  let settings = first
  const create = () =>
    new Process({ name, file: process.execPath, args: [MAIN, command], env: settings, directory })
  let child = create()
  let earlier = ''
  return {
    name,
    get pid() {
      return child.pid
    },
    get process() {
      return child
    },
    output: () => earlier + child.output(),
    stop: () => child.stop(),
    kill: () => child.kill(),
    freeze: () => child.freeze(),
    thaw: () => child.thaw(),
    async restart(changes = {}) {
      if (child.running) await child.stop()
      earlier += child.output()
      settings = { ...settings, ...changes }
      const ready = () => isReady(`http://127.0.0.1:${settings.INTERNAL_PORT}/readyz`)
      // Started again where it ended, as whatever runs it elsewhere does too.
      for (let starts = 1; ; starts++) {
        child = create()
        child.start()
        try {
          await child.ready(ready, START_DEADLINE_MS)
          return
        } catch (error) {
          if (child.running || (await child.exited()) !== CANNOT_START || starts === STARTS)
            throw error
          earlier += child.output()
        }
      }
    },
  }
}

function backendOf(node: ClusterNode): BackendNode {
  return {
    host: '127.0.0.1',
    port: Number(new URL(node.url).port),
    internalPort: Number(new URL(node.internalUrl).port),
  }
}

/** Resolves when the load balancer uses all its nodes, or the one that is given. */
export async function balanced(haproxy: HaproxyServer, wanted?: BackendNode): Promise<void> {
  await haproxy.process.ready(async () => {
    const nodes = (await haproxy.nodes()).filter(
      (node) => wanted === undefined || node.port === wanted.port,
    )
    return nodes.every((node) => node.status === 'UP') || undefined
  }, BALANCED_DEADLINE_MS)
}

async function isReady(url: string): Promise<true | undefined> {
  const { promise, resolve, reject } = Promise.withResolvers<true | undefined>()
  const request = get(
    url,
    { agent: false, signal: AbortSignal.timeout(2_000) },
    async (response) => {
      const body = await text(response)
      if (response.statusCode === 200) resolve(true)
      else reject(new Error(body))
    },
  )
  request.on('error', reject)
  return await promise
}

/**
 * Like Promise.all, but resolves or rejects only when every one is over, so that none goes on
 * behind the back of a clean-up.
 */
async function allOver<T extends readonly unknown[]>(
  promises: { [K in keyof T]: Promise<T[K]> },
): Promise<T> {
  await Promise.allSettled(promises)
  return (await Promise.all(promises)) as unknown as T
}

/** Runs them all, so many at a time. */
async function eachOf(limit: number, tasks: readonly (() => Promise<void>)[]): Promise<void> {
  const left = tasks.values()
  await allOver(
    Array.from({ length: limit }, async () => {
      for (const task of left) await task()
    }),
  )
}
