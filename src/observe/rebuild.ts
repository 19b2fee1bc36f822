/** Building the read models of the observation from nothing, to the end of the log. */
import type { EventLog } from '../events/event-log.ts'
import { ALL_TYPES } from './changes.ts'
import type { ObservationDatabase } from './observation-database.ts'
import { ObservationTables } from './observation-tables.ts'

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
  const tables = new ObservationTables(database)
  const stop = new AbortController()
  const start = performance.now()
  let progress: Progress = { events: 0, seq: 0, seconds: 0 }
  for await (const events of log.follow(0, stop.signal, { types: ALL_TYPES })) {
    const last = events.at(-1)
    // The end: what comes from now on is applied by whoever serves.
    if (last === undefined) break
    if (!(await tables.apply(progress.seq, events))) throw new Error('somebody else builds the read models as well')
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
