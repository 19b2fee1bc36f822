/**
 * The conformance suites on a cluster's storage: real Postgres, Redis and NATS, two API nodes'
 * worth of adapters on each.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { sharedNats, sharedPostgres, sharedRedis, startRedisCluster } from '../../lab/servers.ts'
import { RedisAdmission } from '../../src/access/redis-admission.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { RedisMessageQueue } from '../../src/messaging/redis-message-queue.ts'
import { PostgresObservation } from '../../src/observe/postgres-observation.ts'
import { openPostgres, openPostgresSession } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { connectNats } from '../../src/platform/nats.ts'
import { RedisClient } from '../../src/platform/redis.ts'
import { DatabaseProjection } from '../../src/projector/database-projection.ts'
import { runProjector } from '../../src/projector/projector.ts'
import { QueueProjection } from '../../src/projector/queue-projection.ts'
import { PostgresRemovals } from '../../src/removal/postgres-removals.ts'
import { PostgresStateStore } from '../../src/state/postgres-state-store.ts'
import { StateTables } from '../../src/state/postgres-state-tables.ts'
import { makeTables, SCHEMA } from '../../src/storage/cluster-observation.ts'
import { readModels } from '../../src/storage/read-models.ts'
import { describeAdmission } from '../conformance/admission.ts'
import { describeEventLog } from '../conformance/event-log.ts'
import { describeMessageQueue } from '../conformance/message-queue.ts'
import { describeObservation } from '../conformance/observation.ts'
import { describeRemovals } from '../conformance/removals.ts'
import { describeStateStore } from '../conformance/state-store.ts'
import { applyEvents, openFreshPostgres } from './support.ts'

const logger = createLogger('warn', 'test')

async function createLog() {
  const nats = await sharedNats()
  const log = await JetStreamEventLog.open(
    await connectNats(nats.url.split(','), 'test', logger),
    3,
  )
  return {
    log,
    async [Symbol.asyncDispose]() {
      await log.close()
      await nats[Symbol.asyncDispose]()
    },
  }
}

describeEventLog('JetStream', createLog)

describeRemovals('Postgres', async () => {
  const { database, [Symbol.asyncDispose]: dispose } = await openFreshPostgres()
  let seq = 0
  return {
    removals: new PostgresRemovals(database),
    async apply(event) {
      await applyEvents(database, [{ ...event, seq: ++seq }])
      return seq
    },
    [Symbol.asyncDispose]: dispose,
  }
})

describeObservation('Postgres', async () => {
  const server = await sharedPostgres()
  const options = { url: server.observerUrl, poolMode: 'session', maxConnections: 2 } as const
  const [pool, owner] = [openPostgres(options), openPostgresSession(options)]
  const session = openPostgresSession({ ...options, url: server.appUrl })
  await makeTables(owner, SCHEMA)
  return {
    database: new PostgresObservation(pool, { schema: SCHEMA }),
    verified: {
      database: new PostgresObservation(session, { schema: SCHEMA }),
      begin: 'begin isolation level repeatable read',
      bytes: 'bytea',
    },
    async execute(statement) {
      await sql.raw(`set search_path to ${SCHEMA}`).execute(owner)
      await sql.raw(statement).execute(owner)
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([pool, owner, session].map((database) => database.destroy()))
      await server[Symbol.asyncDispose]()
    },
  }
})

/** How Redis is run, and what `REDIS_MODE` says of it. */
const FORMS = [
  ['Redis', sharedRedis, 'single'],
  ['Redis Cluster', startRedisCluster, 'cluster'],
] as const

for (const [name, start, mode] of FORMS) {
  describeMessageQueue(name, async ({ maxQueue }) => {
    const [{ log, ...logHarness }, redis, database] = await Promise.all([
      createLog(),
      start(),
      openFreshPostgres(),
    ])
    const clients = await Promise.all(
      [1, 2, 3].map(() => RedisClient.open(redis.url, mode, logger)),
    )
    const [one, two, three] = clients as [RedisClient, RedisClient, RedisClient]
    const projection = new QueueProjection(three, database.database, { maxQueue })
    const removals = new PostgresRemovals(database.database)
    const progress = new Progress()
    const stop = new AbortController()
    const projecting = runProjector(
      { projection, log, progress, logger, holder: randomUUID() },
      stop.signal,
    )
    while (projection.announced === undefined) await sleep(50)
    return {
      nodes: [
        new RedisMessageQueue(one, log, removals, () => projection.announced, {
          maxContentBytes: 65_536,
        }),
        new RedisMessageQueue(two, log, removals, () => projection.announced, {
          maxContentBytes: 65_536,
        }),
      ],
      log,
      applied: (seq) => progress.reached(seq, 20_000),
      async [Symbol.asyncDispose]() {
        stop.abort()
        await projecting
        await Promise.all(clients.map((client) => client.close()))
        await logHarness[Symbol.asyncDispose]()
        await Promise.all([redis[Symbol.asyncDispose](), database[Symbol.asyncDispose]()])
      },
    }
  })

  describeAdmission(name, async (options) => {
    const redis = await start()
    const clients = await Promise.all([1, 2].map(() => RedisClient.open(redis.url, mode, logger)))
    const [one, two] = clients as [RedisClient, RedisClient]
    return {
      nodes: [new RedisAdmission(one, options), new RedisAdmission(two, options)],
      now: Date.now,
      pass: (ms) => sleep(ms),
      async [Symbol.asyncDispose]() {
        await Promise.all(clients.map((client) => client.close()))
        await redis[Symbol.asyncDispose]()
      },
    }
  })
}

describeStateStore('Postgres', async ({ capacityBytes }) => {
  const [{ log, ...logHarness }, { database, ...databaseHarness }] = await Promise.all([
    createLog(),
    openFreshPostgres(),
  ])
  const tables = [1, 2].map(() => new StateTables(database, capacityBytes))
  const [one, two] = tables as [StateTables, StateTables]
  const progress = new Progress()
  const stop = new AbortController()
  const projection = new DatabaseProjection(database, readModels({ maxQueue: 1_000 }))
  const projecting = runProjector(
    { projection, log, progress, logger, holder: randomUUID() },
    stop.signal,
  )
  const nodes = [
    new PostgresStateStore(one, log, progress),
    new PostgresStateStore(two, log, progress),
  ] as const
  return {
    nodes,
    log,
    async [Symbol.asyncDispose]() {
      await Promise.all(nodes.map((node) => node.close()))
      stop.abort()
      await projecting
      await logHarness[Symbol.asyncDispose]()
      await databaseHarness[Symbol.asyncDispose]()
    },
  }
})
