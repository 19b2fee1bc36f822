/**
 * SQLite, which embedded storage is kept in: opening it, its statements, its schema, and what its
 * errors mean.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync, type SQLTagStore } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import { StartupError } from './startup-error.ts'
import { Unavailable } from './unavailable.ts'

/** One connection. What it is asked is done before the call returns. */
export interface Sqlite {
  readonly connection: DatabaseSync
  /** Statements as templates, each prepared once: `sql.get`select … where key = ${key}``. */
  readonly sql: Pick<SQLTagStore, 'get' | 'all' | 'iterate' | 'run'>
}

/**
 * The embedded database cannot take or give anything now: its disk is full, or another process has
 * it locked.
 */
export class SqliteUnavailable extends Unavailable {
  override name = 'SqliteUnavailable'
}

const MIGRATIONS = join(import.meta.dirname, '../../migrations/sqlite')
/** How long a statement waits for another process that writes: `revoke`. */
const BUSY_MS = 5_000
/**
 * The write-ahead log is copied into the database from so many pages of 4 KiB on, and cut to so
 * many bytes afterwards.
 */
const CHECKPOINT_PAGES = 16_384
const MAX_WAL_BYTES = 128 * 1_048_576
/** Pages that a connection keeps in memory, in KiB. */
const CACHE_KIB = 8_192
/** Statements that a connection keeps prepared; more than there are. */
const MAX_STATEMENTS = 500

/**
 * Opens the database in `file`. One that writes creates it; each of its commits is on the disk when
 * it returns (`synchronous=FULL`), and only then others read it. What is deleted is overwritten: it
 * may have been illegal to host. Throws what SQLite says, with its `errcode`.
 */
export function openSqlite(
  file: string,
  { readOnly = false }: { readOnly?: boolean } = {},
): Sqlite {
  const connection = new DatabaseSync(file, { readOnly, timeout: BUSY_MS })
  try {
    if (!readOnly) {
      connection.exec(`
        pragma journal_mode = wal;
        pragma synchronous = full;
        pragma secure_delete = on;
        pragma wal_autocheckpoint = ${CHECKPOINT_PAGES};
        pragma journal_size_limit = ${MAX_WAL_BYTES};`)
    }
    connection.exec(`pragma cache_size = -${CACHE_KIB}; pragma temp_store = file;`)
    return { connection, sql: connection.createTagStore(MAX_STATEMENTS) }
  } catch (error) {
    connection.close()
    throw error
  }
}

/**
 * Brings the schema up to date: applies the files of `migrations/sqlite` that it lacks, each once,
 * in a transaction. Throws where it has been given more than those, by a later version.
 */
export function migrateSqlite({ connection }: Sqlite): void {
  const steps = stepNames()
  transaction(connection, () => {
    const version = schemaVersion(connection)
    if (version > steps.length) throw new Error('a later version of the kernel has used it')
    for (const step of steps.slice(version))
      connection.exec(readFileSync(join(MIGRATIONS, step), 'utf8'))
    connection.exec(`pragma user_version = ${steps.length}`)
  })
}

/**
 * For a command that writes beside a kernel. Throws `StartupError` where the database is not of
 * this version.
 */
export function checkSqliteSchema({ connection }: Sqlite): void {
  const version = schemaVersion(connection)
  const needed = stepNames().length
  if (version === needed) return
  throw new StartupError(
    version < needed
      ? 'the database was made by an earlier version of the kernel: start serve of this version on it first'
      : 'the database was made by a later version of the kernel: use that one',
  )
}

function stepNames(): string[] {
  return readdirSync(MIGRATIONS)
    .filter((file) => file.endsWith('.sql'))
    .sort()
}

/**
 * So long those who read and write are waited for, so that what is in the write-ahead log can be
 * copied.
 */
const TRUNCATE_MS = 30_000
const TRUNCATE_POLL_MS = 100

/**
 * Copies the write-ahead log into the database, and cuts it to nothing. Whether that was possible:
 * others may have been reading what is older, all the time.
 */
export async function truncateLog({ connection }: Pick<Sqlite, 'connection'>): Promise<boolean> {
  const deadline = performance.now() + TRUNCATE_MS
  for (;;) {
    if (connection.prepare('pragma wal_checkpoint(truncate)').get()?.busy === 0) return true
    if (performance.now() > deadline) return false
    await sleep(TRUNCATE_POLL_MS)
  }
}

/** How many steps have been applied. */
export function schemaVersion(connection: DatabaseSync): number {
  return Number(connection.prepare('pragma user_version').get()?.user_version)
}

/**
 * Runs `work` in a transaction that waits for no other later on. What it throws undoes all of it.
 */
export function transaction<T>(connection: DatabaseSync, work: () => T): T {
  connection.exec('begin immediate')
  try {
    const result = work()
    connection.exec('commit')
    return result
  } catch (error) {
    // Some errors, such as a full disk, may have ended it already.
    if (connection.isTransaction) connection.exec('rollback')
    throw error
  }
}

/**
 * What an error says of the database.
 *
 * - `defect`: the statement or what it was given is wrong; the database is well
 * - `outage`: nothing was done; the same may work later
 * - `ruin`: the database, or what this process knows of it, cannot be relied on any more
 */
export type Verdict = 'defect' | 'outage' | 'ruin'

/** Primary result codes, https://sqlite.org/rescode.html: BUSY, LOCKED, NOMEM, FULL. */
const OUTAGES = new Set([5, 6, 7, 13])
/**
 * Extended ones. IOERR_WRITE: a quota, or a limit on the size of files. IOERR_SHMSIZE: the index of
 * the write-ahead log cannot grow. What was written is not committed.
 */
const FULL_DISKS = new Set([778, 4874])
/** READONLY, IOERR, CORRUPT, CANTOPEN, PROTOCOL, NOTADB. */
const RUINS = new Set([8, 10, 11, 14, 15, 26])

export function verdictOn(error: unknown): Verdict {
  if (!(error instanceof Error && 'errcode' in error)) return 'defect'
  const code = Number(error.errcode)
  const primary = code & 0xff
  if (OUTAGES.has(primary) || FULL_DISKS.has(code)) return 'outage'
  return RUINS.has(primary) ? 'ruin' : 'defect'
}

export interface Attempting {
  /** Asks the connection itself something, with the same meaning of errors. */
  attempt<T>(ask: () => T): T
}

/**
 * The same connection for who serves requests from it: an outage is thrown as `SqliteUnavailable`,
 * and so is a ruin, which is told first. A defect is thrown as it is.
 */
export function forServing(
  { connection, sql }: Sqlite,
  onRuin: (error: Error) => void,
): Sqlite & Attempting {
  const meaning = (error: unknown): unknown => {
    const verdict = verdictOn(error)
    if (verdict === 'defect' || !(error instanceof Error)) return error
    const unavailable = new SqliteUnavailable(`the database cannot be read: ${error.message}`, {
      cause: error,
    })
    if (verdict === 'ruin') onRuin(unavailable)
    return unavailable
  }
  const attempt = <T>(ask: () => T): T => {
    try {
      return ask()
    } catch (error) {
      throw meaning(error)
    }
  }
  return {
    connection,
    attempt,
    sql: {
      get: (...query) => attempt(() => sql.get(...query)),
      all: (...query) => attempt(() => sql.all(...query)),
      run: (...query) => attempt(() => sql.run(...query)),
      *iterate(...query) {
        try {
          return yield* sql.iterate(...query)
        } catch (error) {
          throw meaning(error)
        }
      },
    },
  }
}
