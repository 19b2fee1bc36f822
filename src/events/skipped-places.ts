/**
 * Places of the log that a replica lacks. A consumer lives on one replica, and one that has lost a block goes on behind it
 * without a word; so whoever reads checks that no place is skipped, notes here who skipped one, and asks again until another
 * replica has it.
 */
import { LRUCache } from 'lru-cache'
import type { JetStreamManager } from 'nats'
import { Counter } from 'prom-client'
import { EventLost, LogUnavailable } from './event-log.ts'
import { STREAM, unavailable } from './event-stream.ts'

/** So many places are searched for at once; of one more, the search that is the longest ago begins anew. */
const MAX_PLACES = 1_000
/** What is known of a place counts for so long: somebody may mend the replica meanwhile. */
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

export class SkippedPlaces {
  readonly #manager: JetStreamManager
  readonly #skippedBy = new LRUCache<number, Set<string>>({ max: MAX_PLACES, ttl: REMEMBERED_MS })
  readonly #lost = new LRUCache<'seq', number>({ max: 1, ttl: REMEMBERED_MS })

  constructor(manager: JetStreamManager) {
    this.#manager = manager
  }

  /** The place of an event that was found to be lost in the last 10 s. */
  get lost(): number | undefined {
    return this.#lost.get('seq')
  }

  /**
   * Notes that the replica on `server` has events behind `seq` but not that one. Resolves to what to fail with where nobody has
   * it in the end; throws `EventLost` where every replica has been asked by now, `LogUnavailable` if that cannot be found out.
   */
  async skipped(seq: number, server: string): Promise<LogUnavailable> {
    skips.inc({ server })
    const by = this.#skippedBy.get(seq) ?? new Set()
    this.#skippedBy.set(seq, by.add(server))
    const { cluster } = await this.#manager.streams.info(STREAM).catch((error: unknown) => {
      throw unavailable(error)
    })
    const replicas = [cluster?.leader ?? '', ...(cluster?.replicas ?? []).map(({ name }) => name)]
    const others = replicas.filter((replica) => !by.has(replica))
    if (others.length > 0)
      return new LogUnavailable(
        `event ${seq} is missing on ${[...by].join(', ')}, and ${others.join(', ')} cannot be asked for it`,
      )
    // A place that was erased on purpose would be looked up here, before it counts as lost.
    losses.inc()
    this.#lost.set('seq', seq)
    throw new EventLost(seq)
  }
}
