/**
 * The one connection that writes to the embedded database, in a thread of its own: a flush of the
 * disk holds nobody up who only reads.
 *
 * Writes are functions by name, which the thread knows. What is asked while a batch is under way
 * goes together in the next one, which is one transaction and one flush. Each write of a batch is
 * done whole or not at all; none has been done until the batch is on the disk. What nobody waits
 * for goes with the next that somebody does, so that reading flushes nothing while others write,
 * and ten times a second otherwise.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type MessagePort, Worker } from 'node:worker_threads'
import { Histogram } from 'prom-client'
import { inBackground } from './background.ts'
import { batched } from './batch.ts'
import { type Sqlite, SqliteUnavailable, transaction, verdictOn } from './sqlite.ts'
import { watchFiles } from './sqlite-files.ts'

/**
 * What can be written: takes one value, does it within a transaction that is under way, returns
 * what came of it. No promises.
 */
export type Writes = Record<string, (input: never) => unknown>

interface Call {
  readonly name: string
  readonly input: unknown
}

interface Asked extends Call {
  readonly bytes: number
  readonly mayWait: boolean
}

/** What came of one write. An error is a defect: an outcome that is expected is a value. */
type Outcome = { readonly value: unknown } | { readonly error: Error }

/** Of a batch: what came of each of its writes, or why none has been done. */
type Answer =
  | { readonly outcomes: Outcome[] }
  | { readonly failure: Error; readonly isRuin: boolean }

/**
 * What the thread says: first that it is ready, or why it cannot be; an answer to each batch; and
 * that another process has written.
 */
type Said = { readonly ready: true } | { readonly elsewhere: true } | Answer

/**
 * Writes of one transaction, in number and in bytes of their strings; those that wait for one, in
 * number. Bodies have their own budget.
 */
const MAX_BATCH = 500
const MAX_BATCH_BYTES = 8 * 1_048_576
const MAX_WAITING = 20_000
/**
 * A batch that has taken so long is given up, and nothing more is begun until its answer has come.
 */
const DEADLINE_MS = 10_000
/**
 * What the thread makes and throws away: more than a batch of the greatest size would only be kept.
 */
const YOUNG_MIB = 16
/** While nothing can be written, it is tried so often whether it can be again. */
const PROBE_MS = 1_000
/**
 * How often the thread looks whether another process has written, and whether the files are still
 * there.
 */
const WATCH_MS = 500
/** What nobody waits for is written within so long. */
const MAY_WAIT_MS = 100
/** A write that every thread knows and that changes nothing. */
const PROBE: Call = { name: 'probe', input: undefined }
/** One that none knows. */
const NOTHING: Call = { name: 'nothing', input: undefined }

const duration = new Histogram({
  name: 'tabulum_sqlite_write_seconds',
  help: 'Time of one transaction of the embedded database, with its flush.',
  buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
})

export interface SqliteWriterOptions {
  /** The module that the thread runs, which calls `serveWrites`. */
  readonly thread: URL
  /** For the thread, as `workerData`. */
  readonly data: unknown
  /** The database cannot be relied on any more. Nothing will be written again. */
  readonly onRuin: (error: Error) => void
  /** How long a batch is waited for. */
  readonly deadlineMs?: number
}

export class SqliteWriter<W extends Writes> {
  readonly #thread: Worker
  readonly #onRuin: (error: Error) => void
  readonly #deadlineMs: number
  readonly #run: (call: Asked) => Promise<Outcome>
  /** Of the batch under way. */
  #answered = Promise.withResolvers<Answer>()
  #isUnderWay = false
  /** Why the last batch was not done; undefined if it was. */
  #outage: Error | undefined
  #ruin: Error | undefined
  #isClosing = false
  readonly #written = new Set<() => void>()
  readonly #elsewhere = new Set<() => void>()

  private constructor(thread: Worker, onRuin: (error: Error) => void, deadlineMs: number) {
    this.#thread = thread
    this.#onRuin = onRuin
    this.#deadlineMs = deadlineMs
    this.#run = batched((calls) => this.#write(calls), {
      maxItems: MAX_BATCH,
      maxSize: MAX_BATCH_BYTES,
      size: ({ bytes }) => bytes,
      maxWaiting: MAX_WAITING,
      mayWait: { is: ({ mayWait }) => mayWait, ms: MAY_WAIT_MS },
      wholeTurn: true,
    })
    thread.on('message', (said: Said) => {
      if ('elsewhere' in said) {
        if (this.#isClosing) return
        for (const listener of this.#elsewhere) listener()
      } else if (!('ready' in said)) {
        this.#isUnderWay = false
        this.#answered.resolve(said)
      }
    })
    thread.on('error', (error) => this.#fail(toError(error)))
    thread.on('exit', () => {
      if (!this.#isClosing) this.#fail(new Error('the thread that writes has ended'))
    })
  }

  /** Starts the thread; resolves when it has opened the database. Throws what kept it from that. */
  static async open<W extends Writes>({
    thread,
    data,
    onRuin,
    deadlineMs = DEADLINE_MS,
  }: SqliteWriterOptions): Promise<SqliteWriter<W>> {
    const worker = new Worker(thread, {
      workerData: data,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB },
    })
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    worker.once('message', (said: Said) => ('failure' in said ? reject(said.failure) : resolve()))
    worker.once('error', reject)
    try {
      await promise
    } catch (error) {
      await worker.terminate()
      throw error
    }
    worker.removeAllListeners('error')
    return new SqliteWriter(worker, onRuin, deadlineMs)
  }

  /**
   * Does one write. Resolves when it is on the disk. Throws `SqliteUnavailable`: then it has not
   * been done, or (after the deadline) nobody knows yet. `bytes`: how large the input is, where it
   * may be large. `mayWait`: nobody waits for it.
   */
  async run<N extends keyof W & string>(
    name: N,
    input: Parameters<W[N]>[0],
    { bytes = 0, mayWait = false }: { bytes?: number; mayWait?: boolean } = {},
  ): Promise<ReturnType<W[N]>> {
    const outcome = await this.#run({ name, input, bytes, mayWait })
    if ('error' in outcome) throw outcome.error
    return outcome.value as ReturnType<W[N]>
  }

  /** Calls `listener` after each batch that is on the disk. Returns how to end that. */
  onWritten(listener: () => void): () => void {
    this.#written.add(listener)
    return () => void this.#written.delete(listener)
  }

  /**
   * Calls `listener` within half a second when another process has written. Returns how to end
   * that.
   */
  onWrittenElsewhere(listener: () => void): () => void {
    this.#elsewhere.add(listener)
    return () => void this.#elsewhere.delete(listener)
  }

  /** Why nothing could be written last; undefined where all is well. */
  get outage(): string | undefined {
    return (this.#ruin ?? this.#outage)?.message
  }

  async #write(calls: readonly Call[]): Promise<Outcome[]> {
    if (this.#ruin) throw this.#ruin
    if (this.#isUnderWay) throw new SqliteUnavailable('the disk does not answer')
    const stop = duration.startTimer()
    this.#answered = Promise.withResolvers()
    this.#isUnderWay = true
    this.#thread.postMessage(calls.map(({ name, input }) => ({ name, input })))
    const answer = await withDeadline(this.#answered.promise, this.#deadlineMs)
    stop()
    if ('outcomes' in answer) {
      this.#outage = undefined
      for (const listener of this.#written) listener()
      return answer.outcomes
    }
    const failure = new SqliteUnavailable(
      `the database cannot be written: ${answer.failure.message}`,
      {
        cause: answer.failure,
      },
    )
    if (answer.isRuin) this.#fail(failure)
    if (this.#outage === undefined) inBackground('probe_database', this.#probe())
    this.#outage = failure
    throw failure
  }

  /** Tries until something can be written again. */
  async #probe(): Promise<void> {
    do {
      await sleep(PROBE_MS, undefined, { ref: false })
      await this.#run({ ...PROBE, bytes: 0, mayWait: false }).catch(() => {})
    } while (this.#outage && !this.#ruin && !this.#isClosing)
  }

  #fail(error: Error): void {
    if (this.#ruin) return
    this.#ruin =
      error instanceof SqliteUnavailable
        ? error
        : new SqliteUnavailable(error.message, { cause: error })
    this.#answered.resolve({ failure: error, isRuin: true })
    this.#onRuin(this.#ruin)
  }

  /**
   * Ends the thread, when what was asked for is on the disk or cannot be. Whoever writes must have
   * ended before.
   */
  async close(): Promise<void> {
    if (this.#thread.threadId === -1) return
    await this.#run({ ...NOTHING, bytes: 0, mayWait: false }).catch(() => {})
    this.#isClosing = true
    this.#thread.postMessage(undefined)
    // It may have ended meanwhile, for another reason.
    if (this.#thread.threadId !== -1)
      await new Promise((resolve) => this.#thread.once('exit', resolve))
  }
}

async function withDeadline(answer: Promise<Answer>, ms: number): Promise<Answer> {
  const { promise, resolve } = Promise.withResolvers<Answer>()
  const failure = new Error(`the disk did not answer within ${ms / 1_000} s`)
  const timer = setTimeout(() => resolve({ failure, isRuin: false }), ms)
  try {
    return await Promise.race([answer, promise])
  } finally {
    clearTimeout(timer)
  }
}

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
function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
