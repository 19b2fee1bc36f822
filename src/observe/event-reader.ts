/** Pages of the log for observers: by what the read models know of where events are, and with what was removed replaced. */
import { setImmediate as endOfTurn } from 'node:timers/promises'
import { jsonBytes } from '../api/answer-size.ts'
import type { LoggedEvent } from '../events/event.ts'
import { type EventLog, PAGE_BYTES } from '../events/event-log.ts'
import { redact, redacted } from '../removal/redaction.ts'
import type { Removals } from '../removal/removals.ts'
import { ALL_TYPES } from './changes.ts'
import type { Freshness } from './freshness.ts'
import type { EventFilter, EventSource } from './live/source.ts'
import type { ObservationTables } from './observation-tables.ts'

/** Events that are fetched at once by their places, as few as a large one was met: each may be of 6 MiB, and takes 30 ms to parse. */
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
}

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

  /** A page ends after `limit` events, or 8 MiB. Throws `Unavailable`. */
  async page(question: EventQuestion): Promise<EventPage> {
    const { filter, since, until, before, limit } = question
    if (isAll(filter) && before === undefined) return this.#readOn(since, until, limit)
    await this.#parts.freshness.wait()
    const isBackwards = before !== undefined
    const range = { after: since, until: isBackwards ? Math.min(until, before - 1) : until, isBackwards }
    const seqs = await this.#parts.tables.seqs(filter, range, limit + 1)
    const events = await this.#fetch(seqs.slice(0, limit))
    return { events: await this.redact(events), hasMore: events.length < seqs.length }
  }

  /** Straight from the log, which needs no read model. */
  async #readOn(since: number, until: number, limit: number): Promise<EventPage> {
    const { log } = this.#parts
    const read = (await log.read(since, limit + 1)).filter(({ seq }) => seq <= until)
    const events = read.slice(0, limit)
    const last = events.at(-1)?.seq ?? since
    // A page that ended early may have ended for its size.
    const hasMore = read.length > limit || (events.length > 0 && last < Math.min(until, await log.lastSeq()))
    return { events: await this.redact(events), hasMore }
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
    const { seq: position } = await this.#parts.tables.position()
    const range = { after: since, until: position, isBackwards: false }
    const seqs = await this.#parts.tables.seqs(filter, range, limit)
    const events = await this.#fetch(seqs)
    const isWhole = seqs.length < limit && events.length === seqs.length
    const through = isWhole ? Math.max(since, position) : (events.at(-1)?.seq ?? since)
    return { events: await this.redact(events), through }
  }

  follow(since: number, signal: AbortSignal): AsyncIterable<LoggedEvent[]> {
    return this.#parts.log.follow(since, signal, { types: ALL_TYPES })
  }

  /** Removals that are among the events count already: the kernel's projection may be behind whoever follows the log. */
  async redact(events: readonly LoggedEvent[]): Promise<LoggedEvent[]> {
    const known = await redact(events, this.#parts.removals)
    const removals = events.filter(({ type }) => type === 'message_redacted' || type === 'state_key_removed')
    if (removals.length === 0) return known
    return known.map((event) => redacted(event, removals.find((removal) => removes(removal, event))?.data as Reason))
  }

  lastSeq(): Promise<number> {
    return this.#parts.log.lastSeq()
  }

  /** The event at a place, as observers may see it. Throws `Unavailable`. */
  async get(seq: number): Promise<LoggedEvent | undefined> {
    const [event] = await this.redact(await this.#parts.log.get([seq]))
    return event
  }
}

type Reason = { reason: string } | undefined

function removes({ seq, type, data }: LoggedEvent, event: LoggedEvent): boolean {
  if (type === 'message_redacted') return event.type === 'message_sent' && event.data.message_id === data.message_id
  if (type !== 'state_key_removed') return false
  return event.type === 'state_written' && event.data.key === data.key && event.seq < seq
}

function isAll({ types, agent }: EventFilter): boolean {
  return types === undefined && agent === undefined
}

/** What may be long in an event. */
export function contentOf({ type, data }: LoggedEvent): string {
  if (type === 'message_sent') return data.content
  return type === 'state_written' ? data.value : ''
}
