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
import { Worker } from 'node:worker_threads'
import { Histogram } from 'prom-client'
import { inBackground } from './background.ts'
import { batched } from './batch.ts'
import { SqliteUnavailable } from './sqlite.ts'
import {
  type Answer,
  type Call,
  type Outcome,
  PROBE,
  type Said,
  toError,
  type Writes,
} from './sqlite-writes.ts'

interface Asked extends Call {
  readonly bytes: number
  readonly mayWait: boolean
}

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
/** What nobody waits for is written within so long. */
const MAY_WAIT_MS = 100
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
