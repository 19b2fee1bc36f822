/** The read models of the observation in a schema of Postgres. */
import { type RawBuilder, sql } from 'kysely'
import { type Database, roundTrip } from '../platform/database.ts'
import type { ObservationDatabase, RowTypes } from './observation-database.ts'

/** A change of many rows is no request of anybody's. */
const CHANGE_TIMEOUT_MS = 10_000

export class PostgresObservation implements ObservationDatabase {
  readonly #database: Database
  readonly #reader: Database
  readonly #schema: string
  readonly #timeoutMs: number | undefined

  /**
   * @param options.reader where to read: the same one, or a replica of it
   * @param options.timeoutMs of a question
   */
  constructor(
    database: Database,
    {
      schema,
      reader = database,
      timeoutMs,
    }: { schema: string; reader?: Database; timeoutMs?: number },
  ) {
    this.#database = database
    this.#reader = reader
    this.#schema = schema
    this.#timeoutMs = timeoutMs
  }

  table(name: string): RawBuilder<unknown> {
    return sql.table(`${this.#schema}.${name}`)
  }

  rows(rows: readonly object[], types: RowTypes): RawBuilder<unknown> {
    const entries = Object.entries(types)
    const columns = entries.map(
      ([name, type]) => sql`${sql.ref(name)} ${sql.raw(type === 'integer' ? 'bigint' : 'text')}`,
    )
    const values = entries.map(([name, type]) =>
      type === 'bytes' ? sql`decode(${sql.ref(name)}, 'hex') as ${sql.ref(name)}` : sql.ref(name),
    )
    return sql`(select ${sql.join(values)} from json_to_recordset(${JSON.stringify(rows)}::json) as j (${sql.join(columns)})) as r`
  }

  query<T>(operation: string, statement: RawBuilder<T>): Promise<T[]> {
    return this.#ask(this.#reader, operation, statement)
  }

  queryForChange<T>(operation: string, statement: RawBuilder<T>): Promise<T[]> {
    return this.#ask(this.#database, operation, statement)
  }

  async #ask<T>(database: Database, operation: string, statement: RawBuilder<T>): Promise<T[]> {
    const { rows } = await roundTrip(
      database,
      operation,
      () => statement.execute(database),
      this.#timeoutMs,
    )
    return rows
  }

  async change(
    move: RawBuilder<unknown>,
    changes: (guard: RawBuilder<unknown>) => RawBuilder<unknown>[],
  ): Promise<boolean> {
    const parts = changes(sql`exists (select from moved)`).map(
      (change, index) => sql`, ${sql.ref(`change_${index}`)} as (${change})`,
    )
    const statement = sql<{
      moved: number
    }>`with moved as (${move} returning 1)${sql.join(parts, sql``)}
      select count(*) as moved from moved`
    const { rows } = await roundTrip(
      this.#database,
      'apply_observation',
      () => statement.execute(this.#database),
      CHANGE_TIMEOUT_MS,
    )
    return (rows[0]?.moved ?? 0) > 0
  }
}
