/**
 * Loads what queues hold of messages, within bounds: the contents of a page may be many times what
 * it can carry.
 */
import type { LoggedEvent } from '../events/event.ts'
import type { EventLog } from '../events/event-log.ts'
import { Turnstile } from '../platform/turnstile.ts'
import { REDACTED, redact } from '../removal/redaction.ts'
import type { Removals } from '../removal/removals.ts'
import type { Accept, LeasedMessage } from './message-queue.ts'
import { toLeasedMessage } from './messages-of-log.ts'

/** Contents of the greatest size that are loaded at once, together; at least one. */
const LOADED_BYTES = 524_288
/** Requests that load at once. */
const LOADING = 4

/**
 * Whether the content of a message that is in the log was removed.
 *
 * - `no`, `yes`: as the queue knows
 * - `ask`: it does not
 */
export type Redaction = 'no' | 'yes' | 'ask'

/** A message, or where it is in the log. */
export type Queued = LeasedMessage | InLog
export interface InLog {
  readonly seq: number
  readonly redaction: Redaction
}

export class MessageLoader {
  readonly #log: EventLog
  readonly #removals: Removals
  readonly #atOnce: number
  readonly #loading = new Turnstile(LOADING)

  /** @param maxContentBytes how long a content may be */
  constructor(log: EventLog, removals: Removals, maxContentBytes: number) {
    this.#log = log
    this.#removals = removals
    this.#atOnce = Math.max(1, Math.floor(LOADED_BYTES / maxContentBytes))
  }

  /**
   * The messages in their order, up to the first one that `accept` refuses; those that were
   * redacted, redacted. Throws `Unavailable`, and what `accept` throws.
   */
  async load(queued: readonly Queued[], accept: Accept): Promise<LeasedMessage[]> {
    const messages: LeasedMessage[] = []
    for (let from = 0; from < queued.length; from += this.#atOnce) {
      const part = queued.slice(from, from + this.#atOnce)
      const isFull = await this.#take(part, accept, messages)
      if (isFull) break
    }
    return messages
  }

  /** Adds those that are accepted. Returns whether one was not. */
  async #take(
    part: readonly Queued[],
    accept: Accept,
    messages: LeasedMessage[],
  ): Promise<boolean> {
    const inLog = part.filter(isInLog)
    if (inLog.length === 0) return addAccepted(part.filter(isWhole), accept, messages)
    return this.#loading.pass(async () => {
      const found = new Map(
        (await this.#loadFromLog(inLog)).map((message) => [message.seq, message]),
      )
      const loaded = part.flatMap((entry) =>
        isInLog(entry) ? (found.get(entry.seq) ?? []) : entry,
      )
      return addAccepted(loaded, accept, messages)
    })
  }

  async #loadFromLog(inLog: readonly InLog[]): Promise<LeasedMessage[]> {
    const redactions = new Map(inLog.map(({ seq, redaction }) => [seq, redaction]))
    const events = await this.#log.get([...redactions.keys()])
    const toAsk = events.filter(({ seq }) => redactions.get(seq) === 'ask')
    const asked = new Map<number, LoggedEvent>(
      toAsk.length === 0
        ? []
        : (await redact(toAsk, this.#removals)).map((event) => [event.seq, event]),
    )
    return events.map((event) => {
      const message = toLeasedMessage(asked.get(event.seq) ?? event)
      return redactions.get(event.seq) === 'yes' ? { ...message, content: REDACTED } : message
    })
  }
}

function isInLog(entry: Queued): entry is InLog {
  return 'redaction' in entry
}

function isWhole(entry: Queued): entry is LeasedMessage {
  return !isInLog(entry)
}

function addAccepted(
  loaded: readonly LeasedMessage[],
  accept: Accept,
  messages: LeasedMessage[],
): boolean {
  for (const message of loaded) {
    if (!accept(message)) return true
    messages.push(message)
  }
  return false
}
