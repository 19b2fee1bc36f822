/** An orderly end: the first signal starts it, the second forces it, and it takes no longer than it may. */
import type { Logger } from './logger.ts'

/**
 * Resolves at SIGTERM or SIGINT, after which the process has `timeoutMs` to end by itself; past that, or at a second signal, it
 * ends with status 1. To be called before the program says that it is ready: a signal may come at once.
 */
export async function untilStopped(logger: Logger, timeoutMs: number): Promise<void> {
  const signal = await new Promise<NodeJS.Signals>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, resolve)
  })
  logger.info({ signal }, 'stopping')
  const force = (why: string) => {
    logger.error(`stopped by force: ${why}`)
    process.exit(1)
  }
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => force('a second signal'))
  setTimeout(() => force(`not done within ${timeoutMs} ms`), timeoutMs).unref()
}
