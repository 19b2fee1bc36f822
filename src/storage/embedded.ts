/** Storage on one machine: a SQLite database in `DATA_DIR`, and what lives in the process. */
import { appendFile } from 'node:fs/promises'
import { MemoryAdmission } from '../access/memory-admission.ts'
import type { Config } from '../config.ts'
import { APPLIED_AT_ONCE } from '../events/progress.ts'
import { createAppend, tidyEventIds } from '../events/sqlite-append.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import type { Job } from '../maintenance/job.ts'
import { embeddedJobs } from '../maintenance/jobs.ts'
import { isToBePushed } from '../messaging/messages-of-log.ts'
import { SqliteMessageQueue } from '../messaging/sqlite-message-queue.ts'
import { inBackground } from '../platform/background.ts'
import { DirectoryInUse, inDirectory, lockDirectory } from '../platform/directory-lock.ts'
import type { Logger } from '../platform/logger.ts'
import {
  checkSqliteSchema,
  forServing,
  openSqlite,
  type Sqlite,
  transaction,
} from '../platform/sqlite.ts'
import { SqliteSigningKeys } from '../platform/sqlite-signing-keys.ts'
import { SqliteWriter } from '../platform/sqlite-writer.ts'
import { SqliteRegistryStore } from '../registry/sqlite-registry-store.ts'
import { tidyChallenges } from '../registry/sqlite-registry-writes.ts'
import type { RemovalStore } from '../removal/removal-store.ts'
import { sqliteRemovalStore } from '../removal/sqlite-removal-store.ts'
import { SqliteRemovals } from '../removal/sqlite-removals.ts'
import { SqliteStateStore } from '../state/sqlite-state-store.ts'
import { Doorbell } from '../webhooks/doorbell.ts'
import { SqliteSealedSecrets } from '../webhooks/sqlite-sealed-secrets.ts'
import { SqliteWebhookLanes } from '../webhooks/sqlite-webhook-lanes.ts'
import {
  changeDatabase,
  databaseFile,
  readDatabase,
  refuseOldData,
  unusable,
} from './embedded-database.ts'
import type { EmbeddedWriterOptions, EmbeddedWrites } from './embedded-writer.ts'
import { readModels } from './read-models.ts'
import { allowances, type Storage } from './storage.ts'

const WRITER = new URL('./embedded-writer.ts', import.meta.url)

/**
 * Opens the data directory, which it creates, for this process alone. Throws `DirectoryInUse`, and
 * `StartupError` where nothing can be kept in it. A database that cannot be relied on any more ends
 * the process.
 */
export async function openEmbedded(config: Config, logger: Logger): Promise<Storage> {
  await refuseOldData(config.DATA_DIR)
  const unlock = await lockDirectory(config.DATA_DIR)
  const file = databaseFile(config)
  const onRuin = (error: Error) => {
    logger.fatal({ err: error, file }, 'the database cannot be used any more: the process ends')
    process.exit(1)
  }
  const data: EmbeddedWriterOptions = {
    file,
    capacityBytes: config.STATE_CAPACITY_BYTES,
    maxQueue: config.MESSAGE_MAX_QUEUE_PER_AGENT,
  }
  // For this user alone, as are the files that SQLite makes beside it.
  await inDirectory(config.DATA_DIR, () => appendFile(file, '', { mode: 0o600 }))
  const writer = await SqliteWriter.open<EmbeddedWrites>({ thread: WRITER, data, onRuin }).catch(
    (error: unknown) => {
      throw unusable(file, error)
    },
  )
  const reader = forServing(openSqlite(file, { readOnly: true }), onRuin)

  const pushes = new Doorbell()
  const log = new SqliteEventLog(reader, writer, (event) => {
    if (isToBePushed(event)) pushes.ring()
  })
  const registry = new SqliteRegistryStore(reader, writer)
  const admission = new MemoryAdmission({
    sessionTtlMs: config.SESSION_TTL,
    allowances: allowances(config),
  })
  writer.onWrittenElsewhere(() => {
    const revoking = registry
      .recentlyRevoked()
      .then((lookups) => Promise.all(lookups.map((lookup) => admission.revoke(lookup))))
    inBackground('revoke', revoking)
  })
  return {
    log,
    registry,
    state: new SqliteStateStore(reader, writer),
    queue: new SqliteMessageQueue(reader, log, {
      maxContentBytes: config.MESSAGE_MAX_CONTENT_BYTES,
    }),
    queueProgress: APPLIED_AT_ONCE,
    admission,
    lanes: new SqliteWebhookLanes(reader, writer, { circuitMs: config.WEBHOOK_CIRCUIT_DURATION }),
    laneProgress: APPLIED_AT_ONCE,
    pushes,
    removals: new SqliteRemovals(reader),
    secrets: new SqliteSealedSecrets(reader, writer),
    keys: new SqliteSigningKeys(reader),
    jobs: embeddedJobs({
      challenges: (limit) => writer.run('tidyChallenges', limit),
      idempotency: (limit) => writer.run('tidyEventIds', limit),
    }),
    checks: { servers: {}, work: {}, room: { storage: async () => writer.outage } },
    close: async () => {
      await log.close()
      // The writer last: it copies the write-ahead log into the database, and leaves one file.
      reader.connection.close()
      await writer.close()
      unlock()
    },
  }
}

/** Does something with the jobs of maintenance alone, beside a kernel that may be running. */
export function withEmbeddedJobs(
  config: Config,
  work: (jobs: readonly Job[]) => Promise<void>,
): Promise<void> {
  return changeDatabase(config, (sqlite) => {
    const batch = (tidy: (sqlite: Sqlite, limit: number) => number) => async (limit: number) =>
      transaction(sqlite.connection, () => tidy(sqlite, limit))
    return work(
      embeddedJobs({
        challenges: batch(tidyChallenges),
        idempotency: batch((sqlite, limit) => tidyEventIds(sqlite, Date.now(), limit)),
      }),
    )
  })
}

/**
 * Does something with what removals are made on, beside a kernel that may be running. Throws
 * `StartupError`.
 */
export function withEmbeddedRemovals<T>(
  config: Config,
  { isReadOnly, erases }: { isReadOnly: boolean; erases: boolean },
  work: (store: RemovalStore) => Promise<T>,
): Promise<T> {
  const use = isReadOnly ? readDatabase : changeDatabase
  return use(config, async (sqlite) => {
    checkSqliteSchema(sqlite)
    const models = readModels({ maxQueue: config.MESSAGE_MAX_QUEUE_PER_AGENT })
    const append = isReadOnly ? undefined : createAppend(sqlite, models, Date.now)
    const unlock = erases && !isReadOnly ? await lockUnlessInUse(config.DATA_DIR) : undefined
    try {
      return await work(sqliteRemovalStore(sqlite, append, unlock !== undefined))
    } finally {
      unlock?.()
    }
  })
}

/** Keeps kernels from the directory; undefined where one uses it. */
async function lockUnlessInUse(directory: string): Promise<(() => void) | undefined> {
  try {
    return await lockDirectory(directory)
  } catch (error) {
    if (error instanceof DirectoryInUse) return undefined
    throw error
  }
}
