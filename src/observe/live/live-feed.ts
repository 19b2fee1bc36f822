/**
 * Hands the events of the log to everybody who watches: each gets those that pass its filter, in
 * order, none twice and none left out.
 *
 * A watcher has one write under way at most. What happens meanwhile waits for it in a ring that all
 * share, and for those that are further back than that in the history. So one that is slow costs no
 * more than one that is quick, and nothing is kept for one that does not read.
 */
import { Counter, Gauge } from 'prom-client'
import { inBackground } from '../../platform/background.ts'
import type { Logger } from '../../platform/logger.ts'
import { Unavailable } from '../../platform/unavailable.ts'
import { type EncodedEvent, type Encoding, encodeEvent, WRITE_BYTES } from './encoding.ts'
import { Failures } from './failures.ts'
import { LogFollower } from './log-follower.ts'
import type { RingLimits } from './ring.ts'
import { type EventFilter, type EventSource, nameOf } from './source.ts'

/** As many watch already as may. */
export class TooManyWatchers extends Error {
  override name = 'TooManyWatchers'

  constructor(maxWatchers: number) {
    super(`${maxWatchers} connections watch already, and no more may; try again later`)
  }
}

/** The process is being stopped. */
export class FeedClosed extends Unavailable {
  override name = 'FeedClosed'
}

/** Why a stream ends: `code` is for WebSockets (RFC 6455, section 7.4), `reason` for a person. */
export interface Ending {
  readonly name: 'slow' | 'old' | 'stopping' | 'failed'
  readonly code: number
  readonly reason: string
}

export const ENDINGS = {
  slow: {
    name: 'slow',
    code: 1013,
    reason: 'too slow: nothing was read for too long; connect again with since',
  },
  old: { name: 'old', code: 1000, reason: 'open for long enough; connect again with since' },
  stopping: { name: 'stopping', code: 1001, reason: 'the server stops; connect again with since' },
  failed: { name: 'failed', code: 1011, reason: 'something went wrong; connect again with since' },
} as const satisfies Record<string, Ending>

/** Where the events of one watcher go. */
export interface Sink {
  readonly encoding: Encoding
  /**
   * Calls `taken` later, when the system has taken all of it; never when the connection is closed
   * or about to be.
   */
  write(pieces: readonly Buffer[], taken: () => void): void
  /** Ends the stream. Whoever made the sink says `leave` when its connection is closed. */
  end(ending: Ending): void
}

export interface WatchOptions {
  readonly filter: EventFilter
  /** The sequence number to begin after. Default: the end of the log. */
  readonly since?: number | undefined
}

/** One watcher, counted until it leaves with `leave`. */
export interface Watcher {
  /** All events up to here that pass the filter have been written. */
  readonly position: number
  start(sink: Sink): void
  leave(): void
}

export interface LiveFeedOptions {
  readonly source: EventSource
  readonly logger: Pick<Logger, 'warn' | 'error'>
  readonly maxWatchers: number
  readonly ring?: RingLimits
  /** Events are collected for so long, in ms: a write to everybody takes a while. */
  readonly flushMs?: number
  /** The log is followed for so long, in ms, after the last watcher has gone. */
  readonly lingerMs?: number
}

const RING: RingLimits = { maxEvents: 20_000, maxBytes: 32 * 1_048_576 }
const FLUSH_MS = 40
const LINGER_MS = 10_000
/**
 * Pages of history that are read at once, for all watchers; those that need one wait for their
 * turn.
 */
const MAX_READERS = 4
/**
 * Bytes of history that are being written, for all watchers; no page is read while there are more.
 */
const MAX_HISTORY_BYTES = 64 * 1_048_576
/**
 * Events of such a page. A watcher begins with few, as they may be large, and asks for more while
 * they are not.
 */
const FIRST_PAGE = 100
const LARGEST_PAGE = 1_000

const watchers = new Gauge({
  name: 'tabulum_observe_watchers',
  help: 'Connections that watch the events live.',
})
const endings = new Counter({
  name: 'tabulum_observe_streams_ended_total',
  help: 'Live streams that the server has ended, by why.',
  labelNames: ['reason'] as const,
})

/** A watcher as the feed knows it. */
interface Watch {
  readonly filter: EventFilter
  readonly filterName: string
  position: number
  sink: Sink | undefined
  /** A write or a page is under way, or the time before the next try. */
  isBusy: boolean
  hasLeft: boolean
  pageSize: number
  /** Pages in a row that could not be had, or that had nothing new. */
  failed: number
  retry: NodeJS.Timeout | undefined
  /** Of history, in the write under way. */
  historyBytes: number
}

/** What those who are at the same position get, within one round. */
type Round = Map<string, { pieces: readonly Buffer[]; through: number }>

export class LiveFeed {
  readonly #options: LiveFeedOptions
  readonly #failures: Failures
  readonly #watches = new Set<Watch>()
  /** Those that have joined or are about to. */
  #size = 0
  #isClosed = false
  #follower: LogFollower | undefined
  #linger: NodeJS.Timeout | undefined
  #flush: NodeJS.Timeout | undefined
  #flushedAt = 0
  /**
   * What is in the log up to this sequence number has been offered to everybody who was not busy.
   */
  #flushedThrough = 0
  /** Those that wait for their turn to read history; all of them watchers. */
  readonly #readersWaiting = new Set<Watch>()
  #readers = 0
  #historyBytes = 0
  readonly #empty = Promise.withResolvers<void>()

  constructor(options: LiveFeedOptions) {
    this.#options = options
    this.#failures = new Failures(options.logger)
  }

  /** Watchers now. */
  get size(): number {
    return this.#size
  }

  /** Counts one more watcher. Throws `TooManyWatchers` and `Unavailable`. */
  async join({ filter, since }: WatchOptions): Promise<Watcher> {
    const { source, maxWatchers } = this.#options
    if (this.#isClosed) throw new FeedClosed('the live streams are being stopped')
    if (this.#size >= maxWatchers) throw new TooManyWatchers(maxWatchers)
    this.#setSize(this.#size + 1)
    try {
      const follower = this.#follower
      const last =
        since === undefined || follower === undefined
          ? await source.lastSeq()
          : follower.ring.through
      if (this.#isClosed) throw new FeedClosed('the live streams are being stopped')
      this.#follow(last)
      return this.#admit(filter, since ?? last)
    } catch (error) {
      this.#setSize(this.#size - 1)
      throw error
    }
  }

  /** Ends all streams, and resolves when their connections are closed. */
  async close(): Promise<void> {
    this.#isClosed = true
    for (const watch of this.#watches) watch.sink?.end(ENDINGS.stopping)
    this.#setSize(this.#size)
    await this.#empty.promise
  }

  #admit(filter: EventFilter, position: number): Watcher {
    const watch: Watch = {
      filter,
      filterName: nameOf(filter),
      position,
      sink: undefined,
      isBusy: false,
      hasLeft: false,
      pageSize: FIRST_PAGE,
      failed: 0,
      retry: undefined,
      historyBytes: 0,
    }
    this.#watches.add(watch)
    return {
      get position() {
        return watch.position
      },
      start: (sink) => {
        watch.sink = sink
        if (this.#isClosed) sink.end(ENDINGS.stopping)
        else this.#serve(watch)
      },
      leave: () => this.#leave(watch),
    }
  }

  #leave(watch: Watch): void {
    if (watch.hasLeft) return
    watch.hasLeft = true
    clearTimeout(watch.retry)
    this.#watches.delete(watch)
    this.#readersWaiting.delete(watch)
    this.#releaseHistory(watch)
    this.#setSize(this.#size - 1)
  }

  #setSize(size: number): void {
    this.#size = size
    watchers.set(size)
    clearTimeout(this.#linger)
    if (size > 0) return
    if (!this.#isClosed) {
      this.#linger = setTimeout(() => this.#stop(), this.#options.lingerMs ?? LINGER_MS).unref()
      return
    }
    this.#stop()
    this.#empty.resolve()
  }

  #follow(since: number): void {
    const { source, ring = RING } = this.#options
    if (this.#follower) return
    this.#flushedThrough = since
    this.#follower = new LogFollower({
      source,
      since,
      limits: ring,
      failures: this.#failures,
      onEvents: () => this.#flushSoon(),
    })
  }

  #stop(): void {
    clearTimeout(this.#flush)
    this.#flush = undefined
    this.#follower?.stop()
    this.#follower = undefined
  }

  #flushSoon(): void {
    const { flushMs = FLUSH_MS } = this.#options
    this.#flush ??= setTimeout(
      () => {
        this.#flush = undefined
        const round: Round = new Map()
        for (const watch of this.#watches) this.#serve(watch, round)
        this.#flushedAt = performance.now()
        this.#flushedThrough = this.#follower?.ring.through ?? 0
      },
      Math.max(0, this.#flushedAt + flushMs - performance.now()),
    )
  }

  /** Writes what comes next for a watcher, if it can take something. */
  #serve(watch: Watch, round?: Round): void {
    const { sink } = watch
    const ring = this.#follower?.ring
    if (!sink || !ring || watch.isBusy || watch.hasLeft) return
    if (watch.position < ring.floor) {
      this.#readersWaiting.add(watch)
      this.#readSome()
      return
    }
    const name = `${sink.encoding.name} ${watch.position} ${watch.filterName}`
    let next = round?.get(name)
    if (next === undefined) {
      const { events, through } = ring.next(watch.position, watch.filter)
      next = { pieces: events.length === 0 ? [] : sink.encoding.compose(events), through }
      round?.set(name, next)
    }
    watch.position = next.through
    if (next.pieces.length > 0) this.#write(watch, sink, next.pieces)
  }

  #write(watch: Watch, sink: Sink, pieces: readonly Buffer[]): void {
    watch.isBusy = true
    sink.write(pieces, () => {
      watch.isBusy = false
      this.#releaseHistory(watch)
      // One that is not behind waits for the next round, in which it shares what it gets. Else in a
      // turn of its own: one that reads as fast as it gets must not keep the others waiting.
      if (watch.position < this.#flushedThrough) setImmediate(() => this.#serve(watch))
    })
  }

  #readSome(): void {
    for (const watch of this.#readersWaiting) {
      if (this.#readers >= MAX_READERS || this.#historyBytes >= MAX_HISTORY_BYTES) return
      this.#readersWaiting.delete(watch)
      this.#readers++
      watch.isBusy = true
      const reading = this.#readPage(watch).finally(() => {
        this.#readers--
        this.#readSome()
      })
      inBackground('read_history_for_watchers', reading)
    }
  }

  /**
   * Reads a page of history for a watcher, and writes of it what may be written at once; the rest
   * is read again.
   */
  async #readPage(watch: Watch): Promise<void> {
    try {
      const { events, through } = await this.#options.source.read(
        watch.position,
        watch.filter,
        watch.pageSize,
      )
      const { sink } = watch
      if (watch.hasLeft || !sink) return
      const encoded: EncodedEvent[] = []
      let bytes = 0
      for (const event of events) {
        if (bytes >= WRITE_BYTES) break
        const next = encodeEvent(event)
        encoded.push(next)
        bytes += next.json.length
      }
      const isWhole = encoded.length === events.length
      const position = isWhole
        ? Math.max(through, watch.position)
        : (encoded.at(-1)?.seq ?? watch.position)
      watch.pageSize = isWhole
        ? Math.min(LARGEST_PAGE, watch.pageSize * 2)
        : Math.max(1, encoded.length)
      // The history may be built from the log, and be behind it.
      watch.failed = position > watch.position ? 0 : watch.failed + 1
      watch.position = position
      if (encoded.length > 0) {
        watch.historyBytes = bytes
        this.#historyBytes += bytes
        this.#write(watch, sink, sink.encoding.compose(encoded))
      } else
        this.#serveLater(watch, watch.failed === 0 ? 0 : this.#failures.delay(watch.failed - 1))
    } catch (error) {
      this.#failures.met(error)
      if (watch.hasLeft) return
      if (error instanceof Unavailable)
        this.#serveLater(watch, this.#failures.delay(watch.failed++))
      else watch.sink?.end(ENDINGS.failed)
    }
  }

  #releaseHistory(watch: Watch): void {
    if (watch.historyBytes === 0) return
    this.#historyBytes -= watch.historyBytes
    watch.historyBytes = 0
    this.#readSome()
  }

  #serveLater(watch: Watch, ms: number): void {
    watch.retry = setTimeout(() => {
      watch.isBusy = false
      this.#serve(watch)
    }, ms)
  }
}

/** Counts a stream that the server ends. */
export function countEnding({ name }: Ending): void {
  endings.inc({ reason: name })
}
