/** The transparency log in the embedded database. */
import type { Sqlite } from '../platform/sqlite.ts'
import {
  byId,
  type Removal,
  type RemovalPage,
  type RemovalRow,
  type Removals,
  toRemoval,
} from './removals.ts'

export class SqliteRemovals implements Removals {
  readonly #sql: Sqlite['sql']

  /** @param reader a connection that may be one that only reads */
  constructor(reader: Pick<Sqlite, 'sql'>) {
    this.#sql = reader.sql
  }

  async list({ after = 0, limit }: { after?: number; limit: number }): Promise<RemovalPage> {
    const rows = this.#sql
      .all`select * from removals where seq > ${after} order by seq limit ${limit}`
    const total = this.#sql.get`select count(*) as total from removals`?.total as number
    return { removals: rows.map(removalOf), total }
  }

  async ofMessages(ids: readonly string[]): Promise<Map<string, Removal>> {
    return byId(
      ids.flatMap((id) => {
        const row = this.#sql
          .get`select * from removals where message_id = ${id} order by seq desc limit 1`
        return row ? [removalOf(row)] : []
      }),
    )
  }

  async ofKeys(keys: readonly string[]): Promise<Map<string, Removal>> {
    return byId(
      keys.flatMap((key) => {
        const row = this.#sql
          .get`select * from removals where key = ${Buffer.from(key)} order by seq desc limit 1`
        return row ? [removalOf(row)] : []
      }),
    )
  }
}

function removalOf(row: object): Removal {
  return toRemoval({ ...row } as RemovalRow)
}
