/**
 * The cluster's storage: connections to the three servers, checked at start, and the capabilities'
 * adapters on them.
 */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { sql } from 'kysely'
import { RedisAdmission } from '../access/redis-admission.ts'
import { type ClusterServers, type Config, ConfigError } from '../config.ts'
import type { EventLog } from '../events/event-log.ts'
import { JetStreamEventLog } from '../events/jetstream-event-log.ts'
import { PostgresErasures } from '../events/postgres-erasures.ts'
import { CutOff } from '../maintenance/cut-off.ts'
import type { Job } from '../maintenance/job.ts'
import { clusterJobs } from '../maintenance/jobs.ts'
import { KEEPER_LEASE_MS } from '../maintenance/keeper.ts'
import { isToBePushed } from '../messaging/messages-of-log.ts'
import { removeOldGenerations } from '../messaging/queue-generations.ts'
import { RedisMessageQueue } from '../messaging/redis-message-queue.ts'
import { inBackground } from '../platform/background.ts'
import {
  type Database,
  MAINTENANCE_TIMEOUT_MS,
  openPostgres,
  roundTrip,
} from '../platform/database.ts'
import { Lease } from '../platform/lease.ts'
import { createLogger, type Logger } from '../platform/logger.ts'
import { checkSchema, POSTGRES } from '../platform/migrate.ts'
import { connectNats } from '../platform/nats.ts'
import { PostgresSigningKeys } from '../platform/postgres-signing-keys.ts'
import type { ReadinessChecks } from '../platform/readiness.ts'
import { RedisClient } from '../platform/redis.ts'
import { NotThereYet, untilThere } from '../platform/startup-error.ts'
import { Announcements } from '../projector/announcements.ts'
import { DatabaseProjection, standing } from '../projector/database-projection.ts'
import { type ProjectorOptions, runProjector } from '../projector/projector.ts'
import { QueueProjection } from '../projector/queue-projection.ts'
import { PostgresRegistryStore } from '../registry/postgres-registry-store.ts'
import { RegistryTables } from '../registry/postgres-registry-tables.ts'
import { clusterRemovalStore } from '../removal/cluster-removal-store.ts'
import { LogEraser } from '../removal/log-eraser.ts'
import { PostgresRemovals } from '../removal/postgres-removals.ts'
import type { RemovalStore } from '../removal/removal-store.ts'
import { PostgresStateStore } from '../state/postgres-state-store.ts'
import { StateTables } from '../state/postgres-state-tables.ts'
import { Doorbell } from '../webhooks/doorbell.ts'
import { PostgresSealedSecrets } from '../webhooks/postgres-sealed-secrets.ts'
import { PostgresWebhookLanes } from '../webhooks/postgres-webhook-lanes.ts'
import { readModels } from './read-models.ts'
import { allowances, type Storage } from './storage.ts'

// A batch of maintenance that waits for the database ends before another process takes over.
assert(KEEPER_LEASE_MS > MAINTENANCE_TIMEOUT_MS)

export interface ClusterStorage extends Storage {
  readonly redis: RedisClient
  /** Of the process that does the jobs. */
  readonly maintenanceLease: Lease
  /** Of the event log, on each server that keeps a copy. */
  readonly logBytes: () => Promise<number>
  readonly logReplicas: () => Promise<{ offline: number; lagEvents: number }>
}

/** Said when there are new messages to push. */
const PUSHES = 'tabulum.pushes'

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

/**
 * Opens the log alone, for a command that reads it, and the database once a message is missing that
 * may have been erased. Throws `StartupError`.
 */
export async function connectLog(config: Config, command: string): Promise<JetStreamEventLog> {
  const { natsUrls, databaseUrl } = clusterServers(config, command)
  const nats = await connectNats(natsUrls, command, createLogger(config.LOG_LEVEL, command))
  let database: Promise<Database> | undefined
  const erasures = new PostgresErasures(() => {
    database ??= connectDatabase(config, databaseUrl)
    database.catch(() => {
      database = undefined
    })
    return database
  })
  return JetStreamEventLog.open(nats, config.EVENTS_REPLICAS, {
    erasures,
    onClose: async () => (await database)?.destroy(),
  })
}

/** Does something with the jobs of maintenance alone. Throws `StartupError`. */
export async function withClusterJobs(
  config: Config,
  work: (jobs: readonly Job[]) => Promise<void>,
): Promise<void> {
  const { databaseUrl, redisUrl } = clusterServers(config, 'maintain')
  const database = await connectDatabase(config, databaseUrl)
  await checkSchema(database, POSTGRES)
  const redis = await RedisClient.open(
    redisUrl,
    config.REDIS_MODE,
    createLogger(config.LOG_LEVEL, 'maintain'),
  )
  const log = await connectLog(config, 'maintain')
  const state = new StateTables(database, config.STATE_CAPACITY_BYTES)
  try {
    await work(jobsOn({ database, redis, log, registry: new RegistryTables(database), state }))
  } finally {
    await log.close()
    await redis.close()
    await database.destroy()
  }
}

/**
 * Does something with what removals are made on, and where `erases` is set the log is erased from.
 * Throws `StartupError`.
 */
export async function withClusterRemovals<T>(
  config: Config,
  { erases }: { erases: boolean },
  work: (store: RemovalStore) => Promise<T>,
): Promise<T> {
  const { databaseUrl, redisUrl } = clusterServers(config, 'remove')
  const logger = createLogger('silent', 'remove')
  const database = await connectDatabase(config, databaseUrl)
  const log = await connectLog(config, 'remove')
  let opened: RedisClient | undefined
  const redis = async () => {
    opened ??= await RedisClient.open(redisUrl, config.REDIS_MODE, logger)
    return opened
  }
  let eraser: LogEraser | undefined
  try {
    await checkSchema(database, POSTGRES)
    if (erases) {
      const admin = await connectNats(config.NATS_ADMIN_URL, 'remove', logger, 'NATS_ADMIN_URL')
      eraser = await LogEraser.open(admin, database)
    }
    return await work(clusterRemovalStore({ database, log, redis, eraser }))
  } finally {
    await eraser?.close()
    await log.close()
    await opened?.close()
    await database.destroy()
  }
}

interface Tidied {
  readonly database: Database
  readonly redis: RedisClient
  readonly log: EventLog
  readonly registry: RegistryTables
  readonly state: StateTables
}

function jobsOn({ database, redis, log, registry, state }: Tidied): Job[] {
  const cutOff = new CutOff({ standing: () => standing(database), lastSeq: () => log.lastSeq() })
  return clusterJobs(
    {
      challenges: (limit) => registry.tidyChallenges(limit),
      registrations: (before, limit) => registry.tidyRegistrations(before, limit),
      reservations: (before, limit) => state.tidyReservations(before, limit),
      allotments: (before, limit) => state.tidyAllotments(before, limit),
      generations: () => removeOldGenerations(redis),
    },
    cutOff,
  )
}

/**
 * When a process offers to lead the projections. Workers are quicker, so that API nodes lead only
 * where there is no worker.
 */
export type Standby = Required<Pick<ProjectorOptions, 'silentMs' | 'startDelayMs'>>

/** Opens all three servers, and waits for them for so long as is set. Throws `StartupError`. */
export async function openCluster(
  config: Config,
  command: string,
  standby: Standby,
  logger: Logger,
): Promise<ClusterStorage> {
  const servers = clusterServers(config, command)
  const startBy = performance.now() + config.STARTUP_TIMEOUT
  const there = <T>(open: () => Promise<T>) =>
    untilThere(open, Math.max(0, startBy - performance.now()), logger)
  const database = await there(() => connectDatabase(config, servers.databaseUrl))
  await there(() => checkSchema(database, POSTGRES))
  const redis = await there(() => RedisClient.open(servers.redisUrl, config.REDIS_MODE, logger))
  const holder = `${command}-${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`
  const nats = await there(() => connectNats(servers.natsUrls, holder, logger))
  const origin = randomUUID().slice(0, 8)
  const erasures = new PostgresErasures(async () => database)
  const log = await there(() =>
    JetStreamEventLog.open(nats, config.EVENTS_REPLICAS, { origin, erasures }),
  )

  const announcements = new Announcements(nats, origin, (applied) => log.heardOf(applied))
  const { database: databaseProgress, queues: queueProgress } = announcements.progress
  const pushes = new Doorbell()
  nats.subscribe(PUSHES, {
    callback: (error) => {
      if (!error) pushes.ring()
    },
  })

  const registryTables = new RegistryTables(database)
  const stateTables = new StateTables(database, config.STATE_CAPACITY_BYTES)
  const removals = new PostgresRemovals(database)
  const maxQueue = config.MESSAGE_MAX_QUEUE_PER_AGENT
  const projections = startProjections({
    database: new DatabaseProjection(database, readModels({ maxQueue })),
    queues: new QueueProjection(redis, database, { maxQueue }),
    log,
    announcements,
    onPush: () => nats.publish(PUSHES),
    options: { logger, holder, ...standby },
  })

  return {
    redis,
    log,
    registry: new PostgresRegistryStore(registryTables, log, databaseProgress),
    state: new PostgresStateStore(stateTables, log, databaseProgress),
    queue: new RedisMessageQueue(
      redis,
      log,
      removals,
      () => announcements.latest('queues')?.queues,
      {
        maxContentBytes: config.MESSAGE_MAX_CONTENT_BYTES,
      },
    ),
    queueProgress,
    admission: new RedisAdmission(redis, {
      sessionTtlMs: config.SESSION_TTL,
      allowances: allowances(config),
    }),
    lanes: new PostgresWebhookLanes(database, { circuitMs: config.WEBHOOK_CIRCUIT_DURATION }),
    laneProgress: databaseProgress,
    pushes,
    removals,
    secrets: new PostgresSealedSecrets(database),
    keys: new PostgresSigningKeys(database),
    jobs: jobsOn({ database, redis, log, registry: registryTables, state: stateTables }),
    maintenanceLease: new Lease(database, 'maintenance', holder),
    logBytes: () => log.bytes(),
    logReplicas: () => log.replicas(),
    checks: {
      servers: {
        postgres: () =>
          roundTrip(database, 'check', () => sql`select 1`.execute(database)).then(() => undefined),
        redis: () => redis.run('check', (connection) => connection.ping()).then(() => undefined),
        nats: () => nats.rtt().then(() => undefined),
      },
      ...checksOf(log, announcements),
    },
    close: async () => {
      await projections.stop()
      await log.close()
      await redis.close()
      await database.destroy()
    },
  }
}

interface Projections {
  readonly database: DatabaseProjection
  readonly queues: QueueProjection
  readonly log: JetStreamEventLog
  readonly announcements: Announcements
  /** There is something new to be pushed. */
  readonly onPush: () => void
  readonly options: Pick<ProjectorOptions, 'logger' | 'holder'> & Standby
}

/** Leads both projections where no other process does, until they are stopped. */
function startProjections({ database, queues, log, announcements, onPush, options }: Projections) {
  const stopped = new AbortController()
  const lost = () => log.lost && { lost: log.lost }
  const running = [
    runProjector(
      {
        ...options,
        projection: database,
        log,
        progress: announcements.progress.database,
        onApplied: (events) => {
          if (events.some(isToBePushed)) onPush()
        },
        announce: (applied, events) =>
          announcements.announce('database', { applied, ...lost() }, events),
      },
      stopped.signal,
    ),
    runProjector(
      {
        ...options,
        projection: queues,
        log,
        progress: announcements.progress.queues,
        announce: (applied, events) =>
          announcements.announce(
            'queues',
            {
              applied,
              ...(queues.announced && { queues: queues.announced }),
              ...(queues.isHeldUp && { isHeldUp: true }),
              ...lost(),
            },
            events,
          ),
      },
      stopped.signal,
    ),
  ]
  for (const projector of running) inBackground('projector', projector)
  return {
    stop: async (): Promise<void> => {
      stopped.abort()
      await Promise.all(running)
    },
  }
}

/** Whether the work goes on that processes do for each other. */
function checksOf(
  log: JetStreamEventLog,
  announcements: Announcements,
): Pick<ReadinessChecks, 'work' | 'room'> {
  const queues = () => announcements.latest('queues')
  return {
    work: {
      log: async () => {
        const seq = log.lost ?? announcements.latest('database')?.lost ?? queues()?.lost
        return seq === undefined
          ? undefined
          : `event ${seq} is on no NATS server: nothing behind it is applied`
      },
      projector: async () =>
        announcements.isSilent('database')
          ? 'no projector has been heard of: changes are not applied'
          : undefined,
      queues: async () =>
        queues()?.queues ? undefined : 'the queues are being built: messages are not handed out',
    },
    room: {
      queues: async () =>
        queues()?.isHeldUp
          ? 'redis is full (maxmemory): new messages wait in the event log until others are fetched'
          : undefined,
    },
  }
}
