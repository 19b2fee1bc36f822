/**
 * An orderly end: the first signal starts it, the second forces it, and it takes no longer than it
 * may.
 */
import { constants } from 'node:os'
import type { Logger } from './logger.ts'

/** SIGHUP is what a process gets whose terminal is closed. */
const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

/**
 * Lets a signal end the process at once, until `untilStopped` is called. That is what signals do
 * anyway, but not to the first process of a container: there nothing happens while nobody listens.
 */
export function endAtSignals(): void {
  for (const name of SIGNALS) process.once(name, endAtOnce)
}

function endAtOnce(signal: NodeJS.Signals): void {
  process.exit(128 + constants.signals[signal])
}

/**
 * One press of Ctrl-C comes twice, from the terminal and from npm, which passes it on; so does the
 * end of a terminal, as SIGHUP and more. What comes so soon is the same wish.
 */
const SAME_WISH_MS = 1_000

/**
 * Resolves at SIGTERM, SIGINT or SIGHUP, after which the process has `timeoutMs` to end by itself;
 * past that, or at a second signal (no sooner than a second later), it ends with status 1. To be
 * called before the program says that it is ready: a signal may come at once.
 */
export async function untilStopped(logger: Logger, timeoutMs: number): Promise<void> {
  const force = (why: string) => {
    logger.error(`stopped by force: ${why}`)
    process.exit(1)
  }
  const stopped = Promise.withResolvers<NodeJS.Signals>()
  let since: number | undefined
  // One listener for all of them, and never none: what comes while nobody listens ends the process
  // at once.
  const hear = (signal: NodeJS.Signals) => {
    if (since !== undefined && performance.now() - since > SAME_WISH_MS) force('a second signal')
    since ??= performance.now()
    stopped.resolve(signal)
  }
  for (const name of SIGNALS) process.on(name, hear).off(name, endAtOnce)
  logger.info({ signal: await stopped.promise }, 'stopping')
  setTimeout(() => force(`not done within ${timeoutMs} ms`), timeoutMs).unref()
}
