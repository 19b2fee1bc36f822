/**
 * A log in memory for the live streams: events come, contents are removed, and following or asking
 * fails when a test says so.
 */
import type { LoggedEvent } from '../../src/events/event.ts'
import { type EventFilter, type EventSource, passes } from '../../src/observe/live/source.ts'
import { Unavailable } from '../../src/platform/unavailable.ts'

export const AGENT = `tab_${'a'.repeat(20)}`
export const OTHER = `tab_${'b'.repeat(20)}`
export const REDACTED = '[REDACTED]'

export class MemoryEventSource implements EventSource {
  #events: LoggedEvent[] = []
  #last = 0
  #more = Promise.withResolvers<void>()
  #breaks = 0
  /** Message ids whose content was removed. */
  readonly removed = new Set<string>()
  /** What each question about removals waits for. */
  gate: Promise<void> = Promise.resolve()
  /** How many of the next questions of each kind fail. */
  failures = { follow: 0, read: 0, redact: 0, lastSeq: 0 }
  /** Events in each question about removals, followers at work, pages read. */
  readonly asked: number[] = []
  followers = 0
  followed = 0
  pages = 0

  /** The place of the last event. */
  get last(): number {
    return this.#last
  }

  /**
   * Appends messages from an agent, with numbers left out between them, and returns their places.
   */
  send(
    count: number,
    { from = AGENT, content = 'hello' }: { from?: string; content?: string } = {},
  ): number[] {
    const seqs = Array.from({ length: count }, () => this.#append(messageOf(from, content)))
    this.#wake()
    return seqs
  }

  /** Removes the content of the message at a place. */
  remove(seq: number): number {
    this.removed.add(String(seq))
    const data = {
      message_id: String(seq),
      reason: 'illegal',
      performed_by: 'operator',
      content_hash: '00',
    }
    const place = this.#append(() => ({ ts: TS, type: 'message_redacted', data }))
    this.#wake()
    return place
  }

  /** Followers fail now. */
  breakOff(): void {
    this.#breaks++
    this.#wake()
  }

  /** Frees what has been handed on: nobody is to read it as history. */
  forget(): void {
    this.#events = []
  }

  async *follow(since: number, signal: AbortSignal): AsyncGenerator<readonly LoggedEvent[]> {
    this.#failNext('follow')
    this.followers++
    this.followed++
    const breaks = this.#breaks
    const aborted = Promise.withResolvers<void>()
    signal.addEventListener('abort', () => aborted.resolve())
    try {
      for (let position = since; !signal.aborted; ) {
        if (this.#breaks !== breaks) throw new Unavailable('broken off')
        const more = this.#more.promise
        const batch = this.#after(position).slice(0, 1_000)
        position = batch.at(-1)?.seq ?? position
        yield batch
        if (batch.length > 0) continue
        if ((await Promise.race([more, aborted.promise.then(() => false)])) === true)
          throw new Unavailable('broken off')
      }
    } finally {
      this.followers--
    }
  }

  async read(since: number, filter: EventFilter, limit: number) {
    this.pages++
    this.#failNext('read')
    // Looks at so many events at most, as an index that is scanned would.
    const looked = this.#after(since).slice(0, 10 * limit)
    const events = looked.filter((event) => passes(event, filter)).slice(0, limit)
    const isFull = events.length === limit
    const through = (isFull ? events : looked).at(-1)?.seq ?? since
    return { events: this.#redacted(events), through }
  }

  async redact(events: readonly LoggedEvent[]): Promise<readonly LoggedEvent[]> {
    this.asked.push(events.length)
    await this.gate
    this.#failNext('redact')
    return this.#redacted(events)
  }

  async lastSeq(): Promise<number> {
    this.#failNext('lastSeq')
    return this.#last
  }

  #append(make: (id: string) => Omit<LoggedEvent, 'seq'>): number {
    this.#last += this.#last % 7 === 0 ? 3 : 1
    this.#events.push({ ...make(String(this.#last)), seq: this.#last } as LoggedEvent)
    return this.#last
  }

  #wake(): void {
    this.#more.resolve()
    this.#more = Promise.withResolvers()
  }

  #after(seq: number): LoggedEvent[] {
    const index = this.#events.findIndex((event) => event.seq > seq)
    return index === -1 ? [] : this.#events.slice(index)
  }

  #redacted(events: readonly LoggedEvent[]): LoggedEvent[] {
    return events.map((event) =>
      event.type === 'message_sent' && this.removed.has(event.data.message_id)
        ? { ...event, data: { ...event.data, content: REDACTED } }
        : event,
    )
  }

  #failNext(kind: keyof MemoryEventSource['failures']): void {
    if (this.failures[kind] <= 0) return
    this.failures[kind]--
    throw new Unavailable(`${kind} fails`)
  }
}

const TS = '2026-01-01T00:00:00.000Z'

function messageOf(from: string, content: string) {
  return (id: string): Omit<LoggedEvent, 'seq'> => ({
    ts: TS,
    type: 'message_sent',
    agent: from,
    data: { message_id: id, from, to: OTHER, content, content_length: content.length },
  })
}
