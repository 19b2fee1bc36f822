/**
 * The observation service in a thread of its own, within `serve`: whoever watches, and however
 * many, agents do not notice.
 */
import { parentPort } from 'node:worker_threads'
import { loadConfig } from '../config.ts'
import { inBackground } from '../platform/background.ts'
import { createLogger } from '../platform/logger.ts'
import { type Metrics, metricsOfThread } from '../platform/metrics.ts'
import { openEmbeddedObservation } from '../storage/embedded-observation.ts'
import { startObservation } from './observation.ts'

/** What the thread is told. */
export type Told = 'stop' | 'metrics'
/** What it says. */
export type Said =
  | { readonly listening: number }
  | { readonly failed: { readonly name: string; readonly message: string } }
  | { readonly metrics: Metrics }

const port = parentPort
if (port) {
  const say = (said: Said) => port.postMessage(said)
  const config = loadConfig(process.env)
  const logger = createLogger(config.LOG_LEVEL, 'observe')
  try {
    const storage = await openEmbeddedObservation(config, logger)
    const observation = await startObservation(config, storage, logger)
    port.on('message', (told: Told) => {
      if (told === 'metrics')
        inBackground(
          'metrics_of_thread',
          metricsOfThread().then((metrics) => say({ metrics })),
        )
      else void end()
    })
    say({ listening: observation.port })
    const end = async () => {
      await observation.close()
      await storage.close()
      port.close()
    }
  } catch (error) {
    if (!(error instanceof Error)) throw error
    say({ failed: { name: error.name, message: error.message } })
    port.close()
  }
}
