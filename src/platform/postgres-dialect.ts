/**
 * Kysely on postgres.js. A statement outside a transaction goes to whichever connection is free,
 * behind what that is doing already. A transaction has a session of its own: a client with one
 * connection, which is closed after it and is of no use once that is lost. So nothing is ever sent
 * on a connection that the driver reserved and lost, which ends the process
 * (github.com/porsager/postgres, issue 1208), and no statement of a transaction goes out on another
 * connection than its `begin`. It costs a connection for each, so the parts of the kernel that run
 * for long use no transactions.
 *
 * A client that lost a connection is replaced whole: the driver (3.4.9) can leave a connection that
 * was cut while a write was buffered in a state in which it never sends again (issue 1154).
 *
 * The driver must not ask for the types of arrays (`fetch_types`): it does so on each new
 * connection in a promise that nobody awaits, so any error meanwhile, such as a server that shuts
 * down, is an unhandled rejection. No statement here takes or returns an array.
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
  sql,
} from 'kysely'
import postgres from 'postgres'
import { inBackground } from './background.ts'

export interface PostgresOptions {
  url: string
  /**
   * `transaction`: no prepared statements and no session settings, for poolers such as PgBouncer.
   */
  poolMode: 'session' | 'transaction'
  maxConnections: number
}

/** Object ids of Postgres's types. */
const INT8 = 20
const JSON_TYPE = 114

/** A client that is replaced has so long to finish what it has begun. */
const RETIRE_SECONDS = 5
const MIN_REPLACE_INTERVAL_MS = 500
/**
 * How long connecting may take: at first, and at most, as each client that has never answered gives
 * the next one twice as long. On a machine that is overloaded the hundred handshakes of new
 * connections take longer than what they are to replace; ended too soon and begun anew they never
 * end.
 */
const CONNECT_SECONDS = 2
const MAX_CONNECT_SECONDS = 4

type Rows = postgres.RowList<postgres.Row[]>

/** Where the statements of a database go, and its transactions. */
interface Source {
  run(sql: string, parameters: readonly unknown[]): Promise<Rows>
  /** A session for a transaction. */
  session(): PostgresSession
  close(): Promise<void>
}

/** A pool of connections that can be exchanged for a fresh one. */
export class PostgresPool implements Source {
  readonly #options: PostgresOptions
  #client: postgres.Sql
  #replacedAt = Number.NEGATIVE_INFINITY
  #connectSeconds = CONNECT_SECONDS
  /** The client has answered something. */
  #isProven = false

  constructor(options: PostgresOptions) {
    this.#options = options
    this.#client = connect(options, SERVING)
  }

  async run(sql: string, parameters: readonly unknown[]): Promise<Rows> {
    const client = this.#client
    const rows = await run(client, sql, parameters)
    if (client === this.#client) this.#isProven = true
    return rows
  }

  session(): PostgresSession {
    return new PostgresSession(this.#options, SERVING)
  }

  /**
   * Starts over with new connections; not more often than twice a second, and not while the client
   * is still connecting.
   */
  replace(): void {
    const ageMs = performance.now() - this.#replacedAt
    if (ageMs < (this.#isProven ? MIN_REPLACE_INTERVAL_MS : this.#connectSeconds * 1_000)) return
    this.#replacedAt = performance.now()
    this.#connectSeconds = this.#isProven
      ? CONNECT_SECONDS
      : Math.min(MAX_CONNECT_SECONDS, 2 * this.#connectSeconds)
    this.#isProven = false
    const retired = this.#client
    this.#client = connect(this.#options, { ...SERVING, connectSeconds: this.#connectSeconds })
    inBackground('retire_connections', retired.end({ timeout: RETIRE_SECONDS }))
  }

  async close(): Promise<void> {
    await this.#client.end({ timeout: RETIRE_SECONDS })
  }
}

/**
 * One connection, connected on first use. What is asked after it was lost fails, and so does what
 * is under way: the driver itself never tells the fate of a statement that it took between the
 * error of a socket and its close.
 */
export class PostgresSession implements Source {
  readonly #client: postgres.Sql
  readonly #underWay = new Set<(error: Error) => void>()
  #isLost = false

  constructor({ url, poolMode }: PostgresOptions, limits: Limits = UNLIMITED) {
    const onclose = () => {
      this.#isLost = true
      // After the driver, which may know more, has told of those that it knows.
      setImmediate(() => {
        for (const reject of this.#underWay) reject(lost())
      })
    }
    this.#client = connect(
      { url, poolMode, maxConnections: 1 },
      { ...limits, lasting: true },
      onclose,
    )
  }

  async run(sql: string, parameters: readonly unknown[]): Promise<Rows> {
    if (this.#isLost) throw lost()
    const { promise, resolve, reject } = Promise.withResolvers<Rows>()
    this.#underWay.add(reject)
    run(this.#client, sql, parameters).then(resolve, reject)
    return promise.finally(() => this.#underWay.delete(reject))
  }

  session(): PostgresSession {
    return this
  }

  async close(): Promise<void> {
    await this.#client.end({ timeout: RETIRE_SECONDS })
  }
}

function lost(): Error {
  return Object.assign(new Error('the session with Postgres was lost'), { code: 'SESSION_LOST' })
}

/**
 * Prepared once a connection, a statement costs one round trip instead of two, and no parsing.
 * Without parameters the simple protocol serves, which alone takes several statements: the
 * migrations' files.
 */
async function run(
  client: postgres.Sql,
  sql: string,
  parameters: readonly unknown[],
): Promise<Rows> {
  const prepare = client.options.prepare && parameters.length > 0
  return client.unsafe(sql, [...parameters] as never[], { prepare })
}

/** How long the server lets a client have what it asks for, in milliseconds; 0 is without end. */
interface Limits {
  readonly statementMs: number
  readonly lockMs: number
  readonly idleInTransactionMs: number
  /** How long connecting may take. Default: 2. */
  readonly connectSeconds?: number
  /** The connection is kept however long it is idle or old. */
  readonly lasting?: boolean
}

/** A frozen client must not hold locks that others wait for. */
const SERVING: Limits = { statementMs: 10_000, lockMs: 3_000, idleInTransactionMs: 10_000 }
/**
 * Of a command that works on a large database. Between two statements of one transaction it does no
 * more than read a page of the log.
 */
const UNLIMITED: Limits = { statementMs: 0, lockMs: 0, idleInTransactionMs: 60_000 }

/** As the settings of a session. Sent as text: the driver leaves out what is falsy. */
function asSettings({ statementMs, lockMs, idleInTransactionMs }: Limits): Record<string, string> {
  return {
    statement_timeout: String(statementMs),
    lock_timeout: String(lockMs),
    idle_in_transaction_session_timeout: String(idleInTransactionMs),
  }
}

function connect(
  { url, poolMode, maxConnections }: PostgresOptions,
  limits: Limits,
  onclose: () => void = () => {},
): postgres.Sql {
  return postgres(url, {
    max: maxConnections,
    prepare: poolMode === 'session',
    fetch_types: false,
    connect_timeout: limits.connectSeconds ?? CONNECT_SECONDS,
    idle_timeout: limits.lasting ? 0 : 300,
    max_lifetime: limits.lasting ? null : 3_600,
    backoff: () => 0.25,
    onnotice: () => {},
    onclose,
    types: {
      // All of our bigint columns stay far below 2^53.
      bigint: { to: INT8, from: [INT8], parse: Number, serialize: String },
      // Ours are JSON text already.
      json: { to: JSON_TYPE, from: [JSON_TYPE], parse: JSON.parse, serialize: String },
    },
    connection: { application_name: 'tabulum', ...(poolMode === 'session' && asSettings(limits)) },
  }) as unknown as postgres.Sql
}

export class PostgresDialect implements Dialect {
  readonly #source: Source
  constructor(source: Source) {
    this.#source = source
  }
  createDriver(): Driver {
    return new PostgresDriver(this.#source)
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

/** Any number: all that migrate take the same. */
const MIGRATION_LOCK = 7_821_114_305

/**
 * A migration's lock is its transaction's: it lasts until all is committed, and one that failed has
 * nothing to give back.
 */
export class TransactionalLock extends PostgresAdapter {
  override async acquireMigrationLock(transaction: Kysely<unknown>): Promise<void> {
    await sql`select pg_advisory_xact_lock(${sql.lit(MIGRATION_LOCK)})`.execute(transaction)
  }
  override async releaseMigrationLock(): Promise<void> {}
}

class PostgresDriver implements Driver {
  readonly #source: Source
  constructor(source: Source) {
    this.#source = source
  }
  async init(): Promise<void> {}
  async acquireConnection(): Promise<PostgresConnection> {
    return new PostgresConnection(this.#source)
  }
  async releaseConnection(connection: DatabaseConnection): Promise<void> {
    ours(connection).endSession()
  }
  async beginTransaction(
    connection: DatabaseConnection,
    { isolationLevel }: { isolationLevel?: string },
  ): Promise<void> {
    ours(connection).startSession()
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
    await this.#source.close()
  }
}

function ours(connection: DatabaseConnection): PostgresConnection {
  if (connection instanceof PostgresConnection) return connection
  throw new TypeError('the connection is of another driver')
}

class PostgresConnection implements DatabaseConnection {
  readonly #source: Source
  #session: PostgresSession | undefined

  constructor(source: Source) {
    this.#source = source
  }
  startSession(): void {
    this.#session ??= this.#source.session()
  }
  endSession(): void {
    const session = this.#session
    this.#session = undefined
    if (session !== undefined && session !== this.#source)
      inBackground('end_session', session.close())
  }
  async executeQuery<R>({ sql, parameters }: CompiledQuery): Promise<QueryResult<R>> {
    const rows = await (this.#session ?? this.#source).run(sql, parameters)
    return { rows: [...rows] as R[], numAffectedRows: BigInt(rows.count ?? 0) }
  }
  // biome-ignore lint/correctness/useYield: nothing streams; long reads go by pages.
  async *streamQuery(): AsyncIterableIterator<never> {
    throw new Error('streaming is not supported')
  }
}
