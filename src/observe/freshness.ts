/**
 * How far the read models are, for who asks them: an answer is as new as what was acknowledged
 * before the question, if that takes no longer than a second.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { batched } from '../platform/batch.ts'
import { Unavailable } from '../platform/unavailable.ts'

/**
 * After this the answer is given as it is; and where the read models have never been as far as the
 * log, none is given.
 */
const WAITS = { ms: 1_000, firstMs: 10_000 }
/** Where another process applies the log, it is looked how far it is so often. */
const POLL_MS = 25
/** Questions that share one look at the end of the log, and that wait for it, at most. */
const MAX_WAITING = 10_000

/** The read models have not been as far as the log yet, since this process began. */
export class BeingBuilt extends Unavailable {
  override name = 'BeingBuilt'
  constructor(applied: number, end: number) {
    super(`the read models are being built: up to ${applied} of ${end}`)
  }
}

export interface FreshnessParts {
  /** The sequence number of the last event of the log. */
  lastSeq: () => Promise<number>
  /** How far the log has been applied. */
  position: () => Promise<number>
}

export class Freshness {
  readonly #parts: FreshnessParts
  readonly #waits: typeof WAITS
  readonly #end: () => Promise<number>
  #applied = 0
  /** Once they have been as far as the log, they are a moment behind at most while all is well. */
  #hasCaughtUp = false
  #wake: (() => void) | undefined

  constructor(parts: FreshnessParts, waits = WAITS) {
    this.#parts = parts
    this.#waits = waits
    const look = batched<undefined, number>(
      async (asked) => {
        const seq = await parts.lastSeq()
        return asked.map(() => seq)
      },
      { maxItems: MAX_WAITING, maxWaiting: MAX_WAITING },
    )
    this.#end = () => look(undefined)
  }

  /**
   * Resolves after so many ms, when `signal` aborts, or as soon as somebody waits for what has not
   * been applied yet. For one who applies it.
   */
  async pause(ms: number, signal: AbortSignal): Promise<void> {
    const wanted = new AbortController()
    this.#wake = () => wanted.abort()
    await sleep(ms, undefined, { signal: AbortSignal.any([signal, wanted.signal]) }).catch(() => {})
    this.#wake = undefined
  }

  /** This process has applied the log so far. */
  advance(seq: number): void {
    if (seq > this.#applied) this.#applied = seq
  }

  /**
   * Resolves when all that is in the log now has been applied, or after a second. Throws
   * `BeingBuilt`, `Unavailable`.
   */
  async wait(): Promise<void> {
    const end = await this.#end()
    const deadline = performance.now() + (this.#hasCaughtUp ? this.#waits.ms : this.#waits.firstMs)
    while (this.#applied < end && performance.now() < deadline) {
      this.#wake?.()
      this.advance(await this.#parts.position())
      if (this.#applied < end) await sleep(POLL_MS)
    }
    if (this.#applied >= end) this.#hasCaughtUp = true
    else if (!this.#hasCaughtUp) throw new BeingBuilt(this.#applied, end)
  }
}
