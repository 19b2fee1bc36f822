/**
 * What the live streams do when the log or the history cannot be had: they say so, and try again.
 */
import type { Logger } from '../../platform/logger.ts'
import { OutageLog } from '../../platform/outage-log.ts'
import { Unavailable } from '../../platform/unavailable.ts'

const FIRST_RETRY_MS = 100
const LAST_RETRY_MS = 5_000

export class Failures {
  readonly #logger: Pick<Logger, 'warn' | 'error'>
  readonly #outages: OutageLog

  constructor(logger: Pick<Logger, 'warn' | 'error'>) {
    this.#logger = logger
    this.#outages = new OutageLog(logger)
  }

  /** An outage, or a defect. */
  met(error: unknown): void {
    if (error instanceof Unavailable)
      this.#outages.met('live', 'watchers wait for events', error.message)
    else this.#logger.error({ err: error }, 'defect in the live streams')
  }

  /**
   * How long to wait before the next try, in ms. @param failed tries in a row that failed before
   * the last one
   */
  delay(failed: number): number {
    return (
      Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(failed, 10)) *
      (0.5 + Math.random() / 2)
    )
  }
}
