/** Runs the observation service in a thread, and again where that has ended by itself. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { inBackground } from '../platform/background.ts'
import { CannotListen } from '../platform/http-server.ts'
import type { Logger } from '../platform/logger.ts'
import type { Metrics } from '../platform/metrics.ts'
import { StartupError } from '../platform/startup-error.ts'
import type { Said, Told } from './thread.ts'

const THREAD = new URL('./thread.ts', import.meta.url)
/** Of the thread: one that needs more ends, and begins anew. */
const HEAP_MIB = 256
const YOUNG_MIB = 8
const RESTART_MS = 1_000
const MAX_STARTS = 3
const METRICS_TIMEOUT_MS = 2_000
/** A thread that is told to stop has so long for its streams. */
const STOP_MS = 10_000

export interface ObservationThread {
  readonly port: number
  /** Its metrics; none where the thread does not answer. */
  metrics(): Promise<Metrics>
  stop(): Promise<void>
}

/** Throws what kept the service from its start: `CannotListen`, `StartupError`. */
export async function startObservationThread(logger: Logger): Promise<ObservationThread> {
  let isStopping = false
  let { thread, port } = await startAgain(logger)
  const restart = async () => {
    while (!isStopping) {
      await ended(thread)
      if (isStopping) return
      logger.error('the observation service has ended and is started again')
      for (;;) {
        await sleep(RESTART_MS)
        if (isStopping) return
        const started = await start(logger).catch((error: Error) => {
          logger.error({ err: error }, 'the observation service cannot be started')
        })
        if (started === undefined) continue
        ;({ thread, port } = started)
        break
      }
    }
  }
  inBackground('observation_thread', restart())
  return {
    get port() {
      return port
    },
    metrics: () => answered(thread, 'metrics', METRICS_TIMEOUT_MS),
    async stop() {
      isStopping = true
      const ending = ended(thread)
      thread.postMessage('stop' satisfies Told)
      const isOver = await Promise.race([
        ending.then(() => true),
        sleep(STOP_MS, false, { ref: false }),
      ])
      if (!isOver) await thread.terminate()
    },
  }
}

/**
 * A thread ended before it served, and did not say why not: it may have found its read models
 * damaged, and removed them.
 */
class EndedAtStart extends Error {
  override name = 'EndedAtStart'
}

/** Starts it, and again where it ended at once without a word. */
async function startAgain(logger: Logger): ReturnType<typeof start> {
  for (let starts = 1; ; starts++) {
    try {
      return await start(logger)
    } catch (error) {
      if (!(error instanceof EndedAtStart) || starts === MAX_STARTS) throw error
    }
  }
}

async function start(logger: Logger): Promise<{ thread: Worker; port: number }> {
  const thread = new Worker(THREAD, {
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB, maxYoungGenerationSizeMb: YOUNG_MIB },
  })
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  thread.on('message', (said: Said) => {
    if ('listening' in said) resolve(said.listening)
    else if ('failed' in said) {
      const { name, message } = said.failed
      reject(name === 'CannotListen' ? new CannotListen(message) : new StartupError(message))
    }
  })
  thread.on('error', (error) => {
    logger.error({ err: error }, 'the thread of the observation service failed')
    reject(error)
  })
  thread.once('exit', () => reject(new EndedAtStart('the observation service ended at its start')))
  return { thread, port: await promise }
}

function ended(thread: Worker): Promise<void> {
  // A thread that has ended has no id any more.
  if (thread.threadId === -1) return Promise.resolve()
  return new Promise((resolve) => thread.once('exit', () => resolve()))
}

async function answered(thread: Worker, told: Told, timeoutMs: number): Promise<Metrics> {
  const { promise, resolve } = Promise.withResolvers<Metrics>()
  const hear = (said: Said) => {
    if ('metrics' in said) resolve(said.metrics)
  }
  thread.on('message', hear)
  try {
    thread.postMessage(told)
    return await Promise.race([promise, sleep(timeoutMs, [], { ref: false })])
  } finally {
    thread.off('message', hear)
  }
}
