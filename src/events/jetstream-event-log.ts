/**
 * The event log in a JetStream stream: replicated, on disk, one total order for the whole cluster.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type JetStreamClient, type JetStreamManager, type NatsConnection, nanos } from 'nats'
import { inBackground } from '../platform/background.ts'
import { NotThereYet, StartupError } from '../platform/startup-error.ts'
import { type Batch, messageOf } from './batch.ts'
import { BatchWriter, TRY_TIMEOUT_MS } from './batch-writer.ts'
import { ChangeFeeds } from './change-feeds.ts'
import type { Erasures } from './erasures.ts'
import type { LoggedEvent, NewEvent } from './event.ts'
import {
  type Appended,
  type AppendOptions,
  type EventLog,
  EventLost,
  type FollowOptions,
  LogUnavailable,
  OLDER,
  PAGE_BYTES,
} from './event-log.ts'
import {
  addConsumer,
  deleteConsumer,
  ensureStream,
  findStream,
  STREAM,
  streamState,
  toBatch,
  unavailable,
} from './event-stream.ts'
import { SkippedMessages } from './skipped-messages.ts'

const RETRY_MS = 50
/** After this no other try to read begins. */
const READ_TIMEOUT_MS = 1_000
/** How long the server may take to answer for the state of a consumer or stream. */
const API_TIMEOUT_MS = 1_000
/** The next event of a page, which may be as large. */
const PAGED_EVENT_TIMEOUT_MS = 3_000
/**
 * So many events are read one by one: a consumer, which more take, is for the whole cluster to
 * agree on.
 */
const MAX_DIRECT_READS = 64
/** So many of them at the same time, each of which may be of 8 MiB. */
const DIRECT_READS_AT_ONCE = 8
/**
 * So often in a row is one event not found before it is looked for on each replica by itself: one
 * may lag for a moment.
 */
const DIRECT_GET_TRIES = 10
/** What the server may send of a page at once; more than one event of the greatest size. */
const FETCH_BYTES = 16 * 1_048_576

/** The leader says something to each replica every second, and hears of it. */
const SILENT_MS = 10_000

/** Of an answer to a direct read. */
const NOT_FOUND = 404

export interface LogOptions {
  /** Names this process in the events that it appends and waits for. */
  readonly origin?: string
  /** Where to find what is left of messages that were erased. Without it there are none. */
  readonly erasures?: Erasures
  /** It is read with the rights of an observer, who creates and removes nothing of the kernel's. */
  readonly isObserver?: boolean
  /** Done when the log is closed. */
  readonly onClose?: () => Promise<void>
}

export class JetStreamEventLog implements EventLog {
  readonly #connection: NatsConnection
  readonly #stream: JetStreamClient
  readonly #manager: JetStreamManager
  readonly #writer: BatchWriter
  readonly #feeds: ChangeFeeds
  readonly #skipped: SkippedMessages
  readonly #onClose: () => Promise<void>
  /** An observer cannot remove a consumer, and a page is no reason to leave one behind. */
  readonly #isObserver: boolean
  /**
   * The last event of the last message that was read: who asks for what comes after it need not
   * have that message again.
   */
  #readTo = 0

  private constructor(
    connection: NatsConnection,
    manager: JetStreamManager,
    { origin, erasures, isObserver = false, onClose = async () => {} }: LogOptions,
  ) {
    this.#onClose = onClose
    this.#isObserver = isObserver
    this.#connection = connection
    this.#stream = connection.jetstream({ timeout: TRY_TIMEOUT_MS })
    this.#manager = manager
    this.#writer = new BatchWriter(this.#stream, origin)
    this.#skipped = new SkippedMessages(manager, erasures)
    this.#feeds = new ChangeFeeds(this.#stream, manager, this.#skipped, isObserver)
  }

  /**
   * Opens the log, creating the stream where there is none. Throws `StartupError` where the cluster
   * cannot hold the log.
   */
  static async open(
    connection: NatsConnection,
    replicas: number,
    options: LogOptions = {},
  ): Promise<JetStreamEventLog> {
    const manager = await connection.jetstreamManager({ timeout: API_TIMEOUT_MS, checkAPI: false })
    try {
      await (options.isObserver ? findStream(manager) : ensureStream(manager, replicas))
    } catch (error) {
      if (error instanceof StartupError) throw error
      const reason = error instanceof Error ? error.message : String(error)
      throw new NotThereYet(
        `JetStream cannot hold the stream ${STREAM} with ${replicas} replicas (${reason}): start as many servers with JetStream, or set EVENTS_REPLICAS`,
      )
    }
    return new JetStreamEventLog(connection, manager, options)
  }

  /**
   * Takes note that the log had an event at `seq`: one that gets a lower number from now on shows
   * that the log has lost what was confirmed.
   */
  heardOf(seq: number): void {
    this.#writer.heardOf(seq)
  }

  append(event: NewEvent, options?: AppendOptions): Promise<Appended> {
    return this.#writer.append(event, options)
  }

  async read(since: number, limit: number): Promise<LoggedEvent[]> {
    return this.#persistently(() => this.#read(since, limit))
  }

  async #read(since: number, limit: number): Promise<LoggedEvent[]> {
    const last = await this.#lastMessage()
    // What comes after an event may be in the same message.
    const first = since === this.#readTo ? messageOf(since) + 1 : Math.max(1, messageOf(since))
    const page = new Page(since, limit)
    if (first > last || limit <= 0) return page.events
    if (this.#isObserver || Math.min(limit, last - first + 1) <= MAX_DIRECT_READS)
      await this.#readOneByOne(page, first, last)
    else await this.#readInTurn(page, first, last)
    this.#readTo = page.readTo ?? this.#readTo
    return page.events
  }

  async #readOneByOne(page: Page, first: number, last: number): Promise<void> {
    for (let next = first; next <= last && !page.isFull; next += DIRECT_READS_AT_ONCE) {
      const length = Math.min(DIRECT_READS_AT_ONCE, last - next + 1)
      const reads = Array.from({ length }, (_, index) =>
        this.#getBatch(next + index, PAGED_EVENT_TIMEOUT_MS),
      )
      for (const [index, result] of (await Promise.allSettled(reads)).entries()) {
        if (result.status === 'fulfilled') page.add(result.value)
        // What comes before it is a page; who asks for the next one meets it.
        else if (next + index > first && page.events.length > 0) return
        else throw result.reason
      }
    }
  }

  /**
   * Reads messages from `first` to `last` until the page is full, or meets one that is missing
   * where it has something.
   */
  async #readInTurn(page: Page, first: number, last: number): Promise<void> {
    const name = await addConsumer(this.#manager, first)
    let silence: NodeJS.Timeout | undefined
    try {
      const consumer = await this.#stream.consumers.get(STREAM, name)
      const messages = await consumer.consume({
        max_bytes: FETCH_BYTES,
        expires: PAGED_EVENT_TIMEOUT_MS,
      })
      silence = setTimeout(() => messages.stop(), PAGED_EVENT_TIMEOUT_MS)
      let next = first
      for await (const message of messages) {
        silence.refresh()
        if (message.seq !== next) {
          // What comes before the hole is a page; who asks for the next one meets it.
          if (page.events.length > 0) return
          const { cluster } = await consumer.info(true)
          page.add(await this.#skipped.find(next, cluster?.leader ?? ''))
          // Of an erased message nothing may be left to read; an empty page would say that the log
          // ends there.
          return page.events.length === 0 && next < last
            ? this.#readInTurn(page, next + 1, last)
            : undefined
        }
        page.add(toBatch(message.seq, message))
        if (page.isFull || next === last) return
        next++
      }
      // An empty answer means the end of the log.
      if (page.events.length === 0) throw new LogUnavailable('the event log did not answer in time')
    } catch (error) {
      throw unavailable(error)
    } finally {
      clearTimeout(silence)
      // One of an observer the server removes, when it has not been used for a while.
      if (!this.#isObserver) inBackground('delete_consumer', deleteConsumer(this.#manager, name))
    }
  }

  async get(seqs: readonly number[]): Promise<LoggedEvent[]> {
    const messages = [...new Set(seqs.map(messageOf))]
    const batches = new Map(
      await Promise.all(
        messages.map(async (message) => [message, await this.#getBatch(message)] as const),
      ),
    )
    return seqs.map((seq) => {
      const stored = batches.get(messageOf(seq))?.get(seq)
      if (stored === undefined) throw new LogUnavailable(`event ${seq} was not found`)
      return stored.event
    })
  }

  /**
   * Any replica answers, and one that lags, or has lost something, may not have it: then they are
   * asked one by one.
   */
  async #getBatch(message: number, timeout = TRY_TIMEOUT_MS): Promise<Batch> {
    for (let tries = 0; tries < DIRECT_GET_TRIES; tries++) {
      const found = await this.#persistently(() => this.#directGet(message, timeout))
      if (found !== undefined) return found
      const erased =
        tries === 0 ? await this.#persistently(() => this.#skipped.erased(message)) : undefined
      if (erased !== undefined) return erased
      await sleep(RETRY_MS)
    }
    const page = new Page(0, 1)
    await this.#persistently(() => this.#readInTurn(page, message, message))
    if (page.batch === undefined) throw new LogUnavailable(`message ${message} was not found`)
    return page.batch
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

  /**
   * One request to whichever replica is nearest (ADR-31 of the NATS architecture); the library's
   * own call is not in its public types.
   */
  async #directGet(message: number, timeout: number): Promise<Batch | undefined> {
    const asked = JSON.stringify({ seq: message })
    const reply = await this.#connection.request(`$JS.API.DIRECT.GET.${STREAM}`, asked, { timeout })
    const subject = reply.headers?.get('Nats-Subject')
    if (!subject && reply.headers?.code === NOT_FOUND) return undefined
    if (!subject)
      throw new LogUnavailable(`message ${message}: ${reply.headers?.description ?? 'no answer'}`)
    return toBatch(message, { subject, data: reply.data, headers: reply.headers })
  }

  async *follow(
    since: number,
    signal: AbortSignal,
    options: FollowOptions = {},
  ): AsyncIterable<LoggedEvent[]> {
    try {
      yield* this.#feeds.follow(since, signal, options)
    } catch (error) {
      throw unavailable(error)
    }
  }

  /**
   * The sequence number of an event that was found in the last 10 s to be lost on every replica:
   * nothing behind it is read.
   */
  get lost(): number | undefined {
    return this.#skipped.lost
  }

  async lastSeq(): Promise<number> {
    const last = await this.#persistently(() => this.#lastMessage())
    return last === 0 ? 0 : (await this.#getBatch(last, PAGED_EVENT_TIMEOUT_MS)).lastSeq
  }

  /**
   * The last message of the stream, as its leader says; 0 in an empty one. Throws `LogUnavailable`
   * where it is less than is known: a leader that was just elected, that does not know yet that
   * another was, or that has lost the end.
   */
  async #lastMessage(): Promise<number> {
    const { last_seq: last } = await streamState(this.#manager)
    const known = messageOf(this.#writer.highest)
    if (last < known)
      throw new LogUnavailable(`the event log ends at message ${last}, before ${known}, ${OLDER}`)
    return last
  }

  /** Bytes that the log takes on each server that keeps a copy of it. */
  async bytes(): Promise<number> {
    return (await streamState(this.#manager)).bytes
  }

  /**
   * Other replicas than the one that leads, as that one sees them: how many take no part, and by
   * how many events the last is behind. One that has met a write error, or has switched JetStream
   * off, is not told of as offline: it is silent.
   */
  async replicas(): Promise<{ offline: number; lagEvents: number }> {
    try {
      const replicas = (await this.#manager.streams.info(STREAM)).cluster?.replicas ?? []
      return {
        offline: replicas.filter(({ offline, active }) => offline || nanos(SILENT_MS) < active)
          .length,
        lagEvents: Math.max(0, ...replicas.map(({ lag }) => lag ?? 0)),
      }
    } catch (error) {
      throw unavailable(error)
    }
  }

  async close(): Promise<void> {
    await this.#writer.flush()
    await this.#connection.drain().catch(() => {})
    await this.#onClose()
  }
}

/**
 * What is read of the log at once: events after a sequence number, as many as are asked for and as
 * fit.
 */
class Page {
  readonly events: LoggedEvent[] = []
  /** The message that was added last. */
  batch: Batch | undefined
  readonly #since: number
  readonly #limit: number
  #bytes = 0
  /** An event did not fit. */
  #isCut = false

  constructor(since: number, limit: number) {
    this.#since = since
    this.#limit = limit
  }

  get isFull(): boolean {
    return this.#isCut || this.events.length >= this.#limit
  }

  /** The sequence number of the last event, if its message has no more; else undefined. */
  get readTo(): number | undefined {
    return this.#isCut ? undefined : this.batch?.lastSeq
  }

  /** Adds as many events of a message as fit. */
  add(batch: Batch): void {
    if (this.isFull) return
    this.batch = batch
    for (const { event, bytes } of batch.after(this.#since)) {
      this.#isCut = this.isFull || (this.events.length > 0 && this.#bytes + bytes > PAGE_BYTES)
      if (this.#isCut) return
      this.events.push(event)
      this.#bytes += bytes
    }
  }
}
