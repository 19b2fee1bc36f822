/** `serve`: every role in one process, on embedded storage. */
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { MemoryAdmission } from '../access/memory-admission.ts'
import { type Config, ConfigError, checkPorts } from '../config.ts'
import { EmbeddedEventLog } from '../events/embedded-event-log.ts'
import { Progress } from '../events/progress.ts'
import { EmbeddedMessageQueue } from '../messaging/embedded-message-queue.ts'
import { isToBePushed } from '../messaging/messages-of-log.ts'
import { inBackground } from '../platform/background.ts'
import { openEmbedded } from '../platform/database.ts'
import { inDirectory, lockDirectory } from '../platform/directory-lock.ts'
import { NO_CHECKS } from '../platform/internal-server.ts'
import { createLogger } from '../platform/logger.ts'
import { migrate, POSTGRES } from '../platform/migrate.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { urlHost } from '../platform/url-host.ts'
import { DatabaseProjection } from '../projector/database-projection.ts'
import { runProjector } from '../projector/projector.ts'
import { Doorbell } from '../webhooks/doorbell.ts'
import { allowances, startNode, stores } from './node.ts'
import { startPushing } from './pushing.ts'

/** A long log may have to be applied anew, as after an upgrade. */
const CATCH_UP_MS = 60_000

export async function serve(config: Config): Promise<void> {
  if (config.cluster) {
    throw new ConfigError(
      'serve runs on embedded storage: unset DATABASE_URL, REDIS_URL and NATS_URL, or use the commands api and worker for a cluster',
    )
  }
  checkPorts(config)
  const logger = createLogger(config.LOG_LEVEL, 'serve')
  const unlock = await lockDirectory(config.DATA_DIR)
  const database = await inDirectory(config.DATA_DIR, () => openEmbedded(join(config.DATA_DIR, 'database')))
  await migrate(database, POSTGRES)
  const log = await EmbeddedEventLog.open(database)
  const progress = new Progress()
  const pushes = new Doorbell()
  const stopProjector = new AbortController()
  const projecting = runProjector(
    {
      projection: new DatabaseProjection(database, stores(database, config), {
        maxQueue: config.MESSAGE_MAX_QUEUE_PER_AGENT,
        exclusive: true,
      }),
      log,
      progress,
      logger,
      holder: randomUUID(),
      onApplied: (events) => {
        if (events.some(isToBePushed)) pushes.ring()
      },
    },
    stopProjector.signal,
  )
  inBackground('projector', projecting)
  // What a killed process left appended but not applied is applied before anybody asks.
  await progress.reached(await log.lastChangeSeq(), CATCH_UP_MS)

  const storage = {
    database,
    log,
    queue: new EmbeddedMessageQueue(database, log, { maxContentBytes: config.MESSAGE_MAX_CONTENT_BYTES }),
    admission: new MemoryAdmission({ sessionTtlMs: config.SESSION_TTL, allowances: allowances(config) }),
    databaseProgress: progress,
    queueProgress: progress,
    pushes,
  }
  const pushing = await startPushing(config, storage, logger)
  const node = await startNode(config, storage, NO_CHECKS, logger)
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  console.log(
    `Tabulum serves the agent API on http://${urlHost(config.HOST)}:${node.port} (reference at /docs), data in ${config.DATA_DIR} (embedded storage)`,
  )

  await stopped
  node.drain()
  await node.close()
  await pushing.stop()
  stopProjector.abort()
  await projecting
  await log.close()
  await database.destroy()
  unlock()
}
