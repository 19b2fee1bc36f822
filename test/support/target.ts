/**
 * What the contract suite runs against: a kernel on embedded storage, or a cluster. Chosen by
 * TABULUM_TEST_TARGET; the tests cannot tell which.
 */
import { afterAll, afterEach } from 'vitest'
import type { ClusterNode } from '../../lab/cluster.ts'
import { type Event, freshDataDirectory, type Kernel, startKernel } from '../../lab/kernel.ts'
import { removeDirectory } from '../../lab/servers/directory.ts'

export interface Target extends AsyncDisposable {
  /**
   * The agent API, without a path; for a cluster that of its load balancer. Stays the same over
   * restarts.
   */
  readonly baseUrl: string
  /**
   * The observation service, without a path. In a cluster one process of it is started for the
   * first who asks.
   */
  observeUrl(): Promise<string>
  /** The event log after `since` (exclusive), in order. */
  events(since?: number): Promise<Event[]>
  /** Stops every kernel process with SIGTERM, waits, and starts it again on the same data. */
  restart(): Promise<void>
  /** What the processes have printed. */
  output(): string
}

type StartNode = (
  settings: Readonly<Record<string, string>>,
) => Promise<{ readonly baseUrl: string; stop(): Promise<void> }>

/** Limits so high that no test meets them unless it is about limits. */
const LIFTED_LIMITS = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
  RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
}

/**
 * Of what the processes of a target have printed, so many characters are shown when a test fails.
 */
const SHOWN_OUTPUT = 5_000

/** Starts a target; `limits: 'default'` leaves the rate limits as the program has them. */
export async function startTarget(
  settings: Readonly<Record<string, string>> = {},
  { limits = 'lifted' }: { limits?: 'lifted' | 'default' } = {},
): Promise<Target> {
  const all = limits === 'lifted' ? { ...LIFTED_LIMITS, ...settings } : { ...settings }
  return isCluster() ? startClusterTarget(all) : startEmbeddedTarget(all)
}

function isCluster(): boolean {
  const name = process.env.TABULUM_TEST_TARGET ?? 'embedded'
  if (name !== 'embedded' && name !== 'cluster') {
    throw new Error(`TABULUM_TEST_TARGET=${name}: must be embedded or cluster`)
  }
  return name === 'cluster'
}

let common: Promise<Target & { startNode?: StartNode }> | undefined

/**
 * A target with the defaults for all files that one process runs, one after the other: its log and
 * its stores hold what others have done. It ends with the process.
 */
export async function sharedTarget(): Promise<Target> {
  common ??= startTarget()
  return shownOnFailure(await common)
}

/** A target for the tests of the file that asks for it, which ends with them. */
export async function ownTarget(...options: Parameters<typeof startTarget>): Promise<Target> {
  const target = shownOnFailure(await startTarget(...options))
  afterAll(() => target[Symbol.asyncDispose]())
  return target
}

/**
 * The agent API of a node with settings that change only how it answers itself. In a cluster it is
 * one more node of the shared target, as that takes a fraction of what another cluster would.
 */
export async function ownNode(
  settings: Readonly<Record<string, string>>,
): Promise<{ readonly baseUrl: string }> {
  if (!isCluster()) return ownTarget(settings)
  await sharedTarget()
  const node = await (await common)?.startNode?.(settings)
  if (node === undefined) throw new Error('the shared target starts no nodes')
  afterAll(() => node.stop())
  return node
}

function shownOnFailure(target: Target): Target {
  afterEach(({ task }) => {
    if (task.result?.state === 'fail') console.error(target.output().slice(-SHOWN_OUTPUT))
  })
  return target
}

async function startEmbeddedTarget(settings: Readonly<Record<string, string>>): Promise<Target> {
  const dataDir = await freshDataDirectory()
  let kernel: Kernel
  try {
    kernel = await startKernel(settings, { dataDir })
  } catch (error) {
    await removeDirectory(dataDir)
    throw error
  }
  const ports = {
    PORT: new URL(kernel.baseUrl).port,
    INTERNAL_PORT: new URL(kernel.internalUrl).port,
    OBSERVE_PORT: new URL(kernel.observeUrl).port,
  }
  return {
    baseUrl: kernel.baseUrl,
    observeUrl: async () => kernel.observeUrl,
    events: (since) => kernel.events(since),
    output: () => kernel.output(),
    async restart() {
      const code = await kernel.stop()
      if (code !== 0)
        throw new Error(`The kernel ended with ${code}, not 0. It printed:\n${kernel.output()}`)
      kernel = await startKernel({ ...settings, ...ports }, { dataDir })
    },
    async [Symbol.asyncDispose]() {
      await kernel[Symbol.asyncDispose]()
      await removeDirectory(dataDir)
    },
  }
}

/**
 * The cluster as a target of the contract suite, which must not be able to tell it from a single
 * process.
 */
async function startClusterTarget(
  settings: Readonly<Record<string, string>>,
): Promise<Target & { startNode: StartNode }> {
  // Loaded only here: it brings the clients of all servers with it.
  const { balanced, startSharedCluster } = await import('../../lab/cluster.ts')
  // Two nodes: an answer of one is mostly about what the other has done.
  const cluster = await startSharedCluster({ nodes: 2, settings })
  let observer: Promise<ClusterNode> | undefined
  return {
    baseUrl: cluster.baseUrl,
    async observeUrl() {
      observer ??= cluster.startObserver()
      return (await observer).url
    },
    events: (since) => cluster.events(since),
    output: () => cluster.output(),
    async startNode(own) {
      const node = await cluster.startNodeApart(own)
      return { baseUrl: node.url, stop: async () => void (await node.stop()) }
    },
    async restart() {
      const members = [...cluster.nodes, ...cluster.workers, ...cluster.observers]
      await Promise.all(
        members.map(async (member) => {
          const code = await member.stop()
          if (code !== 0)
            throw new Error(
              `${member.name} ended with ${code}, not 0. It printed:\n${member.output()}`,
            )
        }),
      )
      await Promise.all(members.map((member) => member.restart()))
      await balanced(cluster.haproxy)
    },
    [Symbol.asyncDispose]: () => cluster[Symbol.asyncDispose](),
  }
}
