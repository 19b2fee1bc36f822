/**
 * Pull queues in the embedded database. The table holds what the log says is not delivered yet; who has leased what is known to this
 * process alone, and forgotten with it.
 */

import type { EventLog } from '../events/event-log.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { MessageLoader } from './message-loader.ts'
import type { Accept, Lease, LeasedMessage, MessageQueue } from './message-queue.ts'

export class EmbeddedMessageQueue implements MessageQueue {
  readonly #database: Database
  readonly #loader: MessageLoader
  /** Places of leased messages by recipient. */
  readonly #leased = new Map<string, Set<number>>()
  /** Places of those of them that were delivered, while the projection has not deleted their rows. */
  readonly #removed = new Map<string, Set<number>>()
  /** Leases of one recipient follow each other, so that no two read the same rows. */
  readonly #turns = new Map<string, Promise<unknown>>()

  constructor(database: Database, log: EventLog, options: { maxContentBytes: number }) {
    this.#database = database
    this.#loader = new MessageLoader(log, options.maxContentBytes)
  }

  lease(recipient: string, limit: number, accept: Accept = () => true): Promise<Lease> {
    const turn = (this.#turns.get(recipient) ?? Promise.resolve())
      .catch(() => {})
      .then(() => this.#lease(recipient, limit, accept))
    this.#turns.set(recipient, turn)
    const done = () => {
      if (this.#turns.get(recipient) === turn) this.#turns.delete(recipient)
    }
    turn.then(done, done)
    return turn
  }

  async #lease(recipient: string, limit: number, accept: Accept): Promise<Lease> {
    const removed = this.#removed.get(recipient)
    if (removed) await this.#forgetApplied(recipient, removed)
    const leased = this.#leased.get(recipient) ?? new Set()
    const rows = await roundTrip(this.#database, 'lease_messages', () =>
      this.#database
        .selectFrom('queues')
        .leftJoinLateral(
          (join) =>
            join
              .selectFrom('queued_messages')
              .select('seq')
              .where('recipient', '=', recipient)
              .where('pushed', '=', false)
              .$if(leased.size > 0, (query) => query.where('seq', 'not in', [...leased]))
              .orderBy('seq')
              .limit(limit)
              .as('message'),
          (on) => on.onTrue(),
        )
        .select(['queues.length', 'message.seq'])
        .where('queues.recipient', '=', recipient)
        .orderBy('message.seq')
        .execute(),
    )
    const messages = await this.#loader.load(
      rows.flatMap(({ seq }) => seq ?? []),
      accept,
    )
    const seqs = messages.map(({ seq }) => seq)
    for (const seq of seqs) leased.add(seq)
    if (leased.size > 0) this.#leased.set(recipient, leased)
    return {
      messages,
      remaining: Math.max(0, (rows[0]?.length ?? 0) - leased.size),
      release: async () => this.#forget(recipient, seqs),
    }
  }

  async remove(recipient: string, messages: readonly LeasedMessage[]): Promise<void> {
    if (messages.length === 0) return
    const removed = this.#removed.get(recipient) ?? new Set()
    for (const { seq } of messages) removed.add(seq)
    this.#removed.set(recipient, removed)
    await this.#forgetApplied(recipient, removed)
  }

  /** Lets go of the removed messages whose rows the projection has deleted; until then they must stay out of sight. */
  async #forgetApplied(recipient: string, removed: Set<number>): Promise<void> {
    const asked = [...removed]
    const rows = await roundTrip(this.#database, 'removed_messages', () =>
      this.#database
        .selectFrom('queued_messages')
        .select('seq')
        .where('recipient', '=', recipient)
        .where('pushed', '=', false)
        .where('seq', 'in', asked)
        .execute(),
    )
    const present = new Set(rows.map(({ seq }) => seq))
    const gone = asked.filter((seq) => !present.has(seq))
    for (const seq of gone) removed.delete(seq)
    if (removed.size === 0) this.#removed.delete(recipient)
    this.#forget(recipient, gone)
  }

  #forget(recipient: string, seqs: readonly number[]): void {
    const leased = this.#leased.get(recipient)
    if (!leased) return
    for (const seq of seqs) leased.delete(seq)
    if (leased.size === 0) this.#leased.delete(recipient)
  }
}
