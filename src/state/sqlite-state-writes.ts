/** Changing the state in SQLite: the check, the append, and the read model, in one transaction. */
import type { EventOf } from '../events/event.ts'
import type { Append, SqliteProjection } from '../events/sqlite-append.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import { countStateChange } from './sqlite-state-blocks.ts'

/** `full`: the capacity would be overrun. `absent`: there is no such key. Then there is no event. */
export type StateOutcome = 'done' | 'full' | 'absent'

export function stateWrites({ sql }: Sqlite, append: Append, { capacityBytes }: { capacityBytes: number }) {
  return {
    writeState(event: EventOf<'state_written'>): StateOutcome {
      const { key, value_length: length } = event.data
      const bytes = Buffer.from(key)
      const usage = sql.get`select used_bytes from state_usage`
      const before = sizeOfKey(sql, bytes) ?? 0
      if ((usage?.used_bytes as number) - before + bytes.length + length > capacityBytes) return 'full'
      append(event)
      return 'done'
    },
    deleteState(event: EventOf<'state_deleted'>): StateOutcome {
      if (sizeOfKey(sql, Buffer.from(event.data.key)) === undefined) return 'absent'
      append(event)
      return 'done'
    },
  }
}
export type StateWrites = ReturnType<typeof stateWrites>

/** What the last event of each key left of it, and what all of them take. */
export function stateProjection({ sql }: Sqlite): SqliteProjection {
  function count(bytes: number, keys: 1 | 0 | -1, key: Uint8Array): void {
    sql.run`update state_usage set used_bytes = used_bytes + ${bytes}, key_count = key_count + ${keys}`
    if (keys !== 0) countStateChange(sql, key, keys)
  }
  return {
    apply({ seq, ts, type, data }) {
      if (type === 'state_written') {
        const key = Buffer.from(data.key)
        const value = Buffer.from(data.value)
        const before = sizeOfKey(sql, key)
        sql.run`
          insert into state (key, value, seq, modified_by, modified_at)
          values (${key}, ${value}, ${seq}, ${data.written_by}, ${ts})
          on conflict (key) do update set value = excluded.value, seq = excluded.seq,
            modified_by = excluded.modified_by, modified_at = excluded.modified_at`
        count(key.length + value.length - (before ?? 0), before === undefined ? 1 : 0, key)
      } else if (type === 'state_deleted') {
        const key = Buffer.from(data.key)
        const before = sizeOfKey(sql, key)
        if (before === undefined) return
        sql.run`delete from state where key = ${key}`
        count(-before, -1, key)
      }
    },
  }
}

/** Bytes of a key and its value; undefined if there is no such key. */
function sizeOfKey(sql: Sqlite['sql'], key: Buffer): number | undefined {
  return sql.get`select length(key) + length(value) as size from state where key = ${key}`?.size as number | undefined
}
