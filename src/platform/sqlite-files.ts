/**
 * Whether the files of a database that is open are still those that were opened, as SQLite itself
 * does not ask.
 */
import { statSync } from 'node:fs'
import type { Sqlite } from './sqlite.ts'

/**
 * The database, its write-ahead log, and the index of that. All are there for as long as one that
 * writes is open.
 */
const SUFFIXES = ['', '-wal', '-shm']

/**
 * Returns a function that throws when a file has been removed or replaced, as what is written to it
 * from then on is lost, or when the database has been cut short.
 */
export function watchFiles({ connection, sql }: Sqlite): () => void {
  const database = connection.location() ?? ''
  const paths = SUFFIXES.map((suffix) => database + suffix)
  const identities = paths.map(identityOf)
  let size = sizeOf(database)
  return () => {
    const moved = paths.find((path, index) => identityOf(path) !== identities[index])
    if (moved !== undefined) throw new Error(`${moved} has been removed or replaced`)
    const before = size
    size = sizeOf(database)
    // It becomes smaller when somebody else has compacted it, and then has all its pages; while it
    // grows, some are in the log.
    if (size < before && size < pagesOf(sql)) throw new Error(`${database} has been cut short`)
  }
}

function identityOf(path: string): string | undefined {
  const stats = statSync(path, { throwIfNoEntry: false })
  return stats && `${stats.dev} ${stats.ino}`
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0
}

/** In bytes. */
function pagesOf(sql: Sqlite['sql']): number {
  const count = sql.get`pragma page_count`?.page_count as number
  return count * (sql.get`pragma page_size`?.page_size as number)
}
