/** Who follows the log: what has come for one, and has not been taken yet. */
import type { StoredEvent } from './batch.ts'
import type { ChangeFeed } from './change-feed.ts'
import { changesOf, classOf, type EventType, isKnownType, type LoggedEvent } from './event.ts'
import type { FollowOptions } from './event-log.ts'

/** Events that one batch holds at most, in number and in bytes as they came over the wire. */
const BATCH_EVENTS = 2_000
const BATCH_BYTES = 8 * 1_048_576
/**
 * For more events, where nobody waits for those that are there. A message that is fetched within it
 * never enters the index of undelivered ones.
 */
const LINGER_MS = 200
/**
 * What a follower may have before it, in number and in bytes. With more it leaves its feed until it
 * has done all that.
 */
const WAITING_EVENTS = 20_000
const WAITING_BYTES = 16 * 1_048_576

/**
 * Its events come in batches. Modes: *idle* (nothing has come) → *lingering* (what has come may
 * wait for more, `LINGER_MS` at most) → *ready* (something that has come may not wait, or has
 * waited).
 */
export class Follower {
  feed: ChangeFeed | undefined
  /** The sequence number of the last event that was offered. */
  position: number
  /** An event that is nothing for it wakes it from this sequence number on. */
  waitsFor = Number.POSITIVE_INFINITY
  /** Also events that only record that somebody looked. */
  readonly wantsReads: boolean
  readonly #types: ReadonlySet<EventType>
  readonly #mayWait: (event: LoggedEvent) => boolean
  readonly #arrived: StoredEvent[] = []
  #bytes = 0
  /** Something that has arrived may not wait, or has waited. */
  #isReady = false
  #lingering: NodeJS.Timeout | undefined
  #waking = Promise.withResolvers<void>()

  constructor(since: number, { types = changesOf(), mayWait = () => false }: FollowOptions) {
    this.position = since
    this.#types = new Set(types)
    this.wantsReads = types.some((type) => classOf(type) === 'read')
    this.#mayWait = mayWait
  }

  get isIdle(): boolean {
    return this.#arrived.length === 0
  }

  get isOverloaded(): boolean {
    return this.#arrived.length > WAITING_EVENTS || this.#bytes > WAITING_BYTES
  }

  offer(arrival: StoredEvent): void {
    const { event, bytes } = arrival
    if (event.seq <= this.position) return
    this.position = event.seq
    // What this version does not know is for nobody to miss.
    if (!this.#types.has(event.type) && isKnownType(event.type)) return
    this.#arrived.push(arrival)
    this.#bytes += bytes
    if (this.#isReady || this.#arrived.length >= BATCH_EVENTS || !this.#mayWait(event))
      this.#deliver()
    else this.#lingering ??= setTimeout(() => this.#deliver(), LINGER_MS)
  }

  /** What comes up to here is nothing for it. */
  pass(seq: number): void {
    if (seq > this.position) this.position = seq
  }

  #deliver(): void {
    this.#endLinger()
    this.#isReady = true
    this.wake()
  }

  /** The next batch; undefined where there is none yet. */
  take(): LoggedEvent[] | undefined {
    if (!this.#isReady) return undefined
    let bytes = 0
    let count = 0
    for (const entry of this.#arrived) {
      if (count > 0 && (count >= BATCH_EVENTS || bytes + entry.bytes > BATCH_BYTES)) break
      bytes += entry.bytes
      count++
    }
    this.#bytes -= bytes
    const batch = this.#arrived.splice(0, count).map(({ event }) => event)
    this.#isReady = !this.isIdle
    return batch
  }

  wake(): void {
    this.#waking.resolve()
  }

  /** Nothing is to come any more. */
  end(): void {
    this.#endLinger()
    this.wake()
  }

  #endLinger(): void {
    clearTimeout(this.#lingering)
    this.#lingering = undefined
  }

  /**
   * Resolves when it has been woken since it was called last, or when so much time is over, then to
   * true.
   */
  async woken(afterMs?: number): Promise<boolean> {
    let isOver = false
    const timer =
      afterMs === undefined
        ? undefined
        : setTimeout(() => {
            isOver = true
            this.wake()
          }, afterMs)
    await this.#waking.promise
    clearTimeout(timer)
    this.#waking = Promise.withResolvers()
    return isOver
  }
}
