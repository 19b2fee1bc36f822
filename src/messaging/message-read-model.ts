/**
 * Which messages of the log have not been delivered yet: the pull queues, and the lanes of what is
 * to be pushed.
 */
import type { LoggedEvent } from '../events/event.ts'
import type { Effects, ReadModel } from '../events/read-model.ts'
import type { Sqlite } from '../platform/sqlite.ts'

/** Whose lanes those of unknown agents are. */
const NOBODY = '00000000-0000-0000-0000-000000000000'

/**
 * @param options.maxQueue messages that a pull queue holds at most; past that its oldest are
 *   dropped
 */
export function messageReadModel({ maxQueue }: { maxQueue: number }): ReadModel {
  return {
    name: 'messages',
    types: ['message_sent', 'push_failed', 'message_delivered'],
    // In a cluster agents wait for the queues, not for the index of what is in them. What is to be
    // pushed is in a hurry.
    mayWait: ({ via }) => via !== 'webhook',
    changesOf: (events) => ({ ...changesOf(events), max_length: maxQueue }),
    onSqlite: (sqlite) => onSqlite(sqlite, maxQueue),
    checks,
  }
}

function changesOf(events: readonly LoggedEvent[]): {
  sent: object[]
  queued: string[]
  delivered: string[]
} {
  const delivered = new Set(
    events.flatMap(({ type, data }) => (type === 'message_delivered' ? [data.message_id] : [])),
  )
  const queued = new Set(
    events.flatMap(({ type, data }) =>
      type === 'push_failed' && !delivered.has(data.message_id) ? [data.message_id] : [],
    ),
  )
  const sent = events.flatMap(({ seq, via, type, data }) =>
    // One that was sent and delivered within the batch need not be written at all.
    type === 'message_sent' && !delivered.delete(data.message_id)
      ? [
          {
            message_id: data.message_id,
            recipient: data.to,
            seq,
            via_webhook: via === 'webhook' && !queued.delete(data.message_id),
          },
        ]
      : [],
  )
  return { sent, queued: [...queued], delivered: [...delivered] }
}

function onSqlite({ sql }: Sqlite, maxQueue: number) {
  function addToQueue(recipient: string, effects: Effects): void {
    const queue = sql.get`
      insert into queues (recipient, length) values (${recipient}, 1)
      on conflict (recipient) do update set length = length + 1
      returning length`
    const surplus = (queue?.length as number) - maxQueue
    if (surplus <= 0) return
    sql.run`
      delete from queued_messages where seq in (
        select seq from queued_messages where recipient = ${recipient} and via_webhook = 0 order by seq limit ${surplus})`
    sql.run`
      update queues set length = length - ${surplus}, dropped = dropped + ${surplus} where recipient = ${recipient}`
    effects.dropped += surplus
  }

  function addToLane(recipient: string, seq: number): void {
    sql.run`
      insert into webhook_lanes (recipient, operator_id, last_seq, pending, next_at)
      values (
        ${recipient}, coalesce((select operator_id from agents where address = ${recipient}), ${NOBODY}), ${seq}, 1,
        ${Date.now()})
      on conflict (recipient) do update set
        last_seq = excluded.last_seq, pending = pending + 1, next_at = coalesce(next_at, excluded.next_at)`
    sql.run`update webhook_totals set pending = pending + 1`
  }

  function takeFromLane(recipient: string): void {
    sql.run`update webhook_lanes set pending = pending - 1 where recipient = ${recipient}`
    sql.run`update webhook_totals set pending = pending - 1`
  }

  return ({ seq, type, data, via, about }: LoggedEvent, effects: Effects): void => {
    if (type === 'message_sent') {
      const isPushed = via === 'webhook'
      sql.run`
        insert into queued_messages (seq, message_id, recipient, via_webhook)
        values (${seq}, ${data.message_id}, ${data.to}, ${isPushed ? 1 : 0})`
      if (isPushed) addToLane(data.to, seq)
      else addToQueue(data.to, effects)
    } else if (type === 'push_failed') {
      const moved = sql.get`
        update queued_messages set via_webhook = 0 where seq = ${about ?? null} and via_webhook = 1 returning recipient`
      if (!moved) return
      takeFromLane(moved.recipient as string)
      addToQueue(moved.recipient as string, effects)
    } else if (type === 'message_delivered') {
      const gone = sql.get`delete from queued_messages where seq = ${about ?? null} returning recipient, via_webhook`
      if (!gone) return
      const recipient = gone.recipient as string
      if (gone.via_webhook === 1) takeFromLane(recipient)
      else sql.run`update queues set length = length - 1 where recipient = ${recipient}`
    }
  }
}

const checks: ReadModel['checks'] = {
  replayed: [
    {
      table: 'replayed_messages',
      columns: { message_id: 'uuid', seq: 'integer', recipient: 'text', via_webhook: 'boolean' },
      changeBy({ seq, type, via, data }) {
        if (type === 'message_sent')
          return {
            put: {
              message_id: data.message_id,
              seq,
              recipient: data.to,
              via_webhook: via === 'webhook',
            },
          }
        if (type === 'push_failed')
          return { set: { message_id: data.message_id, via_webhook: false } }
        if (type === 'message_delivered') return { remove: data.message_id }
        return undefined
      },
    },
  ],
  both: [
    `select 'queues: message ' || m.message_id || ' to ' || m.recipient
              || ' is queued, but the log says that it was delivered or never sent' as difference
     from queued_messages m left join replayed_messages r on r.message_id = m.message_id
     where r.message_id is null`,
    `select 'queues: message ' || m.message_id || ' to ' || r.recipient
              || ' has another sequence number or recipient than in the log' as difference
     from queued_messages m join replayed_messages r on r.message_id = m.message_id
     where m.seq <> r.seq or m.recipient <> r.recipient`,
    `select 'webhooks: message ' || m.message_id || ' to ' || m.recipient || case
              when m.via_webhook then ' is to be pushed, but the log says that it is in the pull queue'
              else ' is in the pull queue, but the log says that it is to be pushed' end as difference
     from queued_messages m join replayed_messages r on r.message_id = m.message_id where m.via_webhook <> r.via_webhook`,
    `select 'webhooks: the lane of ' || coalesce(l.recipient, m.recipient) || ' counts ' || coalesce(l.pending, 0)
              || ', there are ' || coalesce(m.messages, 0) as difference
     from webhook_lanes l
     full join (
       select recipient, count(*) as messages from queued_messages where via_webhook group by recipient) m
       on m.recipient = l.recipient
     where coalesce(l.pending, 0) <> coalesce(m.messages, 0)`,
    // A worker looks for what is behind done_seq, and only where there is a time.
    `select 'webhooks: message ' || m.message_id || ' to ' || m.recipient
              || ' waits in a lane that has been worked off' as difference
     from queued_messages m join webhook_lanes l on l.recipient = m.recipient
     where m.via_webhook and m.seq > l.done_seq and (l.next_at is null or m.seq > l.last_seq)`,
    // What a full queue dropped is counted, so just as many may be missing.
    `select 'queues: ' || missing || ' messages to ' || lost.recipient || ' are missing, of which '
              || coalesce(q.dropped, 0) || ' were dropped' as difference
     from (
       select r.recipient, count(*) as missing
       from replayed_messages r left join queued_messages m on m.message_id = r.message_id
       where m.message_id is null group by r.recipient) lost
     left join queues q on q.recipient = lost.recipient
     where missing > coalesce(q.dropped, 0)`,
    `select 'queues: the queue of ' || coalesce(q.recipient, m.recipient) || ' has length ' || coalesce(q.length, 0)
              || ', there are ' || coalesce(m.messages, 0) as difference
     from queues q
     full join (
       select recipient, count(*) as messages from queued_messages where not via_webhook group by recipient) m
       on m.recipient = q.recipient
     where coalesce(q.length, 0) <> coalesce(m.messages, 0)`,
  ],
  sqlite: [
    `select 'webhooks: the total is ' || pending || ', there are ' || there as difference
     from webhook_totals, (select count(*) as there from queued_messages where via_webhook) counted
     where pending <> there`,
  ],
}
