/** What is stored of a token, and checking a token against it: bcrypt on a pool of threads, or HMAC-SHA-256. */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { Piscina } from 'piscina'
import { Histogram } from 'prom-client'
import { monotonicMs } from '../platform/monotonic-clock.ts'
import type { BcryptOperation, BcryptTask } from './bcrypt-thread.ts'

/** Too many tokens are waiting to be checked. */
export class VerifierBusy extends Error {
  override name = 'VerifierBusy'
}

export interface CredentialOptions {
  verifier: 'bcrypt' | 'hmac'
  hmacKey: string | undefined
  bcryptCost: number
  /** Default 15,000. */
  maxWaitMs?: number | undefined
}

/** At a low priority (bcrypt-thread.ts), so that they take what the event loop leaves. */
const THREADS = availableParallelism()
/** A token waits so long for its check at most; then the client is told to come again. Well below the time for which a load balancer waits. */
const MAX_WAIT_MS = 15_000
/** And so many at most, each of which costs a message to the thread even where it has waited too long. */
const MAX_WAITING = 1_000

const duration = new Histogram({
  name: 'tabulum_bcrypt_seconds',
  help: 'Time of one bcrypt operation, its wait for a thread included.',
  labelNames: ['operation'] as const,
  buckets: [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
})

export class Credentials {
  readonly #options: CredentialOptions
  /** Threads start with the first task. */
  readonly #pool = new Piscina<BcryptTask, string | boolean | undefined>({
    filename: new URL('./bcrypt-thread.ts', import.meta.url).href,
    minThreads: 0,
    maxThreads: THREADS,
    maxQueue: MAX_WAITING,
    idleTimeout: 30_000,
  })

  constructor(options: CredentialOptions) {
    this.#options = options
  }

  /** What to store for a token. Throws `VerifierBusy`. */
  async hash(secret: string): Promise<string> {
    const { verifier, bcryptCost } = this.#options
    if (verifier === 'hmac') return `hmac-sha256$${this.#hmac(secret).toString('hex')}`
    return String(await this.#run({ name: 'hash', secret, cost: bcryptCost }))
  }

  /** Whether the token is the one that `stored` was made from, by whichever verifier. Throws `VerifierBusy`. */
  async verify(secret: string, stored: string): Promise<boolean> {
    const [, mac] = /^hmac-sha256\$([0-9a-f]{64})$/.exec(stored) ?? []
    if (mac === undefined) return Boolean(await this.#run({ name: 'compare', secret, stored }))
    return this.#options.hmacKey !== undefined && timingSafeEqual(this.#hmac(secret), Buffer.from(mac, 'hex'))
  }

  #hmac(secret: string): Buffer {
    return createHmac('sha256', this.#options.hmacKey ?? '')
      .update(secret)
      .digest()
  }

  async #run(operation: BcryptOperation): Promise<string | boolean> {
    if (this.#pool.queueSize >= MAX_WAITING) throw new VerifierBusy('too many tokens are being checked')
    const stop = duration.startTimer({ operation: operation.name })
    try {
      const result = await this.#pool.run({
        operation,
        notAfter: monotonicMs() + (this.#options.maxWaitMs ?? MAX_WAIT_MS),
      })
      if (result === undefined) throw new VerifierBusy('too many tokens are being checked')
      return result
    } finally {
      stop()
    }
  }

  async close(): Promise<void> {
    await this.#pool.destroy()
  }
}
