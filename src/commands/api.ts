/** `api`: a stateless node of a cluster. */
import { setTimeout as sleep } from 'node:timers/promises'
import { startNode } from '../api/node.ts'
import { type Config, checkPorts } from '../config.ts'
import { startKeeper } from '../maintenance/keeper.ts'
import { createLogger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { openCluster } from '../storage/cluster.ts'

/** Longer than a worker's: an API node leads a projection only where no worker does. */
const STANDBY = { silentMs: 900, startDelayMs: 900 }
/** The same of maintenance. */
const MAINTENANCE_VACANT_MS = 15_000
/** Load balancers ask `/readyz` every 200 ms; after this they send nothing more. */
const DRAIN_MS = 1_000

export async function api(config: Config): Promise<void> {
  checkPorts(config)
  const logger = createLogger(config.LOG_LEVEL, 'api')
  const storage = await openCluster(config, 'api', STANDBY, logger)
  const node = await startNode(config, storage, logger)
  const keeper = startKeeper({
    jobs: storage.jobs,
    lease: storage.maintenanceLease,
    vacantMs: MAINTENANCE_VACANT_MS,
    logger,
  })
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  logger.info({ port: node.port, internalPort: node.internalPort }, 'api node serves')

  await stopped
  node.drain()
  await Promise.all([sleep(DRAIN_MS), keeper.stop()])
  await node.close()
  await storage.close()
}
