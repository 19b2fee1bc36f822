/** What of the log the reader has before them: a stretch without gaps, of a bounded number of events. */
import { batch, signal } from '@preact/signals'
import { ask, type EventsPage, type LogEvent, query, Refused, shorten } from './api.ts'
import { follow } from './live.ts'

/** Events held at once: beyond it those are let go that are farthest from what the reader looks at. */
export const WINDOW = 2_000
const PAGE = 100
const CATCH_UP = 1_000
const FAR = 999_999_999_999_999

export interface FeedFilter {
  readonly type?: string | undefined
  readonly agent?: string | undefined
  /** Opens there instead of at the end. */
  readonly at?: number | undefined
}

export class Feed {
  /** In the order of the log. */
  readonly events = signal<readonly LogEvent[]>([])
  readonly mode = signal<'live' | 'paused' | 'past'>('live')
  /** How many came since the reader paused. */
  readonly missed = signal(0)
  readonly hasOlder = signal(false)
  readonly hasNewer = signal(false)
  readonly isLoading = signal(true)
  readonly refused = signal<Refused | undefined>(undefined)
  readonly #filter: FeedFilter
  readonly #abort = new AbortController()
  #unfollow: (() => void) | undefined

  constructor(filter: FeedFilter) {
    this.#filter = filter
    this.#work(() => (filter.at === undefined ? this.#toEnd() : this.#openAt(filter.at)))
  }

  close(): void {
    this.#abort.abort()
    this.#unfollow?.()
  }

  pause(): void {
    if (this.mode.value === 'live') this.mode.value = 'paused'
  }

  /** Goes on at the end, with all that came in the meantime, or the last of it where that is too much to hold. */
  resume(): void {
    this.#work(async () => {
      const last = this.events.value.at(-1)?.seq
      const page = last === undefined ? undefined : await this.#page({ since: last, limit: CATCH_UP })
      if (!page || page.has_more || this.mode.value === 'past') return this.#toEnd()
      this.#goLive([...this.events.value, ...page.events])
    })
  }

  older(): void {
    this.#work(async () => {
      const [first] = this.events.value
      if (!first || !this.hasOlder.value) return
      this.pause()
      const page = await this.#page({ before: first.seq, limit: PAGE })
      const all = [...page.events.toReversed(), ...this.events.value]
      batch(() => {
        if (all.length > WINDOW) {
          this.mode.value = 'past'
          this.hasNewer.value = true
        }
        this.events.value = all.slice(0, WINDOW)
        this.hasOlder.value = page.has_more
      })
    })
  }

  newer(): void {
    this.#work(async () => {
      const last = this.events.value.at(-1)
      if (!last) return this.#toEnd()
      const page = await this.#page({ since: last.seq, limit: PAGE })
      const all = [...this.events.value, ...page.events]
      batch(() => {
        if (all.length > WINDOW) this.hasOlder.value = true
        this.events.value = all.slice(-WINDOW)
        this.hasNewer.value = page.has_more
      })
    })
  }

  async #toEnd(): Promise<void> {
    const page = await this.#page({ before: FAR, limit: PAGE })
    this.hasOlder.value = page.has_more
    this.#goLive(page.events.toReversed())
  }

  async #openAt(at: number): Promise<void> {
    const page = await this.#page({ since: Math.max(0, at - 1), limit: PAGE })
    batch(() => {
      this.mode.value = 'past'
      this.events.value = page.events
      this.hasOlder.value = true
      this.hasNewer.value = page.has_more
    })
  }

  #goLive(events: readonly LogEvent[]): void {
    batch(() => {
      if (events.length > WINDOW) this.hasOlder.value = true
      this.events.value = events.slice(-WINDOW)
      this.mode.value = 'live'
      this.missed.value = 0
      this.hasNewer.value = false
    })
    this.#unfollow?.()
    const { type, agent } = this.#filter
    const since = events.at(-1)?.seq ?? 0
    this.#unfollow = follow({ type, agent, since, keep: WINDOW, onEvents: (came, skipped) => this.#add(came, skipped) })
  }

  #add(came: readonly LogEvent[], skipped: number): void {
    if (this.mode.value !== 'live') {
      this.missed.value += came.length + skipped
      return
    }
    // What was skipped is older than all that is held then, and is found as older pages.
    const all = skipped > 0 ? came : [...this.events.value, ...came]
    batch(() => {
      if (all.length > WINDOW || skipped > 0) this.hasOlder.value = true
      this.events.value = all.slice(-WINDOW)
    })
  }

  async #page(range: { since?: number; before?: number; limit: number }): Promise<EventsPage> {
    const { type, agent } = this.#filter
    const page = await ask<EventsPage>(query('/observe/events', { type, agent, ...range }), this.#abort.signal)
    return { ...page, events: page.events.map(shorten) }
  }

  /** One thing at a time; what is asked for meanwhile is under way already. */
  #work(work: () => Promise<void>): void {
    if (this.#isWorking) return
    this.#isWorking = true
    this.isLoading.value = true
    work()
      .catch((error: unknown) => {
        if (error instanceof Refused) this.refused.value = error
      })
      .finally(() => {
        this.#isWorking = false
        this.isLoading.value = false
      })
  }
  #isWorking = false
}
