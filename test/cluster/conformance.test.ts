/** The conformance suites on a cluster's storage: real Postgres, Redis and NATS, two API nodes' worth of adapters on each. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { RedisAdmission } from '../../src/access/redis-admission.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { RedisMessageQueue } from '../../src/messaging/redis-message-queue.ts'
import { openPostgres } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { migrate, POSTGRES } from '../../src/platform/migrate.ts'
import { connectNats } from '../../src/platform/nats.ts'
import { RedisClient } from '../../src/platform/redis.ts'
import { runProjector } from '../../src/projector/projector.ts'
import { QueueProjection } from '../../src/projector/queue-projection.ts'
import { describeAdmission } from '../conformance/admission.ts'
import { describeEventLog } from '../conformance/event-log.ts'
import { describeMessageQueue } from '../conformance/message-queue.ts'
import { describeRegistryStore } from '../conformance/registry-store.ts'
import { describeStateStore } from '../conformance/state-store.ts'
import type { DatabaseHarness } from '../conformance/support.ts'
import { describeWebhookLanes } from '../conformance/webhook-lanes.ts'
import { startNats, startPostgres, startRedis, startRedisCluster } from '../support/servers.ts'

const logger = createLogger('warn', 'test')

async function createDatabase(): Promise<DatabaseHarness> {
  const postgres = await startPostgres({ migrated: true })
  // One connection, as the suites make temporary tables.
  const database = openPostgres({ url: postgres.ownerUrl, poolMode: 'session', maxConnections: 1 })
  await migrate(database, POSTGRES)
  return {
    database,
    async [Symbol.asyncDispose]() {
      await database.destroy()
      await postgres[Symbol.asyncDispose]()
    },
  }
}

async function createLog() {
  const nats = await startNats()
  const log = await JetStreamEventLog.open(await connectNats(nats.url.split(','), 'test', logger), 3)
  return {
    log,
    async [Symbol.asyncDispose]() {
      await log.close()
      await nats[Symbol.asyncDispose]()
    },
  }
}

describeEventLog('JetStream', createLog)

/** How Redis is run, and what `REDIS_MODE` says of it. */
const FORMS = [
  ['Redis', startRedis, 'single'],
  ['Redis Cluster', startRedisCluster, 'cluster'],
] as const

for (const [name, start, mode] of FORMS) {
  describeMessageQueue(name, async ({ maxQueue }) => {
    const [{ log, ...logHarness }, redis, database] = await Promise.all([createLog(), start(), createDatabase()])
    const clients = await Promise.all([1, 2, 3].map(() => RedisClient.open(redis.url, mode, logger)))
    const [one, two, three] = clients as [RedisClient, RedisClient, RedisClient]
    const projection = new QueueProjection(three, database.database, { maxQueue })
    const progress = new Progress()
    const stop = new AbortController()
    const projecting = runProjector({ projection, log, progress, logger, holder: randomUUID() }, stop.signal)
    while (projection.announced === undefined) await sleep(50)
    return {
      nodes: [
        new RedisMessageQueue(one, log, () => projection.announced, { maxContentBytes: 65_536 }),
        new RedisMessageQueue(two, log, () => projection.announced, { maxContentBytes: 65_536 }),
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

describeStateStore('Postgres', createDatabase, { large: true })
describeRegistryStore('Postgres', createDatabase)
describeWebhookLanes('Postgres', createDatabase)
