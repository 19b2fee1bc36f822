/** Which messages of the log have not been delivered yet, in SQLite: the pull queues, and the lanes of what is to be pushed. */
import type { Effects, SqliteProjection } from '../events/sqlite-append.ts'
import type { Sqlite } from '../platform/sqlite.ts'

/** Whose lanes those of unknown agents are. */
const NOBODY = '00000000-0000-0000-0000-000000000000'

/** @param options.maxQueue messages that a pull queue holds at most; past that its oldest are dropped */
export function messageProjection({ sql }: Sqlite, { maxQueue }: { maxQueue: number }): SqliteProjection {
  function addToQueue(recipient: string, effects: Effects): void {
    const queue = sql.get`
      insert into queues (recipient, length) values (${recipient}, 1)
      on conflict (recipient) do update set length = length + 1
      returning length`
    const surplus = (queue?.length as number) - maxQueue
    if (surplus <= 0) return
    sql.run`
      delete from queued_messages where seq in (
        select seq from queued_messages where recipient = ${recipient} and pushed = 0 order by seq limit ${surplus})`
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

  return {
    apply({ seq, type, data, via, about }, effects) {
      if (type === 'message_sent') {
        const isPushed = via === 'webhook'
        sql.run`
          insert into queued_messages (seq, message_id, recipient, pushed)
          values (${seq}, ${data.message_id}, ${data.to}, ${isPushed ? 1 : 0})`
        if (isPushed) addToLane(data.to, seq)
        else addToQueue(data.to, effects)
      } else if (type === 'message_queued') {
        const moved = sql.get`
          update queued_messages set pushed = 0 where seq = ${about ?? null} and pushed = 1 returning recipient`
        if (!moved) return
        takeFromLane(moved.recipient as string)
        addToQueue(moved.recipient as string, effects)
      } else if (type === 'message_delivered') {
        const gone = sql.get`delete from queued_messages where seq = ${about ?? null} returning recipient, pushed`
        if (!gone) return
        const recipient = gone.recipient as string
        if (gone.pushed === 1) takeFromLane(recipient)
        else sql.run`update queues set length = length - 1 where recipient = ${recipient}`
      }
    },
  }
}
