/** Changing the state in SQLite: the check and the append, in one transaction. */
import type { EventOf } from '../events/event.ts'
import type { Append } from '../events/sqlite-append.ts'
import type { Sqlite } from '../platform/sqlite.ts'

/**
 * `full`: the capacity would be overrun. `absent`: there is no such key. Then there is no event.
 */
export type StateOutcome = 'done' | 'full' | 'absent'

export function stateWrites(
  { sql }: Sqlite,
  append: Append,
  { capacityBytes }: { capacityBytes: number },
) {
  return {
    writeState(event: EventOf<'state_written'>): StateOutcome {
      const { key, value_length: length } = event.data
      const bytes = Buffer.from(key)
      const usage = sql.get`select used_bytes from state_usage`
      const before = sizeOfKey(sql, bytes) ?? 0
      if ((usage?.used_bytes as number) - before + bytes.length + length > capacityBytes)
        return 'full'
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

/** Bytes of a key and its value; undefined if there is no such key. */
export function sizeOfKey(sql: Sqlite['sql'], key: Buffer): number | undefined {
  return sql.get`select length(key) + length(value) as size from state where key = ${key}`?.size as
    | number
    | undefined
}
