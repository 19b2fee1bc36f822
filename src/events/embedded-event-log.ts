/** The event log in a table of the embedded database, appended in group commits. */
import { sql } from 'kysely'
import { batched } from '../platform/batch.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { changesOf, type EventType, type LoggedEvent, type NewEvent, type Routing } from './event.ts'
import {
  type Appended,
  type AppendOptions,
  DEDUPLICATION_WINDOW_MS,
  type EventLog,
  type FollowOptions,
  LogUnavailable,
  PAGE_BYTES,
} from './event-log.ts'

interface Append {
  event: NewEvent
  id: string | undefined
  routing: Routing
}

interface Row {
  seq: number
  ts: string
  type: string
  agent: string | null
  data: string
  via: string | null
  about: number | null
  reservation: string | null
}

const COLUMNS = ['seq', 'ts', 'type', 'agent', 'data', 'via', 'about', 'reservation'] as const
/** Events that one page of catching up holds at most. */
const PAGE = 500

export class EmbeddedEventLog implements EventLog {
  readonly #database: Database
  readonly #append: (append: Append) => Promise<Appended>
  #last: number
  /** Idempotency keys of the last two minutes, oldest first. */
  readonly #recent: Map<string, { seq: number; expires: number }>
  /** Resolves at the next append. */
  #appended = Promise.withResolvers<void>()
  #closed = false

  private constructor(database: Database, last: number, recent: Map<string, { seq: number; expires: number }>) {
    this.#database = database
    this.#last = last
    this.#recent = recent
    this.#append = batched((appends) => this.#store(appends), {
      maxItems: 500,
      maxSize: PAGE_BYTES,
      size: ({ event }) => JSON.stringify(event.data).length,
      maxWaiting: 20_000,
    })
  }

  /** Opens the log in a migrated database. */
  static async open(database: Database): Promise<EmbeddedEventLog> {
    const last = await database
      .selectFrom('events')
      .select((expression) => expression.fn.max('seq').as('seq'))
      .executeTakeFirst()
    const horizon = new Date(Date.now() - DEDUPLICATION_WINDOW_MS).toISOString()
    const recent = await database
      .selectFrom('events')
      .select(['seq', 'id', 'ts'])
      .where('id', 'is not', null)
      .where('ts', '>', horizon)
      .orderBy('seq')
      .execute()
    const ids = recent.map(
      (row) => [String(row.id), { seq: row.seq, expires: Date.parse(row.ts) + DEDUPLICATION_WINDOW_MS }] as const,
    )
    return new EmbeddedEventLog(database, last?.seq ?? 0, new Map(ids))
  }

  async append(
    event: NewEvent,
    { id, notAfter = Number.POSITIVE_INFINITY, ...routing }: AppendOptions = {},
  ): Promise<Appended> {
    if (this.#closed) throw new LogUnavailable('the event log is closed')
    if (performance.now() > notAfter) throw new LogUnavailable('the event was prepared too long ago')
    try {
      return await this.#append({ event, id, routing })
    } catch (error) {
      throw new LogUnavailable('the event log cannot be written', { cause: error })
    }
  }

  async #store(appends: Append[]): Promise<Appended[]> {
    this.#forgetOldIds()
    let seq = this.#last
    const rows: object[] = []
    const fresh = new Map<string, { seq: number; expires: number }>()
    const results = appends.map(({ event, id, routing }): Appended => {
      const known = id === undefined ? undefined : (this.#recent.get(id) ?? fresh.get(id))
      if (known) return { seq: known.seq, duplicate: true }
      seq++
      rows.push({
        ...routing,
        seq,
        id,
        ts: event.ts,
        type: event.type,
        agent: event.agent,
        data: JSON.stringify(event.data),
      })
      if (id !== undefined) fresh.set(id, { seq, expires: Date.now() + DEDUPLICATION_WINDOW_MS })
      return { seq, duplicate: false }
    })
    if (rows.length > 0) {
      await roundTrip(
        this.#database,
        'append',
        () =>
          sql`insert into events (seq, id, ts, type, agent, data, via, about, reservation)
            select seq, id, ts, type, agent, data, via, about, reservation from json_to_recordset(${JSON.stringify(rows)}::json)
              as row (seq bigint, id text, ts text, type text, agent text, data text, via text, about bigint, reservation uuid)`.execute(
            this.#database,
          ),
        30_000,
      )
    }
    this.#last = seq
    for (const [id, entry] of fresh) this.#recent.set(id, entry)
    this.#appended.resolve()
    this.#appended = Promise.withResolvers()
    return results
  }

  #forgetOldIds(): void {
    const now = Date.now()
    for (const [id, { expires }] of this.#recent) {
      if (expires > now) return
      this.#recent.delete(id)
    }
  }

  async read(since: number, limit: number): Promise<LoggedEvent[]> {
    return this.#page(since, limit)
  }

  /** Events after `since`, at most `limit` and, past the first, at most PAGE_BYTES. */
  async #page(since: number, limit: number, types?: readonly EventType[]): Promise<LoggedEvent[]> {
    const rows = await this.#database
      .with('page', (database) =>
        database
          .selectFrom('events')
          .select(COLUMNS)
          .select(sql<number>`sum(octet_length(data)) over (order by seq) - octet_length(data)`.as('bytes_before'))
          .where('seq', '>', since)
          .$if(types !== undefined, (query) => query.where('type', 'in', types ?? []))
          .orderBy('seq')
          .limit(limit),
      )
      .selectFrom('page')
      .select(COLUMNS)
      .where('bytes_before', '<', PAGE_BYTES)
      .orderBy('seq')
      .execute()
    return rows.map(toEvent)
  }

  async get(seqs: readonly number[]): Promise<LoggedEvent[]> {
    if (seqs.length === 0) return []
    const rows = await this.#database.selectFrom('events').select(COLUMNS).where('seq', 'in', seqs).execute()
    const found = new Map(rows.map((row) => [row.seq, toEvent(row)]))
    return seqs.map((seq) => {
      const event = found.get(seq)
      if (!event) throw new LogUnavailable(`event ${seq} is not in the log`)
      return event
    })
  }

  async *follow(since: number, signal: AbortSignal, { capability }: FollowOptions = {}): AsyncIterable<LoggedEvent[]> {
    const aborted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
    let position = since
    while (!signal.aborted) {
      // Taken before reading, so that what is appended meanwhile is not waited for.
      const next = this.#appended.promise
      const events = position >= this.#last ? [] : await this.#page(position, PAGE, changesOf(capability))
      yield events
      position = events.at(-1)?.seq ?? position
      if (events.length === 0) await Promise.race([next, aborted])
    }
  }

  async lastSeq(): Promise<number> {
    return this.#last
  }

  async lastChangeSeq(): Promise<number> {
    const last = await this.#database
      .selectFrom('events')
      .select('seq')
      .where('type', 'in', changesOf())
      .orderBy('seq', 'desc')
      .limit(1)
      .executeTakeFirst()
    return last?.seq ?? 0
  }

  async close(): Promise<void> {
    this.#closed = true
  }
}

function toEvent(row: Row): LoggedEvent {
  const { seq, ts, type, agent, via, about, reservation } = row
  return {
    seq,
    ts,
    type,
    ...(agent !== null && { agent }),
    data: JSON.parse(row.data),
    ...(via !== null && { via }),
    ...(about !== null && { about }),
    ...(reservation !== null && { reservation }),
  } as LoggedEvent
}
