/**
 * Events on their way to the stream: those that come while earlier ones are under way go together
 * in the next message. With nothing under way an event goes at once, at the end of its turn of the
 * event loop; nobody waits for a timer.
 */
import { MAX_BATCH_EVENTS } from './batch.ts'
import { LogUnavailable } from './event-log.ts'

/** A line of a batch, and until when it may be sent. */
export interface Entry {
  readonly line: string
  /** When it was appended, by the clock of `performance.now()`. */
  readonly start: number
  /** It must not be stored after this, by the same clock. */
  readonly notAfter: number
}

/**
 * What a batch holds at most, in characters of its lines; a larger event is none of an outbox's
 * business.
 */
export const BATCH_CHARACTERS = 65_536
/** Batches of one outbox that are under way at most. */
const MAX_UNDER_WAY = 4
/** A further one goes where it is as full as this, since more of them cost the servers more… */
const FULL_EVENTS = 64
const FULL_CHARACTERS = 32_768
/** Of those that nobody waits for. */
const MANY_EVENTS = 500
/** …or the one before is slow. */
const SLOW_MS = 100
/** What waits in one outbox at most. */
const MAX_WAITING = 10_000
const MAX_WAITING_CHARACTERS = 16 * 1_048_576

export interface OutboxOptions {
  /** Stores a batch, and returns the sequence number of its first event. */
  readonly send: (batch: readonly Entry[]) => Promise<number>
  /** Whether it is too late to send this. */
  readonly isLate: (entry: Entry) => boolean
  /**
   * For how long an event waits for others that are to go with it, where nobody waits for it, in
   * ms. Default: not at all.
   */
  readonly lingerMs?: number
}

interface Waiting extends Entry, PromiseWithResolvers<number> {}

export class Outbox {
  readonly #options: OutboxOptions
  #waiting: Waiting[] = []
  #characters = 0
  readonly #underWay = new Set<Promise<void>>()
  #sentAt = Number.NEGATIVE_INFINITY
  #turn: NodeJS.Immediate | undefined
  #timer: NodeJS.Timeout | undefined
  #isFlushing = false

  constructor(options: OutboxOptions) {
    this.#options = options
  }

  /** Events that wait to be sent. */
  get waiting(): number {
    return this.#waiting.length
  }

  /**
   * @returns the sequence number of the event, once its batch is stored
   * @throws `LogUnavailable` where too much waits, or it is too late; and what `send` throws, with
   *   all others of the batch
   */
  add(entry: Entry): Promise<number> {
    if (
      this.#waiting.length >= MAX_WAITING ||
      this.#characters + entry.line.length > MAX_WAITING_CHARACTERS
    )
      return Promise.reject(new LogUnavailable('too many events wait for the event log'))
    const waiting = { ...entry, ...Promise.withResolvers<number>() }
    this.#waiting.push(waiting)
    this.#characters += entry.line.length
    const { lingerMs } = this.#options
    if (lingerMs === undefined || this.#isFlushing) this.#turn ??= setImmediate(() => this.#send())
    else if (this.#isFull()) this.#send()
    else this.#timer ??= setTimeout(() => this.#send(), lingerMs)
    return waiting.promise
  }

  /**
   * Sends what waits, without waiting for more, and resolves when nothing waits or is under way any
   * more.
   */
  async flush(): Promise<void> {
    this.#isFlushing = true
    for (this.#send(); this.#underWay.size > 0; this.#send()) await Promise.race(this.#underWay)
  }

  #isFull(): boolean {
    const events = this.#options.lingerMs === undefined ? FULL_EVENTS : MANY_EVENTS
    return this.#waiting.length >= events || this.#characters >= FULL_CHARACTERS
  }

  #send(): void {
    clearImmediate(this.#turn)
    clearTimeout(this.#timer)
    this.#turn = undefined
    this.#timer = undefined
    while (this.#waiting.length > 0 && this.#underWay.size < MAX_UNDER_WAY) {
      const slowInMs = this.#sentAt + SLOW_MS - performance.now()
      if (this.#underWay.size > 0 && !this.#isFull() && slowInMs > 0) {
        this.#timer = setTimeout(() => this.#send(), slowInMs)
        return
      }
      const batch = this.#take()
      if (batch.length === 0) continue
      this.#sentAt = performance.now()
      const sending = this.#store(batch).finally(() => {
        this.#underWay.delete(sending)
        // With what its confirmation brings in this turn.
        if (this.#waiting.length > 0 && this.#options.lingerMs === undefined)
          this.#turn ??= setImmediate(() => this.#send())
      })
      this.#underWay.add(sending)
    }
  }

  /** The next batch, without those that it is too late for. */
  #take(): Waiting[] {
    const batch: Waiting[] = []
    let taken = 0
    let characters = 0
    for (const waiting of this.#waiting) {
      if (batch.length === MAX_BATCH_EVENTS) break
      if (batch.length > 0 && characters + waiting.line.length > BATCH_CHARACTERS) break
      taken++
      this.#characters -= waiting.line.length
      if (this.#options.isLate(waiting))
        waiting.reject(new LogUnavailable('the event log is too slow'))
      else {
        batch.push(waiting)
        characters += waiting.line.length
      }
    }
    this.#waiting = this.#waiting.slice(taken)
    return batch
  }

  async #store(batch: readonly Waiting[]): Promise<void> {
    try {
      const first = await this.#options.send(batch)
      for (const [index, { resolve }] of batch.entries()) resolve(first + index)
    } catch (error) {
      for (const { reject } of batch) reject(error)
    }
  }
}
