/** Between messages and the events that record them. */
import type { LoggedEvent } from '../events/event.ts'
import type { LeasedMessage } from './message-queue.ts'

/**
 * The message that a `message_sent` event records. Throws a TypeError on another event: a queue
 * that points to one is corrupt.
 */
export function toLeasedMessage(event: LoggedEvent): LeasedMessage {
  if (event.type !== 'message_sent')
    throw new TypeError(`event ${event.seq} is ${event.type}, not a message`)
  const { message_id, from, to, content } = event.data
  return { seq: event.seq, message_id, from, to, content, timestamp: event.ts }
}

/** Whether the log itself has the content of this message no more. */
export function wasErased({ type, data }: LoggedEvent): boolean {
  return type === 'message_sent' && data.redacted === true
}

/** Whether it is a message for a webhook. */
export function isToBePushed({ type, via }: LoggedEvent): boolean {
  return type === 'message_sent' && via === 'webhook'
}
