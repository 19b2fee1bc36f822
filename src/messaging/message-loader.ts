/** Loads what queues hold of messages, within bounds: the contents of a page may be many times what it can carry. */
import type { EventLog } from '../events/event-log.ts'
import { Turnstile } from '../platform/turnstile.ts'
import type { Accept, LeasedMessage } from './message-queue.ts'
import { toLeasedMessage } from './messages-of-log.ts'

/** Contents of the greatest size that are loaded at once, together; at least one. */
const LOADED_BYTES = 524_288
/** Requests that load at once. */
const LOADING = 4

/** A message, or its place in the log where its content is. */
export type Queued = LeasedMessage | number

export class MessageLoader {
  readonly #log: EventLog
  readonly #atOnce: number
  readonly #loading = new Turnstile(LOADING)

  /** @param maxContentBytes how long a content may be */
  constructor(log: EventLog, maxContentBytes: number) {
    this.#log = log
    this.#atOnce = Math.max(1, Math.floor(LOADED_BYTES / maxContentBytes))
  }

  /**
   * The messages in their order, up to the first one that `accept` refuses. Throws `LogUnavailable`, and what `accept` throws.
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
  async #take(part: readonly Queued[], accept: Accept, messages: LeasedMessage[]): Promise<boolean> {
    const seqs = part.filter((entry) => typeof entry === 'number')
    if (seqs.length === 0) return addAccepted(part as readonly LeasedMessage[], accept, messages)
    return this.#loading.pass(async () => {
      const found = new Map((await this.#log.get(seqs)).map((event) => [event.seq, toLeasedMessage(event)]))
      const loaded = part.flatMap((entry) => (typeof entry === 'number' ? (found.get(entry) ?? []) : entry))
      return addAccepted(loaded, accept, messages)
    })
  }
}

function addAccepted(loaded: readonly LeasedMessage[], accept: Accept, messages: LeasedMessage[]): boolean {
  for (const message of loaded) {
    if (!accept(message)) return true
    messages.push(message)
  }
  return false
}
