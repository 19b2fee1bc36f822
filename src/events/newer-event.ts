/**
 * Events of a newer version, in a log that both versions work on while one replaces the other: what
 * an old one does not know it must not pass over.
 */
import { isKnownType, type LoggedEvent } from './event.ts'
import { LogUnavailable } from './event-log.ts'

/** After this an old version looks whether it may go on: the new one may have been taken back. */
export const NEWER_MS = 5_000

/** The log has an event that this version does not know. */
export class NewerEvent extends LogUnavailable {
  override name = 'NewerEvent'
}

/** @throws NewerEvent where one of them is of a type that this version does not know */
export function checkTypes(events: readonly LoggedEvent[]): void {
  const newer = events.find(({ type }) => !isKnownType(type))
  if (newer !== undefined)
    throw new NewerEvent(
      `event ${newer.seq} is of the type ${newer.type}, which only a newer version knows: a process of that one is to apply it`,
    )
}
