/** Removing from the embedded database, beside a kernel that may be running. */
import type { Append } from '../events/sqlite-append.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import { type Sqlite, transaction } from '../platform/sqlite.ts'
import type { RemovalStore } from './removal-store.ts'
import { SqliteRemovals } from './sqlite-removals.ts'

/** @param append undefined where nothing is to be changed */
export function sqliteRemovalStore(sqlite: Sqlite, append: Append | undefined): RemovalStore {
  const { sql, connection } = sqlite
  const log = new SqliteEventLog(sqlite)
  return {
    log,
    removals: new SqliteRemovals(sqlite),
    async present(key) {
      // Before it is read, so that nothing behind it is taken for known.
      const asOf = await log.lastSeq()
      const value = sql.get`select value from state where key = ${Buffer.from(key)}`?.value as Uint8Array | undefined
      return { value: value && Buffer.from(value).toString('utf8'), asOf }
    },
    placeOf: async (id) => sql.get`select seq from queued_messages where message_id = ${id}`?.seq as number | undefined,
    async append(event, routing) {
      if (append === undefined) throw new Error('the database is only read')
      return transaction(connection, () => append(event, routing).seq)
    },
    // With the append.
    inForce: async () => undefined,
  }
}
