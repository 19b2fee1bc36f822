/** `api`: a stateless node of a cluster. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Config, checkPorts } from '../config.ts'
import { createLogger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { openCluster } from './cluster.ts'
import { startNode } from './node.ts'

/** Longer than a worker's: an API node leads a projection only where no worker does. */
const PATIENCE = { patienceMs: 900, startDelayMs: 900 }
/** Load balancers ask `/readyz` every 200 ms; after this they send nothing more. */
const DRAIN_MS = 1_000

export async function api(config: Config): Promise<void> {
  checkPorts(config)
  const logger = createLogger(config.LOG_LEVEL, 'api')
  const cluster = await openCluster(config, 'api', PATIENCE, logger)
  const node = await startNode(config, cluster.storage, cluster.checks, logger)
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  logger.info({ port: node.port, internalPort: node.internalPort }, 'api node serves')

  await stopped
  node.drain()
  await sleep(DRAIN_MS)
  await node.close()
  await cluster.close()
}
