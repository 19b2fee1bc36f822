/** What was removed, as the log tells it. */
import type { LoggedEvent } from '../events/event.ts'
import type { ReadModel } from '../events/read-model.ts'
import type { RemovalAction } from './removals.ts'

interface Removed {
  seq: number
  ts: string
  action: RemovalAction
  key?: string
  message_id?: string
  reason: string
  performed_by: string
  content_hash: string
}

function removedBy({ seq, ts, type, data }: LoggedEvent): Removed | undefined {
  return type === 'state_key_removed' || type === 'message_redacted'
    ? { seq, ts, action: type, ...data }
    : undefined
}

const NOTHING = new Uint8Array()

export const removalReadModel: ReadModel = {
  name: 'removals',
  types: ['state_key_removed', 'message_redacted'],

  changesOf(events): { removals: object[] } {
    return {
      removals: events.flatMap((event) => {
        const removed = removedBy(event)
        const key = removed?.key
        return removed
          ? [{ ...removed, ...(key !== undefined && { key: Buffer.from(key).toString('base64') }) }]
          : []
      }),
    }
  },

  onSqlite({ sql }) {
    return (event) => {
      const removed = removedBy(event)
      if (removed === undefined) return
      const {
        seq,
        ts,
        action,
        key,
        message_id = null,
        reason,
        performed_by,
        content_hash,
      } = removed
      sql.run`
        insert into removals (seq, ts, action, key, message_id, reason, performed_by, content_hash)
        values (${seq}, ${ts}, ${action}, ${key === undefined ? null : Buffer.from(key)}, ${message_id}, ${reason},
                ${performed_by}, ${content_hash})`
    }
  },

  checks: {
    replayed: [
      {
        table: 'replayed_removals',
        columns: {
          seq: 'integer',
          ts: 'text',
          action: 'text',
          key: 'bytes',
          message_id: 'text',
          reason: 'text',
          performed_by: 'text',
          content_hash: 'text',
        },
        changeBy(event) {
          const removed = removedBy(event)
          if (removed === undefined) return undefined
          const { key, message_id = '', ...others } = removed
          return {
            put: { ...others, message_id, key: key === undefined ? NOTHING : Buffer.from(key) },
          }
        },
      },
    ],
    both: [
      `select 'removals: the one at ' || coalesce(s.seq, r.seq) || case
                when s.seq is null then ' is missing'
                when r.seq is null then ' is not in the log'
                else ' is told otherwise than in the log' end as difference
       from removals s full join replayed_removals r on r.seq = s.seq
       where s.seq is null or r.seq is null or s.ts <> r.ts or s.action <> r.action
         or coalesce(s.key, decode('', 'hex')) <> r.key or coalesce(s.message_id, '') <> r.message_id
         or s.reason <> r.reason or s.performed_by <> r.performed_by or s.content_hash <> r.content_hash`,
    ],
  },
}
