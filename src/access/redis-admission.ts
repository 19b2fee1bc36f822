/**
 * Sessions and buckets in Redis, shared by all nodes: one script, one round trip. While Redis is
 * out, this process's own: sessions that it has seen within their time, and limits for each node.
 */
import { loadScript, type RedisClient, RedisUnavailable } from '../platform/redis.ts'
import type { Admission, Allowance, BucketState, Category, Session } from './admission.ts'
import {
  MemoryAdmission,
  type MemoryAdmissionOptions,
  REVOCATION_MARK_MS,
} from './memory-admission.ts'
import type { PresentedToken } from './tokens.ts'

const admitScript = loadScript('admit', new URL('./lua/admit.lua', import.meta.url), 3)
/**
 * Anybody can be a client: what they add does not go past the memory limit of Redis, as what is
 * kept of agents does, who are few.
 */
const admitClientScript = {
  ...admitScript,
  name: 'admit_client',
  lua: admitScript.lua.replace('#!lua flags=allow-oom', '#!lua'),
}
const revokeScript = loadScript('revoke', new URL('./lua/revoke.lua', import.meta.url), 2)

type Answer = [
  identity: string,
  ttl: number,
  taken?: number,
  remaining?: number,
  fullAt?: string,
  retryAfter?: string,
]

export class RedisAdmission implements Admission {
  readonly #redis: RedisClient
  readonly #options: MemoryAdmissionOptions
  readonly #local: MemoryAdmission

  constructor(redis: RedisClient, options: MemoryAdmissionOptions) {
    this.#redis = redis
    this.#options = options
    this.#local = new MemoryAdmission(options)
  }

  admit(token: PresentedToken, category?: Category) {
    return this.#shared(
      async () => this.#remembered(token, category, await this.#run(token, '', category)),
      () => this.#local.admit(token, category),
    )
  }

  open(token: PresentedToken, session: Session, category?: Category) {
    return this.#shared(
      async () =>
        this.#remembered(token, category, await this.#run(token, session.identity, category)),
      () => this.#local.open(token, session, category),
    )
  }

  admitClient(clientAddress: string): Promise<BucketState> {
    const allowance = this.#options.allowances.operator_registration
    return this.#shared(
      async () => {
        const keys = ['session', 'revoked', 'bucket'].map(
          (kind) => `${kind}:{client:${clientAddress}}`,
        )
        // The client's address stands in for an identity; the session that this opens is of no use
        // and short.
        const answer = await this.#redis.script(admitClientScript, keys, [
          '',
          clientAddress,
          1,
          allowance.limit,
          allowance.periodMs,
        ])
        return bucketOf(answer as Answer, allowance)
      },
      () => this.#local.admitClient(clientAddress),
    )
  }

  async revoke(lookup: Buffer): Promise<void> {
    await this.#local.revoke(lookup)
    for (const level of ['operator', 'agent']) {
      const tag = `{${level}:${lookup.toString('hex')}}`
      await this.#redis.script(
        revokeScript,
        [`session:${tag}`, `revoked:${tag}`],
        [REVOCATION_MARK_MS],
      )
    }
  }

  async #run(
    token: PresentedToken,
    identity: string,
    category: Category | undefined,
  ): Promise<Answer | null> {
    const tag = `{${token.level}:${token.lookup.toString('hex')}}`
    const allowance = category && this.#options.allowances[category]
    const keys = [`session:${tag}`, `revoked:${tag}`, `bucket:${tag}:${category ?? 'none'}`]
    const args = [
      token.digest,
      identity,
      this.#options.sessionTtlMs,
      allowance?.limit ?? 0,
      allowance?.periodMs ?? 0,
    ]
    return (await this.#redis.script(admitScript, keys, args)) as Answer | null
  }

  /** Keeps the session for as long as Redis would, should Redis go out. */
  async #remembered(token: PresentedToken, category: Category | undefined, answer: Answer | null) {
    if (answer === null) {
      this.#local.forget(token)
      return undefined
    }
    const session = { identity: answer[0] }
    this.#local.remember(token, session, Math.max(1, answer[1]))
    return {
      session,
      ...(category && { bucket: bucketOf(answer, this.#options.allowances[category]) }),
    }
  }

  async #shared<T>(inRedis: () => Promise<T>, here: () => Promise<T>): Promise<T> {
    try {
      return await inRedis()
    } catch (error) {
      if (error instanceof RedisUnavailable) return here()
      throw error
    }
  }
}

function bucketOf(
  [, , taken, remaining = 0, fullAt, retryAfter]: Answer,
  { limit }: Allowance,
): BucketState {
  return {
    allowed: taken === 1,
    limit,
    remaining,
    fullAtMs: Number(fullAt),
    retryAfterMs: Number(retryAfter),
  }
}
