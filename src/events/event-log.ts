/** The port of the event log: append-only, one total order, the commit point of everything. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { LoggedEvent, NewEvent, Routing } from './event.ts'

export interface AppendOptions extends Routing {
  /**
   * A second append with the same id within `DEDUPLICATION_WINDOW_MS` stores nothing and returns the first one's place.
   * At most 256 ASCII characters without spaces.
   */
  id?: string
  /**
   * A time of `performance.now()` after which the event must not be stored any more, since what was prepared for it may have been
   * cleared away: the process may have been frozen in between.
   */
  notAfter?: number
}

/** How long what was reserved or staged for an event may be relied on; maintenance clears it away after much longer. */
export const PREPARATION_USABLE_MS = 5_000

export interface Appended {
  seq: number
  /** An event with this id was in the log already; `seq` is that event's. */
  duplicate: boolean
}

/** How long an id is remembered: the retry window that `Idempotency-Key` promises. */
export const DEDUPLICATION_WINDOW_MS = 120_000

/** The log cannot be written or read now. The append may or may not have taken place. */
export class LogUnavailable extends Error {
  override name = 'LogUnavailable'
}

export interface EventLog {
  /** Appends an event durably and returns its place. Throws `LogUnavailable` within 2 s when it cannot. */
  append(event: NewEvent, options?: AppendOptions): Promise<Appended>

  /** Events after `since` (exclusive) in order, at most `limit`, fewer if they are large; an empty answer means that there are none yet. */
  read(since: number, limit: number): Promise<LoggedEvent[]>

  /** The events at the given places, in the order asked. Throws `LogUnavailable` if one cannot be had. */
  get(seqs: readonly number[]): Promise<LoggedEvent[]>

  /**
   * All events that change something after `since`, in batches, as they happen, until `signal` aborts. An empty batch says
   * that there is nothing more at present. Throws `LogUnavailable` when the log cannot be followed any longer.
   */
  follow(since: number, signal: AbortSignal): AsyncIterable<LoggedEvent[]>

  /** The place of the last event, 0 in an empty log. */
  lastSeq(): Promise<number>

  /** The place of the last event that changes something, 0 if there is none: where a projection that has caught up stands at least. */
  lastChangeSeq(): Promise<number>

  close(): Promise<void>
}

/**
 * The events after `since` in order, at most `limit`, a page at a time: no more than a page is held. While the log cannot be read it is
 * asked again for `patienceMs`, then `LogUnavailable` is thrown.
 */
export async function* readEvents(
  log: EventLog,
  since: number,
  limit: number,
  patienceMs = 0,
): AsyncGenerator<LoggedEvent> {
  let position = since
  let left = limit
  while (left > 0) {
    const page = await readPage(log, position, Math.min(left, 1_000), performance.now() + patienceMs)
    yield* page
    const last = page.at(-1)
    if (!last) return
    position = last.seq
    left -= page.length
  }
}

const READ_RETRY_MS = 250

async function readPage(log: EventLog, since: number, limit: number, deadline: number): Promise<LoggedEvent[]> {
  for (;;) {
    try {
      return await log.read(since, limit)
    } catch (error) {
      if (!(error instanceof LogUnavailable) || performance.now() > deadline) throw error
      await sleep(READ_RETRY_MS)
    }
  }
}
