/**
 * Work that nobody waits for, and the errors that reach the process itself. Neither passes unheard,
 * and neither ends a process whose state can be trusted.
 */
import { Counter } from 'prom-client'
import { createLogger, type Logger } from './logger.ts'
import { Unavailable } from './unavailable.ts'

const failures = new Counter({
  name: 'tabulum_background_failures_total',
  help: 'Work in the background that failed, by what it was and why: a part was out, or a defect.',
  labelNames: ['task', 'reason'] as const,
})
const rejections = new Counter({
  name: 'tabulum_unhandled_rejections_total',
  help: 'Rejected promises that nobody had heard, which is a defect.',
})

let log: Pick<Logger, 'debug' | 'error' | 'fatal'> = createLogger('warn', 'background')

/**
 * Lets `work` go on without anybody who waits for it. When it fails, that is logged and counted
 * under the name of the task: an outage for those who look closely, anything else as a defect with
 * its stack. The work sees to it by itself that it ends.
 */
export function inBackground(task: string, work: Promise<unknown>): void {
  work.catch((error: unknown) => {
    const isOutage = error instanceof Unavailable
    failures.inc({ task, reason: isOutage ? 'outage' : 'defect' })
    // What is out is told by others, and this may be thousands in a second.
    if (isOutage) log.debug({ task, error: String(error) }, 'background work met an outage')
    else log.error({ task, err: error }, 'background work failed')
  })
}

/**
 * For processes that run for long, once at their start. A rejection that reaches the process is
 * logged with its stack and counted, and the process goes on: nothing was interrupted but that one
 * piece of work. After an exception that nobody caught, code has stopped half way, and the process
 * ends with status 1.
 */
export function hearProcessErrors(logger: Logger): void {
  log = logger
  process.on('unhandledRejection', (reason) => {
    rejections.inc()
    log.error({ err: reason }, 'a rejected promise that nobody had heard')
  })
  process.on('uncaughtException', (error) => {
    log.fatal({ err: error }, 'an exception that nobody caught: the process ends')
    process.exit(1)
  })
}
