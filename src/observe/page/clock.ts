/**
 * The one clock of all views. It is at *live*, or at a moment of the past, which the link holds as
 * the `seq` of the last event that is shown; and from there it can run.
 */
import { computed, effect, signal } from '@preact/signals'
import { ask, type EventsPage, type Moment, pause, query } from './api.ts'
import { change, route } from './route.ts'

/** The last event that is shown; undefined while live. */
export const moment = computed(() => {
  const text = route.value.parameters.get('at') ?? ''
  return /^\d{1,15}$/.test(text) ? Number(text) : undefined
})

export const SPEEDS = [0.5, 1, 2, 5, 10, 30, 100] as const
export const speed = signal<number>(10)
export const isPlaying = signal(false)
/** Where the clock is while it runs, in ms since 1970. */
export const playedTo = signal<number | undefined>(undefined)

/** The same moment for what is costly to show: while the clock runs, it moves every two seconds. */
export const asOf = signal(moment.value)

/**
 * Each step asks the service once, and views ask it for some more: all stays below what one client
 * may.
 */
const STEP_MS = 1_000
const VIEWS_MS = 2_000
/** Of a stretch without events, more than so many steps are passed over. */
const IDLE_STEPS = 3

let running: AbortController | undefined
let movedAt = 0

effect(() => {
  const at = moment.value
  if (isPlaying.value && at !== undefined && performance.now() - movedAt < VIEWS_MS) return
  movedAt = performance.now()
  asOf.value = at
})

/** Shows everything as it was after the event; undefined: as it is. */
export function goTo(at: number | undefined): void {
  stop()
  change({ at })
}

/** Shows everything as it was at a time. */
export async function goToTime(time: Date, abort: AbortSignal): Promise<void> {
  const { seq } = await ask<Moment>(query('/observe/moment', { time: time.toISOString() }), abort)
  goTo(seq)
}

export function stop(): void {
  running?.abort()
  running = undefined
  isPlaying.value = false
  playedTo.value = undefined
}

/** Runs from a time on, until it is at the present or somebody stops it. */
export function play(from: Date): void {
  stop()
  running = new AbortController()
  const { signal: abort } = running
  isPlaying.value = true
  run(from.getTime(), abort).catch(() => {
    if (!abort.aborted) stop()
  })
}

async function run(from: number, abort: AbortSignal): Promise<void> {
  let shown = moment.value
  for (let time = from; ; ) {
    // Somebody went elsewhere.
    if (moment.value !== shown) return stop()
    playedTo.value = time
    const began = performance.now()
    const { seq } = await ask<Moment>(
      query('/observe/moment', { time: new Date(time).toISOString() }),
      abort,
    )
    if (abort.aborted) return
    const stepMs = STEP_MS * speed.value
    if (moment.value !== shown) return stop()
    if (seq !== shown) change({ at: seq }, { isStep: true })
    shown = seq
    const page = await ask<EventsPage>(query('/observe/events', { since: seq, limit: 1 }), abort)
    const [next] = page.events
    if (next === undefined || time > Date.now()) return goTo(undefined)
    const idleMs = Date.parse(next.ts) - time
    if (idleMs > IDLE_STEPS * stepMs) time += idleMs - stepMs
    await pause(Math.max(0, STEP_MS - (performance.now() - began)), abort)
    if (abort.aborted) return
    time += stepMs
  }
}
