/**
 * One consumer of JetStream for all followers that are at about the same position: an event comes
 * over the wire and is parsed once, however many projections the process leads. Messages that
 * nobody wants come too, and are not parsed: that none is missing shows that the replica which
 * sends them has lost nothing.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type Consumer,
  type ConsumerMessages,
  type JetStreamClient,
  type JetStreamManager,
  type JsMsg,
  NatsError,
} from 'nats'
import { inBackground } from '../platform/background.ts'
import { type Batch, isChange, messageOf, type StoredEvent } from './batch.ts'
import { EventLost, LogUnavailable } from './event-log.ts'
import {
  addConsumer,
  CONSUMER_NOT_FOUND,
  deleteConsumer,
  STREAM,
  streamState,
  toBatch,
  unavailable,
} from './event-stream.ts'
import type { Follower } from './follower.ts'
import type { SkippedMessages } from './skipped-messages.ts'

/** What a feed keeps of what it has handed out, for followers that are about to join it. */
const RECENT_EVENTS = 1_000
const RECENT_BYTES = 8 * 1_048_576
/** Bytes that the server may send ahead; more than one event of the greatest size. */
const READ_AHEAD_BYTES = 16 * 1_048_576
/** A consumer that has been quiet for so long is looked after. */
const WATCH_MS = 500
/**
 * So often in a row it is found to be behind, or not heard of, until it is given up: the servers
 * may only be busy.
 */
const MAX_DOUBTS = 3
/**
 * So many consumers are tried for a message that some replica lacks: each is on a replica that the
 * servers choose by chance.
 */
const MAX_SKIPS = 30
/**
 * The server says at least this often that it is there while it has nothing to send. The least that
 * it allows.
 */
const HEARTBEAT_MS = 500
/** A request for more events ends after this, and the library makes another. */
const REQUEST_MS = 10_000

/** A consumer of a feed's own, and what it sends. */
interface Source {
  readonly name: string
  messages?: ConsumerMessages
}

export interface FeedOptions {
  /** Begins after this sequence number. */
  readonly since: number
  readonly hasReads: boolean
  readonly removesConsumers: boolean
  readonly onEnd: () => void
}

/**
 * All that changes something after a position, and what else is wanted, for one follower or more.
 *
 * Modes: *receiving* (its consumer sends) → *skipping* (the consumer's replica lacks the next
 * message: it was erased, or another consumer is made, on whichever replica that comes to be) →
 * receiving; *ended* (nobody follows it any more), or *failed* (its consumer does not work, and
 * followers are to begin anew).
 */
export class ChangeFeed {
  /** Messages that the server has yet to send, as it said with the last one, or when it began. */
  pending = 0
  /** The sequence number of the last event that came. */
  position: number
  /** The message that comes next: that of the position, of which there may be more, at first. */
  #next: number
  failure: LogUnavailable | undefined
  /** Whether it hands on events that only record that somebody looked. */
  readonly hasReads: boolean
  readonly #removesConsumers: boolean
  readonly #stream: JetStreamClient
  readonly #manager: JetStreamManager
  readonly #skipped: SkippedMessages
  readonly #onEnd: () => void
  readonly #ended = new AbortController()
  readonly #followers = new Set<Follower>()
  #source: Source | undefined
  #delivered = 0
  /** Consumers in a row that skipped the next message. */
  #skips = 0
  /** What came after `#recentSince`. */
  readonly #recent: StoredEvent[] = []
  #recentBytes = 0
  #recentSince: number

  constructor(
    stream: JetStreamClient,
    manager: JetStreamManager,
    skipped: SkippedMessages,
    { since, hasReads, removesConsumers, onEnd }: FeedOptions,
  ) {
    this.#removesConsumers = removesConsumers
    this.hasReads = hasReads
    this.#stream = stream
    this.#manager = manager
    this.#skipped = skipped
    this.#onEnd = onEnd
    this.position = since
    this.#next = Math.max(1, messageOf(since))
    this.#recentSince = since
  }

  /** Begins to receive. Throws where the log cannot be read. */
  async begin(): Promise<void> {
    await this.#consume()
    void this.#watch().catch((reason: unknown) => this.#fail(reason))
  }

  /** Has a consumer, which is on some replica, send what comes after the position. */
  async #consume(): Promise<void> {
    const source: Source = { name: await addConsumer(this.#manager, this.#next) }
    this.#source = source
    if (this.#ended.signal.aborted) return this.#stopConsuming()
    const consumer = await this.#stream.consumers.get(STREAM, source.name)
    this.pending = (await consumer.info(true)).num_pending
    let delivered = 0
    const messages = await consumer.consume({
      max_bytes: READ_AHEAD_BYTES,
      idle_heartbeat: HEARTBEAT_MS,
      expires: REQUEST_MS,
      callback: (message) => {
        // What one that was given up had sent before.
        if (this.#source !== source) return
        delivered++
        if (message.info.deliverySequence !== delivered)
          this.#fail(new LogUnavailable('the event log skipped an event'))
        else if (message.seq !== this.#next) this.#skip(consumer)
        else this.#receive(message)
      },
    })
    source.messages = messages
    if (this.#source !== source) messages.stop()
  }

  /**
   * Whether somebody who is at `position` can join, misses nothing, and need not wait until the
   * feed is as far.
   */
  covers(position: number): boolean {
    return position >= this.#recentSince && (position <= this.position || this.pending === 0)
  }

  join(follower: Follower): void {
    this.#followers.add(follower)
    follower.feed = this
    for (const arrival of this.#recent) follower.offer(arrival)
    follower.pass(this.position)
  }

  leave(follower: Follower): void {
    this.#followers.delete(follower)
    follower.feed = undefined
    if (this.#followers.size === 0) this.end()
  }

  /** Nobody follows it any more. */
  end(): void {
    this.#onEnd()
    this.#ended.abort()
    this.#stopConsuming()
  }

  #stopConsuming(): void {
    const source = this.#source
    if (source === undefined) return
    this.#source = undefined
    source.messages?.stop()
    if (this.#removesConsumers)
      inBackground('delete_consumer', deleteConsumer(this.#manager, source.name))
  }

  #receive(message: JsMsg): void {
    this.#skips = 0
    this.pending = message.info.pending
    try {
      this.#take(toBatch(message.seq, message), this.hasReads || isChange(message.subject))
    } catch (error) {
      this.#fail(error)
    }
  }

  /** Hands a message on. One whose events are nothing for anybody is not parsed. */
  #take(batch: Batch, isWanted: boolean): void {
    this.#delivered++
    this.#next = batch.message + 1
    const before = this.position
    this.position = Math.max(before, batch.lastSeq)
    if (!isWanted) {
      for (const follower of this.#followers) {
        follower.pass(this.position)
        if (this.position >= follower.waitsFor) follower.wake()
      }
      return
    }
    const arrivals = [...batch.after(before)]
    for (const arrival of arrivals) this.#remember(arrival)
    for (const follower of this.#followers) {
      for (const arrival of arrivals) follower.offer(arrival)
      if (follower.isIdle) follower.wake()
      if (follower.isOverloaded) this.leave(follower)
    }
  }

  /**
   * The replica that a consumer is on lacks the next message. It was erased, or another consumer
   * may be on a replica that has it.
   */
  #skip(consumer: Consumer): void {
    this.#stopConsuming()
    const goOn = async () => {
      const { cluster } = await consumer.info(true)
      try {
        this.#take(await this.#skipped.find(this.#next, cluster?.leader ?? ''), true)
        this.#skips = 0
      } catch (error) {
        if (error instanceof EventLost || ++this.#skips > MAX_SKIPS) throw error
      }
      if (!this.#ended.signal.aborted) await this.#consume()
    }
    goOn().catch((reason: unknown) => this.#fail(reason))
  }

  #remember(arrival: StoredEvent): void {
    this.#recent.push(arrival)
    this.#recentBytes += arrival.bytes
    while (this.#recent.length > RECENT_EVENTS || this.#recentBytes > RECENT_BYTES) {
      const forgotten = this.#recent.shift() as StoredEvent
      this.#recentBytes -= forgotten.bytes
      this.#recentSince = forgotten.event.seq
    }
  }

  #fail(reason: unknown): void {
    this.failure ??= unavailable(reason)
    this.#onEnd()
    this.#stopConsuming()
    for (const follower of this.#followers) follower.wake()
  }

  /**
   * Throws when the consumer has stopped working: the server that ran it is gone, or has fallen
   * behind, or it has events to send and sends none. The library notices some of that as well, but
   * after many seconds.
   */
  async #watch(): Promise<void> {
    const { signal } = this.#ended
    let before = -1
    let doubts = 0
    for (;;) {
      await sleep(WATCH_MS, undefined, { signal }).catch(() => {})
      if (signal.aborted) return
      const now = this.#delivered
      if (now !== before) {
        before = now
        doubts = 0
        continue
      }
      const doubt = await this.#doubt()
      if (doubt === undefined || this.#delivered !== now) doubts = 0
      else if (++doubts === MAX_DOUBTS) throw doubt
    }
  }

  /** Why it may be that nothing comes any more. Throws where that is certain. */
  async #doubt(): Promise<LogUnavailable | undefined> {
    // It is between two consumers, which takes as long as the servers take.
    if (this.#source === undefined) return undefined
    try {
      const { num_pending: pending } = await this.#manager.consumers.info(STREAM, this.#source.name)
      const isBehind = pending > 0 || (await streamState(this.#manager)).last_seq >= this.#next
      // At the end of the stream nothing comes behind an erased message that would show its
      // absence.
      const erased = isBehind && pending === 0 ? await this.#skipped.erased(this.#next) : undefined
      if (erased?.message === this.#next) this.#take(erased, true)
      if (erased !== undefined) return undefined
      return isBehind ? new LogUnavailable('the event log has stopped sending') : undefined
    } catch (error) {
      if (error instanceof NatsError && error.api_error?.err_code === CONSUMER_NOT_FOUND)
        throw error
      return unavailable(error)
    }
  }
}
