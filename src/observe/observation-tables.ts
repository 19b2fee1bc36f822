/**
 * Asking the read models of the observation, as they are now or as they were after an event. The
 * same statements on both storages. What was costs some looks at an index for each row that is
 * returned, however long ago it is.
 */
import { type RawBuilder, sql } from 'kysely'
import type { EventType } from '../events/event.ts'
import { AgentIds } from './agent-ids.ts'
import {
  AGENT_SPANS,
  ALL_TYPES,
  DEEDS,
  EVERYBODY,
  numbersOf,
  SPANS,
  TYPE_NUMBERS,
  typeOf,
} from './changes.ts'
import { heaviestEdges, heaviestEdgesThen } from './heaviest-edges.ts'
import { type KeysQuestion, keysThen } from './keys-then.ts'
import type { EventFilter } from './live/source.ts'
import type { ObservationDatabase } from './observation-database.ts'

export interface SeqRange {
  /** Exclusive. */
  readonly after: number
  /** Inclusive. */
  readonly until: number
  /** From the end of the range instead of its beginning. */
  readonly isBackwards: boolean
}

export interface NetworkNode {
  /** Sequence number of its registration. */
  readonly id: number
  readonly address: string
  readonly sent: number
  readonly received: number
}

export interface AgentFigures extends NetworkNode {
  /** Milliseconds since 1970, as all times. */
  readonly registeredAt: number
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

/** How much there was after an event. */
export interface Totals {
  /** The last event up to then; 0 before the first. */
  readonly seq: number
  /** When it was, in ms since 1970; null before the first. */
  readonly at: number | null
  readonly agents: number
  readonly keys: number
  readonly types: ReadonlyMap<EventType, number>
}

interface NodeRow {
  id: number
  address: string
  messages_sent: number
  messages_received: number
}

interface AgentRow extends NodeRow {
  registered_at: number
  state_writes: number
  last_active: number | null
}

export interface AgentsQuestion {
  /**
   * By registration, the first or the last of them first; the busiest now first; by address, of
   * those that begin with `beginning`.
   */
  readonly order: 'registered' | 'newest' | 'busiest' | 'address'
  readonly beginning?: string
  /** The last one of the page before. */
  readonly after?:
    | { readonly id: number; readonly busy: number; readonly address: string }
    | undefined
  readonly limit: number
  readonly at?: number | undefined
}

const BUSY = sql`messages_sent + messages_received`
const busyOf = ({ sent, received }: AgentFigures) => sent + received
const ORDERS: Readonly<
  Record<AgentsQuestion['order'], (one: AgentFigures, other: AgentFigures) => number>
> = {
  registered: (one, other) => one.id - other.id,
  newest: (one, other) => other.id - one.id,
  busiest: (one, other) => busyOf(other) - busyOf(one) || other.id - one.id,
  address: (one, other) => (one.address < other.address ? -1 : 1),
}

/** What is on a page, and in which order. */
function pageOf({ order, beginning = '', after }: AgentsQuestion): RawBuilder<unknown> {
  if (order === 'registered') return sql`id > ${after?.id ?? 0} order by id`
  if (order === 'newest') return sql`id < ${after?.id ?? Number.MAX_SAFE_INTEGER} order by id desc`
  if (order === 'address')
    // Nothing in an address comes after `~`.
    return sql`${after ? sql`address > ${after.address}` : sql`address >= ${beginning}`} and address < ${`${beginning}~`} order by address`
  const further = after
    ? sql`${BUSY} <= ${after.busy} and (${BUSY} < ${after.busy} or id < ${after.id})`
    : sql`true`
  return sql`${further} order by ${BUSY} desc, id desc`
}

interface NetworkQuestion {
  readonly minCount: number
  readonly limit: number
  readonly agent?: string | undefined
  readonly at?: number | undefined
}

export class ObservationTables {
  readonly #database: ObservationDatabase
  readonly #ids: AgentIds

  constructor(database: ObservationDatabase) {
    this.#database = database
    this.#ids = new AgentIds(database, 'query')
  }

  /** How far the log has been applied. Throws `Unavailable`, as all questions. */
  async position(): Promise<number> {
    const [row] = await this.#database.query(
      'observation_position',
      sql<{ seq: number }>`select applied_seq as seq from ${this.#table('position')}`,
    )
    if (row === undefined) throw new Error('the observation has no position')
    return row.seq
  }

  /**
   * The sequence numbers of events of the filter's types and agents, at most `limit`, in the order
   * of the range's direction. What else the filter asks for is for who has the events themselves.
   */
  async seqs(filter: EventFilter, range: SeqRange, limit: number): Promise<number[]> {
    const { types, agent, with: partner } = filter
    const id = agent === undefined ? undefined : await this.#ids.one(agent)
    const other = partner === undefined ? undefined : await this.#ids.one(partner)
    if (agent !== undefined && id === undefined) return []
    const direction = range.isBackwards ? sql`desc` : sql`asc`
    // Each part ends after `limit` rows of one index, however rare the others are.
    const part = (table: string, condition: RawBuilder<unknown>) => sql`
      select seq from (
        select seq from ${this.#table(table)}
        where seq > ${range.after} and seq <= ${range.until}${condition} order by seq ${direction} limit ${limit}
      ) as part`
    const parts: RawBuilder<unknown>[] = []
    if (partner !== undefined) {
      if (id === undefined || other === undefined || types?.has('message_sent') === false) return []
      const pairs =
        id === other
          ? [[id, other]]
          : [
              [id, other],
              [other, id],
            ]
      for (const [sender, recipient] of pairs)
        parts.push(part('messages', sql` and sender = ${sender} and recipient = ${recipient}`))
    } else if (types === undefined && id === undefined) parts.push(part('events', sql``))
    else {
      const owner = id === undefined ? sql`` : sql` and agent = ${id}`
      for (const number of [...(types ?? ALL_TYPES)].flatMap(numbersOf))
        parts.push(part('events', sql` and type = ${number}${owner}`))
    }
    const rows = await this.#database.query(
      'observation_events',
      sql<{ seq: number }>`
        select seq from (${sql.join(parts, sql` union all `)}) as parts order by seq ${direction} limit ${limit}`,
    )
    return rows.map(({ seq }) => seq)
  }

  /** How much of everything there was after the event `at`. */
  async totals(at: number): Promise<Totals> {
    const parts = ALL_TYPES.flatMap(numbersOf).map(
      (number) => sql`
        select * from (
          select type, seq, at, nth, keys from ${this.#table('events')}
          where type = ${number} and seq <= ${at} order by seq desc limit 1
        ) as part`,
    )
    const rows = await this.#database.query(
      'observation_totals',
      sql<{ type: number; seq: number; at: number; nth: number; keys: number | null }>`
        select * from (${sql.join(parts, sql` union all `)}) as parts order by seq desc`,
    )
    const types = new Map<EventType, number>()
    for (const { type, nth } of rows)
      types.set(typeOf(type), Math.max(nth, types.get(typeOf(type)) ?? 0))
    return {
      seq: rows[0]?.seq ?? 0,
      at: rows[0]?.at ?? null,
      agents: types.get('agent_registered') ?? 0,
      keys: rows.find(({ keys }) => keys !== null)?.keys ?? 0,
      types,
    }
  }

  /**
   * The last event up to a time, in ms since 1970; 0 before the first. Where clocks of nodes
   * differ, one of the minute's that was logged late may be taken for it.
   */
  async seqAt(time: number): Promise<number> {
    const activity = sql`${this.#table('activity')} where agent = ${EVERYBODY} and span = ${SPANS[0]}`
    const seconds = Math.floor(time / 1_000)
    const [row] = await this.#database.query(
      'observation_moment',
      sql<{ seq: number | null }>`
        with minute as (select max(start) as start from ${activity} and start <= ${seconds}),
        bounds as (
          select
            (select min(first_seq) from ${activity} and start = (select start from minute)) as first,
            (select min(first_seq) from ${activity} and start = (
              select min(start) from ${activity} and start > (select start from minute))) as next
        )
        select coalesce(
          (select seq from ${this.#table('events')}, bounds
            where seq >= first and seq < coalesce(next, ${Number.MAX_SAFE_INTEGER}) and at <= ${time}
            order by seq desc limit 1),
          (select max(seq) from ${this.#table('events')} where seq < (select first from bounds))
        ) as seq`,
    )
    return row?.seq ?? 0
  }

  /** A page of agents, and how many there are in all; as they were after the event `at`. */
  async agents(question: AgentsQuestion): Promise<{ agents: AgentFigures[]; total: number }> {
    const { at, limit } = question
    const there = at === undefined ? sql`true` : sql`id <= ${at}`
    const page = sql`select * from ${this.#table('agents')} where ${there} and ${pageOf(question)} limit ${limit}`
    const total =
      at === undefined
        ? sql`(select agents from ${this.#table('position')})`
        : sql`coalesce((select nth from ${this.#table('events')}
            where type = ${TYPE_NUMBERS.agent_registered} and seq <= ${at} order by seq desc limit 1), 0)`
    const rows = await this.#database.query(
      'observation_agents',
      sql<AgentRow & { total: number }>`
        select ${this.#figures(at)}, p.total as total from (select ${total} as total) as p
        left join (${page}) as a on true`,
    )
    const agents = rows.filter(({ id }) => id !== null).map(toFigures)
    return { agents: agents.sort(ORDERS[question.order]), total: rows[0]?.total ?? 0 }
  }

  /** One agent, as it was after the event `at`; undefined if it is not there. */
  async agent(address: string, at?: number): Promise<AgentFigures | undefined> {
    const there = at === undefined ? sql`` : sql` and id <= ${at}`
    const [row] = await this.#database.query(
      'observation_agent',
      sql<AgentRow>`
        select ${this.#figures(at)} from ${this.#table('agents')} as a where a.address = ${address}${there}`,
    )
    return row && toFigures(row)
  }

  /** The columns of agents `a`, as they were after the event `at`. */
  #figures(at: number | undefined): RawBuilder<unknown> {
    if (at === undefined) return sql`a.*`
    const deeds = DEEDS.map(
      (number) => sql`
        select * from (select e.at from ${this.#table('events')} as e
          where e.agent = a.id and e.type = ${number} and e.seq <= ${at} order by e.seq desc limit 1) as deed`,
    )
    return sql`
      ${this.#node(at)}, a.registered_at, ${this.#counted(TYPE_NUMBERS.state_written, at)} as state_writes,
      (select max(at) from (${sql.join(deeds, sql` union all `)}) as deeds) as last_active`
  }

  /** Those of them that the network shows. */
  #node(at: number | undefined): RawBuilder<unknown> {
    if (at === undefined) return sql`a.id, a.address, a.messages_sent, a.messages_received`
    return sql`
      a.id, a.address, ${this.#counted(TYPE_NUMBERS.message_sent, at)} as messages_sent,
      coalesce((select m.received from ${this.#table('messages')} as m
        where m.recipient = a.id and m.seq <= ${at} order by m.seq desc limit 1), 0) as messages_received`
  }

  #counted(type: number, at: number): RawBuilder<unknown> {
    return sql`
      coalesce((select e.agent_nth from ${this.#table('events')} as e
        where e.agent = a.id and e.type = ${type} and e.seq <= ${at} order by e.seq desc limit 1), 0)`
  }

  /**
   * The heaviest edges, and the agents that they join, filled up with the busiest others.
   *
   * @param options.minCount of an edge
   * @param options.limit of edges, and of agents beside theirs
   * @param options.agent only edges of this one
   * @param options.at as it had grown up to this event. The heaviest are looked for among the
   *   200,000 that are the heaviest now
   */
  async network(options: NetworkQuestion): Promise<{ nodes: NetworkNode[]; edges: Edge[] }> {
    const { limit, minCount, agent, at } = options
    const id = agent === undefined ? undefined : await this.#ids.one(agent)
    if (agent !== undefined && id === undefined) return { nodes: [], edges: [] }
    const question = { id, minCount, limit }
    const heaviest = await (at === undefined
      ? heaviestEdges(this.#database, question)
      : heaviestEdgesThen(this.#database, question, at))
    const ids = new Set(heaviest.flatMap(({ sender, recipient }) => [sender, recipient]))
    if (id !== undefined) ids.add(id)
    const there = at === undefined ? sql`` : sql` where a.id <= ${at}`
    const joined = await this.#database.query(
      'observation_nodes',
      sql<NodeRow>`
        select ${this.#node(at)} from ${this.#table('agents')} as a
        join ${this.#database.rows(
          [...ids].map((id) => ({ id })),
          { id: 'integer' },
        )} on r.id = a.id${there}`,
    )
    const others =
      id !== undefined || ids.size >= limit
        ? []
        : await this.#database.query(
            'observation_nodes',
            sql<NodeRow>`
              select ${this.#node(at)} from (
                select * from ${this.#table('agents')} as a${there}
                order by messages_sent + messages_received desc, id desc limit ${limit}
              ) as a`,
          )
    const nodes = new Map([...joined, ...others].map((row) => [row.id, toNode(row)]))
    const addressOf = (id: number) => nodes.get(id)?.address ?? ''
    return {
      nodes: [...nodes.values()]
        .slice(0, Math.max(limit, ids.size))
        .sort((one, other) => one.id - other.id),
      edges: heaviest.map(({ sender, recipient, count }) => ({
        from: addressOf(sender),
        to: addressOf(recipient),
        count,
      })),
    }
  }

  keysThen(question: KeysQuestion): ReturnType<typeof keysThen> {
    return keysThen(this.#database, question)
  }

  /**
   * When the first event was, in seconds since 1970, to the minute; undefined where there is none.
   */
  async beginning(): Promise<number | undefined> {
    const [row] = await this.#database.query(
      'observation_beginning',
      sql<{ start: number | null }>`
        select min(start) as start from ${this.#table('activity')} where agent = ${EVERYBODY} and span = ${SPANS[0]}`,
    )
    return row?.start ?? undefined
  }

  /**
   * How many events of each type there were, in buckets of `width` seconds from `from` on, both
   * multiples of the span that serves them (`spanFor`), up to `to`, exclusive. Empty buckets are
   * left out.
   */
  async activity(
    { from, to, width, span }: { from: number; to: number; width: number; span: number },
    { types, agent }: EventFilter,
  ): Promise<ActivityRow[]> {
    const id = agent === undefined ? EVERYBODY : await this.#ids.one(agent)
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

/**
 * The span that serves buckets of at least `seconds`: the largest that is not longer, or the
 * shortest.
 */
export function spanFor(seconds: number, agent: string | undefined): number {
  const spans: readonly number[] = agent === undefined ? SPANS : AGENT_SPANS
  return spans.findLast((span) => span <= seconds) ?? (spans[0] as number)
}

function toNode({
  id,
  address,
  messages_sent: sent,
  messages_received: received,
}: NodeRow): NetworkNode {
  return { id, address, sent, received }
}

function toFigures(row: AgentRow): AgentFigures {
  return {
    ...toNode(row),
    registeredAt: row.registered_at,
    writes: row.state_writes,
    lastActive: row.last_active,
  }
}
