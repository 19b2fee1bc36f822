/** Buckets in this process. One that is full again may be forgotten, as a new one is the same. */
import { LRUCache } from 'lru-cache'
import { atMost } from '../platform/cache.ts'
import { type Allowance, type BucketState, takeFrom } from './admission.ts'

/** Buckets kept at most. */
const MAX_BUCKETS = 500_000

export class MemoryBuckets {
  readonly #now: () => number
  readonly #buckets = new LRUCache<string, { fullAtMs: number }>(atMost(MAX_BUCKETS))

  /** @param now of the calendar, by which buckets are told, in ms since 1970 */
  constructor(now: () => number = Date.now) {
    this.#now = now
  }

  /** Takes a request from the bucket of that name. */
  take(name: string, allowance: Allowance): BucketState {
    const { state, fullAtMs } = takeFrom(this.#buckets.get(name)?.fullAtMs, allowance, this.#now())
    this.#buckets.set(name, { fullAtMs })
    return state
  }
}
