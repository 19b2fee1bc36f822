/**
 * Applies batches of the log to the read models of the observation. The same statements on both
 * storages.
 */
import { type RawBuilder, sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import { AgentIds } from './agent-ids.ts'
import { addressesOf, type Changes, changesIn, keysOf, TYPE_NUMBERS } from './changes.ts'
import type { ObservationDatabase, RowTypes } from './observation-database.ts'

const FIGURES: RowTypes = {
  id: 'integer',
  sent: 'integer',
  received: 'integer',
  writes: 'integer',
  active: 'integer',
}

interface Position {
  seq: number
  agents: number
  keys: number
  lastRegisteredAt: number
}

export class ObservationWriter {
  readonly #database: ObservationDatabase
  readonly #ids: AgentIds

  constructor(database: ObservationDatabase) {
    this.#database = database
    this.#ids = new AgentIds(database, 'queryForChange')
  }

  /** How far the log has been applied. Throws `Unavailable`. */
  async position(): Promise<number> {
    return (await this.#position()).seq
  }

  async #position(): Promise<Position> {
    const [row] = await this.#database.queryForChange(
      'observation_position',
      sql<Position>`
        select applied_seq as seq, agents, keys, last_registered_at as ${sql.ref('lastRegisteredAt')}
        from ${this.#table('position')}`,
    )
    if (row === undefined) throw new Error('the observation has no position')
    return row
  }

  /**
   * Applies events that follow `from`; the last one becomes the position, in the same transaction.
   * Returns false, and nothing is applied, where the position is another. Throws `Unavailable`.
   */
  async apply(from: number, events: readonly LoggedEvent[]): Promise<boolean> {
    const last = events.at(-1)
    if (last === undefined) return true
    // What is read here holds as long as the position stays.
    const { seq, agents, keys, lastRegisteredAt } = await this.#position()
    if (seq !== from) return false
    const ids = await this.#ids.of(addressesOf(events))
    const existing = await this.#existing(keysOf(events))
    const changes = changesIn(events, { ids, existing, keys, lastRegisteredAt })
    const isApplied = await this.#database.change(
      sql`
        update ${this.#table('position')} set applied_seq = ${last.seq}, agents = ${agents + changes.registered.length},
          keys = ${changes.keys}, last_registered_at = ${changes.lastRegisteredAt}
        where applied_seq = ${from}`,
      (guard) => this.#statementsOf(changes, guard),
    )
    if (isApplied) for (const { address, id } of changes.registered) this.#ids.add(address, id)
    return isApplied
  }

  /** Those of the keys, in hexadecimal digits, that there are. */
  async #existing(keys: ReadonlySet<string>): Promise<Set<string>> {
    if (keys.size === 0) return new Set()
    const asked = [...keys]
    const rows = await this.#database.queryForChange(
      'observation_existing',
      sql<{ index: number }>`
        select r.${sql.ref('index')} from ${this.#database.rows(
          asked.map((key, index) => ({ key, index })),
          { key: 'bytes', index: 'integer' },
        )}
        where (
          select length from ${this.#table('key_versions')} as v where v.key = r.key order by seq desc limit 1
        ) is not null`,
    )
    return new Set(rows.map(({ index }) => asked[index] as string))
  }

  #statementsOf(changes: Changes, guard: RawBuilder<unknown>): RawBuilder<unknown>[] {
    const { registered, figures, edges, events, totals, messages, activity, versions } = changes
    const of = (
      rows: readonly object[],
      types: RowTypes,
      statement: (r: RawBuilder<unknown>) => RawBuilder<unknown>,
    ) => (rows.length === 0 ? [] : [statement(this.#database.rows(rows, types))])
    // What is counted on from what was there before comes first: on SQLite each statement sees
    // those before it, on Postgres none does.
    return [
      ...of(
        events,
        {
          ...{ seq: 'integer', at: 'integer', type: 'integer', total: 'integer', agent: 'integer' },
          ...{ nth: 'integer', agent_nth: 'integer', keys: 'integer' },
        },
        (r) => sql`
        insert into ${this.#table('events')} (seq, at, type, agent, nth, agent_nth, keys)
        select r.seq, r.at, r.type, r.agent, coalesce(t.count, 0) + r.nth,
          r.agent_nth + case
            when r.type = ${TYPE_NUMBERS.message_sent} then coalesce(a.messages_sent, 0)
            else coalesce(a.state_writes, 0)
          end, r.keys
        from ${r}
        left join ${this.#table('totals')} as t on t.type = r.total
        left join ${this.#table('agents')} as a on a.id = r.agent where ${guard}`,
      ),
      ...of(
        messages,
        {
          sender: 'integer',
          recipient: 'integer',
          seq: 'integer',
          nth: 'integer',
          received: 'integer',
        },
        (r) => sql`
        insert into ${this.#table('messages')} (sender, recipient, seq, nth, received)
        select r.sender, r.recipient, r.seq, coalesce(e.count, 0) + r.nth, coalesce(a.messages_received, 0) + r.received
        from ${r}
        left join ${this.#table('edges')} as e on e.sender = r.sender and e.recipient = r.recipient
        left join ${this.#table('agents')} as a on a.id = r.recipient where ${guard}`,
      ),
      ...of(
        totals,
        { type: 'integer', count: 'integer' },
        (r) => sql`
        insert into ${this.#table('totals')} as t (type, count) select type, count from ${r} where ${guard}
        on conflict (type) do update set count = t.count + excluded.count`,
      ),
      ...of(
        registered,
        { ...FIGURES, address: 'text', at: 'integer' },
        (r) => sql`
        insert into ${this.#table('agents')}
          (id, address, registered_at, messages_sent, messages_received, state_writes, last_active)
        select id, address, at, sent, received, writes, active from ${r} where ${guard}`,
      ),
      ...of(
        figures,
        FIGURES,
        (r) => sql`
        update ${this.#table('agents')} as a set
          messages_sent = a.messages_sent + r.sent, messages_received = a.messages_received + r.received,
          state_writes = a.state_writes + r.writes,
          last_active = case when a.last_active is null or r.active > a.last_active then r.active else a.last_active end
        from ${r} where a.id = r.id and ${guard}`,
      ),
      ...of(
        edges,
        { sender: 'integer', recipient: 'integer', count: 'integer', seq: 'integer' },
        (r) => sql`
        insert into ${this.#table('edges')} as e (sender, recipient, count, last_seq)
        select sender, recipient, count, seq from ${r} where ${guard}
        on conflict (sender, recipient) do update set count = e.count + excluded.count, last_seq = excluded.last_seq`,
      ),
      ...of(
        activity,
        {
          agent: 'integer',
          span: 'integer',
          start: 'integer',
          type: 'integer',
          count: 'integer',
          seq: 'integer',
        },
        (r) => sql`
        insert into ${this.#table('activity')} as a (agent, span, start, type, count, first_seq)
        select agent, span, start, type, count, seq from ${r} where ${guard}
        on conflict (agent, span, start, type) do update set count = a.count + excluded.count`,
      ),
      ...of(
        versions,
        {
          key: 'bytes',
          seq: 'integer',
          type: 'integer',
          author: 'integer',
          at: 'integer',
          length: 'integer',
        },
        (r) => sql`
        insert into ${this.#table('key_versions')} (key, seq, type, author, at, length)
        select key, seq, type, author, at, length from ${r} where ${guard}`,
      ),
    ]
  }

  #table(name: string): RawBuilder<unknown> {
    return this.#database.table(name)
  }
}
