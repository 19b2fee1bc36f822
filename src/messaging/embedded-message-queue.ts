/**
 * Pull queues in the embedded database. The table holds what the log says is not delivered yet; who has leased what is known to this
 * process alone, and forgotten with it.
 */

import type { EventLog } from '../events/event-log.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import type { Lease, LeasedMessage, MessageQueue } from './message-queue.ts'
import { toLeasedMessage } from './messages-of-log.ts'

export class EmbeddedMessageQueue implements MessageQueue {
  readonly #database: Database
  readonly #log: EventLog
  /** Places of leased messages by recipient. */
  readonly #leased = new Map<string, Set<number>>()
  /** Places of those of them that were delivered, while the projection has not deleted their rows. */
  readonly #removed = new Map<string, Set<number>>()
  /** Leases of one recipient follow each other, so that no two read the same rows. */
  readonly #turns = new Map<string, Promise<unknown>>()

  constructor(database: Database, log: EventLog) {
    this.#database = database
    this.#log = log
  }

  lease(recipient: string, limit: number): Promise<Lease> {
    const turn = (this.#turns.get(recipient) ?? Promise.resolve())
      .catch(() => {})
      .then(() => this.#lease(recipient, limit))
    this.#turns.set(recipient, turn)
    const done = () => {
      if (this.#turns.get(recipient) === turn) this.#turns.delete(recipient)
    }
    turn.then(done, done)
    return turn
  }

  async #lease(recipient: string, limit: number): Promise<Lease> {
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
    const seqs = rows.flatMap(({ seq }) => seq ?? [])
    const messages = (await this.#log.get(seqs)).map(toLeasedMessage)
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
