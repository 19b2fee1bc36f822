/** Removing from the embedded database, beside a kernel that may be running. */
import type { Append } from '../events/sqlite-append.ts'
import { SqliteEventLog, toEvent } from '../events/sqlite-event-log.ts'
import { type Sqlite, transaction, truncateLog } from '../platform/sqlite.ts'
import { redacted } from './redaction.ts'
import type { RemovalStore } from './removal-store.ts'
import { SqliteRemovals } from './sqlite-removals.ts'

const LEFT_IN_FREE_SPACE =
  'what the database divided pages from may have kept a copy in free space, while a kernel uses it: to be sure, do the same ' +
  'again when it is stopped, which writes the file anew'

/**
 * @param append undefined where nothing is to be changed
 * @param mayRewrite no kernel uses the database, so it may be written anew
 */
export function sqliteRemovalStore(
  sqlite: Sqlite,
  append: Append | undefined,
  mayRewrite: boolean,
): RemovalStore {
  const { sql, connection } = sqlite
  const log = new SqliteEventLog(sqlite)
  return {
    log,
    removals: new SqliteRemovals(sqlite),
    async present(key) {
      // Before it is read, so that nothing behind it is taken for known.
      const asOf = await log.lastSeq()
      const value = sql.get`select value from state where key = ${Buffer.from(key)}`?.value as
        | Uint8Array
        | undefined
      return { value: value && Buffer.from(value).toString('utf8'), asOf }
    },
    seqOf: async (id) =>
      sql.get`select seq from queued_messages where message_id = ${id}`?.seq as number | undefined,
    async append(event, routing) {
      if (append === undefined) throw new Error('the database is only read')
      return transaction(connection, () => append(event, routing).seq)
    },
    // With the append.
    inForce: async () => undefined,
    async erase(seqs, reason) {
      transaction(connection, () => {
        for (const seq of seqs) {
          const row = sql.get`select * from events where seq = ${seq}`
          if (row === undefined) continue
          const data = JSON.stringify(redacted(toEvent(row), { reason }).data)
          sql.run`update events set data = ${data} where seq = ${seq}`
        }
      })
    },
    async cleanFiles() {
      const isCut = await truncateLog(sqlite)
      const left = isCut
        ? []
        : ['the write-ahead log could not be cut, as it was read all the time: do the same again']
      if (!mayRewrite) return [...left, LEFT_IN_FREE_SPACE]
      // What pages were divided from may have kept copies that no page owns.
      connection.exec('vacuum')
      return (await truncateLog(sqlite)) ? [] : left
    },
  }
}
