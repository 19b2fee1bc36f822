/** Between messages and the events that record them. */
import type { LoggedEvent } from '../events/event.ts'
import type { LeasedMessage } from './message-queue.ts'

/** The message that a `message_sent` event records. Throws a TypeError on another event: a queue that points to one is corrupt. */
export function toLeasedMessage(event: LoggedEvent): LeasedMessage {
  if (event.type !== 'message_sent') throw new TypeError(`event ${event.seq} is ${event.type}, not a message`)
  const { message_id, from, to, content } = event.data
  return { seq: event.seq, message_id, from, to, content, timestamp: event.ts }
}

/** Whether it is a message for a webhook. */
export function isToBePushed({ type, via }: LoggedEvent): boolean {
  return type === 'message_sent' && via === 'webhook'
}

/** What a batch of events does to the index of messages not delivered yet, as the function `project_messages` takes it. */
export function messageChanges(events: readonly LoggedEvent[]): {
  sent: object[]
  queued: string[]
  delivered: string[]
} {
  const delivered = new Set(events.flatMap(({ type, data }) => (type === 'message_delivered' ? [data.message_id] : [])))
  const queued = new Set(
    events.flatMap(({ type, data }) =>
      type === 'message_queued' && !delivered.has(data.message_id) ? [data.message_id] : [],
    ),
  )
  const sent = events.flatMap(({ seq, via, type, data }) =>
    // One that was sent and delivered within the batch need not be written at all.
    type === 'message_sent' && !delivered.delete(data.message_id)
      ? [
          {
            message_id: data.message_id,
            recipient: data.to,
            seq,
            pushed: via === 'webhook' && !queued.delete(data.message_id),
          },
        ]
      : [],
  )
  return { sent, queued: [...queued], delivered: [...delivered] }
}
