/** The shared state in the embedded database. */
import type { EventOf } from '../events/event.ts'
import { sizeOf } from '../events/event.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import type { SqliteWriter } from '../platform/sqlite-writer.ts'
import { AFTER_ALL, endOfPrefix } from './key-order.ts'
import { countStateKeys } from './sqlite-state-blocks.ts'
import type { StateWrites } from './sqlite-state-writes.ts'
import {
  type StateEntry,
  type StatePage,
  type StateStore,
  type StoredUsage,
  StoreFull,
  UnknownKey,
} from './state-store.ts'

export class SqliteStateStore implements StateStore {
  readonly #sql: Sqlite['sql']
  readonly #writer: Pick<SqliteWriter<StateWrites>, 'run'>

  /** @param reader another connection than the writer's */
  constructor(reader: Sqlite, writer: Pick<SqliteWriter<StateWrites>, 'run'>) {
    this.#sql = reader.sql
    this.#writer = writer
  }

  async find(key: string): Promise<StateEntry | undefined> {
    const row = this.#sql.get`select value, modified_by, modified_at from state where key = ${Buffer.from(key)}`
    if (!row) return undefined
    const { value, modified_by, modified_at } = row as { value: Uint8Array; modified_by: string; modified_at: string }
    return { key, value: textOf(value), modifiedBy: modified_by, modifiedAt: modified_at }
  }

  async page(prefix: string, after: Buffer | undefined, limit: number): Promise<StatePage> {
    const low = Buffer.from(prefix)
    const high = endOfPrefix(low) ?? AFTER_ALL
    const sql = this.#sql
    // One snapshot, though another process may write.
    sql.run`begin`
    try {
      // Not both bounds at once: SQLite begins at the one that it meets first, and passes over all keys up to the other.
      const rows =
        after === undefined || Buffer.compare(after, low) < 0
          ? sql.all`select key from state where key >= ${low} and key < ${high} order by key limit ${limit}`
          : sql.all`select key from state where key > ${after} and key < ${high} order by key limit ${limit}`
      const keys = rows.map((row) => Buffer.from(row.key as Uint8Array))
      return { keys, total: countStateKeys(sql, low, high) }
    } finally {
      sql.run`commit`
    }
  }

  async usage(): Promise<StoredUsage> {
    const row = this.#sql.get`select used_bytes, key_count from state_usage`
    return { usedBytes: row?.used_bytes as number, keyCount: row?.key_count as number }
  }

  async write(event: EventOf<'state_written'>): Promise<void> {
    if ((await this.#writer.run('writeState', event, { bytes: sizeOf(event) })) === 'full') throw new StoreFull()
  }

  async delete(event: EventOf<'state_deleted'>): Promise<void> {
    if ((await this.#writer.run('deleteState', event)) === 'absent') throw new UnknownKey()
  }

  async close(): Promise<void> {}
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8')
}
