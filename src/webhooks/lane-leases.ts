/** The lanes in one worker's hands, and how long it may rely on having them. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { ClaimedLane, WebhookLanes } from './webhook-lanes.ts'

/**
 * As parts of the lease: how often it is prolonged, how often looked after, and how much must be
 * left for it to be relied on.
 */
const RENEW_SHARE = 1 / 4
const WATCH_SHARE = 1 / 20
const MARGIN_SHARE = 1 / 10

/** The lane has been in this worker's hands for too long without a word: it may be another's. */
export class LeaseLapsed extends Error {
  override name = 'LeaseLapsed'
}

/** A lane in this worker's hands. */
export interface Held {
  readonly lane: ClaimedLane
  /** Times of `performance.now()`. */
  readonly claimedAt: number
  validUntil: number
  /** Aborts when the lease has run out. */
  readonly lapse: AbortController
}

export interface LaneLeasesOptions {
  lanes: Pick<WebhookLanes, 'renew'>
  holder: string
  leaseMs: number
  /** The database did not prolong them. */
  onFailure: (error: unknown) => void
}

export class LaneLeases {
  readonly #options: LaneLeasesOptions
  /** Bounded by the slots. */
  readonly #held = new Set<Held>()

  constructor(options: LaneLeasesOptions) {
    this.#options = options
  }

  /** @param claimedAt before it was asked for */
  hold(lane: ClaimedLane, claimedAt: number): Held {
    const held = {
      lane,
      claimedAt,
      validUntil: claimedAt + this.#options.leaseMs,
      lapse: new AbortController(),
    }
    this.#held.add(held)
    return held
  }

  /** The lane has been given back, or given up. */
  drop(held: Held): void {
    this.#held.delete(held)
  }

  /** Throws `LeaseLapsed` unless there is time enough left to begin something. */
  check({ validUntil }: Held): void {
    if (performance.now() > validUntil - this.#options.leaseMs * MARGIN_SHARE)
      throw new LeaseLapsed()
  }

  /**
   * Keeps the leases of lanes that are worked on, and ends the work on those whose lease could not
   * be kept, until `ended` aborts.
   */
  async keep(ended: AbortSignal): Promise<void> {
    const { leaseMs } = this.#options
    let renewedAt = performance.now()
    while (!ended.aborted) {
      await sleep(leaseMs * WATCH_SHARE, undefined, { signal: ended }).catch(() => {})
      const now = performance.now()
      if (
        now - renewedAt >= leaseMs * RENEW_SHARE &&
        this.#held.size > 0 &&
        (await this.#renew(now))
      )
        renewedAt = now
      for (const { validUntil, lapse } of this.#held) {
        if (performance.now() > validUntil - leaseMs * MARGIN_SHARE) lapse.abort(new LeaseLapsed())
      }
    }
  }

  async #renew(now: number): Promise<boolean> {
    const { lanes, holder, leaseMs, onFailure } = this.#options
    const held = [...this.#held]
    try {
      const kept = await lanes.renew(
        holder,
        held.map(({ lane }) => lane),
        leaseMs,
      )
      for (const each of held) {
        // The database's word is better than this clock, which may have stood still with the
        // machine.
        if (!kept.has(each.lane.recipient)) each.lapse.abort(new LeaseLapsed())
        else if (each.validUntil > now) each.validUntil = now + leaseMs
      }
      return true
    } catch (error) {
      onFailure(error)
      return false
    }
  }
}
