/** What fails again and again while a part is out is told by one line when it begins, and one when it has been over for a while. */
import type { Logger } from './logger.ts'

/** Nothing has failed for so long: it is over. */
const QUIET_MS = 5_000

interface Outage {
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

  /** Something failed once more. `kind`: what belongs together; never of what a client sent. `details` are told of the first. */
  met(kind: string, line: string, details: object): void {
    const now = performance.now()
    const outage = this.#underWay.get(kind)
    if (outage) {
      outage.last = now
      outage.times++
      return
    }
    this.#underWay.set(kind, { line, since: now, last: now, times: 1 })
    this.#logger.warn({ ...details, kind }, line)
    this.#endWhenQuiet(kind, this.#quietMs)
  }

  #endWhenQuiet(kind: string, ms: number): void {
    const look = () => {
      const outage = this.#underWay.get(kind)
      if (!outage) return
      const { line, since, last, times } = outage
      const left = last + this.#quietMs - performance.now()
      if (left > 0) return this.#endWhenQuiet(kind, left)
      this.#underWay.delete(kind)
      this.#logger.warn({ kind, times, seconds: Math.round((last - since) / 1_000) }, `no more of: ${line}`)
    }
    setTimeout(look, Math.ceil(ms)).unref()
  }
}
