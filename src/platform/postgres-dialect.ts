/**
 * Kysely on postgres.js. A statement outside a transaction goes to whichever connection is free, behind what that is doing already; only a
 * transaction reserves one.
 *
 * A client that lost a connection is replaced whole: the driver (3.4.9) can leave a connection that was cut while a write was buffered in
 * a state in which it never sends again, and a write on a reserved connection that is gone ends the process
 * (github.com/porsager/postgres, issues 1154 and 1208). So the parts of the kernel that run for long use no transactions.
 */
import {
  CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type DialectAdapter,
  type Driver,
  type Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryResult,
} from 'kysely'
import postgres from 'postgres'

export interface PostgresOptions {
  url: string
  /** `transaction`: no prepared statements and no session settings, for poolers such as PgBouncer. */
  poolMode: 'session' | 'transaction'
  maxConnections: number
}

/** Object ids of Postgres's types. */
const INT8 = 20
const JSON_TYPE = 114

/** A client that is replaced has so long to finish what it has begun. */
const RETIRE_SECONDS = 5
const MIN_REPLACE_INTERVAL_MS = 500

type Executor = Pick<postgres.Sql, 'unsafe'>

/** A pool of connections that can be exchanged for a fresh one. */
export class PostgresPool {
  readonly #options: PostgresOptions
  #client: postgres.Sql
  #replacedAt = Number.NEGATIVE_INFINITY

  constructor(options: PostgresOptions) {
    this.#options = options
    this.#client = connect(options)
  }

  get client(): postgres.Sql {
    return this.#client
  }

  /** Starts over with new connections; not more often than twice a second. */
  replace(): void {
    if (performance.now() - this.#replacedAt < MIN_REPLACE_INTERVAL_MS) return
    this.#replacedAt = performance.now()
    const retired = this.#client
    this.#client = connect(this.#options)
    retired.end({ timeout: RETIRE_SECONDS }).catch(() => {})
  }
}

function connect({ url, poolMode, maxConnections }: PostgresOptions): postgres.Sql {
  return postgres(url, {
    max: maxConnections,
    prepare: poolMode === 'session',
    connect_timeout: 2,
    idle_timeout: 300,
    max_lifetime: 3_600,
    backoff: () => 0.25,
    onnotice: () => {},
    types: {
      // All of our bigint columns stay far below 2^53.
      bigint: { to: INT8, from: [INT8], parse: Number, serialize: String },
      // Ours are JSON text already.
      json: { to: JSON_TYPE, from: [JSON_TYPE], parse: JSON.parse, serialize: String },
    },
    connection: {
      application_name: 'tabulum',
      // A frozen client must not hold locks that others wait for.
      ...(poolMode === 'session' && {
        statement_timeout: 10_000,
        lock_timeout: 3_000,
        idle_in_transaction_session_timeout: 10_000,
      }),
    },
  }) as unknown as postgres.Sql
}

export class PostgresDialect implements Dialect {
  readonly #pool: PostgresPool
  readonly #prepare: boolean
  constructor(pool: PostgresPool, prepare: boolean) {
    this.#pool = pool
    this.#prepare = prepare
  }
  createDriver(): Driver {
    return new PostgresDriver(this.#pool, this.#prepare)
  }
  createQueryCompiler(): PostgresQueryCompiler {
    return new PostgresQueryCompiler()
  }
  createAdapter(): DialectAdapter {
    return new PostgresAdapter()
  }
  createIntrospector(database: Kysely<unknown>): PostgresIntrospector {
    return new PostgresIntrospector(database)
  }
}

class PostgresDriver implements Driver {
  readonly #pool: PostgresPool
  readonly #prepare: boolean
  constructor(pool: PostgresPool, prepare: boolean) {
    this.#pool = pool
    this.#prepare = prepare
  }
  async init(): Promise<void> {}
  async acquireConnection(): Promise<PostgresConnection> {
    return new PostgresConnection(this.#pool.client, this.#prepare)
  }
  async releaseConnection(connection: DatabaseConnection): Promise<void> {
    ours(connection).release()
  }
  async beginTransaction(
    connection: DatabaseConnection,
    { isolationLevel }: { isolationLevel?: string },
  ): Promise<void> {
    await ours(connection).reserve()
    await connection.executeQuery(
      CompiledQuery.raw(isolationLevel ? `begin isolation level ${isolationLevel}` : 'begin'),
    )
  }
  async commitTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('commit'))
  }
  async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('rollback'))
  }
  async destroy(): Promise<void> {
    await this.#pool.client.end({ timeout: RETIRE_SECONDS })
  }
}

function ours(connection: DatabaseConnection): PostgresConnection {
  if (connection instanceof PostgresConnection) return connection
  throw new TypeError('the connection is of another driver')
}

class PostgresConnection implements DatabaseConnection {
  readonly #client: postgres.Sql
  readonly #prepare: boolean
  #reserved: postgres.ReservedSql | undefined

  constructor(client: postgres.Sql, prepare: boolean) {
    this.#client = client
    this.#prepare = prepare
  }
  async reserve(): Promise<void> {
    this.#reserved = await this.#client.reserve()
  }
  release(): void {
    this.#reserved?.release()
    this.#reserved = undefined
  }
  async executeQuery<R>({ sql, parameters }: CompiledQuery): Promise<QueryResult<R>> {
    const executor: Executor = this.#reserved ?? this.#client
    // Prepared once a connection, a statement costs one round trip instead of two, and no parsing. Without parameters the simple
    // protocol serves, which alone takes several statements: the migrations' files.
    const prepare = this.#prepare && parameters.length > 0
    const rows = await executor.unsafe(sql, [...parameters] as never[], { prepare })
    return { rows: [...rows] as R[], numAffectedRows: BigInt(rows.count ?? 0) }
  }
  // biome-ignore lint/correctness/useYield: nothing here streams from the database; long reads go by pages.
  async *streamQuery(): AsyncIterableIterator<never> {
    throw new Error('streaming is not supported')
  }
}
