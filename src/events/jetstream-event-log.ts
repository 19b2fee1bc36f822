/** The event log in a JetStream stream: replicated, on disk, one total order for the whole cluster. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type JetStreamClient,
  type JetStreamManager,
  type NatsConnection,
  NatsError,
  nanos,
  type StreamState,
} from 'nats'
import { Counter, Histogram } from 'prom-client'
import { inBackground } from '../platform/background.ts'
import { Patience } from '../platform/patience.ts'
import { NotThereYet, StartupError } from '../platform/startup-error.ts'
import { ChangeFeeds } from './change-feed.ts'
import { changesOf, eventSubject, type LoggedEvent, type NewEvent } from './event.ts'
import {
  type Appended,
  type AppendOptions,
  type EventLog,
  EventLost,
  type FollowOptions,
  LogUnavailable,
  PAGE_BYTES,
} from './event-log.ts'
import {
  ALL_CHANGES,
  addConsumer,
  deleteConsumer,
  ensureStream,
  eventHeaders,
  lastSeqOf,
  STREAM,
  type StoredEvent,
  toStoredEvent,
  unavailable,
} from './event-stream.ts'
import { SkippedPlaces } from './skipped-places.ts'

/** A log that confirms nothing is waited for so long, retries included: a client is waiting. */
const APPEND_TIMEOUT_MS = 1_500
const RETRY_MS = 50
/** One try: long enough for a busy quorum, short enough to try another server. */
const TRY_TIMEOUT_MS = 700
/** Large events are waited for longer: a millisecond for each 2 KiB, or 3 s for the largest. */
const BYTES_PER_MS = 2_097
/** After this no other try to read begins. */
const READ_TIMEOUT_MS = 1_000
/** How long the server may take to answer for the state of a consumer or stream. */
const API_TIMEOUT_MS = 1_000
/** The last event on a subject comes whole, in base64: up to 8 MiB. */
const LAST_EVENT_TIMEOUT_MS = 3_000
/** Of a small one. */
const PROMPT_TIMEOUT_MS = 500
/** The next event of a page, which may be as large. */
const PAGED_EVENT_TIMEOUT_MS = 3_000
/** So many events are read one by one: a consumer, which more take, is for the whole cluster to agree on. */
const MAX_DIRECT_READS = 64
/** So many of them at the same time, each of which may be of 8 MiB. */
const DIRECT_READS_AT_ONCE = 8
/** So often in a row is one event not found before it is looked for on each replica by itself: one may lag for a moment. */
const DIRECT_GET_TRIES = 10
/** What the server may send of a page at once; more than one event of the greatest size. */
const FETCH_BYTES = 16 * 1_048_576

/** The leader says something to each replica every second, and hears of it. */
const SILENT_MS = 10_000

/** Of an answer to a direct read. */
const NOT_FOUND = 404

const CHANGING = new Set(changesOf())

const appendSeconds = new Histogram({
  name: 'tabulum_append_seconds',
  help: 'Time of one append to the event log, its retries included.',
  buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2],
})
const appendFailures = new Counter({
  name: 'tabulum_append_failures_total',
  help: 'Appends that the event log did not confirm in time.',
})

export class JetStreamEventLog implements EventLog {
  readonly #connection: NatsConnection
  readonly #origin: string | undefined
  readonly #stream: JetStreamClient
  readonly #manager: JetStreamManager
  readonly #lastChange: () => Promise<number>
  readonly #feeds: ChangeFeeds
  readonly #skipped: SkippedPlaces
  #turn: Promise<void> | undefined
  /** The highest place that is known to be taken. */
  #highest = 0
  readonly #patience = new Patience()
  /** An event got a place that was taken: the log has lost what was there. */
  #hasLost = false

  private constructor(
    connection: NatsConnection,
    manager: JetStreamManager,
    lastChange: () => Promise<number>,
    origin?: string,
  ) {
    this.#connection = connection
    this.#origin = origin
    this.#stream = connection.jetstream({ timeout: TRY_TIMEOUT_MS })
    this.#manager = manager
    this.#lastChange = lastChange
    this.#skipped = new SkippedPlaces(manager)
    this.#feeds = new ChangeFeeds(this.#stream, manager, this.#skipped)
  }

  /**
   * Opens the log, creating the stream where there is none. `origin` names this process in the events that it appends and waits for. Throws
   * `StartupError` where the cluster cannot hold the log.
   */
  static async open(connection: NatsConnection, replicas: number, origin?: string): Promise<JetStreamEventLog> {
    const manager = await connection.jetstreamManager({ timeout: API_TIMEOUT_MS, checkAPI: false })
    try {
      await ensureStream(manager, replicas)
    } catch (error) {
      if (error instanceof StartupError) throw error
      const reason = error instanceof Error ? error.message : String(error)
      throw new NotThereYet(
        `JetStream cannot hold the stream ${STREAM} with ${replicas} replicas (${reason}): start as many servers with JetStream, or set EVENTS_REPLICAS`,
      )
    }
    const prompt = await connection.jetstreamManager({ timeout: PROMPT_TIMEOUT_MS, checkAPI: false })
    const patient = await connection.jetstreamManager({ timeout: LAST_EVENT_TIMEOUT_MS, checkAPI: false })
    const lastChange = () => lastSeqOf({ prompt, patient }, ALL_CHANGES)
    return new JetStreamEventLog(connection, manager, lastChange, origin)
  }

  /** Takes note that the log had an event at `seq`: one that gets a lower place from now on shows that the log has lost what was confirmed. */
  heardOf(seq: number): void {
    if (seq <= this.#highest) return
    this.#highest = seq
    // Whoever appended it, the log confirms.
    this.#patience.answered()
  }

  async append(
    event: NewEvent,
    { id, notAfter = Number.POSITIVE_INFINITY, ...routing }: AppendOptions = {},
  ): Promise<Appended> {
    const stop = appendSeconds.startTimer()
    const start = performance.now()
    const taken = this.#highest
    const payload = JSON.stringify({ ts: event.ts, type: event.type, agent: event.agent, data: event.data })
    // In characters, which are as many bytes but for those beyond ASCII.
    const extraMs = payload.length / BYTES_PER_MS
    /** For how long this process was held up itself: confirmations that came meanwhile were given up unread. */
    let heldUpMs = 0
    const deadline = () => this.#patience.deadline(start + heldUpMs, APPEND_TIMEOUT_MS + extraMs)
    const subject = eventSubject(event, routing.via)
    // The same id on each try, so that one that was stored although its confirmation was lost is stored once.
    const msgID = id ?? randomUUID()
    await this.#endOfTurn()
    const headers = eventHeaders(routing, CHANGING.has(event.type) ? this.#origin : undefined)
    try {
      for (;;) {
        if (performance.now() > Math.min(deadline(), notAfter))
          throw new LogUnavailable('the event log did not confirm in time')
        const timeout = Math.max(1, Math.min(TRY_TIMEOUT_MS + extraMs, deadline() - performance.now()))
        const latest = performance.now() + timeout
        try {
          const { seq, duplicate } = await this.#stream.publish(subject, payload, { msgID, timeout, headers })
          this.#patience.answered()
          // 0: an earlier try is on its way to the quorum. Its place is not known yet, nor whether it will be stored.
          if (seq > 0) {
            // An event that is stored now cannot have a place that was taken, nor can a repeat of one that is this one's alone.
            if (seq <= taken && (!duplicate || id === undefined)) this.#hasLost = true
            if (this.#hasLost) throw new LogUnavailable('the event log has lost events that were confirmed')
            this.heardOf(seq)
            return { seq, duplicate }
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
    } catch (error) {
      appendFailures.inc()
      throw error
    } finally {
      stop()
    }
  }

  /**
   * Resolves when the event loop has got through what came in together. The library writes to its connection once for all that is published
   * in a row, so appends that wait for each other here share that write.
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

  async read(since: number, limit: number): Promise<LoggedEvent[]> {
    return this.#persistently(() => this.#read(since, limit))
  }

  async #read(since: number, limit: number): Promise<LoggedEvent[]> {
    const { last_seq: last } = await this.#state()
    // A leader that was just elected, or does not know yet that another was, may not know of all that was confirmed.
    if (last < this.#highest) throw new LogUnavailable(`the event log ends at ${last}, before ${this.#highest}`)
    const start = since + 1
    const available = Math.min(limit, last - start + 1)
    if (available <= 0) return []
    if (available <= MAX_DIRECT_READS) return this.#readOneByOne(start, available)
    return (await this.#readInTurn(start, available)).map(({ event }) => event)
  }

  async #readOneByOne(start: number, count: number): Promise<LoggedEvent[]> {
    const page: LoggedEvent[] = []
    for (let bytes = 0; page.length < count && bytes < PAGE_BYTES; ) {
      const next = start + page.length
      const length = Math.min(DIRECT_READS_AT_ONCE, count - page.length)
      const reads = Array.from({ length }, (_, index) => this.#get(next + index, PAGED_EVENT_TIMEOUT_MS))
      for (const stored of await Promise.all(reads)) {
        if (bytes >= PAGE_BYTES) break
        page.push(stored.event)
        bytes += stored.bytes
      }
    }
    return page
  }

  async #readInTurn(start: number, count: number): Promise<StoredEvent[]> {
    const name = await addConsumer(this.#manager, start - 1)
    let silence: NodeJS.Timeout | undefined
    try {
      const consumer = await this.#stream.consumers.get(STREAM, name)
      const messages = await consumer.consume({ max_bytes: FETCH_BYTES, expires: PAGED_EVENT_TIMEOUT_MS })
      silence = setTimeout(() => messages.stop(), PAGED_EVENT_TIMEOUT_MS)
      const page: StoredEvent[] = []
      let bytes = 0
      for await (const message of messages) {
        silence.refresh()
        const next = start + page.length
        if (message.seq !== next) {
          // What comes before the hole is a page; who asks for the next one meets it.
          if (page.length > 0) break
          const { cluster } = await consumer.info(true)
          throw await this.#skipped.skipped(next, cluster?.leader ?? '')
        }
        const stored = toStoredEvent(message.seq, message)
        page.push(stored)
        bytes += stored.bytes
        if (page.length === count || bytes >= PAGE_BYTES) break
      }
      // An empty answer means the end of the log.
      if (page.length === 0) throw new LogUnavailable('the event log did not answer in time')
      return page
    } catch (error) {
      throw unavailable(error)
    } finally {
      clearTimeout(silence)
      inBackground('delete_consumer', deleteConsumer(this.#manager, name))
    }
  }

  async get(seqs: readonly number[]): Promise<LoggedEvent[]> {
    return Promise.all(seqs.map(async (seq) => (await this.#get(seq)).event))
  }

  /** Any replica answers, and one that lags, or has lost something, may not have it: then they are asked one by one. */
  async #get(seq: number, timeout = TRY_TIMEOUT_MS): Promise<StoredEvent> {
    for (let tries = 0; tries < DIRECT_GET_TRIES; tries++) {
      const stored = await this.#persistently(() => this.#directGet(seq, timeout))
      if (stored !== undefined) return stored
      await sleep(RETRY_MS)
    }
    const [found] = await this.#persistently(() => this.#readInTurn(seq, 1))
    if (found === undefined) throw new LogUnavailable(`event ${seq} was not found`)
    return found
  }

  /** Tries again for a second: where a server is out, or lacks something, another may answer. */
  async #persistently<T>(run: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + READ_TIMEOUT_MS
    for (;;) {
      try {
        return await run()
      } catch (error) {
        if (error instanceof EventLost || performance.now() > deadline) throw unavailable(error)
        await sleep(RETRY_MS)
      }
    }
  }

  /** One request to whichever replica is nearest (ADR-31 of the NATS architecture); the library's own call is not in its public types. */
  async #directGet(seq: number, timeout: number): Promise<StoredEvent | undefined> {
    const reply = await this.#connection.request(`$JS.API.DIRECT.GET.${STREAM}`, JSON.stringify({ seq }), { timeout })
    const subject = reply.headers?.get('Nats-Subject')
    if (!subject && reply.headers?.code === NOT_FOUND) return undefined
    if (!subject) throw new LogUnavailable(`event ${seq}: ${reply.headers?.description ?? 'no answer'}`)
    return toStoredEvent(seq, { subject, data: reply.data, headers: reply.headers })
  }

  async *follow(since: number, signal: AbortSignal, options: FollowOptions = {}): AsyncIterable<LoggedEvent[]> {
    try {
      yield* this.#feeds.follow(since, signal, options)
    } catch (error) {
      throw unavailable(error)
    }
  }

  /** The place of an event that was found in the last 10 s to be lost on every replica: nothing behind it is read. */
  get lost(): number | undefined {
    return this.#skipped.lost
  }

  async lastSeq(): Promise<number> {
    return (await this.#state()).last_seq
  }

  /** Bytes that the log takes on each server that keeps a copy of it. */
  async bytes(): Promise<number> {
    return (await this.#state()).bytes
  }

  /**
   * Other replicas than the one that leads, as that one sees them: how many take no part, and by how many events the last is behind. One that has met
   * a write error, or has switched JetStream off, is not told of as offline: it is silent.
   */
  async replicas(): Promise<{ offline: number; lagEvents: number }> {
    try {
      const replicas = (await this.#manager.streams.info(STREAM)).cluster?.replicas ?? []
      return {
        offline: replicas.filter(({ offline, active }) => offline || nanos(SILENT_MS) < active).length,
        lagEvents: Math.max(0, ...replicas.map(({ lag }) => lag ?? 0)),
      }
    } catch (error) {
      throw unavailable(error)
    }
  }

  async #state(): Promise<StreamState> {
    try {
      return (await this.#manager.streams.info(STREAM)).state
    } catch (error) {
      throw unavailable(error)
    }
  }

  async lastChangeSeq(): Promise<number> {
    return this.#lastChange()
  }

  async close(): Promise<void> {
    await this.#connection.drain().catch(() => {})
  }
}
