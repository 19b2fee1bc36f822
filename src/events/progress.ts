/** How far the projections of the log have come, and waiting for them. */

/** A projection has not reached an event in time. The event is in the log and will take effect whole. */
export class ProjectionBehind extends Error {
  override name = 'ProjectionBehind'
}

/** How long a projector may be silent: longer than it takes another to step in, short enough to answer an outage within 2 s. */
const PROJECTOR_PATIENCE_MS = 1_500
/** A projector that is heard of but does not get there: it catches up with a long log. */
const MAX_WAIT_MS = 10_000

/** The position of one projection as this process knows it. Fed by the projector: directly, or by its broadcast. */
export class Progress {
  #applied = 0
  #heardAt = Number.NEGATIVE_INFINITY
  /** In order of arrival, which is nearly that of `seq`; bounded by the requests in flight. */
  readonly #waiting = new Set<{ seq: number; resolve: () => void }>()

  /** The place of the last event that the projection has applied. */
  get applied(): number {
    return this.#applied
  }

  /** Milliseconds since a projector was last heard of. */
  silenceMs(now = performance.now()): number {
    return now - this.#heardAt
  }

  /** A projector says where it is. */
  advance(seq: number): void {
    this.#heardAt = performance.now()
    if (seq <= this.#applied) return
    this.#applied = seq
    for (const waiter of this.#waiting) {
      if (waiter.seq > seq) continue
      this.#waiting.delete(waiter)
      waiter.resolve()
    }
  }

  /**
   * Resolves when the projection has applied the event at `seq`. Throws `ProjectionBehind` when no projector has been heard of for
   * `patienceMs`; one that is busy is waited for longer.
   */
  async reached(seq: number, patienceMs = PROJECTOR_PATIENCE_MS): Promise<void> {
    if (seq <= this.#applied) return
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { seq, resolve }
    this.#waiting.add(waiter)
    const start = performance.now()
    let timer: NodeJS.Timeout
    const check = () => {
      const now = performance.now()
      const silence = now - Math.max(start, this.#heardAt)
      if (silence < patienceMs && now - start < MAX_WAIT_MS) {
        timer = setTimeout(check, patienceMs - silence)
        return
      }
      this.#waiting.delete(waiter)
      reject(new ProjectionBehind(`event ${seq} was not applied within ${Math.round(now - start)} ms`))
    }
    timer = setTimeout(check, patienceMs)
    await promise.finally(() => clearTimeout(timer))
  }
}
