/** The port of the live streams: where the events come from that watchers see. */
import type { EventType, LoggedEvent } from '../../events/event.ts'

/** Which events somebody wants; those that match all that is given. */
export interface EventFilter {
  readonly types?: ReadonlySet<EventType>
  /** The event's `agent`. */
  readonly agent?: string
}

export interface EventSource {
  /**
   * All events after `since` in order, in batches, as they happen; an empty batch says that there is nothing more now. Ends when the signal
   * aborts. Throws `Unavailable` when the log cannot be followed any longer.
   */
  follow(since: number, signal: AbortSignal): AsyncIterable<readonly LoggedEvent[]>

  /**
   * History: the events after `since` that pass the filter, in order, with what was removed replaced; at most `limit`, and fewer where they are
   * large, so that a page has a bound in bytes. `through`: every event up to that place has been looked at, so that a filter that matches
   * nothing moves on. Throws `Unavailable`.
   */
  read(
    since: number,
    filter: EventFilter,
    limit: number,
  ): Promise<{ readonly events: readonly LoggedEvent[]; readonly through: number }>

  /**
   * The same events, with what was removed replaced. A removal that is among the events that are asked about counts already. Throws
   * `Unavailable`.
   */
  redact(events: readonly LoggedEvent[]): Promise<readonly LoggedEvent[]>

  /** The place of the last event, 0 in an empty log. Throws `Unavailable`. */
  lastSeq(): Promise<number>
}

export function passes(
  event: { readonly type: EventType; readonly agent?: string | undefined },
  { types, agent }: EventFilter,
): boolean {
  return (types === undefined || types.has(event.type)) && (agent === undefined || event.agent === agent)
}

/** The same text for filters that let the same events pass. */
export function nameOf({ types, agent = '' }: EventFilter): string {
  return `${types ? [...types].sort().join() : '*'} ${agent}`
}
