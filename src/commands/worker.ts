/** `worker`: applies the log to the projections, which one of them does at a time, and pushes to webhooks, which they all share. */
import type { Config } from '../config.ts'
import { measureFill } from '../maintenance/fill-metrics.ts'
import { startInternalServer } from '../platform/internal-server.ts'
import { createLogger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { openCluster } from './cluster.ts'
import { stores } from './node.ts'
import { startPushing } from './pushing.ts'

const PATIENCE = { patienceMs: 500, startDelayMs: 0 }

export async function worker(config: Config): Promise<void> {
  const logger = createLogger(config.LOG_LEVEL, 'worker')
  const cluster = await openCluster(config, 'worker', PATIENCE, logger)
  const { state } = stores(cluster.storage.database, config)
  measureFill({
    logBytes: cluster.logBytes,
    logReplicas: cluster.logReplicas,
    redisMemory: () => cluster.redis.memory(),
    stateUsage: () => state.usage(),
    stateCapacityBytes: config.STATE_CAPACITY_BYTES,
  })
  const internal = await startInternalServer({
    host: config.internalHost,
    port: config.INTERNAL_PORT,
    checks: cluster.checks,
    logger,
  })
  const pushing = await startPushing(config, cluster.storage, logger)
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  logger.info({ internalPort: internal.port }, 'worker works')

  await stopped
  internal.drain()
  await pushing.stop()
  await cluster.close()
  await internal.close()
}
