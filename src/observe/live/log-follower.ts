/**
 * Follows the log for all watchers of a process, and keeps its latest events, with what was removed
 * replaced.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type LoggedEvent, sizeOf } from '../../events/event.ts'
import { inBackground } from '../../platform/background.ts'
import type { Failures } from './failures.ts'
import { Ring, type RingLimits } from './ring.ts'
import type { EventSource } from './source.ts'

/**
 * Events, and characters of their data, that wait to be asked about. What is more stays in the log.
 */
const MAX_WAITING_EVENTS = 10_000
const MAX_WAITING_CHARACTERS = 16 * 1_048_576

export interface LogFollowerOptions {
  readonly source: EventSource
  /** The sequence number to begin after. */
  readonly since: number
  readonly limits: RingLimits
  readonly failures: Failures
  /** There are more events in the ring. */
  readonly onEvents: () => void
}

export class LogFollower {
  readonly ring: Ring
  readonly #options: LogFollowerOptions
  readonly #stop = new AbortController()
  /** Up to here the log has handed events over. */
  #received: number
  #waiting: LoggedEvent[] = []
  #waitingCharacters = 0
  /** Resolved when events have come, and when those that waited have been taken. */
  #come = Promise.withResolvers<void>()
  #taken = Promise.withResolvers<void>()

  constructor(options: LogFollowerOptions) {
    this.#options = options
    this.#received = options.since
    this.ring = new Ring(options.since, options.limits)
    inBackground('follow_for_watchers', this.#follow())
    inBackground('redact_for_watchers', this.#pass())
  }

  stop(): void {
    this.#stop.abort()
    this.#come.resolve()
    this.#taken.resolve()
  }

  /** Takes events from the log, and goes on from where it was when that fails. */
  async #follow(): Promise<void> {
    const { signal } = this.#stop
    const { source, failures } = this.#options
    for (let failed = 0; !signal.aborted; ) {
      try {
        for await (const batch of source.follow(this.#received, signal)) {
          failed = 0
          await this.#receive(batch)
          if (signal.aborted) return
        }
      } catch (error) {
        if (!signal.aborted) failures.met(error)
      }
      await pause(failures.delay(failed++), signal)
    }
  }

  async #receive(batch: readonly LoggedEvent[]): Promise<void> {
    for (const event of batch) {
      if (event.seq <= this.#received) continue
      this.#received = event.seq
      this.#waiting.push(event)
      this.#waitingCharacters += sizeOf(event)
    }
    if (this.#waiting.length === 0) return
    this.#come.resolve()
    const isMuch = () =>
      this.#waiting.length >= MAX_WAITING_EVENTS ||
      this.#waitingCharacters >= MAX_WAITING_CHARACTERS
    while (isMuch() && !this.#stop.signal.aborted) await this.#taken.promise
  }

  /**
   * Hands on what has come, all of it together when the question about those before has been
   * answered.
   */
  async #pass(): Promise<void> {
    const { ring } = this
    const { onEvents } = this.#options
    for (;;) {
      await this.#come.promise
      if (this.#stop.signal.aborted) return
      this.#come = Promise.withResolvers()
      const events = this.#waiting
      this.#waiting = []
      this.#waitingCharacters = 0
      this.#taken.resolve()
      this.#taken = Promise.withResolvers()
      // What is in the ring and has been removed since must not be shown to those who have yet to
      // get it.
      const removed = ring.removedBy(events)
      const redacted = await this.#redact([...removed, ...events])
      if (redacted === undefined) return
      ring.replace(redacted.slice(0, removed.length))
      ring.add(redacted.slice(removed.length))
      onEvents()
    }
  }

  /**
   * Undefined when it has been stopped. Nothing is handed on as long as nobody knows what of it was
   * removed.
   */
  async #redact(events: readonly LoggedEvent[]): Promise<readonly LoggedEvent[] | undefined> {
    const { signal } = this.#stop
    const { source, failures } = this.#options
    for (let failed = 0; !signal.aborted; failed++) {
      try {
        const redacted = await source.redact(events)
        return signal.aborted ? undefined : redacted
      } catch (error) {
        failures.met(error)
        await pause(failures.delay(failed), signal)
      }
    }
    return undefined
  }
}

/** Waits for so many ms, or until the signal aborts. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {})
}
