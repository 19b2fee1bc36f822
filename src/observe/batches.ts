/**
 * The log in batches for the read models: large ones while there is much to catch up with, as a sum
 * over more events changes fewer rows.
 */
import type { LoggedEvent } from '../events/event.ts'
import type { EventLog } from '../events/event-log.ts'
import { ALL_TYPES } from './changes.ts'

/** A batch of the log that is as large has more behind it. */
const FULL_BATCH = 400
/**
 * Events of one batch, at least so many where there are as many; each takes some hundred bytes
 * without what it carries.
 */
const MAX_EVENTS = 5_000

/**
 * All events after `since`, as they happen; an empty batch says that there is nothing more now.
 *
 * @throws Unavailable
 */
export async function* inBatches(
  log: Pick<EventLog, 'follow'>,
  since: number,
  signal: AbortSignal,
): AsyncGenerator<readonly LoggedEvent[]> {
  let pending: LoggedEvent[] = []
  for await (const events of log.follow(since, signal, { types: ALL_TYPES })) {
    for (const event of events) pending.push(withoutContent(event))
    if (events.length >= FULL_BATCH && pending.length < MAX_EVENTS) continue
    if (pending.length > 0) yield pending
    if (events.length === 0) yield []
    pending = []
  }
}

/** Read models keep no contents, and batches of them would take much memory. */
function withoutContent(event: LoggedEvent): LoggedEvent {
  if (event.type === 'message_sent') return { ...event, data: { ...event.data, content: '' } }
  if (event.type === 'state_written') return { ...event, data: { ...event.data, value: '' } }
  return event
}
