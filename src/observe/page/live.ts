/** The stream of what happens: one connection, which goes on where it was, whatever breaks. */
import { signal } from '@preact/signals'
import { type LogEvent, query, shorten, somethingHappened } from './api.ts'

export type StreamState = 'connecting' | 'live' | 'reconnecting' | 'refused' | 'gone'

/** Of the stream that was opened last. */
export const streamState = signal<StreamState>('connecting')
/** The last event that any stream brought. */
export const newest = signal<LogEvent | undefined>(undefined)
/** How old that was when it came, in ms: as far as the two clocks agree. */
export const lag = signal(0)
/** The events that any stream brought last, of many the latest. */
export const arrived = signal<readonly LogEvent[]>([])

/** Events are handed on so often at most; what comes in between waits. */
const FLUSH_MS = 100
/**
 * For so many times as long as it took to draw them nothing more is drawn, up to a bound: what the
 * reader does comes in between.
 */
const REST = 3
const LONGEST_FLUSH_MS = 400
const RETRY_MS = 3_000

/** Which events; parameters of the API. */
export interface EventFilter {
  readonly type?: string | undefined
  readonly agent?: string | undefined
  /** Messages between `agent` and this one. */
  readonly with?: string | undefined
  /** Keys that begin so. */
  readonly key?: string | undefined
  readonly text?: string | undefined
}

export interface StreamOptions {
  readonly filter?: EventFilter
  /** Begins after this `seq`. */
  readonly since?: number | undefined
  /** So many of the latest are handed on at once; of the others only their number. */
  readonly keep: number
  readonly onEvents: (events: LogEvent[], skipped: number) => void
}

/** Follows the log until the function that is returned is called. */
export function follow({ filter, since, keep, onEvents }: StreamOptions): () => void {
  let last = since
  let waiting: LogEvent[] = []
  let skipped = 0
  let source: EventSource | undefined
  let flushTimer: ReturnType<typeof setTimeout> | undefined
  let retryTimer: ReturnType<typeof setTimeout> | undefined
  let isClosed = false
  let wait = FLUSH_MS
  open()
  return () => {
    isClosed = true
    clearTimeout(flushTimer)
    clearTimeout(retryTimer)
    source?.close()
  }

  function open(): void {
    const opened = new EventSource(query('/observe/events/stream', { ...filter, since: last }))
    source = opened
    opened.onopen = () => {
      streamState.value = 'live'
    }
    opened.onmessage = ({ data }: MessageEvent<string>) => {
      const event = shorten(JSON.parse(data) as LogEvent)
      last = event.seq
      waiting.push(event)
      if (waiting.length > 2 * keep) skipped += waiting.splice(0, waiting.length - keep).length
      flushTimer ??= setTimeout(flush, wait)
    }
    opened.onerror = () => {
      if (isClosed) return
      if (streamState.value === 'live') streamState.value = 'reconnecting'
      // The browser connects again by itself, unless it was told no.
      if (opened.readyState !== EventSource.CLOSED) {
        if (streamState.value === 'connecting') streamState.value = 'reconnecting'
        return
      }
      fetch('/observe/health', { signal: AbortSignal.timeout(RETRY_MS) })
        .then(
          ({ ok }) => {
            if (!isClosed) streamState.value = ok ? 'refused' : 'gone'
          },
          () => {
            if (!isClosed) streamState.value = 'gone'
          },
        )
        .finally(() => {
          if (!isClosed) retryTimer = setTimeout(open, RETRY_MS)
        })
    }
  }

  function flush(): void {
    flushTimer = undefined
    const began = performance.now()
    requestAnimationFrame(() =>
      setTimeout(() => {
        wait = Math.min(LONGEST_FLUSH_MS, Math.max(FLUSH_MS, REST * (performance.now() - began)))
      }),
    )
    const events = waiting
    const left = skipped
    waiting = []
    skipped = 0
    const last = events.at(-1)
    newest.value = last
    if (last) lag.value = Math.max(0, Date.now() - Date.parse(last.ts))
    arrived.value = events
    somethingHappened()
    onEvents(events, left)
  }
}
