/**
 * Sessions and buckets in this process: embedded storage, and a cluster node while Redis is out.
 */
import { LRUCache } from 'lru-cache'
import { atMost } from '../platform/cache.ts'
import type { Admission, Allowance, BucketState, Category, Session } from './admission.ts'
import { MemoryBuckets } from './memory-buckets.ts'
import type { PresentedToken } from './tokens.ts'

export interface MemoryAdmissionOptions {
  sessionTtlMs: number
  allowances: Readonly<Record<Category | 'operator_registration', Allowance>>
  /** Of the calendar, by which buckets are told. */
  now?: () => number
  /** That does not jump, by which sessions end. */
  elapsed?: () => number
}

/** Sessions kept at most, some 300 bytes each. */
const MAX_SESSIONS = 100_000
/**
 * A verification that was under way when its token was revoked must not open a session afterwards;
 * by then it is over.
 */
export const REVOCATION_MARK_MS = 60_000
const MAX_REVOKED = 10_000

interface Entry {
  session: Session
  digest: string
}

export class MemoryAdmission implements Admission {
  readonly #options: MemoryAdmissionOptions
  /** By look-up, so that a revocation finds it. */
  readonly #sessions: LRUCache<string, Entry>
  readonly #revoked: LRUCache<string, true>
  readonly #buckets: MemoryBuckets

  constructor(options: MemoryAdmissionOptions) {
    this.#options = options
    this.#buckets = new MemoryBuckets(options.now)
    const perf = { now: options.elapsed ?? (() => performance.now()) }
    this.#revoked = new LRUCache({ ...atMost(MAX_REVOKED), ttl: REVOCATION_MARK_MS, perf })
    this.#sessions = new LRUCache({ ...atMost(MAX_SESSIONS), ttl: options.sessionTtlMs, perf })
  }

  async admit(token: PresentedToken, category?: Category) {
    const entry = this.#sessions.get(sessionKey(token))
    if (entry?.digest !== token.digest) return undefined
    return this.#admitted(entry.session, category)
  }

  async open(token: PresentedToken, session: Session, category?: Category) {
    if (this.#revoked.has(sessionKey(token))) return undefined
    this.remember(token, session, this.#options.sessionTtlMs)
    return this.#admitted(session, category)
  }

  /** Keeps a session that was verified elsewhere, for what is left of its time. */
  remember(token: PresentedToken, session: Session, ttlMs: number): void {
    this.#sessions.set(sessionKey(token), { session, digest: token.digest }, { ttl: ttlMs })
  }

  #admitted(session: Session, category: Category | undefined) {
    if (category === undefined) return { session }
    return {
      session,
      bucket: this.#buckets.take(
        `${category} ${session.identity}`,
        this.#options.allowances[category],
      ),
    }
  }

  async admitClient(clientAddress: string): Promise<BucketState> {
    return this.#buckets.take(
      `operator_registration ${clientAddress}`,
      this.#options.allowances.operator_registration,
    )
  }

  async revoke(lookup: Buffer): Promise<void> {
    for (const level of ['agent', 'operator']) {
      const key = `${level} ${lookup.toString('hex')}`
      this.#sessions.delete(key)
      this.#revoked.set(key, true)
    }
  }

  /** Drops a session that has ended elsewhere. */
  forget(token: PresentedToken): void {
    this.#sessions.delete(sessionKey(token))
  }
}

/** Its look-up in hex, which the digest begins with. */
function sessionKey({ level, digest }: PresentedToken): string {
  return `${level} ${digest.slice(0, 16)}`
}
