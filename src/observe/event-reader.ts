/**
 * Pages of the log for observers: by what the read models know of where events are, and with what
 * was removed replaced.
 */
import { setImmediate as endOfTurn } from 'node:timers/promises'
import { jsonBytes } from '../api/answer-size.ts'
import type { EventType, LoggedEvent } from '../events/event.ts'
import { type EventLog, PAGE_BYTES } from '../events/event-log.ts'
import { redact, redacted } from '../removal/redaction.ts'
import type { Removals } from '../removal/removals.ts'
import { ALL_TYPES } from './changes.ts'
import type { Freshness } from './freshness.ts'
import { type EventFilter, type EventSource, needsData, passes } from './live/source.ts'
import type { ObservationTables, SeqRange } from './observation-tables.ts'

/**
 * Events that are fetched at once by their sequence numbers, as few as a large one was met: each
 * may be of 6 MiB, and takes 30 ms to parse.
 */
const FETCHED_AT_ONCE = 32
const LARGE_BYTES = 65_536

export interface EventQuestion {
  readonly filter: EventFilter
  /** Exclusive. */
  readonly since: number
  /** Inclusive. */
  readonly until: number
  /** Exclusive; the page is the one that ends before it, the latest first. */
  readonly before?: number | undefined
  readonly limit: number
}

export interface EventPage {
  readonly events: readonly LoggedEvent[]
  readonly hasMore: boolean
  /** Up to here the log has been looked at. Of an empty log, or a page of none, where it began. */
  readonly through: number
}

/**
 * Events whose data are looked at for one page, which ends there; and that are fetched at once for
 * it.
 */
const MAX_SEARCHED = 2_000
const SEARCHED_AT_ONCE = 250
const OF_KEYS = new Set<EventType>([
  'state_written',
  'state_deleted',
  'state_read',
  'state_key_removed',
])

export interface EventReaderParts {
  readonly log: Pick<EventLog, 'read' | 'get' | 'follow' | 'lastSeq'>
  readonly tables: Pick<ObservationTables, 'seqs' | 'position'>
  readonly removals: Removals
  readonly freshness: Freshness
}

export class EventReader implements EventSource {
  readonly #parts: EventReaderParts

  constructor(parts: EventReaderParts) {
    this.#parts = parts
  }

  /**
   * A page ends after `limit` events, 8 MiB, or what may be searched for it. Throws `Unavailable`.
   */
  async page(question: EventQuestion): Promise<EventPage> {
    const { filter, since, until, before, limit } = question
    if (isAll(filter) && before === undefined) return this.#readOn(since, until, limit)
    await this.#parts.freshness.wait()
    const isBackwards = before !== undefined
    const range = {
      after: since,
      until: isBackwards ? Math.min(until, before - 1) : until,
      isBackwards,
    }
    if (needsData(filter)) return this.#search(filter, range, limit)
    const seqs = await this.#parts.tables.seqs(filter, range, limit + 1)
    const events = await this.#fetch(seqs.slice(0, limit))
    const through = events.at(-1)?.seq ?? before ?? since
    return { events: await this.redact(events), hasMore: events.length < seqs.length, through }
  }

  /** Looks into one event after the other. */
  async #search(filter: EventFilter, range: SeqRange, limit: number): Promise<EventPage> {
    // Only events of these types are about a key.
    const narrowed =
      filter.key !== undefined && filter.types === undefined
        ? { ...filter, types: OF_KEYS }
        : filter
    const found: LoggedEvent[] = []
    let bytes = 0
    let { after, until } = range
    let through = range.isBackwards ? until + 1 : after
    for (let searched = 0; searched < MAX_SEARCHED && bytes < PAGE_BYTES; ) {
      const wanted = Math.min(SEARCHED_AT_ONCE, MAX_SEARCHED - searched)
      const seqs = await this.#parts.tables.seqs(narrowed, { ...range, after, until }, wanted)
      const events = await this.redact(await this.#fetch(seqs))
      for (const event of events) {
        through = event.seq
        bytes += jsonBytes(contentOf(event))
        if (!passes(event, filter)) continue
        found.push(event)
        if (found.length === limit) return { events: found, hasMore: true, through }
      }
      // A part that was fetched may have ended for its size.
      if (events.length === seqs.length && seqs.length < wanted)
        return { events: found, hasMore: false, through }
      searched += events.length
      if (range.isBackwards) until = through - 1
      else after = through
    }
    return { events: found, hasMore: true, through }
  }

  /** Straight from the log, which needs no read model. */
  async #readOn(since: number, until: number, limit: number): Promise<EventPage> {
    const { log } = this.#parts
    const read = (await log.read(since, limit + 1)).filter(({ seq }) => seq <= until)
    const events = read.slice(0, limit)
    const through = events.at(-1)?.seq ?? since
    // A page that ended early may have ended for its size.
    const hasMore =
      read.length > limit || (events.length > 0 && through < Math.min(until, await log.lastSeq()))
    return { events: await this.redact(events), hasMore, through }
  }

  async #fetch(seqs: readonly number[]): Promise<LoggedEvent[]> {
    const events: LoggedEvent[] = []
    let bytes = 0
    let atOnce = 1
    for (let from = 0; from < seqs.length; ) {
      const part = await this.#parts.log.get(seqs.slice(from, from + atOnce))
      let largest = 0
      for (const event of part) {
        const size = jsonBytes(contentOf(event))
        if (events.length > 0 && bytes + size > PAGE_BYTES) return events
        events.push(event)
        bytes += size
        largest = Math.max(largest, size)
      }
      from += part.length
      atOnce = largest > LARGE_BYTES ? 1 : Math.min(FETCHED_AT_ONCE, 2 * atOnce)
      // Others are served in between.
      if (largest > LARGE_BYTES) await endOfTurn()
    }
    return events
  }

  async read(since: number, filter: EventFilter, limit: number) {
    if (isAll(filter)) {
      const events = await this.redact(await this.#parts.log.read(since, limit))
      return { events, through: events.at(-1)?.seq ?? since }
    }
    const position = await this.#parts.tables.position()
    const range = { after: since, until: position, isBackwards: false }
    if (needsData(filter)) {
      const { events, hasMore, through } = await this.#search(filter, range, limit)
      return { events, through: hasMore ? through : Math.max(since, position) }
    }
    const seqs = await this.#parts.tables.seqs(filter, range, limit)
    const events = await this.#fetch(seqs)
    const isWhole = seqs.length < limit && events.length === seqs.length
    const through = isWhole ? Math.max(since, position) : (events.at(-1)?.seq ?? since)
    return { events: await this.redact(events), through }
  }

  follow(since: number, signal: AbortSignal): AsyncIterable<LoggedEvent[]> {
    return this.#parts.log.follow(since, signal, { types: ALL_TYPES })
  }

  /**
   * Removals that are among the events count already: the kernel's projection may be behind whoever
   * follows the log.
   */
  async redact(events: readonly LoggedEvent[]): Promise<LoggedEvent[]> {
    const known = await redact(events, this.#parts.removals)
    const removals = events.filter(
      ({ type }) => type === 'message_redacted' || type === 'state_key_removed',
    )
    if (removals.length === 0) return known
    return known.map((event) =>
      redacted(event, removals.find((removal) => removes(removal, event))?.data as Reason),
    )
  }

  lastSeq(): Promise<number> {
    return this.#parts.log.lastSeq()
  }

  /** The event with a sequence number, as observers may see it. Throws `Unavailable`. */
  async get(seq: number): Promise<LoggedEvent | undefined> {
    const [event] = await this.redact(await this.#parts.log.get([seq]))
    return event
  }
}

type Reason = { reason: string } | undefined

function removes({ seq, type, data }: LoggedEvent, event: LoggedEvent): boolean {
  if (type === 'message_redacted')
    return event.type === 'message_sent' && event.data.message_id === data.message_id
  if (type !== 'state_key_removed') return false
  return event.type === 'state_written' && event.data.key === data.key && event.seq < seq
}

function isAll(filter: EventFilter): boolean {
  return Object.keys(filter).length === 0
}

/** What may be long in an event. */
export function contentOf({ type, data }: LoggedEvent): string {
  if (type === 'message_sent') return data.content
  return type === 'state_written' ? data.value : ''
}
