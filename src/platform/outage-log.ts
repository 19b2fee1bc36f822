/**
 * What fails again and again while a part is out is told by one line when it begins, one for each
 * other reason, and one when it has been over for a while.
 */
import type { Logger } from './logger.ts'

/** Nothing has failed for so long: it is over. */
const QUIET_MS = 5_000
/** So many different reasons are told of in one outage. */
const MAX_REASONS = 10

interface Outage {
  /** Those that have been told of, without their numbers. */
  readonly reasons: Set<string>
  readonly line: string
  readonly since: number
  last: number
  times: number
}

export class OutageLog {
  readonly #logger: Pick<Logger, 'warn'>
  readonly #quietMs: number
  /** By kind: as many as a program has names for. */
  readonly #underWay = new Map<string, Outage>()

  constructor(logger: Pick<Logger, 'warn'>, { quietMs = QUIET_MS }: { quietMs?: number } = {}) {
    this.#logger = logger
    this.#quietMs = quietMs
  }

  /**
   * Something failed once more. `kind`: what belongs together; never of what a client sent. It is
   * told of the first time, and again where the reason is another: what was silent may turn out to
   * have lost something.
   */
  met(kind: string, line: string, reason: string, details: object = {}): void {
    const now = performance.now()
    const withoutNumbers = reason.replaceAll(/\d+/g, '')
    const outage = this.#underWay.get(kind)
    if (outage) {
      outage.last = now
      outage.times++
      if (outage.reasons.has(withoutNumbers) || outage.reasons.size === MAX_REASONS) return
      outage.reasons.add(withoutNumbers)
    } else {
      this.#underWay.set(kind, {
        line,
        since: now,
        last: now,
        times: 1,
        reasons: new Set([withoutNumbers]),
      })
      this.#endWhenQuiet(kind, this.#quietMs)
    }
    this.#logger.warn({ ...details, kind, reason }, line)
  }

  #endWhenQuiet(kind: string, ms: number): void {
    const look = () => {
      const outage = this.#underWay.get(kind)
      if (!outage) return
      const { line, since, last, times } = outage
      const left = last + this.#quietMs - performance.now()
      if (left > 0) return this.#endWhenQuiet(kind, left)
      this.#underWay.delete(kind)
      this.#logger.warn(
        { kind, times, seconds: Math.round((last - since) / 1_000) },
        `no more of: ${line}`,
      )
    }
    setTimeout(look, Math.ceil(ms)).unref()
  }
}
