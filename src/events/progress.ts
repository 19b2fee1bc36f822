/** How far the projections of the log have come, and waiting for them. */
import { SilenceTimeout } from '../platform/silence-timeout.ts'

/**
 * A projection has not reached an event in time, or is held up for an unknown time. The event is in
 * the log and will take effect whole.
 */
export class ProjectionBehind extends Error {
  override name = 'ProjectionBehind'
}

/**
 * A projector that has been silent for so long is gone, for everybody who waits for it: it says
 * where it is every 250 ms, and another steps in within a second. Short enough to answer an outage
 * within 2 s.
 */
export const PROJECTOR_SILENCE_MS = 1_500
/** A projector that is heard of but does not get there: it catches up with a long log. */
const MAX_WAIT_MS = 10_000

/** How far a projection is, for those who wait for it. */
export interface Applied {
  /**
   * Resolves when the projection has applied the event at `seq`. Throws `ProjectionBehind` when no
   * projector has been heard of for `silentMs`; one that is busy is waited for longer, one that is
   * held up not at all.
   */
  reached(seq: number, silentMs?: number): Promise<void>
  /** Milliseconds since a projector was last heard of. */
  silenceMs(): number
}

/** Of projections that are applied in the transaction that appends the event. */
export const APPLIED_AT_ONCE: Applied = { reached: async () => {}, silenceMs: () => 0 }

/**
 * The position of one projection as this process knows it. Fed by the projector: directly, or by
 * its announcements.
 */
export class Progress implements Applied {
  #applied = 0
  #isHeldUp = false
  readonly #silence = new SilenceTimeout(MAX_WAIT_MS)
  /** In order of arrival, which is nearly that of `seq`; bounded by the requests in flight. */
  readonly #waiting = new Set<{
    seq: number
    resolve: () => void
    reject: (error: Error) => void
  }>()

  /** The sequence number of the last event that the projection has applied. */
  get applied(): number {
    return this.#applied
  }

  silenceMs(): number {
    return this.#silence.silenceMs()
  }

  /**
   * A projector says where it is, and whether it waits for room in its store: then nobody waits for
   * it.
   */
  advance(seq: number, isHeldUp = false): void {
    this.#silence.answered()
    this.#isHeldUp = isHeldUp
    this.#applied = Math.max(this.#applied, seq)
    for (const waiter of this.#waiting) {
      if (waiter.seq <= this.#applied) waiter.resolve()
      else if (isHeldUp) waiter.reject(heldUp(waiter.seq))
      else continue
      this.#waiting.delete(waiter)
    }
  }

  async reached(seq: number, silentMs = PROJECTOR_SILENCE_MS): Promise<void> {
    if (seq <= this.#applied) return
    if (this.#isHeldUp) throw heldUp(seq)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { seq, resolve, reject }
    this.#waiting.add(waiter)
    const start = performance.now()
    const late = () =>
      new ProjectionBehind(
        `event ${seq} was not applied within ${Math.round(performance.now() - start)} ms`,
      )
    await this.#silence.wait(promise, silentMs, late).finally(() => this.#waiting.delete(waiter))
  }
}

function heldUp(seq: number): ProjectionBehind {
  return new ProjectionBehind(`event ${seq} waits for room`)
}
