/**
 * The slots of one worker: how many lanes it works on at once, and how many of them may be ones
 * that hold a slot for long.
 *
 * An endpoint that accepts and never answers holds its slot for the whole time-out, thousands of
 * times as long as a healthy one. Were they served alike, a few would soon hold all slots. So lanes
 * whose last attempt took long get what the fast ones leave: a quarter of the slots while twice the
 * peak of the fast ones fits into the rest, and never less than a twentieth. One that failed at
 * once is fast: it takes nothing from anybody, and must not queue up behind those that take 10 s
 * each because of a single 503. Lanes that nothing is known of yet get, with the slow ones, half of
 * the slots: each of them can turn out bad but once, and must not wait for long where many have.
 */
import type { Quota, Standing } from './webhook-lanes.ts'

const UNPROVEN_SHARE = 0.5
/**
 * Of these, lanes of one operator that have yet to be tried: beside the slow ones, which get no
 * more than half, a sixth is left to others at once. Where several operators have filled that as
 * well, the next slot is that of an operator which has none.
 */
const ONE_OPERATOR_SHARE = 1 / 3
/** Half of what the others may lose where one endpoint in ten is a black hole. */
const LEAST_SLOW_SHARE = 0.05
const GREATEST_SLOW_SHARE = 0.25
/**
 * Slow lanes in one claim. Black holes that are begun together time out together, and are begun
 * together again: 25 TLS handshakes at once keep everybody waiting for 25 ms.
 */
const SLOW_AT_ONCE_SHARE = 0.03
/** Slots kept free for fast lanes, as a multiple of the most that they had in use lately. */
const HEADROOM = 2
/** What is left after a second of a peak that is not reached again. */
const PEAK_DECAY = 0.9

export class DeliverySlots {
  readonly #total: number
  readonly #now: () => number
  #fast = 0
  #unknown = 0
  #slow = 0
  #peak: number
  #peakAt: number

  /** @param now a clock in ms that never goes back */
  constructor(total: number, now: () => number = () => performance.now()) {
    this.#total = total
    // Nothing is known of them at the start, when there may be a backlog to work off, and slots
    // that black holes have then they have for long.
    this.#peak = total
    this.#now = now
    this.#peakAt = now()
  }

  get inUse(): number {
    return this.#fast + this.#unknown + this.#slow
  }

  /** What may be claimed now. */
  get quota(): Quota {
    const total = this.#total - this.inUse
    const slots = share(this.#total, UNPROVEN_SHARE)
    const left = slots - this.#unknown - this.#slow
    const unproven = Math.max(0, Math.min(total, left))
    const atOnce = share(this.#total, SLOW_AT_ONCE_SHARE)
    const slow = Math.max(0, Math.min(unproven, this.#slowSlots() - this.#slow, atOnce))
    return { total, unproven, slow, ofOneOperator: share(slots, ONE_OPERATOR_SHARE) }
  }

  #slowSlots(): number {
    const free = Math.floor(this.#total - HEADROOM * this.#currentPeak())
    const least = share(this.#total, LEAST_SLOW_SHARE)
    return Math.max(least, Math.min(share(this.#total, GREATEST_SLOW_SHARE), free))
  }

  #currentPeak(): number {
    return Math.max(this.#fast, this.#peak * PEAK_DECAY ** ((this.#now() - this.#peakAt) / 1_000))
  }

  /** Takes a slot for a lane; returns how to give it back. */
  take(standing: Standing): () => void {
    this.#count(standing, 1)
    const peak = this.#currentPeak()
    this.#peak = peak
    this.#peakAt = this.#now()
    return () => this.#count(standing, -1)
  }

  #count(standing: Standing, change: number): void {
    if (standing === 'fast') this.#fast += change
    else if (standing === 'unknown') this.#unknown += change
    else this.#slow += change
  }
}

/** A part of the slots, one at least. */
function share(total: number, part: number): number {
  return Math.max(1, Math.floor(total * part))
}
