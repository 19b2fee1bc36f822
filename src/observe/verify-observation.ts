/**
 * Compares the read models of the observation with the log, replayed in the simplest way: one row
 * for each event.
 */
import { type RawBuilder, sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import { type EventLog, readEvents } from '../events/event-log.ts'
import { AGENT_SPANS, DEEDS, EVERYBODY, PUSHED, SPANS, TYPE_NUMBERS, toHex } from './changes.ts'
import type { ObservationDatabase, RowTypes } from './observation-database.ts'

/** Events that are replayed at once. */
const REPLAYED_AT_ONCE = 2_000
/** Differences of each kind that are told. */
const MAX_TOLD = 100

const REPLAYED: RowTypes = {
  seq: 'integer',
  type: 'integer',
  agent: 'text',
  at: 'integer',
  // Of a message its recipient, of a registration the address, of a delivery how it was made.
  other: 'text',
  key: 'bytes',
  length: 'integer',
}

/** A database of one session, which keeps temporary tables and snapshots. */
export interface VerifiedObservation {
  readonly database: ObservationDatabase
  /** The statement that begins a snapshot. */
  readonly begin: string
  /** The type of bytes. */
  readonly bytes: 'bytea' | 'blob'
}

/**
 * Tells each difference. Returns up to which sequence number they were compared.
 *
 * @throws Unavailable
 */
export async function verifyObservation(
  { database, begin, bytes }: VerifiedObservation,
  log: Pick<EventLog, 'read'>,
  report: (difference: string) => void,
): Promise<{ seq: number; events: number }> {
  const ask = <T>(statement: RawBuilder<T>) => database.query('verify_observation', statement)
  const position = async () => {
    const [row] = await ask(
      sql<{ seq: number }>`select applied_seq as seq from ${database.table('position')}`,
    )
    return row?.seq ?? 0
  }
  await ask(sql`
    create temporary table replayed (seq bigint primary key, type integer, agent text, at bigint, other text,
      key ${sql.raw(bytes)}, length bigint)`)
  let replayedTo = 0
  let events = 0
  const replay = async (until: number) => {
    let batch: object[] = []
    const store = async () => {
      if (batch.length > 0)
        await ask(sql`
          insert into replayed (seq, type, agent, at, other, key, length)
          select seq, type, agent, at, other, key, length from ${database.rows(batch, REPLAYED)}`)
      events += batch.length
      batch = []
    }
    for await (const event of readEvents(log, replayedTo)) {
      if (event.seq > until) break
      batch.push(toReplayed(event))
      if (batch.length >= REPLAYED_AT_ONCE) await store()
    }
    await store()
    replayedTo = until
  }
  // What takes long is not in the snapshot.
  await replay(await position())
  await ask(sql.raw(begin))
  const seq = await position()
  await replay(seq)
  // Into tables with keys, as joins of two sums would compare each row with each. What is reckoned
  // is cast: SQLite goes by no index of a column that has no type.
  for (const { name, columns, rows } of expectations()) {
    await ask(sql`create temporary table ${sql.ref(name)} as ${rows}`)
    await ask(
      sql`create index ${sql.ref(`${name}_key`)} on ${sql.ref(name)} (${sql.join(columns.map((column) => sql.ref(column)))})`,
    )
  }
  for (const check of checks(database)) {
    for (const { difference } of await ask(
      sql<{ difference: string }>`${check} limit ${sql.lit(MAX_TOLD)}`,
    ))
      report(`observation: ${difference}`)
  }
  await ask(sql`commit`)
  for (const { name } of expectations()) await ask(sql`drop table ${sql.ref(name)}`)
  await ask(sql`drop table replayed`)
  return { seq, events }
}

function toReplayed(event: LoggedEvent): object {
  const { seq, type, agent, ts, data } = event
  const row = { seq, type: TYPE_NUMBERS[type], agent, at: Date.parse(ts) }
  if (type === 'message_sent') return { ...row, other: data.to }
  if (type === 'agent_registered') return { ...row, other: data.address }
  if (type === 'message_delivered') return { ...row, other: data.delivery_method }
  if (type === 'state_written') return { ...row, key: toHex(data.key), length: data.value_length }
  if (type === 'state_deleted' || type === 'state_key_removed')
    return { ...row, key: toHex(data.key) }
  return row
}

const {
  agent_registered: registered,
  message_sent: sent,
  message_delivered: delivered,
  state_written: written,
} = TYPE_NUMBERS

interface Expectation {
  readonly name: string
  /** By which its rows are found. */
  readonly columns: readonly string[]
  readonly rows: RawBuilder<unknown>
}

const ids = sql`expected_ids`

/** What the log gives, in the order in which it is made. */
function expectations(): Expectation[] {
  const agents = sql`
    select r.seq as id, r.other as address, r.at,
      coalesce(s.sent, 0) as sent, coalesce(w.writes, 0) as writes, coalesce(m.received, 0) as received, a.active
    from (select seq, other, max(at) over (order by seq) as at from replayed where type = ${sql.lit(registered)}) r
    left join (select agent, count(*) as sent from replayed where type = ${sql.lit(sent)} group by agent) s
      on s.agent = r.other
    left join (select agent, count(*) as writes from replayed where type = ${sql.lit(written)} group by agent) w
      on w.agent = r.other
    left join (select other, count(*) as received from replayed where type = ${sql.lit(sent)} group by other) m
      on m.other = r.other
    left join (
      select agent, max(at) as active from replayed
      where type in (${sql.join(DEEDS.map((deed) => sql.lit(deed)))})
        and (type <> ${sql.lit(delivered)} or other = 'pull') group by agent) a
      on a.agent = r.other`
  const spans = (all: readonly number[], whose: RawBuilder<unknown>, from: RawBuilder<unknown>) =>
    all.map(
      (span) => sql`
        select cast(${whose} as bigint) as agent, cast(${sql.lit(span)} as bigint) as span,
          cast(r.at / ${sql.lit(span * 1_000)} * ${sql.lit(span)} as bigint) as start,
          r.type, count(*) as count, min(r.seq) as first_seq
        from ${from} group by 1, 3, r.type`,
    )
  const activity = sql.join(
    [
      ...spans(SPANS, sql.lit(EVERYBODY), sql`replayed r`),
      ...spans(AGENT_SPANS, sql`i.id`, sql`replayed r join ${ids} i on i.address = r.agent`),
    ],
    sql` union all `,
  )
  return [
    {
      name: 'expected_ids',
      columns: ['address'],
      rows: sql`select seq as id, other as address from replayed where type = ${sql.lit(registered)}`,
    },
    { name: 'expected_agents', columns: ['id'], rows: agents },
    {
      name: 'expected_edges',
      columns: ['sender', 'recipient'],
      rows: sql`
        select f.id as sender, t.id as recipient, count(*) as count, max(r.seq) as last_seq
        from replayed r join ${ids} f on f.address = r.agent join ${ids} t on t.address = r.other
        where r.type = ${sql.lit(sent)} group by f.id, t.id`,
    },
    {
      name: 'expected_keys',
      columns: ['seq'],
      // One more where there was none before, one less where there was one.
      rows: sql`
        select seq, cast(sum(now - before) over (order by seq) as bigint) as keys from (
          select seq, case when length is null then 0 else 1 end as now,
            case when lag(length) over (partition by key order by seq) is null then 0 else 1 end as before
          from replayed where key is not null) c`,
    },
    {
      name: 'expected_events',
      columns: ['seq'],
      rows: sql`
        select r.seq, r.at,
          case when r.type = ${sql.lit(delivered)} and r.other = 'push' then ${sql.lit(PUSHED)} else r.type end as type,
          i.id, row_number() over (partition by r.type order by r.seq) as nth,
          case when i.id is not null and r.type in (${sql.lit(sent)}, ${sql.lit(written)})
            then row_number() over (partition by r.agent, r.type order by r.seq) end as agent_nth, k.keys
        from replayed r left join ${ids} i on i.address = r.agent left join expected_keys k on k.seq = r.seq`,
    },
    {
      name: 'expected_messages',
      columns: ['sender', 'recipient', 'seq'],
      rows: sql`
        select f.id as sender, t.id as recipient, r.seq,
          row_number() over (partition by r.agent, r.other order by r.seq) as nth,
          row_number() over (partition by r.other order by r.seq) as received
        from replayed r join ${ids} f on f.address = r.agent join ${ids} t on t.address = r.other
        where r.type = ${sql.lit(sent)}`,
    },
    {
      name: 'expected_totals',
      columns: ['type'],
      rows: sql`select type, count(*) as count from replayed group by type`,
    },
    { name: 'expected_activity', columns: ['agent', 'span', 'start', 'type'], rows: activity },
    {
      name: 'expected_versions',
      columns: ['key', 'seq'],
      rows: sql`
        select r.key, r.seq, r.type, i.id, r.at, r.length
        from replayed r left join ${ids} i on i.address = r.agent where r.key is not null`,
    },
  ]
}

/** Statements that return a row for each difference, in its column `difference`. */
function checks(database: ObservationDatabase): RawBuilder<unknown>[] {
  const table = (name: string) => database.table(name)
  return [
    sql`
      select 'agent ' || coalesce(a.address, r.address) || ' has other figures than the log gives' as difference
      from ${table('agents')} a full join expected_agents r on r.id = a.id
      where a.id is null or r.id is null or a.address <> r.address or a.registered_at <> r.at
        or a.messages_sent <> r.sent or a.messages_received <> r.received or a.state_writes <> r.writes
        or coalesce(a.last_active, -1) <> coalesce(r.active, -1)`,
    sql`
      select 'there are ' || counted || ' agents, not ' || agents as difference
      from ${table('position')}, (select count(*) as counted from ${table('agents')}) c where counted <> agents`,
    sql`
      select 'there are ' || counted || ' keys, not ' || keys as difference
      from ${table('position')}, (
        select coalesce((select keys from expected_keys order by seq desc limit 1), 0) as counted) c where counted <> keys`,
    sql`
      select 'the edge from ' || coalesce(e.sender, r.sender) || ' to ' || coalesce(e.recipient, r.recipient)
        || ' is not as the log has it' as difference
      from ${table('edges')} e full join expected_edges r on r.sender = e.sender and r.recipient = e.recipient
      where e.sender is null or r.sender is null or e.count <> r.count or e.last_seq <> r.last_seq`,
    sql`
      select 'event ' || coalesce(e.seq, r.seq) || ' is not where the log has it' as difference
      from ${table('events')} e full join expected_events r on r.seq = e.seq
      where e.seq is null or r.seq is null or e.type <> r.type or coalesce(e.agent, -1) <> coalesce(r.id, -1)
        or e.at <> r.at or e.nth <> r.nth or coalesce(e.agent_nth, -1) <> coalesce(r.agent_nth, -1)
        or coalesce(e.keys, -1) <> coalesce(r.keys, -1)`,
    sql`
      select 'message ' || coalesce(m.seq, r.seq) || ' is not counted as the log has it' as difference
      from ${table('messages')} m full join expected_messages r
        on r.sender = m.sender and r.recipient = m.recipient and r.seq = m.seq
      where m.seq is null or r.seq is null or m.nth <> r.nth or m.received <> r.received`,
    sql`
      select 'events of type ' || coalesce(t.type, r.type) || ' are not counted as the log has them' as difference
      from ${table('totals')} t full join expected_totals r on r.type = t.type
      where t.type is null or r.type is null or t.count <> r.count`,
    sql`
      select 'the activity of ' || coalesce(a.agent, r.agent) || ' in ' || coalesce(a.span, r.span) || ' s from '
        || coalesce(a.start, r.start) || ' is not as the log has it' as difference
      from ${table('activity')} a full join expected_activity r
        on r.agent = a.agent and r.span = a.span and r.start = a.start and r.type = a.type
      where a.agent is null or r.agent is null or a.count <> r.count or a.first_seq <> r.first_seq`,
    sql`
      select 'a version of a key at ' || coalesce(v.seq, r.seq) || ' is not as the log has it' as difference
      from ${table('key_versions')} v full join expected_versions r on r.key = v.key and r.seq = v.seq
      where v.seq is null or r.seq is null or v.type <> r.type or v.at <> r.at
        or coalesce(v.author, -1) <> coalesce(r.id, -1) or coalesce(v.length, -1) <> coalesce(r.length, -1)`,
  ]
}
