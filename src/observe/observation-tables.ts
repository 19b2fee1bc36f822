/** The read models of the observation: applying batches of the log to them, and asking them. The same statements on both storages. */
import { type RawBuilder, sql } from 'kysely'
import { LRUCache } from 'lru-cache'
import type { EventType, LoggedEvent } from '../events/event.ts'
import {
  AGENT_SPANS,
  ALL_TYPES,
  addressesOf,
  type Changes,
  changesOf,
  EVERYBODY,
  SPANS,
  TYPE_NUMBERS,
  typeOf,
} from './changes.ts'
import type { EventFilter } from './live/source.ts'
import type { ObservationDatabase, RowTypes } from './observation-database.ts'

/** Addresses whose ids a process remembers, some 150 bytes each. */
const MAX_KNOWN_AGENTS = 100_000

export interface SeqRange {
  /** Exclusive. */
  readonly after: number
  /** Inclusive. */
  readonly until: number
  /** From the end of the range instead of its beginning. */
  readonly isBackwards: boolean
}

export interface AgentFigures {
  readonly id: number
  readonly address: string
  /** Milliseconds since 1970, as all times. */
  readonly registeredAt: number
  readonly sent: number
  readonly received: number
  readonly writes: number
  readonly lastActive: number | null
}

export interface Edge {
  readonly from: string
  readonly to: string
  readonly count: number
}

export interface ActivityRow {
  /** From the beginning of what was asked for. */
  readonly bucket: number
  readonly type: EventType
  readonly count: number
  /** Sequence number of the first of them. */
  readonly firstSeq: number
}

export interface KeyVersion {
  readonly seq: number
  readonly type: EventType
  readonly author: string | null
  readonly at: number
  readonly length: number | null
}

interface AgentRow {
  id: number
  address: string
  registered_at: number
  messages_sent: number
  messages_received: number
  state_writes: number
  last_active: number | null
}

const FIGURES: RowTypes = { id: 'integer', sent: 'integer', received: 'integer', writes: 'integer', active: 'integer' }

export class ObservationTables {
  readonly #database: ObservationDatabase
  readonly #known = new LRUCache<string, number>({ max: MAX_KNOWN_AGENTS })

  constructor(database: ObservationDatabase) {
    this.#database = database
  }

  /** How far the log has been applied, and how many agents there are. */
  async position(): Promise<{ seq: number; agents: number }> {
    const [row] = await this.#database.query(
      'observation_position',
      sql<{ seq: number; agents: number }>`select applied_seq as seq, agents from ${this.#table('position')}`,
    )
    if (row === undefined) throw new Error('the observation has no position')
    return row
  }

  /**
   * Applies events that follow `from`; the last one becomes the position, in the same transaction. Returns false, and nothing is applied, where the
   * position is another. Throws `Unavailable`.
   */
  async apply(from: number, events: readonly LoggedEvent[]): Promise<boolean> {
    const last = events.at(-1)
    if (last === undefined) return true
    const hasRegistrations = events.some(({ type }) => type === 'agent_registered')
    const lastRegisteredAt = hasRegistrations ? await this.#lastRegisteredAt() : 0
    const changes = changesOf(events, await this.#idsOf(addressesOf(events)), lastRegisteredAt)
    const registeredAt = changes.registered.at(-1)?.at ?? 0
    const isApplied = await this.#database.change(
      sql`
        update ${this.#table('position')} set applied_seq = ${last.seq}, agents = agents + ${changes.registered.length},
          last_registered_at = case when last_registered_at < ${registeredAt} then ${registeredAt} else last_registered_at end
        where applied_seq = ${from}`,
      (guard) => this.#statementsOf(changes, guard),
    )
    if (isApplied) for (const { address, id } of changes.registered) this.#known.set(address, id)
    return isApplied
  }

  async #lastRegisteredAt(): Promise<number> {
    const [row] = await this.#database.query(
      'observation_last_registered',
      sql<{ at: number }>`select last_registered_at as at from ${this.#table('position')}`,
    )
    return row?.at ?? 0
  }

  /** The ids of agents, of those that there are. */
  async #idsOf(addresses: ReadonlySet<string>): Promise<Map<string, number>> {
    const ids = new Map<string, number>()
    const missing: { address: string }[] = []
    for (const address of addresses) {
      const id = this.#known.get(address)
      if (id === undefined) missing.push({ address })
      else ids.set(address, id)
    }
    if (missing.length === 0) return ids
    const rows = await this.#database.query(
      'observation_agents',
      sql<{ id: number; address: string }>`
        select id, a.address from ${this.#table('agents')} as a
        join ${this.#database.rows(missing, { address: 'text' })} on r.address = a.address`,
    )
    for (const { id, address } of rows) {
      ids.set(address, id)
      this.#known.set(address, id)
    }
    return ids
  }

  #statementsOf(changes: Changes, guard: RawBuilder<unknown>): RawBuilder<unknown>[] {
    const { registered, figures, edges, events, activity, versions } = changes
    const of = (
      rows: readonly object[],
      types: RowTypes,
      statement: (r: RawBuilder<unknown>) => RawBuilder<unknown>,
    ) => (rows.length === 0 ? [] : [statement(this.#database.rows(rows, types))])
    return [
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
        events,
        { seq: 'integer', type: 'integer', agent: 'integer' },
        (r) => sql`
        insert into ${this.#table('events')} (seq, type, agent) select seq, type, agent from ${r} where ${guard}`,
      ),
      ...of(
        activity,
        { agent: 'integer', span: 'integer', start: 'integer', type: 'integer', count: 'integer', seq: 'integer' },
        (r) => sql`
        insert into ${this.#table('activity')} as a (agent, span, start, type, count, first_seq)
        select agent, span, start, type, count, seq from ${r} where ${guard}
        on conflict (agent, span, start, type) do update set count = a.count + excluded.count`,
      ),
      ...of(
        versions,
        { key: 'bytes', seq: 'integer', type: 'integer', author: 'integer', at: 'integer', length: 'integer' },
        (r) => sql`
        insert into ${this.#table('key_versions')} (key, seq, type, author, at, length)
        select key, seq, type, author, at, length from ${r} where ${guard}`,
      ),
    ]
  }

  /** The sequence numbers of events that pass the filter, at most `limit`, in the order of the range's direction. */
  async seqs({ types, agent }: EventFilter, range: SeqRange, limit: number): Promise<number[]> {
    const id = agent === undefined ? undefined : await this.#idOf(agent)
    if (agent !== undefined && id === undefined) return []
    const direction = range.isBackwards ? sql`desc` : sql`asc`
    const part = (condition: RawBuilder<unknown>) => sql`
      select seq from (
        select seq from ${this.#table('events')}
        where seq > ${range.after} and seq <= ${range.until}${condition} order by seq ${direction} limit ${limit}
      ) as part`
    // Each part ends after `limit` rows of one index, however rare the others are.
    const numbers = [...(types ?? (id === undefined ? [] : ALL_TYPES))].map((type) => TYPE_NUMBERS[type])
    const owner = id === undefined ? sql`` : sql` and agent = ${id}`
    const parts =
      numbers.length === 0 ? [part(sql``)] : numbers.map((number) => part(sql` and type = ${number}${owner}`))
    const rows = await this.#database.query(
      'observation_events',
      sql<{ seq: number }>`
        select seq from (${sql.join(parts, sql` union all `)}) as parts order by seq ${direction} limit ${limit}`,
    )
    return rows.map(({ seq }) => seq)
  }

  async #idOf(address: string): Promise<number | undefined> {
    return (await this.#idsOf(new Set([address]))).get(address)
  }

  /** Agents by registration after the one with this id, and how many there are in all. */
  async agents(after: number, limit: number): Promise<{ agents: AgentFigures[]; total: number }> {
    const rows = await this.#database.query(
      'observation_agents',
      sql<AgentRow & { total: number }>`
        select a.*, p.agents as total from ${this.#table('position')} as p
        left join (
          select * from ${this.#table('agents')} where id > ${after} order by id limit ${limit}
        ) as a on true order by a.id`,
    )
    const agents = rows.filter(({ id }) => id !== null).map(toFigures)
    return { agents, total: rows[0]?.total ?? 0 }
  }

  async agent(address: string): Promise<AgentFigures | undefined> {
    const [row] = await this.#database.query(
      'observation_agent',
      sql<AgentRow>`select * from ${this.#table('agents')} where address = ${address}`,
    )
    return row && toFigures(row)
  }

  /**
   * The heaviest edges, and the agents that they join, filled up with the busiest others.
   *
   * @param options.minCount of an edge @param options.limit of edges, and of agents beside theirs
   * @param options.agent only edges of this one
   */
  async network({
    minCount,
    limit,
    agent,
  }: {
    minCount: number
    limit: number
    agent?: string | undefined
  }): Promise<{ nodes: AgentFigures[]; edges: Edge[] }> {
    const id = agent === undefined ? undefined : await this.#idOf(agent)
    if (agent !== undefined && id === undefined) return { nodes: [], edges: [] }
    const heaviest = (condition: RawBuilder<unknown>) => sql`
      select sender, recipient, count from (
        select sender, recipient, count from ${this.#table('edges')}
        where count >= ${minCount}${condition} order by count desc limit ${limit}
      ) as heaviest`
    const its =
      id === undefined
        ? heaviest(sql``)
        : sql`${heaviest(sql` and sender = ${id}`)} union ${heaviest(sql` and recipient = ${id}`)}`
    const rows = await this.#database.query(
      'observation_network',
      sql<{ sender: number; recipient: number; count: number }>`
        select sender, recipient, count from (${its}) as edges order by count desc, sender, recipient limit ${limit}`,
    )
    const ids = new Set(rows.flatMap(({ sender, recipient }) => [sender, recipient]))
    if (id !== undefined) ids.add(id)
    const joined = await this.#database.query(
      'observation_nodes',
      sql<AgentRow>`
        select a.* from ${this.#table('agents')} as a
        join ${this.#database.rows(
          [...ids].map((id) => ({ id })),
          { id: 'integer' },
        )} on r.id = a.id`,
    )
    const others =
      id !== undefined || ids.size >= limit
        ? []
        : await this.#database.query(
            'observation_nodes',
            sql<AgentRow>`
              select * from ${this.#table('agents')} order by messages_sent + messages_received desc, id desc limit ${limit}`,
          )
    const nodes = new Map([...joined, ...others].map((row) => [row.id, toFigures(row)]))
    const addressOf = (id: number) => nodes.get(id)?.address ?? ''
    return {
      nodes: [...nodes.values()].slice(0, Math.max(limit, ids.size)).sort((one, other) => one.id - other.id),
      edges: rows.map(({ sender, recipient, count }) => ({
        from: addressOf(sender),
        to: addressOf(recipient),
        count,
      })),
    }
  }

  /** When the first event was, in seconds since 1970, to the minute; undefined where there is none. */
  async beginning(): Promise<number | undefined> {
    const [row] = await this.#database.query(
      'observation_beginning',
      sql<{ start: number | null }>`
        select min(start) as start from ${this.#table('activity')} where agent = ${EVERYBODY} and span = ${SPANS[0]}`,
    )
    return row?.start ?? undefined
  }

  /**
   * How many events of each type there were, in buckets of `width` seconds from `from` on, both multiples of the span that serves them
   * (`spanFor`), up to `to`, exclusive. Empty buckets are left out.
   */
  async activity(
    { from, to, width, span }: { from: number; to: number; width: number; span: number },
    { types, agent }: EventFilter,
  ): Promise<ActivityRow[]> {
    const id = agent === undefined ? EVERYBODY : await this.#idOf(agent)
    if (id === undefined) return []
    const numbers = types && [...types].map((type) => TYPE_NUMBERS[type])
    const ofTypes = numbers === undefined ? sql`` : sql` and type in (${sql.join(numbers)})`
    const rows = await this.#database.query(
      'observation_activity',
      sql<{ bucket: number; type: number; count: number; first_seq: number }>`
        select (start - cast(${from} as bigint)) / cast(${width} as bigint) as bucket, type,
          cast(sum(count) as bigint) as count, min(first_seq) as first_seq
        from ${this.#table('activity')}
        where agent = ${id} and span = ${span} and start >= ${from} and start < ${to}${ofTypes}
        group by 1, type order by 1, type`,
    )
    return rows.map(({ bucket, type, count, first_seq }) => ({
      bucket,
      type: typeOf(type),
      count,
      firstSeq: first_seq,
    }))
  }

  /** Versions of a key before `before`, the latest first. */
  async versions(key: string, before: number, limit: number): Promise<KeyVersion[]> {
    const rows = await this.#database.query(
      'observation_versions',
      sql<{ seq: number; type: number; author: string | null; at: number; length: number | null }>`
        select v.seq, v.type, a.address as author, v.at, v.length
        from ${this.#table('key_versions')} as v left join ${this.#table('agents')} as a on a.id = v.author
        where v.key = ${Buffer.from(key)} and v.seq < ${before} order by v.seq desc limit ${limit}`,
    )
    return rows.map(({ type, ...row }) => ({ ...row, type: typeOf(type) }))
  }

  #table(name: string): RawBuilder<unknown> {
    return this.#database.table(name)
  }
}

/** The span that serves buckets of at least `seconds`: the largest that is not longer, or the shortest. */
export function spanFor(seconds: number, agent: string | undefined): number {
  const spans: readonly number[] = agent === undefined ? SPANS : AGENT_SPANS
  return spans.findLast((span) => span <= seconds) ?? (spans[0] as number)
}

function toFigures(row: AgentRow): AgentFigures {
  return {
    id: row.id,
    address: row.address,
    registeredAt: row.registered_at,
    sent: row.messages_sent,
    received: row.messages_received,
    writes: row.state_writes,
    lastActive: row.last_active,
  }
}
