/** `serve`: every role in one process, on embedded storage. */

import { startNode } from '../api/node.ts'
import { type Config, ConfigError, checkPorts } from '../config.ts'
import { startKeeper } from '../maintenance/keeper.ts'
import { startObservationThread } from '../observe/observation-thread.ts'
import { createLogger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { urlHost } from '../platform/url-host.ts'
import { openEmbedded } from '../storage/embedded.ts'
import { startPushing } from '../webhooks/pushing.ts'

export async function serve(config: Config): Promise<void> {
  if (config.cluster) {
    throw new ConfigError(
      'serve runs on embedded storage: unset DATABASE_URL, REDIS_URL and NATS_URL, or use the commands api and worker for a cluster',
    )
  }
  checkPorts(config, ['PORT', 'OBSERVE_PORT', 'INTERNAL_PORT'])
  const logger = createLogger(config.LOG_LEVEL, 'serve')
  const storage = await openEmbedded(config, logger)
  const pushing = await startPushing(config, storage, logger)
  const observation = await startObservationThread(logger)
  const node = await startNode(config, storage, logger, observation.metrics)
  const keeper = startKeeper({ jobs: storage.jobs, logger })
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  console.log(
    `Tabulum serves the agent API on http://${urlHost(config.HOST)}:${node.port} (reference at /docs), data in ${config.DATA_DIR} (embedded storage)\n` +
      `and whoever watches on http://${urlHost(config.HOST)}:${observation.port} (reference at /observe/docs)`,
  )

  await stopped
  node.drain()
  await node.close()
  await Promise.all([pushing.stop(), keeper.stop(), observation.stop()])
  await storage.close()
}
