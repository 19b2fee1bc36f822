/** The cluster's storage: connections to the three servers, checked at start, and the capabilities' adapters on them. */
import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { sql } from 'kysely'
import type { Msg, NatsError } from 'nats'
import { RedisAdmission } from '../access/redis-admission.ts'
import { type ClusterServers, type Config, ConfigError } from '../config.ts'
import type { LoggedEvent } from '../events/event.ts'
import { JetStreamEventLog } from '../events/jetstream-event-log.ts'
import { Progress } from '../events/progress.ts'
import { isToBePushed } from '../messaging/messages-of-log.ts'
import { type QueueGeneration, RedisMessageQueue } from '../messaging/redis-message-queue.ts'
import { inBackground } from '../platform/background.ts'
import { type Database, openPostgres, roundTrip } from '../platform/database.ts'
import type { ReadinessChecks } from '../platform/internal-server.ts'
import type { Logger } from '../platform/logger.ts'
import { checkSchema, POSTGRES } from '../platform/migrate.ts'
import { connectNats } from '../platform/nats.ts'
import { RedisClient } from '../platform/redis.ts'
import { NotThereYet, untilThere } from '../platform/startup-error.ts'
import { DatabaseProjection } from '../projector/database-projection.ts'
import { type Projection, type ProjectorOptions, runProjector } from '../projector/projector.ts'
import { QueueProjection } from '../projector/queue-projection.ts'
import { Doorbell } from '../webhooks/doorbell.ts'
import { allowances, type Storage, stores } from './node.ts'

export interface Cluster {
  storage: Storage
  redis: RedisClient
  /** Of the event log, on each server that keeps a copy. */
  logBytes: () => Promise<number>
  logReplicas: () => Promise<{ offline: number; lagEvents: number }>
  checks: ReadinessChecks
  /** Stops the projectors and closes the connections. */
  close(): Promise<void>
}

/** What the projector tells those who wait after each batch, and everybody now and then. */
interface Announcement {
  applied: number
  queues?: QueueGeneration
  /** It waits for room in its store. */
  isHeldUp?: boolean
  /** The place of an event that no replica has: it goes no further. */
  lost?: number
}

/** Followed by the projection's name, and by the origin of events for those who wait for them. */
const ANNOUNCEMENTS = 'tabulum.projection'
/** Said when there are new messages to push. */
const PUSHES = 'tabulum.pushes'
const HEARD_WITHIN_MS = 2_000

export function clusterServers(config: Config, command: string): ClusterServers {
  if (config.cluster) return config.cluster
  throw new ConfigError(
    `${command} needs a cluster: set DATABASE_URL, REDIS_URL and NATS_URL (serve needs none of them)`,
  )
}

/** Opens Postgres in one way or the other and checks that it can be used. Throws `NotThereYet`. */
export async function connectDatabase(
  config: Config,
  url: string,
  open: typeof openPostgres = openPostgres,
): Promise<Database> {
  const database = open({
    url,
    poolMode: config.DATABASE_POOL_MODE,
    maxConnections: config.DATABASE_MAX_CONNECTIONS,
  })
  try {
    await roundTrip(database, 'connect', () => sql`select 1`.execute(database), 5_000)
  } catch (error) {
    await database.destroy().catch(() => {})
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    const { host, pathname } = new URL(url)
    throw new NotThereYet(
      `DATABASE_URL: cannot use Postgres at ${host}${pathname}: ${cause instanceof Error ? cause.message : cause}`,
    )
  }
  return database
}

/** When a process offers to lead the projections. Workers are quicker, so that API nodes lead only where there is no worker. */
export type Patience = Required<Pick<ProjectorOptions, 'patienceMs' | 'startDelayMs'>>

/** Opens all three servers, and waits for them for so long as is set. Throws `StartupError`. */
export async function openCluster(
  config: Config,
  command: string,
  patience: Patience,
  logger: Logger,
): Promise<Cluster> {
  const servers = clusterServers(config, command)
  const startBy = performance.now() + config.STARTUP_TIMEOUT
  const there = <T>(open: () => Promise<T>) => untilThere(open, Math.max(0, startBy - performance.now()), logger)
  const database = await there(() => connectDatabase(config, servers.databaseUrl))
  await there(() => checkSchema(database, POSTGRES))
  const redis = await there(() => RedisClient.open(servers.redisUrl, config.REDIS_MODE, logger))
  const holder = `${command}-${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`
  const nats = await there(() => connectNats(servers.natsUrls, holder, logger))
  const origin = randomUUID().slice(0, 8)
  const log = await there(() => JetStreamEventLog.open(nats, config.EVENTS_REPLICAS, origin))

  const databaseProgress = new Progress()
  const queueProgress = new Progress()
  let queues: QueueGeneration | undefined
  let areQueuesFull = false
  const lost: Record<string, number | undefined> = {}
  const hear = (name: string, progress: Progress) => {
    const callback = (error: NatsError | null, message: Msg) => {
      if (error) return
      const { applied, queues: announced, isHeldUp = false, lost: lostAt } = message.json<Announcement>()
      lost[name] = lostAt
      if (name === 'queues') {
        queues = announced
        areQueuesFull = isHeldUp
      }
      log.heardOf(applied)
      progress.advance(applied, isHeldUp)
    }
    for (const subject of [`${ANNOUNCEMENTS}.${name}`, `${ANNOUNCEMENTS}.${name}.${origin}`])
      nats.subscribe(subject, { callback })
  }
  hear('database', databaseProgress)
  hear('queues', queueProgress)
  const pushes = new Doorbell()
  nats.subscribe(PUSHES, {
    callback: (error) => {
      if (!error) pushes.ring()
    },
  })

  const stop = new AbortController()
  const project = (projection: Projection, progress: Progress, details: () => Partial<Announcement>) =>
    runProjector(
      {
        projection,
        log,
        progress,
        logger,
        holder,
        ...patience,
        ...(projection.name === 'database' && {
          onApplied: (events: readonly LoggedEvent[]) => {
            if (events.some(isToBePushed)) nats.publish(PUSHES)
          },
        }),
        broadcast: (applied, events) => {
          const announcement: Announcement = { applied, ...details(), ...(log.lost && { lost: log.lost }) }
          if (projection.name === 'queues') {
            queues = announcement.queues
            areQueuesFull = announcement.isHeldUp ?? false
          }
          const text = JSON.stringify(announcement)
          for (const to of waitingFor(events)) {
            if (to !== origin) nats.publish(`${ANNOUNCEMENTS}.${projection.name}${to && `.${to}`}`, text)
          }
        },
      },
      stop.signal,
    )
  const maxQueue = config.MESSAGE_MAX_QUEUE_PER_AGENT
  const queueProjection = new QueueProjection(redis, database, { maxQueue })
  const projecting = [
    project(
      new DatabaseProjection(database, stores(database, config), { maxQueue, exclusive: false }),
      databaseProgress,
      () => ({}),
    ),
    project(queueProjection, queueProgress, () => ({
      ...(queueProjection.announced && { queues: queueProjection.announced }),
      ...(queueProjection.isHeldUp && { isHeldUp: true }),
    })),
  ]
  for (const running of projecting) inBackground('projector', running)

  return {
    storage: {
      database,
      log,
      queue: new RedisMessageQueue(redis, log, () => queues, { maxContentBytes: config.MESSAGE_MAX_CONTENT_BYTES }),
      admission: new RedisAdmission(redis, { sessionTtlMs: config.SESSION_TTL, allowances: allowances(config) }),
      databaseProgress,
      queueProgress,
      pushes,
    },
    redis,
    logBytes: () => log.bytes(),
    logReplicas: () => log.replicas(),
    checks: {
      servers: {
        postgres: () => roundTrip(database, 'check', () => sql`select 1`.execute(database)).then(() => undefined),
        redis: () => redis.run('check', (connection) => connection.ping()).then(() => undefined),
        nats: () => nats.rtt().then(() => undefined),
      },
      work: {
        log: async () => {
          const seq = log.lost ?? Object.values(lost).find((place) => place !== undefined)
          return seq === undefined ? undefined : `event ${seq} is on no NATS server: nothing behind it is applied`
        },
        projector: async () =>
          databaseProgress.silenceMs() < HEARD_WITHIN_MS
            ? undefined
            : 'no projector has been heard of: changes are not applied',
        queues: async () => (queues ? undefined : 'the queues are being built: messages are not handed out'),
      },
      room: {
        queues: async () =>
          areQueuesFull
            ? 'redis is full (maxmemory): new messages wait in the event log until others are fetched'
            : undefined,
      },
    },
    close: async () => {
      stop.abort()
      await Promise.all(projecting)
      await log.close()
      await redis.close()
      await database.destroy()
    },
  }
}

/** The origins of events, which wait for them; '' is everybody, where one is not known. */
function waitingFor(events?: readonly LoggedEvent[]): Iterable<string> {
  const origins = new Set(events?.map(({ origin = '' }) => origin))
  return origins.size === 0 || origins.has('') ? [''] : origins
}
