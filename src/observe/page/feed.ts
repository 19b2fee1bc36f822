/**
 * What of the log the reader has before them: a stretch without gaps, of a bounded number of
 * events.
 */
import { batch, signal } from '@preact/signals'
import { ask, type EventsPage, type LogEvent, type Moment, query, Refused, shorten } from './api.ts'
import { type EventFilter, follow } from './live.ts'
import { FAR } from './then.ts'

/**
 * Events held at once: beyond it those are let go that are farthest from what the reader looks at.
 */
export const WINDOW = 2_000
const PAGE = 100
const CATCH_UP = 1_000
/** Of the clock's steps: what is more is not looked at one by one. */
const STEP = 300
/** Pages in a row that may have nothing of what is searched for, before the reader is asked. */
const SEARCHED_PAGES = 10

export class Feed {
  /** In the order of the log. */
  readonly events = signal<readonly LogEvent[]>([])
  readonly mode = signal<'live' | 'paused' | 'past'>('live')
  /** How many came since the reader paused. */
  readonly missed = signal(0)
  readonly hasOlder = signal(false)
  /** Newer ones were let go. */
  readonly hasNewer = signal(false)
  readonly isLoading = signal(true)
  readonly refused = signal<Refused | undefined>(undefined)
  readonly #filter: EventFilter
  readonly #abort = new AbortController()
  #unfollow: (() => void) | undefined
  /** What is older than this has not been looked at. */
  #lookedAt = FAR
  /** The moment that is shown; undefined: live. */
  #at: number | undefined
  /** Where the clock went while something else was under way. */
  #wanted: { at: number | undefined; isStep: boolean } | undefined

  /** @param at the moment to show; undefined: live */
  constructor(filter: EventFilter, at: number | undefined) {
    this.#filter = filter
    this.#work(() => this.#go(at))
  }

  close(): void {
    this.#abort.abort()
    this.#unfollow?.()
  }

  pause(): void {
    if (this.mode.value === 'live') this.mode.value = 'paused'
  }

  /** Shows another moment; undefined: live. A step of the clock adds what came in between. */
  moveTo(at: number | undefined, isStep: boolean): void {
    if (this.#wanted === undefined && at === this.#at) return
    this.#wanted = { at, isStep }
    this.#work(() => this.#goWhereWanted())
  }

  /**
   * Goes on at the end, with all that came in the meantime, or the last of it where that is too
   * much to hold.
   */
  resume(): void {
    this.#work(async () => {
      const last = this.events.value.at(-1)?.seq
      const page =
        last === undefined ? undefined : await this.#page({ since: last, limit: CATCH_UP })
      if (!page || page.has_more || this.hasNewer.value) return this.#toEnd()
      this.#goLive([...this.events.value, ...page.events], page.next_cursor)
    })
  }

  older(): void {
    this.#work(async () => {
      if (!this.hasOlder.value) return
      this.pause()
      const { events, hasMore } = await this.#back(this.#lookedAt)
      const all = [...events, ...this.events.value]
      batch(() => {
        if (all.length > WINDOW) this.hasNewer.value = true
        this.events.value = all.slice(0, WINDOW)
        this.hasOlder.value = hasMore
      })
    })
  }

  newer(): void {
    this.#work(async () => {
      const last = this.events.value.at(-1)
      if (!last) return
      const page = await this.#page({ since: last.seq, until: this.#at, limit: PAGE })
      batch(() => {
        this.#hold([...this.events.value, ...page.events])
        this.hasNewer.value = page.has_more
      })
    })
  }

  /** The place to go to for the next events; undefined at the end. */
  async next(): Promise<number | undefined> {
    const last = this.events.value.at(-1)?.seq ?? 0
    const page = await this.#page({ since: last, limit: PAGE })
    return page.events.length === 0 && !page.has_more ? undefined : page.next_cursor
  }

  async #goWhereWanted(): Promise<void> {
    const wanted = this.#wanted
    this.#wanted = undefined
    if (wanted) await this.#go(wanted.at, wanted.isStep)
  }

  async #go(at: number | undefined, isStep = false): Promise<void> {
    this.#at = at
    if (at === undefined) {
      if (this.mode.value === 'past' || this.#unfollow === undefined) await this.#toEnd()
      return
    }
    this.#unfollow?.()
    this.#unfollow = undefined
    const held = this.events.value
    const last = held.at(-1)?.seq
    if (
      isStep &&
      this.mode.value === 'past' &&
      last !== undefined &&
      last <= at &&
      !this.hasNewer.value
    ) {
      const page = await this.#page({ since: last, until: at, limit: STEP })
      if (!page.has_more) {
        this.#hold([...held, ...page.events])
        return
      }
    }
    const { events, hasMore } = await this.#back(at + 1)
    batch(() => {
      this.mode.value = 'past'
      this.events.value = events
      this.hasOlder.value = hasMore
      this.hasNewer.value = false
    })
  }

  async #toEnd(): Promise<void> {
    // What comes while the log is searched comes by the stream.
    const { seq } = await ask<Moment>('/observe/moment', this.#abort.signal)
    const { events, hasMore } = await this.#back(FAR)
    this.hasOlder.value = hasMore
    this.#goLive(events, Math.max(seq, events.at(-1)?.seq ?? 0))
  }

  /** As many of the latest as may be held. */
  #hold(events: readonly LogEvent[]): void {
    if (events.length > WINDOW) {
      this.hasOlder.value = true
      this.#lookedAt = events.at(-WINDOW)?.seq ?? FAR
    }
    this.events.value = events.slice(-WINDOW)
  }

  /**
   * A page of what was before a place, in the order of the log. A search goes on where it has found
   * nothing yet.
   */
  async #back(before: number): Promise<{ events: LogEvent[]; hasMore: boolean }> {
    this.#lookedAt = before
    for (let pages = 1; ; pages++) {
      const page = await this.#page({ before: this.#lookedAt, limit: PAGE })
      this.#lookedAt = page.next_cursor
      if (page.events.length > 0 || !page.has_more || pages === SEARCHED_PAGES)
        return { events: page.events.toReversed(), hasMore: page.has_more }
    }
  }

  #goLive(events: readonly LogEvent[], since: number): void {
    batch(() => {
      this.#hold(events)
      this.mode.value = 'live'
      this.missed.value = 0
      this.hasNewer.value = false
    })
    this.#unfollow?.()
    const onEvents = (came: readonly LogEvent[], skipped: number) => this.#add(came, skipped)
    this.#unfollow = follow({ filter: this.#filter, since, keep: WINDOW, onEvents })
  }

  #add(came: readonly LogEvent[], skipped: number): void {
    if (this.mode.value !== 'live') {
      this.missed.value += came.length + skipped
      return
    }
    batch(() => {
      if (skipped === 0) this.#hold([...this.events.value, ...came])
      else {
        // What was skipped is older than all that is held then, and is found as older pages.
        this.#hold(came)
        this.hasOlder.value = true
        this.#lookedAt = came[0]?.seq ?? FAR
      }
    })
  }

  async #page(range: {
    since?: number
    until?: number | undefined
    before?: number
    limit: number
  }): Promise<EventsPage> {
    const page = await ask<EventsPage>(
      query('/observe/events', { ...this.#filter, ...range }),
      this.#abort.signal,
    )
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
        if (this.#wanted && !this.#abort.signal.aborted) this.#work(() => this.#goWhereWanted())
      })
  }
  #isWorking = false
}
