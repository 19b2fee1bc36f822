/** Kysely on PGlite: Postgres in this process, one connection, data in a directory. */
import { existsSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { PGlite, types } from '@electric-sql/pglite'
import {
  CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type DialectAdapter,
  type Driver,
  type Kysely,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryResult,
} from 'kysely'
import { TransactionalLock } from './postgres-dialect.ts'

/**
 * Opens PGlite in a directory, which it sets up where there is none. A process that is killed meanwhile leaves files that PGlite cannot
 * open, and nothing that anybody was told of: a mark beside the directory says so, and the next start begins anew.
 */
export async function openPGlite(directory: string): Promise<PGlite> {
  const incomplete = `${directory}.incomplete`
  if (existsSync(incomplete)) await rm(directory, { recursive: true, force: true })
  else if (!existsSync(directory)) await writeFile(incomplete, '')
  // The library's own conversions of bytea go byte by byte and take 0.2 s a MiB; these take milliseconds.
  const pglite = await PGlite.create(directory, {
    serializers: { [types.BYTEA]: (value: Buffer) => `\\x${value.toString('hex')}` },
    parsers: { [types.BYTEA]: (text) => Buffer.from(text.slice(2), 'hex'), [types.INT8]: Number },
  })
  await rm(incomplete, { force: true })
  return pglite
}

export class PGliteDialect implements Dialect {
  readonly #pglite: PGlite
  constructor(pglite: PGlite) {
    this.#pglite = pglite
  }
  createDriver(): Driver {
    return new PGliteDriver(this.#pglite)
  }
  createQueryCompiler(): PostgresQueryCompiler {
    return new PostgresQueryCompiler()
  }
  createAdapter(): DialectAdapter {
    return new TransactionalLock()
  }
  createIntrospector(database: Kysely<unknown>): PostgresIntrospector {
    return new PostgresIntrospector(database)
  }
}

class PGliteDriver implements Driver {
  readonly #pglite: PGlite
  /** Resolves when the one connection is free; those who wait queue up by chaining on it. */
  #free: Promise<void> = Promise.resolve()
  #release: () => void = () => {}

  constructor(pglite: PGlite) {
    this.#pglite = pglite
  }
  async init(): Promise<void> {}
  async acquireConnection(): Promise<DatabaseConnection> {
    const before = this.#free
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#free = promise
    await before
    this.#release = resolve
    return new PGliteConnection(this.#pglite)
  }
  async releaseConnection(): Promise<void> {
    this.#release()
  }
  async beginTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('begin'))
  }
  async commitTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('commit'))
  }
  async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('rollback'))
  }
  async destroy(): Promise<void> {
    await this.#pglite.close()
  }
}

class PGliteConnection implements DatabaseConnection {
  readonly #pglite: PGlite
  constructor(pglite: PGlite) {
    this.#pglite = pglite
  }
  async executeQuery<R>({ sql, parameters }: CompiledQuery): Promise<QueryResult<R>> {
    // Without parameters the simple protocol serves, which alone takes several statements: the migrations' files.
    const result =
      parameters.length === 0
        ? (await this.#pglite.exec(sql)).at(-1)
        : await this.#pglite.query<R>(sql, [...parameters])
    return { rows: (result?.rows ?? []) as R[], numAffectedRows: BigInt(result?.affectedRows ?? 0) }
  }
  // biome-ignore lint/correctness/useYield: PGlite has no cursors, and nothing here streams from it.
  async *streamQuery(): AsyncIterableIterator<never> {
    throw new Error('streaming is not supported on embedded storage')
  }
}
