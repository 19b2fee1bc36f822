/**
 * Pull queues in the embedded database. The table holds what the log says is not delivered yet; who
 * has leased what is known to this process alone, and forgotten with it.
 */
import type { EventLog } from '../events/event-log.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import { SqliteRemovals } from '../removal/sqlite-removals.ts'
import { MessageLoader } from './message-loader.ts'
import type { Accept, Lease, LeasedMessage, MessageQueue } from './message-queue.ts'

/**
 * Removed messages that each removal looks after, beside its own: more than it leaves, so that they
 * become fewer.
 */
const LOOKED_AFTER = 100

export class SqliteMessageQueue implements MessageQueue {
  readonly #sql: Sqlite['sql']
  readonly #loader: MessageLoader
  /**
   * Sequence numbers of leased messages by recipient: as many as the responses under way carry, and
   * those in `#removed`.
   */
  readonly #leased = new Map<string, Set<number>>()
  /**
   * Sequence numbers of messages that were removed while the log does not say yet that they were
   * delivered, with their recipients; as many as deliveries wait for the log. Until it does, they
   * must stay out of sight.
   */
  readonly #removed = new Map<number, string>()
  /** Leases of one recipient follow each other, so that no two read the same rows. */
  readonly #turns = new Map<string, Promise<unknown>>()

  /** @param reader another connection than the one that writes */
  constructor(reader: Sqlite, log: EventLog, options: { maxContentBytes: number }) {
    this.#sql = reader.sql
    this.#loader = new MessageLoader(log, new SqliteRemovals(reader), options.maxContentBytes)
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
    const { oldest, free } = this.#read(recipient, limit)
    const queued = oldest.map((seq) => ({ seq, redaction: 'ask' as const }))
    const messages = await this.#loader.load(queued, accept)
    const seqs = messages.map(({ seq }) => seq)
    if (seqs.length > 0) {
      const leased = this.#leased.get(recipient) ?? new Set()
      for (const seq of seqs) leased.add(seq)
      this.#leased.set(recipient, leased)
    }
    return {
      messages,
      remaining: free - seqs.length,
      release: async () => this.#forget(recipient, seqs),
    }
  }

  /**
   * The sequence numbers of the oldest messages that are not leased, and how many such there are in
   * all. Looks at these and at those that are leased.
   */
  #read(recipient: string, limit: number): { oldest: number[]; free: number } {
    const sql = this.#sql
    const lengthOf = () =>
      (sql.get`select length from queues where recipient = ${recipient}`?.length ?? 0) as number
    // As most are that are asked for.
    if (!this.#leased.has(recipient) && lengthOf() === 0) return { oldest: [], free: 0 }
    // One snapshot, though the other thread writes.
    sql.run`begin`
    try {
      // Some may have been dropped.
      this.#forgetGone(recipient, [...(this.#leased.get(recipient) ?? [])])
      const leased = this.#leased.get(recipient)
      const rows = sql.all`
        select seq from queued_messages where recipient = ${recipient} and via_webhook = 0
        order by seq limit ${limit + (leased?.size ?? 0)}`
      const unleased = rows.map((row) => row.seq as number).filter((seq) => !leased?.has(seq))
      return { oldest: unleased.slice(0, limit), free: lengthOf() - (leased?.size ?? 0) }
    } finally {
      sql.run`commit`
    }
  }

  async remove(recipient: string, messages: readonly LeasedMessage[]): Promise<void> {
    for (const [seq, owner] of [...this.#removed.entries().take(LOOKED_AFTER)]) {
      this.#removed.delete(seq)
      this.#removeFrom(owner, [seq])
    }
    this.#removeFrom(
      recipient,
      messages.map(({ seq }) => seq),
    )
  }

  #removeFrom(recipient: string, seqs: readonly number[]): void {
    for (const seq of this.#forgetGone(recipient, seqs)) this.#removed.set(seq, recipient)
  }

  /** Lets go of those of these messages whose rows are gone. Returns the others. */
  #forgetGone(recipient: string, seqs: readonly number[]): number[] {
    const isGone = (seq: number) =>
      this.#sql.get`select 1 from queued_messages where seq = ${seq}` === undefined
    const { gone = [], left = [] } = Object.groupBy(seqs, (seq) => (isGone(seq) ? 'gone' : 'left'))
    this.#forget(recipient, gone)
    return left
  }

  #forget(recipient: string, seqs: readonly number[]): void {
    const leased = this.#leased.get(recipient)
    if (!leased) return
    for (const seq of seqs) leased.delete(seq)
    if (leased.size === 0) this.#leased.delete(recipient)
  }
}
