/** The port of the event log: append-only, one total order, the commit point of everything. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Unavailable } from '../platform/unavailable.ts'
import type { EventType, LoggedEvent, NewEvent, Routing } from './event.ts'

export interface AppendOptions extends Routing {
  /**
   * A second append with the same id within `DEDUPLICATION_WINDOW_MS` stores nothing and returns
   * the first one's sequence number. At most 256 ASCII characters without spaces.
   */
  id?: string
  /**
   * A time of `performance.now()` after which the event must not be stored any more, since what was
   * prepared for it may have been cleared away: the process may have been frozen in between.
   */
  notAfter?: number
  /**
   * It has happened already: the log is tried for as long as it would know a repeat, which is
   * nearly `DEDUPLICATION_WINDOW_MS`, and not given up after 1.5 s.
   */
  isPersistent?: boolean
}

/**
 * How long what was reserved or staged for an event may be relied on; maintenance clears it away
 * after much longer.
 */
export const PREPARATION_USABLE_MS = 5_000

export interface Appended {
  seq: number
  /** An event with this id was in the log already; `seq` is that event's. */
  duplicate: boolean
}

export interface FollowOptions {
  /** Only events of these types. Default: all that change something. */
  readonly types?: readonly EventType[] | undefined
  /**
   * Events that nobody waits for: a log may hold them back for some milliseconds, so that more of
   * them come in one batch.
   */
  readonly mayWait?: ((event: LoggedEvent) => boolean) | undefined
  /**
   * Told right before an empty batch, every 250 ms at most: all that this follower gets up to here
   * it has got. A log that finds what it gets by itself may say nothing.
   */
  readonly onPassed?: ((seq: number) => void) | undefined
}

/**
 * A page of the log ends after so many bytes, past its first event, so that a reader knows how much
 * it may have to hold.
 */
export const PAGE_BYTES = 8 * 1_048_576

/** How long an id is remembered: the retry window that `Idempotency-Key` promises. */
export const DEDUPLICATION_WINDOW_MS = 120_000

/** The log cannot be written or read now. The append may or may not have happened. */
export class LogUnavailable extends Unavailable {
  override name = 'LogUnavailable'
}

/** Every replica of the log lacks an event. Nothing behind it is read. */
export class EventLost extends LogUnavailable {
  override name = 'EventLost'
  readonly seq: number

  constructor(seq: number) {
    super(`event ${seq} is lost: no replica of the event log has it, and nothing behind it is read`)
    this.seq = seq
  }
}

export interface EventLog {
  /**
   * Appends an event durably and returns its sequence number. Throws `LogUnavailable` within 2 s
   * when it cannot.
   */
  append(event: NewEvent, options?: AppendOptions): Promise<Appended>

  /**
   * Events after `since` (exclusive) in order, at most `limit`, fewer if they are large; an empty
   * answer means that there are none yet. Throws `LogUnavailable`.
   */
  read(since: number, limit: number): Promise<LoggedEvent[]>

  /**
   * The events with the given sequence numbers, in the order asked. Throws `LogUnavailable` if one
   * cannot be had.
   */
  get(seqs: readonly number[]): Promise<LoggedEvent[]>

  /**
   * The events after `since` that change something, or those of the given types, in batches, as
   * they happen, until `signal` aborts. An empty batch says that there is nothing more at present.
   * Throws `LogUnavailable` when the log cannot be followed any longer.
   */
  follow(since: number, signal: AbortSignal, options?: FollowOptions): AsyncIterable<LoggedEvent[]>

  /** The sequence number of the last event, 0 in an empty log. Throws `LogUnavailable`. */
  lastSeq(): Promise<number>

  close(): Promise<void>
}

/** Events that a page of a whole log holds at most. */
const PAGE = 1_000
const READ_RETRY_MS = 250
/** An election in NATS takes up to 9 s; a reading of hours must not end with it. */
const READ_PATIENCE_MS = 20_000

/**
 * All events after `since` in order; no more than a page is held. Throws `LogUnavailable` when the
 * log cannot be read for 20 s.
 */
export async function* readEvents(
  log: Pick<EventLog, 'read'>,
  since: number,
): AsyncGenerator<LoggedEvent> {
  for (let position = since; ; ) {
    const page = await readPage(log, position, performance.now() + READ_PATIENCE_MS)
    yield* page
    const last = page.at(-1)
    if (!last) return
    position = last.seq
  }
}

async function readPage(
  log: Pick<EventLog, 'read'>,
  since: number,
  deadline: number,
): Promise<LoggedEvent[]> {
  for (;;) {
    try {
      return await log.read(since, PAGE)
    } catch (error) {
      if (
        error instanceof EventLost ||
        !(error instanceof LogUnavailable) ||
        performance.now() > deadline
      )
        throw error
      await sleep(READ_RETRY_MS)
    }
  }
}
