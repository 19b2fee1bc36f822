/**
 * Before which time nothing that was staged or reserved can be needed any more. What is prepared is
 * appended within seconds or never (`PREPARATION_USABLE_MS`), so what is a minute old and not
 * settled by the whole log until now never will be.
 */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { PREPARATION_USABLE_MS } from '../events/event-log.ts'
import { Unavailable } from '../platform/unavailable.ts'

/**
 * What was reserved or staged so long ago and is not in a log that has been applied to its end
 * never will be.
 */
export const ABANDONED_MS = 60_000
// Whatever is prepared is appended, or never will be, long before.
assert(ABANDONED_MS > 2 * PREPARATION_USABLE_MS)
/** How long the projection is waited for. */
const WAIT_MS = 10_000
const POLL_MS = 100

/** The projection does not reach the end of the log, so nobody can tell what was abandoned. */
export class NotCaughtUp extends Unavailable {
  override name = 'NotCaughtUp'
}

export interface Projected {
  /**
   * How far the projection is that settles what was staged and reserved, and what time it is by the
   * clock that dates that.
   */
  standing(): Promise<{ appliedSeq: number; now: Date }>
  /** The sequence number of the last event. */
  lastSeq(): Promise<number>
}

export class CutOff {
  readonly #projected: Projected
  readonly #waitMs: number
  /**
   * What time it was by that clock, and by the one here that does not jump: those of the last
   * minute, and one older.
   */
  #readings: { time: number; at: number }[] = []

  constructor(projected: Projected, { waitMs = WAIT_MS }: { waitMs?: number } = {}) {
    this.#projected = projected
    this.#waitMs = waitMs
  }

  /**
   * Waits until all that may still be needed has been applied. Throws `NotCaughtUp`, or that a part
   * is out.
   */
  async find(signal: AbortSignal): Promise<Date> {
    const { now } = await this.#projected.standing()
    const before = this.#before(now.getTime())
    const end = await this.#projected.lastSeq()
    const deadline = performance.now() + this.#waitMs
    for (;;) {
      const { appliedSeq } = await this.#projected.standing()
      if (appliedSeq >= end) return new Date(before)
      signal.throwIfAborted()
      if (performance.now() > deadline)
        throw new NotCaughtUp(
          `the log goes to ${end} and the projection is at ${appliedSeq}: what was abandoned cannot be told from what is to come`,
        )
      await sleep(POLL_MS, undefined, { signal })
    }
  }

  /**
   * A minute ago by that clock, however it was set meanwhile: set forward it makes what is new look
   * old, set back it dates what is new before what is old. So each time that was read says what it
   * would be now, had nobody touched the clock, and the least counts.
   */
  #before(time: number): number {
    const at = performance.now()
    this.#readings.push({ time, at })
    const past = this.#readings.findLastIndex((reading) => reading.at <= at - ABANDONED_MS)
    if (past > 0) this.#readings.splice(0, past)
    return Math.min(
      ...this.#readings.map(
        (reading) => reading.time - Math.max(0, ABANDONED_MS - (at - reading.at)),
      ),
    )
  }
}
