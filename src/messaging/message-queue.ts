/** The port of the pull queues: messages on their way to agents who fetch them. */
import { Unavailable } from '../platform/unavailable.ts'

export interface Message {
  message_id: string
  from: string
  to: string
  content: string
  timestamp: string
}

export interface LeasedMessage extends Message {
  /** The sequence number of its `message_sent` event. */
  seq: number
}

/** Whether one more message can be carried. Asked of one after the other, in their order. */
export type Accept = (message: Message) => boolean

export interface Lease {
  /** In the order of the log. Nobody else gets them while the lease lasts. */
  messages: LeasedMessage[]
  /** Queued messages that are not leased to anybody. */
  remaining: number
  /**
   * The messages have not been delivered: they are back in the queue, where they were. Does nothing
   * where the lease has run out.
   *
   * @throws Unavailable
   */
  release(): Promise<void>
}

/** How long messages stay out of sight when the process that leased them died with them. */
export const LEASE_MS = 30_000

/** The queues cannot be read now. */
export class QueueUnavailable extends Unavailable {
  override name = 'QueueUnavailable'
}

export interface MessageQueue {
  /**
   * Leases the oldest messages of an agent, for `LEASE_MS`.
   *
   * @param recipient the agent's address
   * @param limit messages at most
   * @param accept the first message that it refuses, and those after it, stay in the queue; what it
   *   throws is thrown, and nothing is leased
   * @throws Unavailable
   */
  lease(recipient: string, limit: number, accept?: Accept): Promise<Lease>

  /**
   * The leased messages have been delivered, and their delivery is in the log or on its way there:
   * they are gone.
   *
   * @param options `isProjected`: the projection that the queues are has applied it already
   * @throws Unavailable
   */
  remove(
    recipient: string,
    messages: readonly LeasedMessage[],
    options?: { readonly isProjected?: boolean },
  ): Promise<void>
}
