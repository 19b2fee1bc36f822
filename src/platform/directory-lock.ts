/** Keeps a second process off a data directory. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { StartupError } from './startup-error.ts'

/** Another process uses the directory. */
export class DirectoryInUse extends Error {
  override name = 'DirectoryInUse'
}

/** SQLITE_BUSY. */
const BUSY = 5

/**
 * Takes the lock of a data directory, which it creates. The lock is SQLite's, one of the operating system on a file: it goes with
 * the process, however that ends. Returns what to call to give it back. Throws `DirectoryInUse`, and `StartupError` where there cannot
 * be such a directory.
 */
export async function lockDirectory(directory: string): Promise<() => void> {
  const lock = await openLock(directory)
  try {
    lock.exec('pragma locking_mode = exclusive; pragma journal_mode = memory; begin exclusive')
  } catch (error) {
    lock.close()
    if (error instanceof Error && 'errcode' in error && error.errcode === BUSY) {
      throw new DirectoryInUse(
        `${directory} is in use by another kernel: stop that one, or set DATA_DIR to another directory`,
      )
    }
    throw error
  }
  return () => lock.close()
}

async function openLock(directory: string): Promise<DatabaseSync> {
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 })
    return new DatabaseSync(join(directory, 'lock'))
  } catch (error) {
    throw new StartupError(
      `cannot keep data in ${directory} (${error instanceof Error ? error.message : error}): set DATA_DIR to a directory that this user may write to`,
    )
  }
}
