/** What can be broken, and how it is mended. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Cluster, ClusterProcess } from '../cluster.ts'
import { type NatsCluster, type NatsServer, redisAdmin } from '../servers.ts'
import type { TcpProxy } from '../tcp-proxy.ts'
import { sendLargeBodies } from './burst.ts'
import { type Clocks, HOUR_MS, setStoredTimesBack } from './clock.ts'
import { damageAndLead } from './damage.ts'
import type { Part } from './history.ts'

/** NATS holds an election within 9 s (nats-server, maxElectionTimeout), and its streams follow. */
const ELECTION_DEADLINE_MS = 30_000
const LEADER_DEADLINE_MS = 10_000
/** A node that had to be started again for it is one that needs some seconds. */
const BALANCED_DEADLINE_MS = 60_000
const REFUSED_DEADLINE_MS = 10_000
const POLL_MS = 50

/** The network between one node, worker or observer and one server. */
export interface Link {
  readonly from: string
  readonly to: 'postgres' | 'redis' | 'nats'
  readonly proxy: TcpProxy
}

export interface Scene {
  readonly cluster: Cluster
  readonly links: readonly Link[]
  readonly clocks: Clocks
  /** From 0 to below 1: which of several. */
  readonly victim: number
  /** Notes that what the fault `shows` was seen so many times. */
  readonly saw: (times: number) => void
}

export interface Fault {
  readonly name: string
  readonly hits: readonly Part[]
  /** The shortest and longest time from its beginning to its repair, in ms. */
  readonly lastsMs: readonly [number, number]
  /** What is seen where it really happens, where that cannot be taken for granted. */
  readonly shows?: string
  /** Why it cannot be done here; undefined where it can. */
  readonly impossible?: (cluster: Cluster) => string | undefined
  /** Breaks it. Resolves to what mends it, which resolves when the part itself is whole again. */
  readonly begin: (scene: Scene) => Promise<() => Promise<void>>
}

const SHORT = [500, 4_000] as const
/**
 * Past every lease of a projector, and every deadline of a request; below what the client waits,
 * and a lease of messages.
 */
const LONG = [500, 9_000] as const

/** Delay in each direction of a slow link. */
const SLOW_MS = 150
/**
 * By so much Redis uses more than it may. With room, agents who fetch what comes would never fill
 * it.
 */
const REDIS_EXCESS_BYTES = 65_536
/** Of 6 MiB each: more than all nodes together take at once. */
const LARGE_BODIES = 30

export const FAULTS: readonly Fault[] = [
  ...processFaults('api', ({ nodes }) => nodes),
  ...processFaults('worker', ({ workers }) => workers),
  ...processFaults('observer', ({ observers }) => observers),
  projectorFault('killed', 'kill', 'restart', SHORT),
  projectorFault('frozen', 'freeze', 'thaw', LONG),
  {
    name: 'haproxy killed',
    hits: ['haproxy'],
    lastsMs: [200, 2_000],
    begin: async ({ cluster: { haproxy } }) => {
      await haproxy.kill()
      return () => haproxy.restart()
    },
  },
  ...serverFaults('redis', ({ redis }) => redis),
  {
    name: 'redis wiped',
    hits: ['redis'],
    lastsMs: [0, 0],
    begin: async ({ cluster: { redis } }) => {
      await redis.wipe()
      return async () => {}
    },
  },
  {
    name: 'redis full',
    hits: ['redis'],
    lastsMs: [3_000, 9_000],
    shows: 'commands that it refused',
    begin: async ({ cluster: { redis }, saw }) => {
      const admin = redisAdmin(redis.adminUrl)
      const before = await admin.refused()
      await admin.limitMemory(-REDIS_EXCESS_BYTES)
      return async () => {
        // Agents may have nothing to add for a moment.
        const deadline = performance.now() + REFUSED_DEADLINE_MS
        while ((await admin.refused()) === before && performance.now() < deadline)
          await sleep(POLL_MS)
        saw((await admin.refused()) - before)
        await admin.limitMemory()
      }
    },
  },
  passwordFault('redis', ({ redis }, password) => redis.setKernelPassword(password)),
  ...serverFaults('postgres', ({ postgres }) => postgres),
  passwordFault('postgres', ({ postgres }, password) => postgres.setAppPassword(password)),
  natsFault('nats leader killed', leader, [500, 9_000], 'kill', 'restart'),
  natsFault('nats follower killed', follower, [500, 9_000], 'kill', 'restart'),
  natsFault('two nats killed', two, SHORT, 'kill', 'restart'),
  natsFault(
    'all nats killed',
    async ({ cluster }) => cluster.nats.servers,
    SHORT,
    'kill',
    'restart',
  ),
  natsFault('nats leader frozen', leader, LONG, 'freeze', 'thaw'),
  natsFault('nats follower frozen', follower, LONG, 'freeze', 'thaw'),
  natsFault(
    'all nats frozen',
    async ({ cluster }) => cluster.nats.servers,
    SHORT,
    'freeze',
    'thaw',
  ),
  {
    name: 'nats rolling restart',
    hits: ['nats'],
    lastsMs: [0, 0],
    begin: async ({ cluster }) => {
      for (const server of cluster.nats.servers) {
        await server.restart()
        await streamLed(cluster)
      }
      return async () => {}
    },
  },
  {
    ...passwordFault('nats', ({ nats }, password) => nats.setKernelPassword(password)),
    impossible: ({ nats }) =>
      isNats29(nats)
        ? 'servers of NATS 2.9 may have to be restarted after a change of their configuration (docs/guarantees.md)'
        : undefined,
  },
  {
    name: 'nats leader damaged',
    hits: ['nats'],
    lastsMs: LONG,
    shows: 'events that it lacks',
    begin: async ({ cluster, victim, saw }) => {
      const { servers } = cluster.nats
      const server = pick(servers, victim)
      saw(await damageAndLead(cluster, server, (victim * servers.length) % 1))
      // As docs/deploying.md says of a replica that lacks events.
      return async () => {
        await server.stop()
        server.wipe()
        await server.restart()
        await streamLed(cluster)
      }
    },
  },
  {
    name: 'nats disk full',
    hits: ['nats'],
    lastsMs: [2_000, 8_000],
    impossible: losesEvents,
    begin: async ({ cluster, victim }) => {
      const servers =
        victim < 0.5 ? cluster.nats.servers : [pick(cluster.nats.servers, victim * 2 - 1)]
      for (const { disk } of servers) disk?.fill()
      return async () => {
        for (const { disk } of servers) disk?.free()
        // A server that met the full disk has switched JetStream off until its next start; where
        // all have, one alone would wait for the others.
        await Promise.all(servers.map((server) => server.restart()))
        await streamLed(cluster)
      }
    },
  },
  ...linkFaults('cut', 'cut', SHORT),
  ...linkFaults('silent', 'hold', LONG),
  ...linkFaults('slow', 'delay', LONG),
  {
    name: 'clock jumps',
    hits: ['clock'],
    lastsMs: [1_000, 10_000],
    begin: async ({ cluster, clocks, victim }) => {
      const member = pick([...cluster.nodes, ...cluster.workers], victim)
      await clocks.shift([member], HOUR_MS)
      return () => clocks.shift([member], 0)
    },
  },
  {
    name: 'all clocks set back',
    hits: ['clock'],
    lastsMs: [1_000, 10_000],
    shows: 'times that are an hour ahead since',
    begin: async ({ cluster: { nodes, workers, redis, postgres }, clocks, saw }) => {
      const members = [...nodes, ...workers]
      await clocks.shift(members, -HOUR_MS)
      const servers = { redisAdminUrl: redis.adminUrl, superuserUrl: postgres.superuserUrl }
      saw(await setStoredTimesBack(servers, HOUR_MS))
      return () => clocks.shift(members, 0)
    },
  },
  {
    name: 'large bodies',
    // To whom they go that the others do not wait is for test/cluster/large-bodies.test.ts: here
    // they share the processors with everything else.
    hits: ['machine'],
    lastsMs: [0, 0],
    shows: 'bodies that were refused for want of room',
    begin: async ({ cluster, saw }) => {
      saw(await sendLargeBodies(cluster.baseUrl, LARGE_BODIES))
      return async () => {}
    },
  },
]

function processFaults(
  part: 'api' | 'worker' | 'observer',
  members: (cluster: Cluster) => readonly ClusterProcess[],
): Fault[] {
  const one = ({ cluster, victim }: Scene) => pick(members(cluster), victim)
  const all = (cluster: Cluster, act: (member: ClusterProcess) => Promise<unknown>) =>
    Promise.all(members(cluster).map(act))
  const balanced = async (cluster: Cluster) => {
    const deadline = performance.now() + BALANCED_DEADLINE_MS
    while (!(await cluster.haproxy.nodes()).every(({ status }) => status === 'UP')) {
      if (performance.now() > deadline)
        throw new Error(`not all nodes were in use within ${BALANCED_DEADLINE_MS} ms`)
      await sleep(POLL_MS)
    }
  }
  return [
    {
      name: `${part} killed`,
      hits: [part],
      lastsMs: SHORT,
      begin: async (scene) => {
        const member = one(scene)
        await member.kill()
        return () => member.restart()
      },
    },
    {
      name: `${part} frozen`,
      hits: [part],
      lastsMs: LONG,
      begin: async (scene) => {
        const member = one(scene)
        await member.freeze()
        return () => member.thaw()
      },
    },
    {
      name: `${part} restarted`,
      // Nobody is to notice, so nothing is excused.
      hits: [],
      lastsMs: [0, 0],
      begin: async (scene) => {
        await one(scene).restart()
        await balanced(scene.cluster)
        return async () => {}
      },
    },
    {
      name: `all ${part} killed`,
      hits: [part],
      lastsMs: SHORT,
      begin: async ({ cluster }) => {
        await all(cluster, (member) => member.kill())
        return async () => {
          await all(cluster, (member) => member.restart())
          await balanced(cluster)
        }
      },
    },
    {
      name: `all ${part} frozen`,
      hits: [part],
      lastsMs: LONG,
      begin: async ({ cluster }) => {
        await all(cluster, (member) => member.freeze())
        return async () => {
          await all(cluster, (member) => member.thaw())
          await balanced(cluster)
        }
      },
    },
  ]
}

/** The process that applies one of the projections. */
function projectorFault(
  how: string,
  begin: 'kill' | 'freeze',
  end: 'restart' | 'thaw',
  lastsMs: readonly [number, number],
): Fault {
  return {
    name: `projector ${how}`,
    hits: ['api', 'worker'],
    lastsMs,
    begin: async ({ cluster, victim }) => {
      const member = await leaderOf(cluster, victim < 0.5 ? 'database' : 'queues')
      await member[begin]()
      return () => member[end]()
    },
  }
}

/** The process that leads a projection, as soon as one does. */
export async function leaderOf(
  { nodes, workers }: Cluster,
  projection: 'database' | 'queues',
): Promise<ClusterProcess> {
  const deadline = performance.now() + LEADER_DEADLINE_MS
  for (;;) {
    for (const member of [...workers, ...nodes]) {
      if (!member.process.running || member.process.frozen) continue
      const metrics = await (await fetch(`${member.internalUrl}/metrics`)).text()
      if (metrics.includes(`tabulum_projection_leading{projection="${projection}"} 1`))
        return member
    }
    if (performance.now() > deadline)
      throw new Error(`nobody led ${projection} within ${LEADER_DEADLINE_MS} ms`)
    await sleep(POLL_MS)
  }
}

interface Stoppable {
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  stop(): Promise<void>
  restart(): Promise<void>
}

function serverFaults(
  part: 'redis' | 'postgres',
  server: (cluster: Cluster) => Stoppable,
): Fault[] {
  const fault = (
    how: string,
    begin: 'kill' | 'stop' | 'freeze',
    end: 'restart' | 'thaw',
  ): Fault => ({
    name: `${part} ${how}`,
    hits: [part],
    lastsMs: LONG,
    begin: async ({ cluster }) => {
      await server(cluster)[begin]()
      return () => server(cluster)[end]()
    },
  })
  return [
    fault('killed', 'kill', 'restart'),
    fault('stopped', 'stop', 'restart'),
    fault('frozen', 'freeze', 'thaw'),
  ]
}

/** The server refuses what everybody was told, until it is the right one again. */
function passwordFault(
  part: 'redis' | 'postgres' | 'nats',
  set: (cluster: Cluster, password?: string) => Promise<void>,
): Fault {
  return {
    name: `${part} password changed`,
    // All connections end, with what was under way on them.
    hits: [part, 'network'],
    lastsMs: LONG,
    begin: async ({ cluster }) => {
      await set(cluster, 'another-password')
      return () => set(cluster)
    },
  }
}

function isNats29({ version }: NatsCluster): boolean {
  return version.startsWith('2.9.')
}

/** Why servers of this version cannot go through it. */
function losesEvents({ nats }: Cluster): string | undefined {
  return isNats29(nats)
    ? 'servers of NATS 2.9 lose events where they were frozen for long, or their disk was full (docs/guarantees.md)'
    : undefined
}

function natsFault(
  name: string,
  choose: (scene: Scene) => Promise<readonly NatsServer[]>,
  lastsMs: readonly [number, number],
  begin: 'kill' | 'freeze',
  end: 'restart' | 'thaw',
): Fault {
  return {
    name,
    hits: ['nats'],
    lastsMs,
    ...(begin === 'freeze' && {
      impossible: losesEvents,
    }),
    begin: async (scene) => {
      const servers = await choose(scene)
      await Promise.all(servers.map((server) => server[begin]()))
      return async () => {
        await Promise.all(servers.map((server) => server[end]()))
        await streamLed(scene.cluster)
      }
    },
  }
}

function linkFaults(
  how: string,
  act: 'cut' | 'hold' | 'delay',
  lastsMs: readonly [number, number],
): Fault[] {
  return (['postgres', 'redis', 'nats'] as const).map((to) => ({
    name: `${to} ${how}`,
    hits: ['network'],
    lastsMs,
    begin: async ({ links, victim }) => {
      const candidates = links.filter((link) => link.to === to)
      const from = pick([...new Set(candidates.map((link) => link.from))], victim)
      const proxies = candidates.filter((link) => link.from === from).map(({ proxy }) => proxy)
      for (const proxy of proxies) {
        if (act === 'delay') proxy.delay(SLOW_MS)
        else proxy[act]()
      }
      return async () => {
        for (const proxy of proxies) proxy.heal()
      }
    },
  }))
}

async function leader({ cluster }: Scene): Promise<NatsServer[]> {
  return [await streamLed(cluster)]
}

async function follower({ cluster, victim }: Scene): Promise<NatsServer[]> {
  const leading = await streamLed(cluster)
  return [
    pick(
      cluster.nats.servers.filter((server) => server !== leading),
      victim,
    ),
  ]
}

async function two(scene: Scene): Promise<NatsServer[]> {
  const spared = pick(scene.cluster.nats.servers, scene.victim)
  return scene.cluster.nats.servers.filter((server) => server !== spared)
}

/** The server that leads the stream, as soon as one does. */
async function streamLed({ nats }: Cluster): Promise<NatsServer> {
  const deadline = performance.now() + ELECTION_DEADLINE_MS
  for (;;) {
    const server = await nats.streamLeader('EVENTS').catch(() => undefined)
    if (server !== undefined) return server
    if (performance.now() > deadline)
      throw new Error(`no NATS server led the stream within ${ELECTION_DEADLINE_MS} ms`)
    await sleep(POLL_MS)
  }
}

function pick<T>(items: readonly T[], victim: number): T {
  const item = items[Math.floor(victim * items.length)]
  if (item === undefined) throw new Error('there is nothing to break')
  return item
}
