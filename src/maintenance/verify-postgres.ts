/**
 * Compares what the API reads with the log that it comes from, and tells each difference.
 *
 * The log is replayed into temporary tables of the database, a page at a time, so that memory does not grow with it, and each page in a
 * transaction of its own. The kernel goes on meanwhile. Only the last stretch is replayed in the snapshot in which all is compared, so
 * that no snapshot is held for longer than that takes: one that is held for hours keeps Postgres from cleaning up.
 */
import { type Kysely, sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import { type EventLog, readEvents } from '../events/event-log.ts'
import type { Database, Schema } from '../platform/database.ts'
import type { Verification } from './verification.ts'

const PAGE = 1_000

/** So many places of the log are replayed in the snapshot at most, unless the log grows as fast as it is replayed: a second or two. */
const LAST_STRETCH = 5_000

/**
 * Replays the log up to where the database projection stands, and calls `report` with each difference. `database` has to be one session: of
 * `openPostgresSession`.
 */
export async function verifyPostgres(
  database: Database,
  log: EventLog,
  report: (difference: string) => void,
): Promise<Verification> {
  return database.connection().execute(async (session) => {
    await sql.raw(CREATE).execute(session)
    let seq = 0
    let events = 0
    const replayTo = async (on: Kysely<Schema>, until: number) => {
      events += await replay(on, log, seq, until)
      seq = until
    }
    for (let before = Number.POSITIVE_INFINITY; ; ) {
      const position = await positionOf(session)
      const stretch = position - seq
      if (stretch <= LAST_STRETCH || stretch >= before) break
      await replayTo(session, position)
      before = stretch
    }
    await session
      .transaction()
      .setIsolationLevel('repeatable read')
      .execute(async (snapshot) => {
        await replayTo(snapshot, await positionOf(snapshot))
        for (const check of CHECKS) {
          const { rows } = await sql<{ difference: string }>`${sql.raw(check)}`.execute(snapshot)
          for (const { difference } of rows) report(difference)
        }
      })
    await sql.raw(DROP).execute(session)
    return { seq, events }
  })
}

async function positionOf(session: Kysely<Schema>): Promise<number> {
  const { applied_seq: position } = await session
    .selectFrom('projections')
    .select('applied_seq')
    .where('name', '=', 'database')
    .executeTakeFirstOrThrow()
  return position
}

const CREATE = `
  create temporary table replayed_state (key bytea primary key, value_hash bytea, value_length bigint, by text);
  create temporary table replayed_holders (identity text primary key, seq bigint);
  create temporary table replayed_messages (message_id uuid primary key, recipient text, seq bigint, pushed boolean);`
const DROP = 'drop table replayed_state, replayed_holders, replayed_messages'

/** Replays what is after `since` up to `until`. Returns how many events that was. */
async function replay(session: Kysely<Schema>, log: EventLog, since: number, until: number): Promise<number> {
  let page: LoggedEvent[] = []
  let count = 0
  for await (const event of readEvents(log, since)) {
    if (event.seq > until) break
    count++
    page.push(event)
    if (page.length < PAGE) continue
    await replayPage(session, page)
    page = []
  }
  await replayPage(session, page)
  return count
}

async function replayPage(session: Kysely<Schema>, events: readonly LoggedEvent[]): Promise<void> {
  const base64 = (text: string) => Buffer.from(text).toString('base64')
  const finals = new Map<string, object>()
  const holders: object[] = []
  const sent: object[] = []
  const queued: string[] = []
  const delivered: string[] = []
  for (const { seq, type, via, data } of events) {
    if (type === 'state_written') {
      finals.set(data.key, { key: base64(data.key), value: base64(data.value), by: data.written_by })
    } else if (type === 'state_deleted') finals.set(data.key, { key: base64(data.key), value: null, by: null })
    else if (type === 'operator_created') holders.push({ identity: data.operator_id, seq })
    else if (type === 'agent_registered') holders.push({ identity: data.address, seq })
    else if (type === 'message_sent')
      sent.push({ message_id: data.message_id, recipient: data.to, seq, pushed: via === 'webhook' })
    else if (type === 'message_queued') queued.push(data.message_id)
    else if (type === 'message_delivered') delivered.push(data.message_id)
  }
  await sql`
    with finals as (
      select decode(key, 'base64') as key, decode(value, 'base64') as value, by
      from json_to_recordset(${JSON.stringify([...finals.values()])}::json) as final (key text, value text, by text)
    ), gone as (
      delete from replayed_state where key in (select key from finals where value is null)
    )
    insert into replayed_state select key, sha256(value), octet_length(value), by from finals where value is not null
    on conflict (key) do update set value_hash = excluded.value_hash, value_length = excluded.value_length, by = excluded.by`.execute(
    session,
  )
  await sql`
    insert into replayed_holders
    select identity, seq from json_to_recordset(${JSON.stringify(holders)}::json) as holder (identity text, seq bigint)
    on conflict do nothing`.execute(session)
  await sql`
    insert into replayed_messages
    select message_id, recipient, seq, pushed
    from json_to_recordset(${JSON.stringify(sent)}::json)
      as message (message_id uuid, recipient text, seq bigint, pushed boolean)
    on conflict do nothing`.execute(session)
  await sql`
    update replayed_messages set pushed = false
    where message_id in (select json_array_elements_text(${JSON.stringify(queued)}::json)::uuid)`.execute(session)
  await sql`
    delete from replayed_messages
    where message_id in (select json_array_elements_text(${JSON.stringify(delivered)}::json)::uuid)`.execute(session)
}

/** Each finds one kind of difference. */
const CHECKS = [
  `select 'state: key ' || encode(coalesce(s.key, r.key), 'escape') || case
            when s.key is null then ' is missing'
            when r.key is null then ' should have been deleted'
            else ' has another value than the log' end as difference
   from state s full join replayed_state r using (key)
   where s.key is null or r.key is null or sha256(s.value) <> r.value_hash or s.modified_by <> r.by`,
  `select 'capacity: used_bytes is ' || used_bytes || ', the keys and values have ' || sum as difference
   from state_usage, (select coalesce(sum(octet_length(key) + octet_length(value)), 0) as sum from state) summed where used_bytes <> sum`,
  `select 'capacity: key_count is ' || key_count || ', there are ' || count as difference
   from state_usage, (select count(*) from state) counted where key_count <> count`,
  `select 'capacity: reserved_bytes is ' || reserved_bytes || ', the reservations and rooms hold ' || held as difference
   from state_usage, (select reserved_beyond_present(array(select distinct key from state_reservations)) + coalesce(sum(bytes), 0) as held from state_rooms) h
   where reserved_bytes <> held`,
  `select 'capacity: room_bytes is ' || room_bytes || ', the rooms hold ' || held as difference
   from state_usage, (select coalesce(sum(bytes), 0) as held from state_rooms) h where room_bytes <> held`,
  `select 'state: the blocks count ' || blocks || ' keys, there are ' || count as difference
   from (select count_state_keys('', null) as blocks) b, (select count(*) from state) counted where blocks <> count`,
  `select 'registry: ' || coalesce(h.identity, r.identity) || case
            when h.identity is null then ' is in the log but not active'
            when r.identity is null then ' is active but not in the log'
            else ' has another place than in the log' end as difference
   from (select operator_id::text as identity, seq from operators where seq is not null
         union all select address, seq from agents where seq is not null) h
   full join replayed_holders r using (identity)
   where h.identity is null or r.identity is null or h.seq <> r.seq`,
  `select 'registry: total is ' || agents || ', there are ' || count as difference
   from registry_totals, (select count(*) from agents where seq is not null) counted where agents <> count`,
  `select 'queues: message ' || m.message_id || ' to ' || m.recipient || ' is queued, but the log says that it was delivered or never sent' as difference
   from queued_messages m left join replayed_messages r using (message_id) where r.message_id is null`,
  `select 'webhooks: message ' || m.message_id || ' to ' || m.recipient || case
            when m.pushed then ' is to be pushed, but the log says that it is in the pull queue'
            else ' is in the pull queue, but the log says that it is to be pushed' end as difference
   from queued_messages m join replayed_messages r using (message_id) where m.pushed <> r.pushed`,
  `select 'webhooks: the lane of ' || coalesce(l.recipient, m.recipient) || ' counts ' || coalesce(l.pending, 0) || ', there are ' || coalesce(m.count, 0) as difference
   from webhook_lanes l
   full join (select recipient, count(*) from queued_messages where pushed group by recipient) m using (recipient)
   where coalesce(l.pending, 0) <> coalesce(m.count, 0)`,
  // What a full queue dropped is counted, so just as many may be missing.
  `select 'queues: ' || missing || ' messages to ' || recipient || ' are missing, of which ' || coalesce(q.dropped, 0) || ' were dropped' as difference
   from (select r.recipient, count(*) as missing from replayed_messages r left join queued_messages m using (message_id)
         where m.message_id is null group by r.recipient) lost
   left join queues q using (recipient) where missing > coalesce(q.dropped, 0)`,
  `select 'queues: the queue of ' || q.recipient || ' has length ' || q.length || ', there are ' || count as difference
   from queues q cross join lateral (select count(*) from queued_messages m where m.recipient = q.recipient and not m.pushed) counted
   where q.length <> count`,
]
