/**
 * Appending to the stream: who waits for what, repeats, and noticing that the log has lost
 * something.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { headers, type JetStreamClient, type MsgHdrs, NatsError } from 'nats'
import { Counter, Gauge, Histogram } from 'prom-client'
import { SilenceTimeout } from '../platform/silence-timeout.ts'
import { messageOf, seqOf, subjectOf, toLine } from './batch.ts'
import { classOf, type EventClass, type NewEvent } from './event.ts'
import {
  type Appended,
  type AppendOptions,
  DEDUPLICATION_WINDOW_MS,
  LogUnavailable,
} from './event-log.ts'
import { ORIGIN } from './event-stream.ts'
import { BATCH_CHARACTERS, type Entry, Outbox } from './outbox.ts'

/** A log that confirms nothing is waited for so long, retries included: a client is waiting. */
const APPEND_TIMEOUT_MS = 1_500
/**
 * What has happened already is tried for longer; a repeat is known as one for
 * DEDUPLICATION_WINDOW_MS.
 */
const PERSISTENT_TIMEOUT_MS = DEDUPLICATION_WINDOW_MS - 20_000
const RETRY_MS = 50
/** One try: long enough for a busy quorum, short enough to try another server. */
export const TRY_TIMEOUT_MS = 700
/** Large events are waited for longer: a millisecond for each 2 KiB, or 3 s for the largest. */
const BYTES_PER_MS = 2_097
/** Read events, which nobody waits for, are collected for so long. */
const READS_LINGER_MS = 250
/** And tried for so long: an election in NATS takes up to 9 s. */
const READS_TIMEOUT_MS = 10_000
/** A process that ends waits so long for what it has yet to append. */
const FLUSH_TIMEOUT_MS = 3_000
/** Events that go alone, under way at once, in number and in characters. */
const MAX_ALONE = 10_000
const MAX_ALONE_CHARACTERS = 64 * 1_048_576

const appendSeconds = new Histogram({
  name: 'tabulum_append_seconds',
  help: 'Time of one append to the event log that somebody waits for, its retries included.',
  buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2],
})
const appendFailures = new Counter({
  name: 'tabulum_append_failures_total',
  help: 'Appends that the event log did not confirm in time.',
})
const batchEvents = new Histogram({
  name: 'tabulum_log_batch_events',
  help: 'Events in one message of the stream.',
  buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000],
})
const waitingEvents = new Gauge({
  name: 'tabulum_log_waiting_events',
  help: 'Events of this process that wait to be sent to the event log.',
})

interface Outgoing {
  readonly eventClass: EventClass
  readonly entries: readonly Entry[]
  /** What the server knows a repeat by. */
  readonly id: string
  /** Others may append with the same id. */
  readonly isShared: boolean
  readonly timeoutMs: number
}

export class BatchWriter {
  readonly #stream: JetStreamClient
  readonly #origin: string | undefined
  readonly #outboxes: Readonly<Record<EventClass | 'persistent', Outbox>>
  /** The highest sequence number that is known to be in the log. */
  #highest = 0
  readonly #silence = new SilenceTimeout()
  /** An event got a number that was taken: the log has lost what was there. */
  #hasLost = false
  #alone = 0
  #aloneCharacters = 0
  #turn: Promise<void> | undefined

  /** @param origin names this process in the events that it appends and waits for */
  constructor(stream: JetStreamClient, origin: string | undefined) {
    this.#stream = stream
    this.#origin = origin
    const outbox = (eventClass: EventClass, timeoutMs: number, lingerMs?: number) =>
      new Outbox({
        send: async (entries) =>
          (await this.#publish({ eventClass, entries, timeoutMs, ...ownId() })).seq,
        isLate: (entry) => performance.now() > this.#deadlineOf(entry, timeoutMs),
        ...(lingerMs !== undefined && { lingerMs }),
      })
    this.#outboxes = {
      registry: outbox('registry', APPEND_TIMEOUT_MS),
      message: outbox('message', APPEND_TIMEOUT_MS),
      state: outbox('state', APPEND_TIMEOUT_MS),
      read: outbox('read', READS_TIMEOUT_MS, READS_LINGER_MS),
      // Apart from what may be given up, so that each batch has one time-out.
      persistent: outbox('message', PERSISTENT_TIMEOUT_MS),
    }
    waitingEvents.set(0)
  }

  /** The highest sequence number that is known to be in the log. */
  get highest(): number {
    return this.#highest
  }

  /**
   * Takes note that the log had an event at `seq`: a lower number from now on shows that the log
   * has lost what was confirmed.
   */
  heardOf(seq: number): void {
    if (seq <= this.#highest) return
    this.#highest = seq
    // Whoever appended it, the log confirms.
    this.#silence.answered()
  }

  /** As `EventLog.append`. */
  async append(event: NewEvent, options: AppendOptions = {}): Promise<Appended> {
    const { id, notAfter = Number.POSITIVE_INFINITY, isPersistent = false, ...routing } = options
    const eventClass = classOf(event.type)
    const entry = { line: toLine(event, routing), start: performance.now(), notAfter }
    const stop = eventClass === 'read' || isPersistent ? () => {} : appendSeconds.startTimer()
    try {
      if (id !== undefined || entry.line.length > BATCH_CHARACTERS) {
        const timeoutMs = isPersistent ? PERSISTENT_TIMEOUT_MS : APPEND_TIMEOUT_MS
        const naming = id === undefined ? ownId() : { id, isShared: true }
        return await this.#appendAlone(
          { eventClass, entries: [entry], timeoutMs, ...naming },
          entry.line.length,
        )
      }
      const adding = this.#outboxes[isPersistent ? 'persistent' : eventClass].add(entry)
      this.#count()
      return { seq: await adding, duplicate: false }
    } catch (error) {
      appendFailures.inc()
      throw error
    } finally {
      stop()
    }
  }

  /** Sends what waits, and resolves when all is stored or given up, or after 3 s. */
  async flush(): Promise<void> {
    const flushing = Promise.all(Object.values(this.#outboxes).map((outbox) => outbox.flush()))
    await Promise.race([flushing, sleep(FLUSH_TIMEOUT_MS, undefined, { ref: false })])
  }

  #count(): void {
    waitingEvents.set(Object.values(this.#outboxes).reduce((sum, { waiting }) => sum + waiting, 0))
  }

  async #appendAlone(batch: Outgoing, characters: number): Promise<Appended> {
    if (this.#alone >= MAX_ALONE || this.#aloneCharacters + characters > MAX_ALONE_CHARACTERS)
      throw new LogUnavailable('too much is under way to the event log')
    this.#alone++
    this.#aloneCharacters += characters
    try {
      await this.#endOfTurn()
      return await this.#publish(batch)
    } finally {
      this.#alone--
      this.#aloneCharacters -= characters
    }
  }

  #deadlineOf({ start, notAfter }: Entry, timeoutMs: number): number {
    return Math.min(notAfter, this.#silence.deadline(start, timeoutMs))
  }

  /** Stores a batch. Returns the sequence number of its first event. */
  async #publish({ eventClass, entries, id, isShared, timeoutMs }: Outgoing): Promise<Appended> {
    this.#count()
    batchEvents.observe(entries.length)
    const taken = messageOf(this.#highest)
    const payload = Buffer.from(entries.map(({ line }) => line).join('\n'))
    const start = Math.min(...entries.map((entry) => entry.start))
    const notAfter = Math.min(...entries.map((entry) => entry.notAfter))
    const extraMs = payload.length / BYTES_PER_MS
    /**
     * For how long this process was held up itself: confirmations that came meanwhile were given up
     * unread.
     */
    let heldUpMs = 0
    const deadline = () => this.#silence.deadline(start + heldUpMs, timeoutMs + extraMs)
    const subject = subjectOf(eventClass)
    const options = { msgID: id, headers: this.#headersOf(eventClass) }
    for (;;) {
      if (performance.now() > Math.min(deadline(), notAfter))
        throw new LogUnavailable('the event log did not confirm in time')
      const timeout = Math.max(
        1,
        Math.min(TRY_TIMEOUT_MS + extraMs, deadline() - performance.now()),
      )
      const latest = performance.now() + timeout
      try {
        // The same id on each try, so that one that was stored although its confirmation was lost
        // is stored once.
        const { seq: message, duplicate } = await this.#stream.publish(subject, payload, {
          ...options,
          timeout,
        })
        this.#silence.answered()
        // 0: an earlier try is on its way to the quorum. Its number is not known yet, nor whether
        // it will be stored.
        if (message > 0) {
          // What is stored now cannot have a number that was taken, nor can a repeat of what is
          // this one's alone.
          if (message <= taken && (!duplicate || !isShared)) this.#hasLost = true
          if (this.#hasLost)
            throw new LogUnavailable('the event log has lost events that were confirmed')
          this.heardOf(seqOf(message, entries.length - 1))
          return { seq: seqOf(message, 0), duplicate: duplicate && isShared }
        }
        await sleep(RETRY_MS)
      } catch (error) {
        if (!(error instanceof NatsError)) throw error
        heldUpMs += Math.max(0, performance.now() - latest)
        if (performance.now() + RETRY_MS > deadline())
          throw new LogUnavailable('the event log cannot be written', { cause: error })
        await sleep(RETRY_MS)
      }
    }
  }

  #headersOf(eventClass: EventClass): MsgHdrs {
    const all = headers()
    if (this.#origin !== undefined && eventClass !== 'read') all.set(ORIGIN, this.#origin)
    return all
  }

  /**
   * Resolves when the event loop has got through what came in together. The library writes to its
   * connection once for all that is published in a row, so appends that wait for each other here
   * share that write.
   */
  #endOfTurn(): Promise<void> {
    this.#turn ??= new Promise((resolve) => {
      setImmediate(() => {
        this.#turn = undefined
        resolve()
      })
    })
    return this.#turn
  }
}

/** The id of a batch that nobody else has. */
function ownId(): Pick<Outgoing, 'id' | 'isShared'> {
  return { id: randomUUID(), isShared: false }
}
