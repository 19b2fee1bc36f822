/**
 * The event log in a table of the embedded database. An event is applied in the transaction that
 * appends it.
 */
import { droppedMessages } from '../messaging/queue-metrics.ts'
import { BatchQueueFull } from '../platform/batch.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import type { SqliteWriter } from '../platform/sqlite-writer.ts'
import { Unavailable } from '../platform/unavailable.ts'
import { changesOf, type EventType, type LoggedEvent, type NewEvent, sizeOf } from './event.ts'
import {
  type Appended,
  type AppendOptions,
  type EventLog,
  type FollowOptions,
  LogUnavailable,
  PAGE_BYTES,
} from './event-log.ts'
import type { EventWrites } from './sqlite-append.ts'

type Writer = Pick<SqliteWriter<EventWrites>, 'run' | 'onWritten' | 'onWrittenElsewhere'>

/** Nobody waits for the others, which only record that somebody looked. */
const CHANGES: ReadonlySet<EventType> = new Set(changesOf())

/** Events that one page of catching up holds at most. */
const PAGE = 500
/** Who follows what another thread or process appends looks so often; it takes microseconds. */
const POLL_MS = 50

export class SqliteEventLog implements EventLog {
  readonly #sql: Sqlite['sql']
  readonly #writer: Writer | undefined
  readonly #onAppended: (event: LoggedEvent) => void
  #isClosed = false

  /**
   * @param reader another connection than the writer's
   * @param writer undefined where nothing is appended: what others append is looked for
   * @param onAppended called with each event that was appended here, once it is on the disk
   */
  constructor(
    reader: Sqlite,
    writer?: Writer,
    onAppended: (event: LoggedEvent) => void = () => {},
  ) {
    this.#sql = reader.sql
    this.#writer = writer
    this.#onAppended = onAppended
  }

  async append(
    event: NewEvent,
    { notAfter = Number.POSITIVE_INFINITY, ...options }: AppendOptions = {},
  ): Promise<Appended> {
    if (this.#isClosed || !this.#writer) throw new LogUnavailable('the event log is closed')
    if (performance.now() > notAfter)
      throw new LogUnavailable('the event was prepared too long ago')
    try {
      const { seq, duplicate, ...effects } = await this.#writer.run(
        'append',
        { event, ...options },
        { bytes: sizeOf(event), mayWait: !CHANGES.has(event.type) },
      )
      droppedMessages.inc(effects.dropped)
      if (!duplicate) this.#onAppended({ seq, ...event, ...options })
      return { seq, duplicate }
    } catch (error) {
      if (!(error instanceof Unavailable || error instanceof BatchQueueFull)) throw error
      throw new LogUnavailable('the event log cannot be written', { cause: error })
    }
  }

  async read(since: number, limit: number): Promise<LoggedEvent[]> {
    const rows = this.#sql
      .iterate`select * from events where seq > ${since} order by seq limit ${limit}`
    return pageOf(rows)
  }

  async get(seqs: readonly number[]): Promise<LoggedEvent[]> {
    return seqs.map((seq) => {
      const row = this.#sql.get`select * from events where seq = ${seq}`
      if (!row) throw new LogUnavailable(`event ${seq} is not in the log`)
      return toEvent(row)
    })
  }

  async *follow(
    since: number,
    signal: AbortSignal,
    { types = changesOf() }: FollowOptions = {},
  ): AsyncIterable<LoggedEvent[]> {
    const wanted = JSON.stringify(types)
    let woken = Promise.withResolvers<void>()
    const wake = () => woken.resolve()
    const subscriptions = [this.#writer?.onWritten(wake), this.#writer?.onWrittenElsewhere(wake)]
    signal.addEventListener('abort', wake, { once: true })
    try {
      let position = since
      let isCaughtUp = false
      while (!signal.aborted) {
        // Before it is read, so that what is appended meanwhile is not waited for.
        woken = Promise.withResolvers()
        const end = await this.lastSeq()
        const events = pageOf(this.#sql.iterate`
          select * from events
          where seq > ${position} and seq <= ${end} and type in (select value from json_each(${wanted}))
          order by seq limit ${PAGE}`)
        if (events.length > 0) {
          isCaughtUp = false
          position = events.at(-1)?.seq ?? position
          yield events
          continue
        }
        position = Math.max(position, end)
        if (!isCaughtUp) {
          isCaughtUp = true
          yield []
          continue
        }
        if (signal.aborted) break
        const poll = this.#writer ? undefined : setTimeout(wake, POLL_MS)
        await woken.promise
        clearTimeout(poll)
      }
    } finally {
      for (const unsubscribe of subscriptions) unsubscribe?.()
      signal.removeEventListener('abort', wake)
    }
  }

  async lastSeq(): Promise<number> {
    return (this.#sql.get`select max(seq) as seq from events`?.seq ?? 0) as number
  }

  async close(): Promise<void> {
    this.#isClosed = true
  }
}

export type Row = ReturnType<Sqlite['sql']['iterate']> extends Iterable<infer R> ? R : never

/** The events of rows, as far as a page goes. */
function pageOf(rows: Iterable<Row>): LoggedEvent[] {
  const events: LoggedEvent[] = []
  let bytes = 0
  for (const row of rows) {
    bytes += String(row.data).length
    if (events.length > 0 && bytes > PAGE_BYTES) break
    events.push(toEvent(row))
  }
  return events
}

/** The event of a row of `events`. */
export function toEvent({ seq, ts, type, agent, data, via, about }: Row): LoggedEvent {
  return {
    seq,
    ts,
    type: type as EventType,
    ...(agent !== null && { agent }),
    data: JSON.parse(data as string),
    ...(via !== null && { via }),
    ...(about !== null && { about }),
  } as LoggedEvent
}
