/**
 * Compares what the API reads from the embedded database with the log in it, and tells each difference.
 *
 * All of it is one snapshot, which keeps nobody from writing. The log is replayed into temporary tables, so memory does not grow with it.
 */
import { hash } from 'node:crypto'
import { changesOf, type LoggedEvent } from '../events/event.ts'
import { toEvent } from '../events/sqlite-event-log.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import type { Verification } from './verification.ts'

/** Calls `report` with each difference. `sqlite` is a connection that nothing else uses; it may be one that only reads. */
export function verifySqlite({ connection, sql }: Sqlite, report: (difference: string) => void): Verification {
  connection.function('sha256', { deterministic: true }, (value) => hash('sha256', value as Uint8Array, 'buffer'))
  connection.exec(CREATE)
  connection.exec('begin')
  try {
    let seq = 0
    let events = 0
    for (const row of sql.iterate`select * from events order by seq`) {
      const event = toEvent(row)
      replay(sql, event)
      seq = event.seq
      events++
    }
    for (const check of CHECKS) {
      for (const { difference } of connection.prepare(check).iterate()) report(String(difference))
    }
    return { seq, events }
  } finally {
    connection.exec('rollback')
    connection.exec(DROP)
  }
}

const CREATE = `
  create temporary table replayed_state (key blob primary key, value_hash blob, by text) without rowid;
  create temporary table replayed_holders (identity text primary key, seq integer, operator text) without rowid;
  create temporary table replayed_messages (
    message_id text primary key, seq integer, recipient text, pushed integer) without rowid;`
const DROP = 'drop table replayed_state; drop table replayed_holders; drop table replayed_messages;'

function replay(sql: Sqlite['sql'], { seq, type, via, data }: LoggedEvent): void {
  if (type === 'state_written') {
    sql.run`
      insert or replace into replayed_state
      values (${Buffer.from(data.key)}, ${hash('sha256', data.value, 'buffer')}, ${data.written_by})`
  } else if (type === 'state_deleted') sql.run`delete from replayed_state where key = ${Buffer.from(data.key)}`
  else if (type === 'operator_created')
    sql.run`insert into replayed_holders values (${data.operator_id}, ${seq}, ${data.operator_id})`
  else if (type === 'agent_registered')
    sql.run`insert into replayed_holders values (${data.address}, ${seq}, ${data.operator_id})`
  else if (type === 'message_sent')
    sql.run`
      insert into replayed_messages values (${data.message_id}, ${seq}, ${data.to}, ${via === 'webhook' ? 1 : 0})`
  else if (type === 'message_queued')
    sql.run`update replayed_messages set pushed = 0 where message_id = ${data.message_id}`
  else if (type === 'message_delivered') sql.run`delete from replayed_messages where message_id = ${data.message_id}`
}

/** Each finds one kind of difference. */
const CHECKS = [
  `select 'state: key ' || cast(coalesce(s.key, r.key) as text) || case
            when s.key is null then ' is missing'
            when r.key is null then ' should have been deleted'
            else ' has another value than the log' end as difference
   from state s full join replayed_state r on r.key = s.key
   where s.key is null or r.key is null or sha256(s.value) <> r.value_hash or s.modified_by <> r.by`,
  `select 'capacity: used_bytes is ' || used_bytes || ', the keys and values have ' || sum as difference
   from state_usage, (select coalesce(sum(length(key) + length(value)), 0) as sum from state) where used_bytes <> sum`,
  `select 'capacity: key_count is ' || key_count || ', there are ' || keys as difference
   from state_usage, (select count(*) as keys from state) where key_count <> keys`,
  `with blocks as (
     select *, lead(first_key, 1, x'ff') over (partition by level order by first_key) as next from state_blocks),
   counted as (
     select level, keys, case level
       when 1 then (select count(*) from state s where s.key >= first_key and s.key < next)
       else (select coalesce(sum(b.keys), 0) from state_blocks b
             where b.level = 1 and b.first_key >= blocks.first_key and b.first_key < next) end as there
     from blocks)
   select 'state: a block of level ' || level || ' counts ' || keys || ' keys, there are ' || there as difference
   from counted where keys <> there`,
  `select 'registry: ' || coalesce(h.identity, r.identity) || case
            when h.identity is null then ' is in the log but not active'
            when r.identity is null then ' is active but not in the log'
            else ' has another place or operator than in the log' end as difference
   from (select operator_id as identity, seq, operator_id as operator from operators
         union all select address, seq, operator_id from agents) h
   full join replayed_holders r on r.identity = h.identity
   where h.identity is null or r.identity is null or h.seq <> r.seq or h.operator <> r.operator`,
  `select 'registry: total is ' || agents || ', there are ' || counted as difference
   from registry_totals, (select count(*) as counted from agents) where agents <> counted`,
  `select 'queues: message ' || m.message_id || ' to ' || m.recipient ||
            ' is queued, but the log says that it was delivered or never sent' as difference
   from queued_messages m left join replayed_messages r on r.message_id = m.message_id where r.message_id is null`,
  `select 'queues: message ' || m.message_id || ' to ' || r.recipient || ' has another place or recipient than in the log'
            as difference
   from queued_messages m join replayed_messages r on r.message_id = m.message_id
   where m.seq <> r.seq or m.recipient <> r.recipient`,
  `select 'webhooks: message ' || m.message_id || ' to ' || m.recipient || case
            when m.pushed then ' is to be pushed, but the log says that it is in the pull queue'
            else ' is in the pull queue, but the log says that it is to be pushed' end as difference
   from queued_messages m join replayed_messages r on r.message_id = m.message_id where m.pushed <> r.pushed`,
  `select 'webhooks: the lane of ' || coalesce(l.recipient, m.recipient) || ' counts ' || coalesce(l.pending, 0) ||
            ', there are ' || coalesce(m.messages, 0) as difference
   from webhook_lanes l
   full join (select recipient, count(*) as messages from queued_messages where pushed = 1 group by recipient) m
     on m.recipient = l.recipient
   where coalesce(l.pending, 0) <> coalesce(m.messages, 0)`,
  `select 'webhooks: the total is ' || pending || ', there are ' || messages as difference
   from webhook_totals, (select count(*) as messages from queued_messages where pushed = 1) where pending <> messages`,
  // What a full queue dropped is counted, so just as many may be missing.
  `select 'queues: ' || missing || ' messages to ' || lost.recipient || ' are missing, of which ' ||
            coalesce(q.dropped, 0) || ' were dropped' as difference
   from (select r.recipient, count(*) as missing
         from replayed_messages r left join queued_messages m on m.message_id = r.message_id
         where m.message_id is null group by r.recipient) lost
   left join queues q on q.recipient = lost.recipient where missing > coalesce(q.dropped, 0)`,
  `select 'queues: the queue of ' || coalesce(q.recipient, m.recipient) || ' has length ' || coalesce(q.length, 0) ||
            ', there are ' || coalesce(m.messages, 0) as difference
   from queues q
   full join (select recipient, count(*) as messages from queued_messages where pushed = 0 group by recipient) m
     on m.recipient = q.recipient
   where coalesce(q.length, 0) <> coalesce(m.messages, 0)`,
  // A worker looks for what is behind done_seq, and only where there is a time.
  `select 'webhooks: message ' || m.message_id || ' to ' || m.recipient || ' waits in a lane that has been worked off' as difference
   from queued_messages m join webhook_lanes l on l.recipient = m.recipient
   where m.pushed = 1 and m.seq > l.done_seq and (l.next_at is null or m.seq > l.last_seq)`,
  `select 'log: the last change is at ' || coalesce(last, 0) || ', noted is ' || last_change_seq as difference
   from log_end, (select max(seq) as last from events
                  where type in (select value from json_each('${JSON.stringify(changesOf())}')))
   where last_change_seq <> coalesce(last, 0)`,
]
