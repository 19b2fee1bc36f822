/**
 * `observe`: the observation service, which reads and never writes but what follows from the log.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config.ts'
import type { EventLog } from '../events/event-log.ts'
import { startObservation } from '../observe/observation.ts'
import type { ObservationDatabase } from '../observe/observation-database.ts'
import { type Progress, rebuild } from '../observe/rebuild.ts'
import { startInternalServer } from '../platform/internal-server.ts'
import { createLogger, type Logger } from '../platform/logger.ts'
import { untilStopped } from '../platform/shutdown.ts'
import { openClusterObservation, rebuildInCluster } from '../storage/cluster-observation.ts'
import { openEmbeddedObservation, rebuildEmbedded } from '../storage/embedded-observation.ts'

/** Load balancers ask `/readyz` every 200 ms; after this they send nothing more. */
const DRAIN_MS = 1_000

export async function observe(
  config: Config,
  { isRebuild }: { isRebuild: boolean },
): Promise<void> {
  const logger = createLogger(config.LOG_LEVEL, 'observe')
  const isCluster = config.DATABASE_URL !== undefined || config.NATS_URL.length > 0
  if (isRebuild) return rebuildFromNothing(config, isCluster, logger)
  const storage = await (isCluster
    ? openClusterObservation(config, logger)
    : openEmbeddedObservation(config, logger))
  const observation = await startObservation(config, storage, logger)
  const internal = await startInternalServer({
    host: config.internalHost,
    port: config.INTERNAL_PORT,
    checks: storage.checks,
    logger,
  })
  const stopped = untilStopped(logger, config.SHUTDOWN_TIMEOUT)
  logger.info(
    { port: observation.port, internalPort: internal.port },
    'the observation service serves',
  )

  await stopped
  internal.drain()
  await sleep(DRAIN_MS)
  await observation.close()
  await storage.close()
  await internal.close()
}

/** How often progress is told, in ms. */
const TELL_MS = 2_000

async function rebuildFromNothing(
  config: Config,
  isCluster: boolean,
  logger: Logger,
): Promise<void> {
  let toldAt = performance.now()
  const tell = (progress: Progress) => {
    if (performance.now() - toldAt < TELL_MS) return
    toldAt = performance.now()
    console.error(inWords(progress))
  }
  const fill = async (log: Pick<EventLog, 'follow'>, database: ObservationDatabase) => {
    console.log(`${inWords(await rebuild(log, database, tell))}: they serve from now on.`)
  }
  await (isCluster ? rebuildInCluster(config, logger, fill) : rebuildEmbedded(config, fill))
}

function inWords({ events, seq, seconds }: Progress): string {
  const count = (number: number) => number.toLocaleString('en')
  return `${count(events)} events applied, up to ${seq}, in ${seconds.toFixed(1)} s (${count(Math.round(events / Math.max(seconds, 0.001)))} a second)`
}
