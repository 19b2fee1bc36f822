/** The shared state in the embedded database, for those who only read it. */
import type { Sqlite } from '../platform/sqlite.ts'
import { AFTER_ALL, endOfPrefix } from './key-order.ts'
import { countStateKeys } from './sqlite-state-blocks.ts'
import type {
  StateEntry,
  StateListing,
  StatePage,
  StateReader,
  StoredUsage,
} from './state-store.ts'

export class SqliteStateReader implements StateReader {
  readonly #sql: Sqlite['sql']

  /** @param reader another connection than the writer's */
  constructor(reader: Sqlite) {
    this.#sql = reader.sql
  }

  async find(key: string): Promise<StateEntry | undefined> {
    const row = this.#sql
      .get`select value, modified_by, modified_at from state where key = ${Buffer.from(key)}`
    if (!row) return undefined
    const { value, modified_by, modified_at } = row as {
      value: Uint8Array
      modified_by: string
      modified_at: string
    }
    return { key, value: textOf(value), modifiedBy: modified_by, modifiedAt: modified_at }
  }

  async page(prefix: string, after: Buffer | undefined, limit: number): Promise<StatePage> {
    return this.#inSnapshot(prefix, after, (sql, { low, beyond, high }) => {
      // Not both bounds at once: SQLite begins at the one that it meets first, and passes over all
      // keys up to the other.
      const rows =
        beyond === undefined
          ? sql.all`select key from state where key >= ${low} and key < ${high} order by key limit ${limit}`
          : sql.all`select key from state where key > ${beyond} and key < ${high} order by key limit ${limit}`
      const keys = rows.map((row) => Buffer.from(row.key as Uint8Array))
      return { keys, total: countStateKeys(sql, low, high) }
    })
  }

  async listings(
    prefix: string,
    after: Buffer | undefined,
    limit: number,
  ): Promise<{ keys: StateListing[]; total: number }> {
    return this.#inSnapshot(prefix, after, (sql, { low, beyond, high }) => {
      const rows =
        beyond === undefined
          ? sql.all`
              select key, modified_by, modified_at, length(value) as length from state
              where key >= ${low} and key < ${high} order by key limit ${limit}`
          : sql.all`
              select key, modified_by, modified_at, length(value) as length from state
              where key > ${beyond} and key < ${high} order by key limit ${limit}`
      const keys = rows.map(({ key, modified_by, modified_at, length }) => ({
        key: Buffer.from(key as Uint8Array),
        modifiedBy: modified_by as string,
        modifiedAt: modified_at as string,
        length: length as number,
      }))
      return { keys, total: countStateKeys(sql, low, high) }
    })
  }

  /**
   * Reads more than once as of one moment, though another process may write. `beyond`: where a page
   * begins that is not the first.
   */
  #inSnapshot<T>(
    prefix: string,
    after: Buffer | undefined,
    read: (
      sql: Sqlite['sql'],
      range: { low: Buffer; beyond: Buffer | undefined; high: Buffer },
    ) => T,
  ): T {
    const low = Buffer.from(prefix)
    const beyond = after === undefined || Buffer.compare(after, low) < 0 ? undefined : after
    this.#sql.run`begin`
    try {
      return read(this.#sql, { low, beyond, high: endOfPrefix(low) ?? AFTER_ALL })
    } finally {
      this.#sql.run`commit`
    }
  }

  async usage(): Promise<StoredUsage> {
    const row = this.#sql.get`select used_bytes, key_count from state_usage`
    return { usedBytes: row?.used_bytes as number, keyCount: row?.key_count as number }
  }
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8')
}
