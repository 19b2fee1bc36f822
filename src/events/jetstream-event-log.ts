/** The event log in a JetStream stream: replicated, on disk, one total order for the whole cluster. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  headers,
  type JetStreamClient,
  type JetStreamManager,
  type JsMsg,
  type MsgHdrs,
  type NatsConnection,
  NatsError,
  nanos,
  RetentionPolicy,
  StorageType,
  type StreamState,
} from 'nats'
import { Counter, Histogram } from 'prom-client'
import { StartupError } from '../platform/startup-error.ts'
import { eventSubject, type LoggedEvent, type NewEvent, type Via } from './event.ts'
import {
  type Appended,
  type AppendOptions,
  DEDUPLICATION_WINDOW_MS,
  type EventLog,
  LogUnavailable,
} from './event-log.ts'

export const STREAM = 'EVENTS'
const ALL = 'events.>'
const CHANGES = 'events.*.change.>'
const ABOUT = 'Tabulum-About'

/** An append takes so long at most, its retries included; a client is waiting. */
const APPEND_TIMEOUT_MS = 1_500
const RETRY_MS = 50
/** One try: long enough for a busy quorum, short enough to try another server. */
const TRY_TIMEOUT_MS = 700
const GET_TIMEOUT_MS = 1_000
/** Events that one batch of following holds at most, in number and in bytes as they came over the wire. */
const BATCH_EVENTS = 500
const BATCH_BYTES = 8 * 1_048_576
/** Bytes that the server may send ahead; more than one event of the greatest size. */
const READ_AHEAD_BYTES = 24 * 1_048_576
/** A consumer that has been quiet for so long is looked after. */
const WATCH_MS = 500
/** How long the server may take to answer for the state of a consumer or stream. */
const API_TIMEOUT_MS = 1_000
/** The server says at least this often that it is there while it has nothing to send. The least that it allows. */
const HEARTBEAT_MS = 500
const FETCH_TIMEOUT_MS = 1_000
/** The server's code for: the stream holds no such message. */
const NO_MESSAGE_FOUND = 10037

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
  readonly #stream: JetStreamClient
  readonly #manager: JetStreamManager

  private constructor(connection: NatsConnection, manager: JetStreamManager) {
    this.#connection = connection
    this.#stream = connection.jetstream({ timeout: TRY_TIMEOUT_MS })
    this.#manager = manager
  }

  /** Opens the log, creating the stream where there is none. Throws `StartupError` where the cluster cannot hold it. */
  static async open(connection: NatsConnection, replicas: number): Promise<JetStreamEventLog> {
    const manager = await connection.jetstreamManager({ timeout: API_TIMEOUT_MS, checkAPI: false })
    try {
      await ensureStream(manager, replicas)
    } catch (error) {
      if (error instanceof StartupError) throw error
      const reason = error instanceof Error ? error.message : String(error)
      throw new StartupError(
        `JetStream cannot hold the stream ${STREAM} with ${replicas} replicas (${reason}): start as many servers with JetStream, or set EVENTS_REPLICAS`,
      )
    }
    return new JetStreamEventLog(connection, manager)
  }

  async append(
    event: NewEvent,
    { id, about, via, notAfter = Number.POSITIVE_INFINITY }: AppendOptions = {},
  ): Promise<Appended> {
    const stop = appendSeconds.startTimer()
    const deadline = performance.now() + APPEND_TIMEOUT_MS
    const payload = JSON.stringify({ ts: event.ts, type: event.type, agent: event.agent, data: event.data })
    const subject = eventSubject(event, via)
    // The same id on each try, so that one that was stored although its confirmation was lost is stored once.
    const msgID = id ?? randomUUID()
    const extra = about === undefined ? {} : { headers: aboutHeader(about) }
    try {
      for (;;) {
        if (performance.now() > Math.min(deadline, notAfter))
          throw new LogUnavailable('the event log did not confirm in time')
        try {
          const timeout = Math.max(1, Math.min(TRY_TIMEOUT_MS, deadline - performance.now()))
          const { seq, duplicate } = await this.#stream.publish(subject, payload, { msgID, timeout, ...extra })
          // 0: an earlier try is on its way to the quorum. Its place is not known yet, nor whether it will be stored.
          if (seq > 0) return { seq, duplicate }
          await sleep(RETRY_MS)
        } catch (error) {
          if (!(error instanceof NatsError)) throw error
          if (performance.now() + RETRY_MS > deadline)
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

  async read(since: number, limit: number): Promise<LoggedEvent[]> {
    const { first_seq: first, last_seq: last } = await this.#state()
    const start = Math.max(since + 1, first)
    const available = Math.min(limit, last - start + 1)
    if (available <= 0) return []
    const name = await this.#consumer(start - 1, ALL)
    try {
      const consumer = await this.#stream.consumers.get(STREAM, name)
      const messages = await consumer.fetch({ max_messages: available, expires: FETCH_TIMEOUT_MS })
      const events: LoggedEvent[] = []
      for await (const message of messages) {
        // Nothing is ever taken out of the log, so a replica that skips a place has lost it; another may have it.
        if (message.seq !== start + events.length)
          throw new LogUnavailable('a replica of the event log has lost events')
        events.push(toEvent(message.seq, message))
      }
      // An empty answer means the end of the log.
      if (events.length === 0) throw new LogUnavailable('the event log did not answer in time')
      return events
    } catch (error) {
      throw unavailable(error)
    } finally {
      this.#manager.consumers.delete(STREAM, name).catch(() => {})
    }
  }

  async get(seqs: readonly number[]): Promise<LoggedEvent[]> {
    return Promise.all(seqs.map((seq) => this.#get(seq)))
  }

  async #get(seq: number): Promise<LoggedEvent> {
    const deadline = performance.now() + GET_TIMEOUT_MS
    for (;;) {
      try {
        return await this.#directGet(seq)
      } catch (error) {
        // Any replica answers, and one that lags may not have it yet.
        if (performance.now() > deadline) throw unavailable(error)
        await sleep(RETRY_MS)
      }
    }
  }

  /** One request to whichever replica is nearest (ADR-31 of the NATS architecture); the library's own call is not in its public types. */
  async #directGet(seq: number): Promise<LoggedEvent> {
    const reply = await this.#connection.request(`$JS.API.DIRECT.GET.${STREAM}`, JSON.stringify({ seq }), {
      timeout: TRY_TIMEOUT_MS,
    })
    const subject = reply.headers?.get('Nats-Subject')
    if (!subject) throw new LogUnavailable(`event ${seq} was not found: ${reply.headers?.description ?? 'no answer'}`)
    return toEvent(seq, { subject, data: reply.data, ...(reply.headers && { headers: reply.headers }) })
  }

  async *follow(since: number, signal: AbortSignal): AsyncIterable<LoggedEvent[]> {
    const name = await this.#consumer(since, CHANGES)
    const arrived: { event: LoggedEvent; bytes: number }[] = []
    let wake = Promise.withResolvers<void>()
    let failure: Error | undefined
    let delivered = 0
    /** Events that the server has yet to send, as it said with the last one. */
    let pending = 0
    const fail = (reason: unknown) => {
      failure ??= unavailable(reason)
      wake.resolve()
    }
    const consumer = await this.#stream.consumers.get(STREAM, name)
    const messages = await consumer.consume({
      max_bytes: READ_AHEAD_BYTES,
      idle_heartbeat: HEARTBEAT_MS,
      expires: 10_000,
      callback: (message) => {
        delivered++
        if (message.info.deliverySequence !== delivered)
          return fail(new LogUnavailable('the event log skipped an event'))
        pending = message.info.pending
        arrived.push({ event: toEvent(message.seq, message), bytes: message.data.length })
        wake.resolve()
      },
    })
    const ended = new AbortController()
    const watching = this.#watch(name, () => delivered, AbortSignal.any([signal, ended.signal])).catch(fail)
    const stop = () => wake.resolve()
    signal.addEventListener('abort', stop, { once: true })
    try {
      // What there was before this began is over when the consumer has nothing left to send.
      if ((await consumer.info()).num_pending === 0) yield []
      while (!signal.aborted) {
        if (failure) throw failure
        if (arrived.length === 0) {
          await wake.promise
          wake = Promise.withResolvers()
          continue
        }
        yield takeBatch(arrived)
        if (arrived.length === 0 && pending === 0) yield []
      }
    } catch (error) {
      throw unavailable(error)
    } finally {
      signal.removeEventListener('abort', stop)
      messages.stop()
      ended.abort()
      await watching
      this.#manager.consumers.delete(STREAM, name).catch(() => {})
    }
  }

  /**
   * Ends by throwing when a consumer has stopped working: the server that ran it is gone, or it has events to send and sends none. The
   * library notices as well, but after many seconds.
   */
  async #watch(name: string, delivered: () => number, signal: AbortSignal): Promise<void> {
    let before = -1
    while (!signal.aborted) {
      await sleep(WATCH_MS, undefined, { signal }).catch(() => {})
      if (signal.aborted) return
      const now = delivered()
      if (now !== before) {
        before = now
        continue
      }
      const { num_pending: pending } = await this.#manager.consumers.info(STREAM, name)
      if (pending > 0 && delivered() === now) throw new LogUnavailable('the event log has stopped sending')
    }
  }

  /** Creates a consumer of our own that starts after `since`; the server removes it when nobody asks it any more. */
  async #consumer(since: number, filter: string): Promise<string> {
    const name = `kernel-${randomUUID()}`
    try {
      await this.#manager.consumers.add(STREAM, {
        name,
        ack_policy: AckPolicy.None,
        deliver_policy: DeliverPolicy.StartSequence,
        opt_start_seq: since + 1,
        filter_subject: filter,
        inactive_threshold: nanos(30_000),
        mem_storage: true,
        num_replicas: 1,
      })
    } catch (error) {
      throw unavailable(error)
    }
    return name
  }

  async lastSeq(): Promise<number> {
    return (await this.#state()).last_seq
  }

  async #state(): Promise<StreamState> {
    try {
      return (await this.#manager.streams.info(STREAM)).state
    } catch (error) {
      throw unavailable(error)
    }
  }

  async lastChangeSeq(): Promise<number> {
    try {
      return (await this.#manager.streams.getMessage(STREAM, { last_by_subj: CHANGES })).seq
    } catch (error) {
      if (error instanceof NatsError && error.api_error?.err_code === NO_MESSAGE_FOUND) return 0
      throw unavailable(error)
    }
  }

  async close(): Promise<void> {
    await this.#connection.drain().catch(() => {})
  }
}

/** Servers that have just started, or lost their leader, need some seconds to agree. */
const STREAM_TIMEOUT_MS = 20_000

async function ensureStream(manager: JetStreamManager, replicas: number): Promise<void> {
  const deadline = performance.now() + STREAM_TIMEOUT_MS
  for (;;) {
    try {
      return await findOrCreateStream(manager, replicas)
    } catch (error) {
      if (error instanceof StartupError || performance.now() > deadline) throw error
      await sleep(RETRY_MS)
    }
  }
}

async function findOrCreateStream(manager: JetStreamManager, replicas: number): Promise<void> {
  const existing = await manager.streams.info(STREAM).catch((error: unknown) => {
    if (error instanceof NatsError && error.api_error?.err_code === 10059) return undefined
    throw error
  })
  if (existing) {
    if (existing.config.num_replicas === replicas) return
    throw new StartupError(
      `the stream ${STREAM} has ${existing.config.num_replicas} replicas, not EVENTS_REPLICAS=${replicas}: set EVENTS_REPLICAS to that, or change the stream with the nats tool`,
    )
  }
  await manager.streams.add({
    name: STREAM,
    description: 'Everything that happened, in order',
    subjects: [ALL],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    discard: DiscardPolicy.New,
    num_replicas: replicas,
    duplicate_window: nanos(DEDUPLICATION_WINDOW_MS),
    allow_direct: true,
    deny_purge: true,
    deny_delete: true,
  })
}

function takeBatch(arrived: { event: LoggedEvent; bytes: number }[]): LoggedEvent[] {
  let bytes = 0
  let count = 0
  for (const entry of arrived) {
    bytes += entry.bytes
    if (count > 0 && (count >= BATCH_EVENTS || bytes > BATCH_BYTES)) break
    count++
  }
  return arrived.splice(0, count).map(({ event }) => event)
}

function toEvent(seq: number, message: { subject: string; data: Uint8Array; headers?: MsgHdrs } | JsMsg): LoggedEvent {
  const event = JSON.parse(
    Buffer.from(message.data.buffer, message.data.byteOffset, message.data.length).toString('utf8'),
  ) as NewEvent
  const via = message.subject.split('.')[4]
  const about = message.headers?.get(ABOUT)
  return { seq, ...event, ...(via !== '-' && { via: via as Via }), ...(about && { about: Number(about) }) }
}

function aboutHeader(about: number): MsgHdrs {
  const header = headers()
  header.set(ABOUT, String(about))
  return header
}

function unavailable(error: unknown): LogUnavailable {
  return error instanceof LogUnavailable ? error : new LogUnavailable('the event log cannot be read', { cause: error })
}
