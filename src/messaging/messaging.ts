/** Sending messages and fetching them. */
import { hash, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Counter, Gauge } from 'prom-client'
import type { NewEvent } from '../events/event.ts'
import { type EventLog, LogUnavailable } from '../events/event-log.ts'
import { type Applied, PROJECTOR_SILENCE_MS, ProjectionBehind } from '../events/progress.ts'
import { batched } from '../platform/batch.ts'
import type { Registry } from '../registry/registry.ts'
import type { Removals } from '../removal/removals.ts'
import {
  type Accept,
  type LeasedMessage,
  type Message,
  type MessageQueue,
  QueueUnavailable,
} from './message-queue.ts'
import { toLeasedMessage, wasErased } from './messages-of-log.ts'

/** Nobody has that address. */
export class UnknownRecipient extends Error {
  override name = 'UnknownRecipient'
}

/** The idempotency key was used for another message. */
export class IdempotencyKeyReused extends Error {
  override name = 'IdempotencyKeyReused'
}

/**
 * Messages that a response is about to carry. One of the two must be called when its fate is known.
 */
export interface Receipt {
  messages: Message[]
  remaining: number
  /**
   * The response has been written: the messages are gone and their delivery is recorded. Never
   * throws.
   */
  delivered(): Promise<void>
  /** The response could not be written: the messages go back. Never throws. */
  undelivered(): Promise<void>
}

/**
 * Deliveries that wait for the log at most, while it is out; past that nothing more is handed out.
 */
const MAX_UNRECORDED = 10_000
const RECORD_RETRY_MS = 250
/** A log that has not recorded a delivery after this is out, or slow. */
const RECORDED_SOON_MS = 1_500
/**
 * Responses that wait to hear that the projector has taken what they delivered out of its queue, at
 * most; past that this process does it.
 */
const MAX_AWAITED = 10_000
/** Admission may have taken half a second; the whole stays within 2 s. */
const SENT_WITHIN_MS = 1_500
/** What is left of that for the projector after a slow append, at least. */
const QUEUED_TIMEOUT_MS = 500

const unrecordedGauge = new Gauge({
  name: 'tabulum_deliveries_unrecorded',
  help: `Deliveries that are not in the event log yet; at ${MAX_UNRECORDED} no more messages are handed out.`,
})
const lost = new Counter({
  name: 'tabulum_lease_failures_total',
  help: 'Leases that could not be settled at once; their messages become visible again when the lease runs out.',
})

export class Messaging {
  readonly #registry: Pick<Registry, 'findAgent'>
  readonly #log: EventLog
  readonly #queue: MessageQueue
  readonly #removals: Pick<Removals, 'ofMessages'>
  readonly #progress: Applied
  readonly #now: () => number
  /** Deliveries under way to the log. */
  readonly #recording = new Set<Promise<void>>()
  #unrecorded = 0
  /**
   * Whether the projector has taken out of its queue what was delivered with the event of that
   * sequence number.
   */
  readonly #takenOut: (seq: number) => Promise<boolean>

  constructor(
    parts: {
      registry: Pick<Registry, 'findAgent'>
      log: EventLog
      queue: MessageQueue
      removals: Pick<Removals, 'ofMessages'>
      progress: Applied
    },
    options: { now?: () => number } = {},
  ) {
    this.#registry = parts.registry
    this.#log = parts.log
    this.#queue = parts.queue
    this.#removals = parts.removals
    this.#progress = parts.progress
    this.#now = options.now ?? Date.now
    this.#takenOut = batched(
      async (seqs) => {
        const isTakenOut = await this.#queued(Math.max(...seqs))
        return seqs.map(() => isTakenOut)
      },
      { maxItems: MAX_AWAITED, maxWaiting: MAX_AWAITED },
    )
  }

  /**
   * Sends a message. With an idempotency key, a retry within two minutes returns the first message
   * and sends nothing again. Throws `UnknownRecipient`, `IdempotencyKeyReused`, `LogUnavailable`.
   */
  async send(
    from: string,
    to: string,
    content: string,
    idempotencyKey?: string,
  ): Promise<Omit<Message, 'content'>> {
    const start = performance.now()
    const recipient = await this.#registry.findAgent(to)
    if (!recipient) throw new UnknownRecipient()
    const message: Message = {
      message_id: randomUUID(),
      from,
      to,
      content,
      timestamp: new Date(this.#now()).toISOString(),
    }
    const event: NewEvent = {
      ts: message.timestamp,
      type: 'message_sent',
      agent: from,
      data: {
        message_id: message.message_id,
        from,
        to,
        content,
        content_length: Buffer.byteLength(content),
      },
    }
    const { seq, duplicate } = await this.#log.append(event, {
      ...(recipient.hasWebhook && { via: 'webhook' as const }),
      ...(idempotencyKey !== undefined && { id: idempotencyId(from, idempotencyKey) }),
    })
    const accepted = duplicate ? await this.#first(seq, message) : message
    // A worker takes what is to be pushed from here; nobody waits for it.
    if (!recipient.hasWebhook) await this.#queued(seq, SENT_WITHIN_MS - (performance.now() - start))
    return { message_id: accepted.message_id, from, to, timestamp: accepted.timestamp }
  }

  /** The message that was sent first under an idempotency key. */
  async #first(seq: number, again: Message): Promise<Message> {
    const [event] = await this.#log.get([seq])
    const first = event && toLeasedMessage(event)
    if (!first || first.from !== again.from || first.to !== again.to)
      throw new IdempotencyKeyReused()
    const isSame = wasErased(event)
      ? await this.#wasContentOf(first, again.content)
      : first.content === again.content
    if (!isSame) throw new IdempotencyKeyReused()
    return first
  }

  /** Whether a message that was erased had this content: its hash was kept. */
  async #wasContentOf({ message_id }: Message, content: string): Promise<boolean> {
    const removal = (await this.#removals.ofMessages([message_id])).get(message_id)
    return removal?.content_hash === hash('sha256', content)
  }

  /**
   * Waits until the queues are where the log was at `seq`, so that what is acknowledged can be
   * fetched; but not for a projector that is away. Returns whether they are.
   */
  async #queued(seq: number, silentMs = QUEUED_TIMEOUT_MS): Promise<boolean> {
    if (this.#progress.silenceMs() > PROJECTOR_SILENCE_MS) return false
    try {
      await this.#progress.reached(seq, Math.max(QUEUED_TIMEOUT_MS, silentMs))
      return true
    } catch (error) {
      if (!(error instanceof ProjectionBehind)) throw error
      return false
    }
  }

  /**
   * Takes the oldest queued messages of an agent, at most `limit`, as long as `accept` takes them.
   * Throws `QueueUnavailable`, `LogUnavailable`, and what `accept` throws.
   */
  async receive(recipient: string, limit: number, accept?: Accept): Promise<Receipt> {
    if (this.#unrecorded >= MAX_UNRECORDED)
      throw new QueueUnavailable('too many deliveries wait to be recorded')
    const lease = await this.#queue.lease(recipient, limit, accept)
    const { messages } = lease
    return {
      messages: messages.map(({ message_id, from, to, content, timestamp }) => ({
        message_id,
        from,
        to,
        content,
        timestamp,
      })),
      remaining: lease.remaining,
      delivered: () => this.#settle(() => this.#recordAndRemove(recipient, messages)),
      undelivered: () => this.#settle(() => lease.release()),
    }
  }

  async #settle(run: () => Promise<void>): Promise<void> {
    const settling = run()
      .catch(() => lost.inc())
      .finally(() => this.#recording.delete(settling))
    this.#recording.add(settling)
    await settling
  }

  async #recordAndRemove(recipient: string, messages: readonly LeasedMessage[]): Promise<void> {
    if (messages.length === 0) return
    this.#countUnrecorded(messages.length)
    try {
      const recording = this.#record(messages)
      const seq = await Promise.race([
        recording,
        sleep(RECORDED_SOON_MS, undefined, { ref: false }),
      ])
      // It rejects where too many wait.
      const isProjected = seq !== undefined && (await this.#takenOut(seq).catch(() => false))
      // Not left until the log is back: the lease would run out. The queue may be out as well; the
      // projector removes what the log says was delivered.
      await this.#queue.remove(recipient, messages, { isProjected }).catch(() => {})
      await recording
    } finally {
      this.#countUnrecorded(-messages.length)
    }
  }

  #countUnrecorded(change: number): void {
    this.#unrecorded += change
    unrecordedGauge.set(this.#unrecorded)
  }

  /**
   * Appends the deliveries to the log, however long that takes. Returns the sequence number of the
   * last.
   */
  async #record(messages: readonly LeasedMessage[]): Promise<number> {
    return Math.max(...(await Promise.all(messages.map((message) => this.#recordOne(message)))))
  }

  async #recordOne({ seq: about, message_id, to }: LeasedMessage): Promise<number> {
    const data = { message_id, to, delivery_method: 'pull' } as const
    const event = {
      ts: new Date(this.#now()).toISOString(),
      type: 'message_delivered',
      agent: to,
      data,
    } as const
    for (;;) {
      try {
        return (await this.#log.append(event, { about, isPersistent: true })).seq
      } catch (error) {
        if (!(error instanceof LogUnavailable)) throw error
        await sleep(RECORD_RETRY_MS)
      }
    }
  }

  /** Resolves when all deliveries so far are in the log. For an orderly stop. */
  async drain(): Promise<void> {
    while (this.#recording.size > 0) await Promise.all(this.#recording)
  }
}

function idempotencyId(sender: string, key: string): string {
  return `idempotency-${hash('sha256', `${sender}\0${key}`)}`
}
