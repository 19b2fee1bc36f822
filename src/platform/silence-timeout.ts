/** A part that answers others meanwhile is waited for so long at most. */
const BUSY_MS = 5_000

/**
 * How long to wait for the answers of one backing part. One that is silent is out, and who waits
 * for it is told soon. One that answers others is busy: giving up on it and asking again would only
 * make it busier.
 */
export class SilenceTimeout {
  readonly #busyMs: number
  #answeredAt = Number.NEGATIVE_INFINITY

  /** @param busyMs for how long one that answers others is waited for at most; default 5,000 */
  constructor(busyMs = BUSY_MS) {
    this.#busyMs = busyMs
  }

  /** The part has answered somebody. */
  answered(): void {
    this.#answeredAt = performance.now()
  }

  /** Milliseconds since the part was last heard of. */
  silenceMs(): number {
    return performance.now() - this.#answeredAt
  }

  /**
   * When to give up on what was asked at `start`, as things are now: once the part has been silent
   * for `silentMs`. On the clock of `performance.now()`.
   */
  deadline(start: number, silentMs: number): number {
    return Math.min(
      start + Math.max(this.#busyMs, silentMs),
      Math.max(start, this.#answeredAt) + silentMs,
    )
  }

  /**
   * What `work` ends with, or a rejection with `late()` when it has taken too long; what it ends
   * with after that is ignored.
   */
  async wait<T>(work: Promise<T>, silentMs: number, late: () => Error): Promise<T> {
    const start = performance.now()
    const expired = Promise.withResolvers<never>()
    let timer: NodeJS.Timeout | undefined
    let turn: NodeJS.Immediate | undefined
    const check = (isRead: boolean) => {
      const left = this.deadline(start, silentMs) - performance.now()
      if (left > 0) timer = setTimeout(check, left, false)
      // A process that was held up itself, frozen or short of CPU, finds its timers expired before
      // it has read what came in meanwhile.
      else if (!isRead) turn = setImmediate(check, true)
      else expired.reject(late())
    }
    timer = setTimeout(check, silentMs, false)
    try {
      const answer = await Promise.race([work, expired.promise])
      this.answered()
      return answer
    } finally {
      clearTimeout(timer)
      clearImmediate(turn)
    }
  }
}
