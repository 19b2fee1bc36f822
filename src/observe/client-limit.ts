/** How often each client may ask. A process counts for itself: a load balancer sends a client to the same one (deploy/haproxy). */
import { LRUCache } from 'lru-cache'
import { type Allowance, type BucketState, takeFrom } from '../access/admission.ts'
import { atMost } from '../platform/cache.ts'

/** Buckets kept at most. One that is full again is as good as a new one. */
const MAX_BUCKETS = 100_000

export class ClientLimit {
  readonly #allowance: Allowance
  readonly #now: () => number
  readonly #fullAt = new LRUCache<string, { ms: number }>(atMost(MAX_BUCKETS))

  constructor(allowance: Allowance, now: () => number = Date.now) {
    this.#allowance = allowance
    this.#now = now
  }

  /** Takes a request from the bucket of a client. */
  take(client: string): BucketState {
    const { state, fullAtMs } = takeFrom(this.#fullAt.get(client)?.ms, this.#allowance, this.#now())
    this.#fullAt.set(client, { ms: fullAtMs })
    return state
  }
}
