/**
 * Where the observation keeps its read models: a schema of Postgres, or a SQLite database beside the kernel's. Statements are written once, for
 * both (`observation-tables.ts`); what differs is here.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
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
import { type Database, roundTrip } from '../platform/database.ts'
import { forServing, transaction } from '../platform/sqlite.ts'

/** Types of the columns of rows that are given as JSON; `bytes` are hexadecimal digits there. */
export type RowTypes = Readonly<Record<string, 'integer' | 'text' | 'bytes'>>

export interface ObservationDatabase {
  /** A table of the read models. */
  table(name: string): RawBuilder<unknown>
  /** Rows that are given as one parameter, as a table named `r`. */
  rows(rows: readonly object[], types: RowTypes): RawBuilder<unknown>
  /** Runs a statement that returns rows. Throws `Unavailable`. */
  query<T>(operation: string, statement: RawBuilder<T>): Promise<T[]>
  /**
   * Moves the position by `move`, an update of one row, and makes the changes with it, or does nothing. Each of them is made where `guard` holds. Returns
   * whether it moved. Throws `Unavailable`.
   */
  change(move: RawBuilder<unknown>, changes: (guard: RawBuilder<unknown>) => RawBuilder<unknown>[]): Promise<boolean>
}

/** A change of many rows is no request of anybody's. */
const CHANGE_TIMEOUT_MS = 10_000

export class PostgresObservation implements ObservationDatabase {
  readonly #database: Database
  readonly #reader: Database
  readonly #schema: string
  readonly #timeoutMs: number | undefined

  /** @param options.reader where to read: the same one, or a replica of it @param options.timeoutMs of a question */
  constructor(
    database: Database,
    { schema, reader = database, timeoutMs }: { schema: string; reader?: Database; timeoutMs?: number },
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

  async query<T>(operation: string, statement: RawBuilder<T>): Promise<T[]> {
    const { rows } = await roundTrip(this.#reader, operation, () => statement.execute(this.#reader), this.#timeoutMs)
    return rows
  }

  async change(
    move: RawBuilder<unknown>,
    changes: (guard: RawBuilder<unknown>) => RawBuilder<unknown>[],
  ): Promise<boolean> {
    const parts = changes(sql`exists (select from moved)`).map(
      (change, index) => sql`, ${sql.ref(`change_${index}`)} as (${change})`,
    )
    const statement = sql<{ moved: number }>`with moved as (${move} returning 1)${sql.join(parts, sql``)}
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

  /** Goes on with another database, which has the same tables. Closes the one before. */
  replace(connection: DatabaseSync): void {
    this.#statements.clear()
    this.#connection.close()
    this.#connection = connection
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
    return this.#attempt(() => this.#prepare(statement, (prepared, parameters) => prepared.all(...parameters)) as T[])
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

const SCHEMAS = new URL('../../migrations/observation/', import.meta.url)

/** The statements that make the tables, and what tells them from those of another version. */
export function observationSchema(dialect: 'postgres' | 'sqlite'): { text: string; hash: string } {
  const text = readFileSync(new URL(`${dialect}.sql`, SCHEMAS), 'utf8')
  return { text, hash: createHash('sha256').update(text).digest('hex') }
}
