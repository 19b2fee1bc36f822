/**
 * A data directory: made where there is none, found to be usable, and kept from a second process.
 */
import { access, constants, mkdir, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { StartupError } from './startup-error.ts'

/** Another process uses the directory. */
export class DirectoryInUse extends Error {
  override name = 'DirectoryInUse'
}

/** SQLITE_BUSY. */
const BUSY = 5
/** SQLITE_NOTADB and SQLITE_CORRUPT. */
const DAMAGED = new Set([26, 11])
/**
 * Written and removed again, in bytes: where there is no room for this, there is none for a
 * database.
 */
const PROBE_BYTES = 1_048_576

/**
 * Takes the lock of a data directory, which it creates. The lock is SQLite's, one of the operating
 * system on a file: it goes with the process, however that ends. Returns what to call to give it
 * back. Throws `DirectoryInUse`, and `StartupError` with the directory and the cause where there
 * cannot be such a directory or nothing can be kept in it.
 */
export async function lockDirectory(directory: string): Promise<() => void> {
  await inDirectory(directory, async () => {
    await makeDirectory(resolve(directory))
    await access(directory, constants.R_OK | constants.W_OK | constants.X_OK)
  })
  const unlock = await inDirectory(directory, async () => lock(directory))
  try {
    await inDirectory(directory, () => writeProbe(join(directory, 'probe')))
  } catch (error) {
    unlock()
    throw error
  }
  return unlock
}

/**
 * Does something with what is in the directory. Throws `StartupError` with the directory and the
 * cause where the operating system, or SQLite, says that it cannot be done; other errors as they
 * are.
 */
export async function inDirectory<T>(directory: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && typeof error.code === 'string')) throw error
    throw new StartupError(
      `cannot keep data in ${directory} (${error.message}): set DATA_DIR to a directory that this user may write to, with room in it`,
    )
  }
}

function lock(directory: string): () => void {
  const file = join(directory, 'lock')
  const database = new DatabaseSync(file)
  try {
    database.exec('pragma locking_mode = exclusive; pragma journal_mode = memory; begin exclusive')
  } catch (error) {
    database.close()
    const code = error instanceof Error && 'errcode' in error ? Number(error.errcode) : 0
    if (code === BUSY) {
      throw new DirectoryInUse(
        `${directory} is in use by another kernel: stop that one, or set DATA_DIR to another directory`,
      )
    }
    if (DAMAGED.has(code)) {
      throw new StartupError(
        `cannot use ${directory}: ${file} is damaged. It holds no data: remove it while no kernel runs`,
      )
    }
    throw error
  }
  return () => database.close()
}

/**
 * One directory after the other: Node's own `recursive` never returns where a file system takes
 * none, such as /proc.
 */
async function makeDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, { mode: 0o700 })
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code === 'EEXIST' && (await stat(directory)).isDirectory()) return
    const parent = dirname(directory)
    if (code !== 'ENOENT' || (await exists(parent))) throw error
    await makeDirectory(parent)
    await mkdir(directory, { mode: 0o700 })
  }
}

export async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined
}

async function writeProbe(file: string): Promise<void> {
  try {
    await writeFile(file, Buffer.alloc(PROBE_BYTES))
  } finally {
    await rm(file, { force: true })
  }
}
