/** Building the read models of the observation from nothing, to the end of the log. */
import { type EventLog, LogUnavailable } from '../events/event-log.ts'
import { inBatches } from './batches.ts'
import type { ObservationDatabase } from './observation-database.ts'
import { ObservationWriter } from './observation-writer.ts'

export interface Progress {
  readonly events: number
  /** Sequence number up to which they have been applied. */
  readonly seq: number
  readonly seconds: number
}

/**
 * Applies the whole log.
 *
 * @param onProgress told after each batch
 * @throws Unavailable
 */
export async function rebuild(
  log: Pick<EventLog, 'follow'>,
  database: ObservationDatabase,
  onProgress: (progress: Progress) => void,
): Promise<Progress> {
  const writer = new ObservationWriter(database)
  const stop = new AbortController()
  const start = performance.now()
  let progress: Progress = { events: 0, seq: 0, seconds: 0 }
  for await (const events of inBatches(log, 0, stop.signal)) {
    const last = events.at(-1)
    // The end: what comes from now on is applied by whoever serves.
    if (last === undefined) break
    if (!(await writer.apply(progress.seq, events)))
      throw new Error('somebody else builds the read models as well')
    progress = {
      events: progress.events + events.length,
      seq: last.seq,
      seconds: (performance.now() - start) / 1_000,
    }
    onProgress(progress)
  }
  stop.abort()
  return progress
}

/** Events that are read and applied at once on the last stretch. */
const CAUGHT_UP_AT_ONCE = 500

/**
 * Applies what read models lack of the log up to a sequence number, so that whoever goes over to
 * them from others, which are there already, sees nothing go back.
 *
 * @throws Unavailable
 */
export async function catchUp(
  log: Pick<EventLog, 'read'>,
  database: ObservationDatabase,
  until: number,
): Promise<void> {
  const writer = new ObservationWriter(database)
  for (let seq = await writer.position(); seq < until; ) {
    const events = (await log.read(seq, CAUGHT_UP_AT_ONCE)).filter((event) => event.seq <= until)
    const last = events.at(-1)
    if (last === undefined)
      throw new LogUnavailable(`the event log ends at ${seq}, before ${until}`)
    if (!(await writer.apply(seq, events)))
      throw new Error('somebody else builds the read models as well')
    seq = last.seq
  }
}
