/**
 * What is stored of a token, and checking a token against it: bcrypt on a pool of threads, or
 * HMAC-SHA-256.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { Piscina, queueOptionsSymbol } from 'piscina'
import { Histogram } from 'prom-client'
import { monotonicMs } from '../platform/monotonic-clock.ts'
import type { BcryptOperation, BcryptTask } from './bcrypt-thread.ts'
import { FairQueue, type Owned } from './fair-queue.ts'
import { VerifierBusy } from './verifier-busy.ts'

export interface CredentialOptions {
  verifier: 'bcrypt' | 'hmac'
  hmacKey: string | undefined
  bcryptCost: number
  /** Default 15,000. */
  maxWaitMs?: number | undefined
}

/** At a low priority (bcrypt-thread.ts), so that they take what the event loop leaves. */
const THREADS = availableParallelism()
/**
 * A token waits so long for its check at most; then the client is told to come again. Well below
 * the time for which a load balancer waits.
 */
const MAX_WAIT_MS = 15_000
/**
 * And so many of each kind at most, in all and of one operator, those at work included. One
 * operator's are a fraction: that many hashes take two threads 4 s at cost 10, and leave the others
 * room.
 */
const MAX_UNDER_WAY = {
  compare: { all: 1_000, ofOne: 500 },
  hash: { all: 1_000, ofOne: 100 },
} as const

const BUSY = 'too many tokens are being checked'

const duration = new Histogram({
  name: 'tabulum_bcrypt_seconds',
  help: 'Time of one bcrypt operation, its wait for a thread included.',
  labelNames: ['operation'] as const,
  buckets: [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
})

export class Credentials {
  readonly #options: CredentialOptions
  /** Threads start with the first task. */
  readonly #pool = new Piscina<
    BcryptTask & { [queueOptionsSymbol]: Owned },
    string | boolean | undefined
  >({
    filename: new URL('./bcrypt-thread.ts', import.meta.url).href,
    minThreads: 0,
    maxThreads: THREADS,
    maxQueue: MAX_UNDER_WAY.compare.all + MAX_UNDER_WAY.hash.all,
    taskQueue: new FairQueue(),
    idleTimeout: 30_000,
    // A hash makes little that has to be kept; left alone, each thread would hold on to tens of
    // megabytes.
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  })
  readonly #underWay = {
    compare: new Shares(MAX_UNDER_WAY.compare),
    hash: new Shares(MAX_UNDER_WAY.hash),
  }

  constructor(options: CredentialOptions) {
    this.#options = options
  }

  /**
   * A turn to hash one token for an operator; it counts as under way until it is disposed of. Taken
   * before a request uses up anything, so that one which is refused can be made again. Throws
   * `VerifierBusy`.
   */
  hashing(owner: string): Disposable & { hash(secret: string): Promise<string> } {
    const { verifier, bcryptCost } = this.#options
    if (verifier === 'hmac') {
      return {
        hash: async (secret) => `hmac-sha256$${this.#hmac(secret).toString('hex')}`,
        [Symbol.dispose]: () => {},
      }
    }
    const end = this.#underWay.hash.take(owner)
    return {
      hash: async (secret) =>
        String(await this.#run({ name: 'hash', secret, cost: bcryptCost }, owner)),
      [Symbol.dispose]: end,
    }
  }

  /**
   * Whether the token is the one that `stored` was made from, by whichever verifier. `owner` is the
   * operator whose token it is, or whose agent's. Throws `VerifierBusy`.
   */
  async verify(secret: string, stored: string, owner: string): Promise<boolean> {
    const [, mac] = /^hmac-sha256\$([0-9a-f]{64})$/.exec(stored) ?? []
    if (mac === undefined) {
      const end = this.#underWay.compare.take(owner)
      try {
        return Boolean(await this.#run({ name: 'compare', secret, stored }, owner))
      } finally {
        end()
      }
    }
    return (
      this.#options.hmacKey !== undefined &&
      timingSafeEqual(this.#hmac(secret), Buffer.from(mac, 'hex'))
    )
  }

  #hmac(secret: string): Buffer {
    return createHmac('sha256', this.#options.hmacKey ?? '')
      .update(secret)
      .digest()
  }

  async #run(operation: BcryptOperation, owner: string): Promise<string | boolean> {
    const stop = duration.startTimer({ operation: operation.name })
    try {
      const result = await this.#pool.run({
        operation,
        notAfter: monotonicMs() + (this.#options.maxWaitMs ?? MAX_WAIT_MS),
        [queueOptionsSymbol]: { kind: operation.name, owner } satisfies Owned,
      })
      if (result === undefined) throw new VerifierBusy(BUSY)
      return result
    } finally {
      stop()
    }
  }

  async close(): Promise<void> {
    await this.#pool.destroy()
  }
}

/** How much of one kind is under way, in all and of each owner. */
class Shares {
  readonly #most: { readonly all: number; readonly ofOne: number }
  readonly #of = new Map<string, number>()
  #all = 0

  constructor(most: { readonly all: number; readonly ofOne: number }) {
    this.#most = most
  }

  /** Counts one more; returns what is called once, when it is over. Throws `VerifierBusy`. */
  take(owner: string): () => void {
    const had = this.#of.get(owner) ?? 0
    if (this.#all >= this.#most.all) throw new VerifierBusy(BUSY)
    if (had >= this.#most.ofOne)
      throw new VerifierBusy('too many requests of this operator are under way')
    this.#all++
    this.#of.set(owner, had + 1)
    return () => {
      this.#all--
      const has = (this.#of.get(owner) ?? 1) - 1
      if (has === 0) this.#of.delete(owner)
      else this.#of.set(owner, has)
    }
  }
}
