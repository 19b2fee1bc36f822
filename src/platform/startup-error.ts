/** The program cannot start as it is set up; the message says what to do. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from './logger.ts'
import { Unavailable } from './unavailable.ts'

export class StartupError extends Error {
  override name = 'StartupError'
}

/**
 * What is needed is not there yet, or refuses us: it may come by itself, or somebody may put it
 * right, while this program waits.
 */
export class NotThereYet extends StartupError {}

const RETRY_MS = 500
/**
 * A reason is told so long after another, and again so long after itself: the ways in which a
 * server is not there vary.
 */
const RETELL_MS = 2_000
const REMIND_MS = 15_000

/**
 * Tries `open` until it ends otherwise than with `NotThereYet` or `Unavailable`; past `waitMs`,
 * throws `StartupError` for that. Each reason to wait is logged when it comes up, and now and then.
 * An attempt that is under way is not cut short: each has deadlines of its own.
 */
export async function untilThere<T>(
  open: () => Promise<T>,
  waitMs: number,
  logger: Logger,
): Promise<T> {
  const deadline = performance.now() + waitMs
  let told = ''
  let toldAt = Number.NEGATIVE_INFINITY
  for (;;) {
    try {
      return await open()
    } catch (error) {
      if (!(error instanceof NotThereYet || error instanceof Unavailable)) throw error
      const { message } = error
      if (performance.now() + RETRY_MS > deadline) {
        throw new StartupError(`${message} (waited for ${waitMs / 1_000} s: STARTUP_TIMEOUT)`, {
          cause: error,
        })
      }
      if (performance.now() > toldAt + (message === told ? REMIND_MS : RETELL_MS)) {
        logger.warn({ reason: message }, 'cannot start yet, trying again')
        told = message
        toldAt = performance.now()
      }
      await sleep(RETRY_MS)
    }
  }
}
