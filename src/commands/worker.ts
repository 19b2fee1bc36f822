/**
 * `worker`: applies the log to the projections, which one of them does at a time, and pushes to
 * webhooks, which they all share.
 */
import type { Config } from '../config.ts'
import { measureFill } from '../maintenance/fill-metrics.ts'
import { startKeeper } from '../maintenance/keeper.ts'
import { startInternalServer } from '../platform/internal-server.ts'
import { createLogger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { openCluster } from '../storage/cluster.ts'
import { startPushing } from '../webhooks/pushing.ts'

const STANDBY = { silentMs: 500, startDelayMs: 0 }

export async function worker(config: Config): Promise<void> {
  const logger = createLogger(config.LOG_LEVEL, 'worker')
  const storage = await openCluster(config, 'worker', STANDBY, logger)
  measureFill({
    logBytes: storage.logBytes,
    logReplicas: storage.logReplicas,
    redisMemory: () => storage.redis.memory(),
    stateUsage: () => storage.state.usage(),
    stateCapacityBytes: config.STATE_CAPACITY_BYTES,
  })
  const internal = await startInternalServer({
    host: config.internalHost,
    port: config.INTERNAL_PORT,
    checks: storage.checks,
    logger,
  })
  const pushing = await startPushing(config, storage, logger)
  const keeper = startKeeper({ jobs: storage.jobs, lease: storage.maintenanceLease, logger })
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  logger.info({ internalPort: internal.port }, 'worker works')

  await stopped
  internal.drain()
  await Promise.all([pushing.stop(), keeper.stop()])
  await storage.close()
  await internal.close()
}
