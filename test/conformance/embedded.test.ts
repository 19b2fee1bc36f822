/** The conformance suites on embedded storage: PGlite, and what lives in the process. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { MemoryAdmission } from '../../src/access/memory-admission.ts'
import { EmbeddedEventLog } from '../../src/events/embedded-event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { EmbeddedMessageQueue } from '../../src/messaging/embedded-message-queue.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { DatabaseProjection } from '../../src/projector/database-projection.ts'
import { runProjector } from '../../src/projector/projector.ts'
import { RegistryStore } from '../../src/registry/registry-store.ts'
import { StateStore } from '../../src/state/state-store.ts'
import { openFreshDatabase } from '../support/embedded-database.ts'
import { describeAdmission } from './admission.ts'
import { describeEventLog } from './event-log.ts'
import { describeMessageQueue } from './message-queue.ts'
import { describeRegistryStore } from './registry-store.ts'
import { describeStateStore } from './state-store.ts'
import { describeWebhookLanes } from './webhook-lanes.ts'

describeEventLog('embedded', async () => {
  const { database, [Symbol.asyncDispose]: dispose } = await openFreshDatabase()
  const log = await EmbeddedEventLog.open(database)
  return {
    log,
    async [Symbol.asyncDispose]() {
      await log.close()
      await dispose()
    },
  }
})

describeMessageQueue('embedded', async ({ maxQueue }) => {
  const { database, [Symbol.asyncDispose]: dispose } = await openFreshDatabase()
  const log = await EmbeddedEventLog.open(database)
  const progress = new Progress()
  const stop = new AbortController()
  const stores = { registry: new RegistryStore(database), state: new StateStore(database, 1_000_000) }
  const projection = new DatabaseProjection(database, stores, { maxQueue, exclusive: true })
  const logger = createLogger('warn', 'test')
  const projecting = runProjector({ projection, log, progress, logger, holder: randomUUID() }, stop.signal)
  return {
    nodes: [new EmbeddedMessageQueue(database, log, { maxContentBytes: 65_536 })],
    log,
    applied: (seq) => progress.reached(seq, 20_000),
    async [Symbol.asyncDispose]() {
      stop.abort()
      await projecting
      await log.close()
      await dispose()
    },
  }
})

describeAdmission('in memory', async (options) => {
  let time = Date.now()
  const now = () => time
  return {
    nodes: [new MemoryAdmission({ ...options, now })],
    now,
    pass: async (ms) => {
      time += ms
      // The cache of sessions asks for the time once in a millisecond.
      await sleep(5)
    },
    async [Symbol.asyncDispose]() {},
  }
})

describeStateStore('PGlite', openFreshDatabase, { large: false })
describeRegistryStore('PGlite', openFreshDatabase)
describeWebhookLanes('PGlite', openFreshDatabase)
