/** The database of a data directory, for those who use it beside a kernel. */
import { join } from 'node:path'
import type { Config } from '../config.ts'
import { exists } from '../platform/directory-lock.ts'
import { openSqlite, type Sqlite, schemaVersion, verdictOn } from '../platform/sqlite.ts'
import { StartupError } from '../platform/startup-error.ts'

/** The database of a data directory. */
export function databaseFile(config: Config): string {
  return join(config.DATA_DIR, 'tabulum.db')
}

/**
 * Does something with the database of a data directory, which a kernel may be using, and which is
 * not written to. Throws `StartupError` where there is none, or where it cannot be used.
 */
export function readDatabase<T>(
  config: Config,
  work: (sqlite: Sqlite) => T | Promise<T>,
): Promise<T> {
  return withDatabase(config, { readOnly: true }, work)
}

/** As `readDatabase`, to write something small: a kernel waits meanwhile. */
export function changeDatabase<T>(
  config: Config,
  work: (sqlite: Sqlite) => T | Promise<T>,
): Promise<T> {
  return withDatabase(config, { readOnly: false }, work)
}

async function withDatabase<T>(
  config: Config,
  options: { readOnly: boolean },
  work: (sqlite: Sqlite) => T | Promise<T>,
): Promise<T> {
  const file = databaseFile(config)
  await refuseOldData(config.DATA_DIR)
  const missing = `there is no database in ${config.DATA_DIR}: set DATA_DIR to the directory of a kernel`
  if (!(await exists(file))) throw new StartupError(missing)
  let sqlite: Sqlite | undefined
  try {
    sqlite = openSqlite(file, options)
    // It was made by a kernel that ended at once.
    if (schemaVersion(sqlite.connection) === 0) throw new StartupError(missing)
    return await work(sqlite)
  } catch (error) {
    throw verdictOn(error) === 'defect' ? error : unusable(file, error)
  } finally {
    sqlite?.connection.close()
  }
}

/** @param cause what kept it from being used */
export function unusable(file: string, cause: unknown): StartupError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new StartupError(`the database ${file} cannot be used: ${reason}`, { cause })
}

/** Throws `StartupError` where a directory has what development versions before 0.1.0 kept. */
export async function refuseOldData(directory: string): Promise<void> {
  const old = join(directory, 'database')
  if (await exists(join(old, 'PG_VERSION'))) {
    throw new StartupError(
      `${old} holds data of an earlier kind of embedded storage (PGlite), which this version cannot read: set DATA_DIR to another directory`,
    )
  }
}
