/** `observe`: the observation service, which reads and never writes but what follows from the log. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config.ts'
import { startObservation } from '../observe/observation.ts'
import { startInternalServer } from '../platform/internal-server.ts'
import { createLogger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { openClusterObservation, openEmbeddedObservation } from '../storage/observation.ts'

/** Load balancers ask `/readyz` every 200 ms; after this they send nothing more. */
const DRAIN_MS = 1_000

export async function observe(config: Config): Promise<void> {
  const logger = createLogger(config.LOG_LEVEL, 'observe')
  const isCluster = config.DATABASE_URL !== undefined || config.NATS_URL.length > 0
  const storage = await (isCluster ? openClusterObservation(config, logger) : openEmbeddedObservation(config, logger))
  const observation = await startObservation(config, storage, logger)
  const internal = await startInternalServer({
    host: config.internalHost,
    port: config.INTERNAL_PORT,
    checks: storage.checks,
    logger,
  })
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  logger.info({ port: observation.port, internalPort: internal.port }, 'the observation service serves')

  await stopped
  internal.drain()
  await sleep(DRAIN_MS)
  await observation.close()
  await storage.close()
  await internal.close()
}
