/** What is shown in the place of content that was removed. */
import type { LoggedEvent } from '../events/event.ts'
import type { Removal, Removals } from './removals.ts'

export const REDACTED = '[REDACTED — see /observe/transparency]'

/**
 * The events, with what was removed replaced: the content of a message that was redacted, and each
 * value that a key had before it was removed. Asks the store only where there is such an event,
 * once for messages and once for keys. Throws `Unavailable`.
 */
export async function redact(
  events: readonly LoggedEvent[],
  removals: Pick<Removals, 'ofMessages' | 'ofKeys'>,
): Promise<LoggedEvent[]> {
  const ids = events.flatMap(({ type, data }) => (type === 'message_sent' ? [data.message_id] : []))
  const keys = events.flatMap(({ type, data }) => (type === 'state_written' ? [data.key] : []))
  const none = new Map<string, Removal>()
  const [messages, states] = await Promise.all([
    ids.length > 0 ? removals.ofMessages([...new Set(ids)]) : none,
    keys.length > 0 ? removals.ofKeys([...new Set(keys)]) : none,
  ])
  return events.map((event) => {
    if (event.type === 'message_sent') return redacted(event, messages.get(event.data.message_id))
    if (event.type !== 'state_written') return event
    const removal = states.get(event.data.key)
    return redacted(event, removal !== undefined && event.seq < removal.seq ? removal : undefined)
  })
}

/**
 * The event without what its removal removed; as it is where there is none, or it carries nothing.
 */
export function redacted(
  event: LoggedEvent,
  removal: Pick<Removal, 'reason'> | undefined,
): LoggedEvent {
  if (removal === undefined) return event
  const mark = { redacted: true, redacted_reason: removal.reason } as const
  if (event.type === 'message_sent')
    return { ...event, data: { ...event.data, content: REDACTED, ...mark } }
  if (event.type === 'state_written')
    return { ...event, data: { ...event.data, value: REDACTED, ...mark } }
  return event
}
