/**
 * The thread that writes to the embedded database, as `SqliteWriter` asks it to, and how the two
 * speak with each other. It imports nothing that the thread does not need: each of its modules
 * takes memory a second time.
 */
import type { MessagePort } from 'node:worker_threads'
import { type Sqlite, transaction, verdictOn } from './sqlite.ts'
import { watchFiles } from './sqlite-files.ts'

/**
 * What can be written: takes one value, does it within a transaction that is under way, returns
 * what came of it. No promises.
 */
export type Writes = Record<string, (input: never) => unknown>

export interface Call {
  readonly name: string
  readonly input: unknown
}

/** What came of one write. An error is a defect: an outcome that is expected is a value. */
export type Outcome = { readonly value: unknown } | { readonly error: Error }

/** Of a batch: what came of each of its writes, or why none has been done. */
export type Answer =
  | { readonly outcomes: Outcome[] }
  | { readonly failure: Error; readonly isRuin: boolean }

/**
 * What the thread says: first that it is ready, or why it cannot be; an answer to each batch; and
 * that another process has written.
 */
export type Said = { readonly ready: true } | { readonly elsewhere: true } | Answer

/**
 * How often the thread looks whether another process has written, and whether the files are still
 * there.
 */
const WATCH_MS = 500
/** A write that every thread knows and that changes nothing. */
export const PROBE: Call = { name: 'probe', input: undefined }

/** The thread's side: does what it is sent, a message a transaction, until it is sent nothing. */
export function serveWrites(
  port: MessagePort,
  open: () => { sqlite: Sqlite; writes: Writes },
): void {
  let opened: ReturnType<typeof open>
  try {
    opened = open()
  } catch (error) {
    port.postMessage({ failure: toError(error), isRuin: true } satisfies Said)
    return
  }
  const { sqlite, writes } = opened
  const known: Writes = { ...writes, [PROBE.name]: () => touch(sqlite) }
  let version = dataVersion(sqlite)
  const checkFiles = watchFiles(sqlite)
  // What is thrown here ends the thread, and with it all that relies on it.
  const watching = setInterval(() => {
    checkFiles()
    if (dataVersion(sqlite) === version) return
    version = dataVersion(sqlite)
    port.postMessage({ elsewhere: true } satisfies Said)
  }, WATCH_MS)
  port.on('message', (calls: readonly Call[] | undefined) => {
    if (calls) port.postMessage(runBatch(sqlite, known, calls))
    else {
      clearInterval(watching)
      sqlite.connection.close()
      port.close()
    }
  })
  port.postMessage({ ready: true } satisfies Said)
}

function runBatch({ connection, sql }: Sqlite, writes: Writes, calls: readonly Call[]): Answer {
  const attempt = ({ name, input }: Call): Outcome => {
    sql.run`savepoint call`
    try {
      const value = writes[name]?.(input as never)
      sql.run`release call`
      return { value }
    } catch (error) {
      if (verdictOn(error) !== 'defect' || !connection.isTransaction) throw error
      sql.run`rollback to call`
      sql.run`release call`
      return { error: toError(error) }
    }
  }
  try {
    return { outcomes: transaction(connection, () => calls.map(attempt)) }
  } catch (error) {
    return { failure: toError(error), isRuin: verdictOn(error) === 'ruin' }
  }
}

/** Another number after each commit of another connection. */
function dataVersion({ sql }: Sqlite): unknown {
  return sql.get`pragma data_version`?.data_version
}

/** Writes what is there already. */
function touch({ connection }: Sqlite): void {
  const { user_version: version } = connection.prepare('pragma user_version').get() ?? {}
  connection.exec(`pragma user_version = ${version}`)
}

/** With the stack and without what else an error of SQLite carries. */
export function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
