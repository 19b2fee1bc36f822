/** The read models of the observation in a SQLite database. */
import type { DatabaseSync, SQLInputValue } from 'node:sqlite'
import {
  DummyDriver,
  Kysely,
  type RawBuilder,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
  sql,
} from 'kysely'
import { forServing, transaction } from '../platform/sqlite.ts'
import type { ObservationDatabase, RowTypes } from './observation-database.ts'

/** Makes statements, and runs none. */
const compiler = new Kysely<unknown>({
  dialect: {
    createAdapter: () => new SqliteAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (database) => new SqliteIntrospector(database),
    createQueryCompiler: () => new SqliteQueryCompiler(),
  },
})

const SQLITE_TYPES = { integer: 'integer', text: 'text', bytes: 'text' } as const

export class SqliteObservation implements ObservationDatabase {
  #connection: DatabaseSync
  readonly #attempt: <T>(ask: () => T) => T
  readonly #statements = new Map<string, ReturnType<DatabaseSync['prepare']>>()

  /** @param onRuin told of a database that cannot be relied on any more */
  constructor(connection: DatabaseSync, onRuin: (error: Error) => void) {
    this.#connection = connection
    const attempt = forServing({ connection, sql: connection.createTagStore() }, onRuin).attempt
    this.#attempt = attempt
  }

  /**
   * Goes on with another database, which has the same tables, if that is as far, and closes the one
   * before. Returns whether it did.
   */
  replace(connection: DatabaseSync): boolean {
    const [before, after] = [this.#connection, connection].map((its) =>
      Number(its.prepare('select applied_seq from position').get()?.applied_seq),
    ) as [number, number]
    if (after < before) return false
    this.#statements.clear()
    this.#connection.close()
    this.#connection = connection
    return true
  }

  close(): void {
    this.#connection.close()
  }

  table(name: string): RawBuilder<unknown> {
    return sql.table(name)
  }

  rows(rows: readonly object[], types: RowTypes): RawBuilder<unknown> {
    const columns = Object.entries(types).map(([name, type]) => {
      const value = sql`cast(value ->> ${sql.lit(name)} as ${sql.raw(SQLITE_TYPES[type])})`
      return sql`${type === 'bytes' ? sql`unhex(${value})` : value} as ${sql.ref(name)}`
    })
    return sql`(select ${sql.join(columns)} from json_each(${JSON.stringify(rows)})) as r`
  }

  async query<T>(_operation: string, statement: RawBuilder<T>): Promise<T[]> {
    return this.#attempt(
      () => this.#prepare(statement, (prepared, parameters) => prepared.all(...parameters)) as T[],
    )
  }

  queryForChange<T>(operation: string, statement: RawBuilder<T>): Promise<T[]> {
    return this.query(operation, statement)
  }

  async change(
    move: RawBuilder<unknown>,
    changes: (guard: RawBuilder<unknown>) => RawBuilder<unknown>[],
  ): Promise<boolean> {
    const run = (statement: RawBuilder<unknown>) =>
      this.#prepare(statement, (prepared, parameters) => prepared.run(...parameters))
    return this.#attempt(() =>
      transaction(this.#connection, () => {
        if (run(move).changes === 0) return false
        for (const change of changes(sql`true`)) run(change)
        return true
      }),
    )
  }

  #prepare<R>(
    statement: RawBuilder<unknown>,
    use: (prepared: ReturnType<DatabaseSync['prepare']>, parameters: SQLInputValue[]) => R,
  ): R {
    const { sql: text, parameters } = statement.compile(compiler)
    const prepared = this.#statements.get(text) ?? this.#connection.prepare(text)
    // As many as there are kinds of questions, by their filters: some hundred.
    if (this.#statements.size < MAX_STATEMENTS) this.#statements.set(text, prepared)
    return use(prepared, parameters as SQLInputValue[])
  }
}

const MAX_STATEMENTS = 500
