/**
 * The observation service in a thread of its own, within `serve`: whoever watches, and however
 * many, agents do not notice.
 */
import { parentPort } from 'node:worker_threads'
import { register } from 'prom-client'
import { loadConfig } from '../config.ts'
import { createLogger } from '../platform/logger.ts'
import { openEmbeddedObservation } from '../storage/embedded-observation.ts'
import { startObservation } from './observation.ts'

/** What the thread is told. */
export type Told = 'stop' | 'metrics'
/** What it says. */
export type Said =
  | { readonly listening: number }
  | { readonly failed: { readonly name: string; readonly message: string } }
  | { readonly metrics: string }

/** Others have the names of those of the process, which must not come twice. */
const OWN = 'tabulum_observ'

async function ownMetrics(): Promise<string> {
  const names = register
    .getMetricsAsArray()
    .flatMap(({ name }) => (name.startsWith(OWN) ? name : []))
  return (await Promise.all(names.map((name) => register.getSingleMetricAsString(name)))).join('\n')
}

const port = parentPort
if (port) {
  const say = (said: Said) => port.postMessage(said)
  const config = loadConfig(process.env)
  const logger = createLogger(config.LOG_LEVEL, 'observe')
  try {
    const storage = await openEmbeddedObservation(config, logger)
    const observation = await startObservation(config, storage, logger)
    port.on('message', (told: Told) => {
      if (told === 'metrics') void ownMetrics().then((metrics) => say({ metrics }))
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
