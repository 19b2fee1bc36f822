/**
 * Messages of the stream that a replica lacks. A consumer lives on one replica, and one that has
 * lost a block goes on behind it without a word; so whoever reads checks that no message is
 * skipped, notes here who skipped one, and asks again until another replica has it. One that was
 * erased on purpose is on none; what is left of it is among the erasures.
 */
import { LRUCache } from 'lru-cache'
import type { JetStreamManager } from 'nats'
import { Counter } from 'prom-client'
import { type Batch, seqOf } from './batch.ts'
import type { Erasures } from './erasures.ts'
import { EventLost, LogUnavailable } from './event-log.ts'
import { STREAM, unavailable } from './event-stream.ts'

/**
 * So many are searched for at once; of one more, the search that is the longest ago begins anew.
 */
const MAX_MESSAGES = 1_000
/** What is known of one counts for so long: somebody may mend the replica meanwhile. */
const REMEMBERED_MS = 10_000

const skips = new Counter({
  name: 'tabulum_log_skips_total',
  help: 'Times that a NATS server was found to lack events, by the name of the server.',
  labelNames: ['server'] as const,
})
const losses = new Counter({
  name: 'tabulum_log_losses_total',
  help: 'Times that a reader of the log stopped at an event that every NATS server lacks.',
})

export class SkippedMessages {
  readonly #manager: JetStreamManager
  readonly #erasures: Erasures | undefined
  readonly #skippedBy = new LRUCache<number, Set<string>>({ max: MAX_MESSAGES, ttl: REMEMBERED_MS })
  readonly #lost = new LRUCache<'seq', number>({ max: 1, ttl: REMEMBERED_MS })

  constructor(manager: JetStreamManager, erasures: Erasures | undefined) {
    this.#manager = manager
    this.#erasures = erasures
  }

  /** The sequence number of an event that was found to be lost in the last 10 s. */
  get lost(): number | undefined {
    return this.#lost.get('seq')
  }

  /**
   * What is left of a message that was erased; undefined for one that was not. Throws
   * `Unavailable`.
   */
  async erased(message: number): Promise<Batch | undefined> {
    return this.#erasures?.find(message)
  }

  /**
   * Notes that the replica on `server` has messages behind this one but not this one. Resolves to
   * what is left of it where it was erased. Throws `EventLost` where every replica has been asked
   * by now, `LogUnavailable` where another may have it, or if that cannot be found out.
   */
  async find(message: number, server: string): Promise<Batch> {
    const erased = await this.erased(message)
    if (erased !== undefined) return erased
    skips.inc({ server })
    const by = this.#skippedBy.get(message) ?? new Set()
    this.#skippedBy.set(message, by.add(server))
    const { cluster } = await this.#manager.streams.info(STREAM).catch((error: unknown) => {
      throw unavailable(error)
    })
    const replicas = [cluster?.leader ?? '', ...(cluster?.replicas ?? []).map(({ name }) => name)]
    const others = replicas.filter((replica) => !by.has(replica))
    const seq = seqOf(message, 0)
    if (others.length > 0)
      throw new LogUnavailable(
        `event ${seq} is missing on ${[...by].join(', ')}, and ${others.join(', ')} cannot be asked for it`,
      )
    losses.inc()
    this.#lost.set('seq', seq)
    throw new EventLost(seq)
  }
}
