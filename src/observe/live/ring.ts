/** The latest events, which those watch who are not further back. */
import type { LoggedEvent } from '../../events/event.ts'
import { type EncodedEvent, encodeEvent, WRITE_BYTES } from './encoding.ts'
import { type EventFilter, Filtered } from './source.ts'

export interface RingLimits {
  readonly maxEvents: number
  /** Of their JSON. */
  readonly maxBytes: number
}

interface Entry extends EncodedEvent {
  readonly filtered: Filtered
  /** What can be removed of it, by name. */
  readonly content: string | undefined
}

/** What of an event can be removed; undefined for most. */
function contentOf({ type, data }: LoggedEvent): string | undefined {
  if (type === 'message_sent') return `message ${data.message_id}`
  if (type === 'state_written') return `key ${data.key}`
  return undefined
}

/** What an event says that was removed; undefined for most. */
function removedBy({ type, data }: LoggedEvent): string | undefined {
  if (type === 'message_redacted') return `message ${data.message_id}`
  if (type === 'state_key_removed') return `key ${data.key}`
  return undefined
}

export class Ring {
  readonly #limits: RingLimits
  /** In order, every event after `floor` up to `through`; as many as the limits allow. */
  #entries: Entry[] = []
  #bytes = 0
  #floor: number
  #through: number

  /** @param since the sequence number that it begins after */
  constructor(since: number, limits: RingLimits) {
    this.#limits = limits
    this.#floor = since
    this.#through = since
  }

  /** Events up to this sequence number are not in it, or not any more. */
  get floor(): number {
    return this.#floor
  }

  /** The sequence number of the last event. */
  get through(): number {
    return this.#through
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Adds events that follow on those that are in it. */
  add(events: readonly LoggedEvent[]): void {
    for (const event of events) {
      const entry = entryOf(event)
      this.#entries.push(entry)
      this.#bytes += entry.json.length
      this.#through = entry.seq
    }
    const { maxEvents, maxBytes } = this.#limits
    let gone = 0
    for (; this.#entries.length - gone > maxEvents || this.#bytes > maxBytes; gone++) {
      const entry = this.#entries[gone]
      if (entry === undefined) break
      this.#bytes -= entry.json.length
      this.#floor = entry.seq
    }
    if (gone > 0) this.#entries = this.#entries.slice(gone)
  }

  /** The events in it whose content the given ones say was removed. */
  removedBy(events: readonly LoggedEvent[]): LoggedEvent[] {
    const removed = new Set(events.map(removedBy).filter((content) => content !== undefined))
    if (removed.size === 0) return []
    return this.#entries.flatMap(({ content, json }) =>
      content !== undefined && removed.has(content)
        ? [JSON.parse(json.toString()) as LoggedEvent]
        : [],
    )
  }

  /** Puts events in the place of those with the same `seq` that are in it. */
  replace(events: readonly LoggedEvent[]): void {
    for (const event of events) {
      const index = this.#indexAfter(event.seq - 1)
      const old = this.#entries[index]
      if (old?.seq !== event.seq) continue
      const entry = entryOf(event)
      this.#entries[index] = entry
      this.#bytes += entry.json.length - old.json.length
    }
  }

  /**
   * What to write next for somebody who has got everything up to `position`, which is not below
   * `floor`. `through`: where it stands then.
   */
  next(position: number, filter: EventFilter): { events: EncodedEvent[]; through: number } {
    const events: EncodedEvent[] = []
    let bytes = 0
    for (let index = this.#indexAfter(position); index < this.#entries.length; index++) {
      const entry = this.#entries[index]
      if (entry === undefined || !entry.filtered.passes(filter)) continue
      events.push(entry)
      bytes += entry.json.length
      if (bytes >= WRITE_BYTES) return { events, through: entry.seq }
    }
    return { events, through: Math.max(position, this.#through) }
  }

  /** The index of the first event after a sequence number. */
  #indexAfter(seq: number): number {
    let low = 0
    let high = this.#entries.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#entries[middle]?.seq ?? 0) <= seq) low = middle + 1
      else high = middle
    }
    return low
  }
}

function entryOf(event: LoggedEvent): Entry {
  const encoded = encodeEvent(event)
  const filtered = new Filtered(
    event,
    () => (JSON.parse(encoded.json.toString()) as LoggedEvent).data,
  )
  return { ...encoded, filtered, content: contentOf(event) }
}
