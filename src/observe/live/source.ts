/** The port of the live streams: where the events come from that watchers see. */
import type { EventType, LoggedEvent } from '../../events/event.ts'

/** Which events somebody wants; those that match all that is given. */
export interface EventFilter {
  readonly types?: ReadonlySet<EventType> | undefined
  /** The event's `agent`. */
  readonly agent?: string | undefined
  /** Only messages between `agent` and this one, from either. */
  readonly with?: string
  /** Only events about keys that begin so. */
  readonly key?: string
  /**
   * Only events whose data say this somewhere, whatever the case: in the first 10,000 characters of
   * each text.
   */
  readonly text?: string
}

export interface EventSource {
  /**
   * All events after `since` in order, in batches, as they happen; an empty batch says that there
   * is nothing more now. Ends when the signal aborts. Throws `Unavailable` when the log cannot be
   * followed any longer.
   */
  follow(since: number, signal: AbortSignal): AsyncIterable<readonly LoggedEvent[]>

  /**
   * History: the events after `since` that pass the filter, in order, with what was removed
   * replaced; at most `limit`, and fewer where they are large, so that a page has a bound in bytes.
   * `through`: every event up to that sequence number has been looked at, so that a filter that
   * matches nothing moves on. Throws `Unavailable`.
   */
  read(
    since: number,
    filter: EventFilter,
    limit: number,
  ): Promise<{ readonly events: readonly LoggedEvent[]; readonly through: number }>

  /**
   * The same events, with what was removed replaced. A removal that is among the events that are
   * asked about counts already. Throws `Unavailable`.
   */
  redact(events: readonly LoggedEvent[]): Promise<readonly LoggedEvent[]>

  /** The sequence number of the last event, 0 in an empty log. Throws `Unavailable`. */
  lastSeq(): Promise<number>
}

/** Whether more must be known of an event than its type and agents, which the read models know. */
export function needsData({ key, text }: EventFilter): boolean {
  return key !== undefined || text !== undefined
}

const SEARCHED_CHARACTERS = 10_000

/**
 * What filters look at in an event. Its texts are read when the first one asks for them, and kept
 * as far as they are searched.
 */
export class Filtered {
  readonly type: EventType
  readonly #agent: string | undefined
  /** Of a message its recipient, of what is about a key the key. */
  readonly #to: string | undefined
  readonly #key: string | undefined
  readonly #read: () => LoggedEvent['data']
  #texts: string[] | undefined

  /** @param read the event's data, again */
  constructor({ type, agent, data }: LoggedEvent, read: () => LoggedEvent['data']) {
    this.type = type
    this.#agent = agent
    this.#to = type === 'message_sent' ? data.to : undefined
    this.#key = 'key' in data ? data.key : undefined
    this.#read = read
  }

  passes({ types, agent, with: partner, key, text }: EventFilter): boolean {
    if (types !== undefined && !types.has(this.type)) return false
    if (partner !== undefined) {
      if (!this.#isBetween(agent, partner)) return false
    } else if (agent !== undefined && this.#agent !== agent) return false
    if (key !== undefined && !this.#key?.startsWith(key)) return false
    return text === undefined || this.#says(text.toLowerCase())
  }

  #isBetween(one: string | undefined, other: string): boolean {
    if (this.#to === undefined) return false
    return (
      (this.#agent === one && this.#to === other) || (this.#agent === other && this.#to === one)
    )
  }

  #says(text: string): boolean {
    this.#texts ??= Object.values(this.#read())
      .filter((value) => typeof value === 'string')
      .map((value) => value.slice(0, SEARCHED_CHARACTERS).toLowerCase())
    return this.#texts.some((value) => value.includes(text))
  }
}

/** Whether an event that is at hand passes. */
export function passes(event: LoggedEvent, filter: EventFilter): boolean {
  return new Filtered(event, () => event.data).passes(filter)
}

/** The same text for filters that let the same events pass. */
export function nameOf({ types, agent, with: partner, key, text }: EventFilter): string {
  return JSON.stringify([types ? [...types].sort() : null, agent, partner, key, text])
}
