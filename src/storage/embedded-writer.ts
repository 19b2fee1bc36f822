/**
 * The thread that writes to the embedded database: everything that can be written to it, put
 * together.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { createAppend, eventWrites } from '../events/sqlite-append.ts'
import { steadyClock } from '../platform/monotonic-clock.ts'
import { migrateSqlite, openSqlite, type Sqlite } from '../platform/sqlite.ts'
import { serveWrites } from '../platform/sqlite-writes.ts'
import { registryWrites } from '../registry/sqlite-registry-writes.ts'
import { stateWrites } from '../state/sqlite-state-writes.ts'
import { secretWrites } from '../webhooks/sqlite-sealed-secrets.ts'
import { freeLanes, webhookLaneWrites } from '../webhooks/sqlite-webhook-writes.ts'
import { readModels } from './read-models.ts'

export interface EmbeddedWriterOptions {
  readonly file: string
  readonly capacityBytes: number
  /** Messages that a pull queue holds at most. */
  readonly maxQueue: number
}

function createWrites(sqlite: Sqlite, options: EmbeddedWriterOptions) {
  const now = steadyClock()
  const append = createAppend(sqlite, readModels(options), now)
  return {
    ...eventWrites(sqlite, append, now),
    ...stateWrites(sqlite, append, options),
    ...registryWrites(sqlite, append),
    ...secretWrites(sqlite),
    ...webhookLaneWrites(sqlite),
  }
}
export type EmbeddedWrites = ReturnType<typeof createWrites>

if (parentPort) {
  const options: EmbeddedWriterOptions = workerData
  serveWrites(parentPort, () => {
    const sqlite = openSqlite(options.file)
    migrateSqlite(sqlite)
    freeLanes(sqlite)
    return { sqlite, writes: createWrites(sqlite, options) }
  })
}
