/**
 * Batches of events: what one message of the stream holds. A line of JSON for each event, and a
 * sequence number that says which message it is in and where.
 */
import type { EventClass, LoggedEvent, NewEvent, Routing } from './event.ts'

/**
 * A sequence number is that of the message of the stream, times this, plus the index of the event
 * in it, from 0. Numbers stay exact up to 9 × 10¹² messages.
 */
export const MAX_BATCH_EVENTS = 1_000

const SUBJECT = 'events'
/** Every subject of the log. */
export const ALL_SUBJECTS = `${SUBJECT}.*`
/**
 * Of each class, which is all that a subject says: with the agents' addresses in them, servers
 * would keep a table of all agents.
 */
export function subjectOf(eventClass: EventClass): string {
  return `${SUBJECT}.${eventClass}`
}

const READS = subjectOf('read')

/** Whether events on this subject change something; of a newer version too. */
export function isChange(subject: string): boolean {
  return subject !== READS
}

/**
 * The sequence number of an event.
 *
 * @param message the sequence number of its message
 * @param index of the event in it, from 0
 */
export function seqOf(message: number, index: number): number {
  return message * MAX_BATCH_EVENTS + index
}

/** The sequence number of the message that an event is in. */
export function messageOf(seq: number): number {
  return Math.floor(seq / MAX_BATCH_EVENTS)
}

/** The index of an event in its message, from 0. */
export function indexOf(seq: number): number {
  return seq % MAX_BATCH_EVENTS
}

/** A line of a batch. What projections need beside the public event has a name of its own in it. */
export function toLine({ ts, type, agent, data }: NewEvent, routing: Routing): string {
  const { via, about, recipient, reservation } = routing
  const isBare = [via, about, recipient, reservation].every((value) => value === undefined)
  return JSON.stringify({
    ts,
    type,
    agent,
    data,
    ...(!isBare && { routing: { via, about, recipient, reservation } }),
  })
}

const NEWLINE = 0x0a

/** An event as it was read, and the bytes of its line. */
export interface StoredEvent {
  readonly event: LoggedEvent
  readonly bytes: number
}

/** A message of the stream, of which events are parsed as they are asked for. */
export class Batch {
  readonly message: number
  readonly #data: Buffer
  readonly #origin: string | undefined

  /**
   * @param message its sequence number
   * @param data its lines
   * @param origin the process that appended it, if that waits for it
   */
  constructor(message: number, data: Uint8Array, origin?: string) {
    this.message = message
    this.#data = Buffer.from(data.buffer, data.byteOffset, data.length)
    this.#origin = origin
  }

  /** The sequence number of its last event. */
  get lastSeq(): number {
    let count = 0
    for (let at = this.#data.indexOf(NEWLINE); at !== -1; at = this.#data.indexOf(NEWLINE, at + 1))
      count++
    return seqOf(this.message, count)
  }

  /** Its events after `since`, in order. */
  *after(since: number): Generator<StoredEvent> {
    let index = 0
    for (const line of this.#lines()) {
      const seq = seqOf(this.message, index++)
      if (seq > since) yield this.#parse(seq, line)
    }
  }

  /** The event at `seq`; undefined if it has none there. */
  get(seq: number): StoredEvent | undefined {
    let index = 0
    for (const line of this.#lines())
      if (seqOf(this.message, index++) === seq) return this.#parse(seq, line)
    return undefined
  }

  *#lines(): Generator<Buffer> {
    for (let start = 0; start <= this.#data.length; ) {
      const newline = this.#data.indexOf(NEWLINE, start)
      const end = newline === -1 ? this.#data.length : newline
      yield this.#data.subarray(start, end)
      start = end + 1
    }
  }

  #parse(seq: number, line: Buffer): StoredEvent {
    const { routing, ...event } = JSON.parse(line.toString('utf8')) as NewEvent & {
      routing?: Routing
    }
    const origin = this.#origin
    return {
      event: { seq, ...event, ...routing, ...(origin !== undefined && { origin }) },
      bytes: line.length,
    }
  }
}
