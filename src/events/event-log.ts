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
  /**
   * Only events of these types, and of those that this version does not know. Default: all that
   * change something.
   */
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

/** What it means that the log ends before something that was read in it, or made of it. */
export const OLDER =
  'which it had: if it stays so, it has lost events, or was restored from an older copy than the database'

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
   * Appends an event durably.
   *
   * @returns its sequence number
   * @throws LogUnavailable within 2 s; the event may be in the log all the same
   */
  append(event: NewEvent, options?: AppendOptions): Promise<Appended>

  /**
   * A page of events, in order.
   *
   * @param since a sequence number; the page begins behind it
   * @param limit events at most; a page also ends after `PAGE_BYTES`
   * @returns none where the log has no more yet
   * @throws LogUnavailable
   */
  read(since: number, limit: number): Promise<LoggedEvent[]>

  /**
   * The events with these sequence numbers, in the order asked.
   *
   * @throws LogUnavailable where one cannot be had
   */
  get(seqs: readonly number[]): Promise<LoggedEvent[]>

  /**
   * The events that change something, or those of the given types, in batches, as they happen.
   *
   * @param since a sequence number; it begins behind it
   * @param signal ends it
   * @returns an empty batch where there is nothing more at present
   * @throws LogUnavailable when the log cannot be followed any longer
   */
  follow(since: number, signal: AbortSignal, options?: FollowOptions): AsyncIterable<LoggedEvent[]>

  /**
   * @returns the sequence number of the last event, 0 in an empty log
   * @throws LogUnavailable
   */
  lastSeq(): Promise<number>

  /** Waits for what is being appended, and ends all that follows. Never throws. */
  close(): Promise<void>
}

/** Events that a page of a whole log holds at most. */
const PAGE = 1_000
const READ_RETRY_MS = 250
/** An election in NATS takes up to 9 s; a reading of hours must not end with it. */
const READ_OUTAGE_MS = 20_000

/**
 * All events behind a sequence number, in order; no more than a page is held.
 *
 * @throws LogUnavailable when the log cannot be read for 20 s
 */
export async function* readEvents(
  log: Pick<EventLog, 'read'>,
  since: number,
): AsyncGenerator<LoggedEvent> {
  for (let position = since; ; ) {
    const page = await readPage(log, position, performance.now() + READ_OUTAGE_MS)
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
