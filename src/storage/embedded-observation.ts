/**
 * What the observation service stands on, on one machine: the kernel's database, which it reads,
 * and read models in a file beside it.
 */
import { appendFileSync, existsSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { DatabaseSync } from 'node:sqlite'
import type { Config } from '../config.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import type { Verification } from '../maintenance/verification.ts'
import type { ObservationStorage } from '../observe/observation.ts'
import { type ObservationDatabase, observationSchema } from '../observe/observation-database.ts'
import { ObservationWriter } from '../observe/observation-writer.ts'
import { catchUp } from '../observe/rebuild.ts'
import { SqliteObservation } from '../observe/sqlite-observation.ts'
import { verifyObservation } from '../observe/verify-observation.ts'
import { inBackground } from '../platform/background.ts'
import { flushFile } from '../platform/flush-file.ts'
import type { Logger } from '../platform/logger.ts'
import { forServing, openSqlite } from '../platform/sqlite.ts'
import { StartupError } from '../platform/startup-error.ts'
import { SqliteRemovals } from '../removal/sqlite-removals.ts'
import { SqliteStateReader } from '../state/sqlite-state-reader.ts'
import { databaseFile, readDatabase } from './embedded-database.ts'

const CACHE_KIB = 16_384
/** How often it is looked whether others have been built. */
const WATCH_MS = 1_000
const BUILDING_CACHE_KIB = 65_536
/** Read models in files beside the kernel's database: the one with the highest number counts. */
const FILE = /^observation-(\d+)\.db$/

export async function openEmbeddedObservation(
  config: Config,
  logger: Logger,
): Promise<ObservationStorage> {
  const file = databaseFile(config)
  const onRuin = (error: Error) => {
    logger.fatal({ err: error }, 'the observation cannot read its database any more and ends')
    // Of the thread alone, where it runs in one.
    process.exit(1)
  }
  const reader = forServing(openSqlite(file, { readOnly: true }), onRuin)
  const directory = config.DATA_DIR
  const log = new SqliteEventLog(reader)
  const database = new SqliteObservation(openReadModels(directory, logger), (error) => {
    // What follows from the log is made again by the next who opens it.
    logger.fatal(
      { err: error },
      'the read models of the observation are damaged: they are built anew',
    )
    removeDatabase(fileOf(directory, latestReadModels(directory)))
    process.exit(1)
  })
  let number = latestReadModels(directory)
  let isGoingOver = false
  const watch = setInterval(() => {
    const latest = latestReadModels(directory)
    if (latest <= number || isGoingOver) return
    isGoingOver = true
    const going = goOver(log, database, openReadModels(directory, logger))
      .then(() => {
        number = latest
        logger.info({ number }, 'the read models of the observation have been built anew')
      })
      .finally(() => {
        isGoingOver = false
      })
    // What fails is tried again.
    inBackground('replace_read_models', going)
  }, WATCH_MS)
  return {
    log,
    state: new SqliteStateReader(reader),
    removals: new SqliteRemovals(reader),
    database,
    checks: { servers: {}, work: {} },
    close: async () => {
      clearInterval(watch)
      database.close()
      reader.connection.close()
    },
  }
}

/**
 * Goes on with other read models as soon as they are as far as those before: what was shown once
 * does not go away again.
 */
async function goOver(
  log: SqliteEventLog,
  database: SqliteObservation,
  connection: DatabaseSync,
): Promise<void> {
  const next = new SqliteObservation(connection, () => {})
  try {
    do await catchUp(log, next, await new ObservationWriter(database).position())
    while (!database.replace(connection))
  } catch (error) {
    next.close()
    throw error
  }
}

/** The number of the read models that count in a data directory: 0 where there are none. */
function latestReadModels(directory: string): number {
  return Math.max(0, ...readdirSync(directory).map((name) => Number(FILE.exec(name)?.[1] ?? 0)))
}

function fileOf(directory: string, number: number): string {
  return join(directory, `observation-${number}.db`)
}

/** As much of the hash of the schema as the header of a database has room for. */
function sqliteVersion(): number {
  return Number.parseInt(observationSchema('sqlite').hash.slice(0, 7), 16)
}

function versionOf(connection: DatabaseSync): number {
  return Number(connection.prepare('pragma user_version').get()?.user_version)
}

function openFile(file: string): DatabaseSync {
  const { connection } = openSqlite(file)
  // All of it can be made again from the log: a power failure may take the last moments, never a
  // part of them.
  connection.exec(`pragma synchronous = normal; pragma cache_size = -${CACHE_KIB}`)
  return connection
}

function makeFile(file: string): DatabaseSync {
  removeDatabase(file)
  // For this user alone, as the kernel's own.
  appendFileSync(file, '', { mode: 0o600 })
  const connection = openFile(file)
  const { tables, indexes } = observationSchema('sqlite')
  connection.exec(`begin; ${tables} ${indexes} pragma user_version = ${sqliteVersion()}; commit`)
  return connection
}

/**
 * Opens the read models in a data directory, and begins new ones where there are none of this
 * version.
 */
function openReadModels(directory: string, logger: Logger): DatabaseSync {
  const number = Math.max(1, latestReadModels(directory))
  for (let old = number - 1; old > 0 && existsSync(fileOf(directory, old)); old--)
    removeDatabase(fileOf(directory, old))
  const file = fileOf(directory, number)
  let connection: DatabaseSync | undefined
  try {
    connection = openFile(file)
    if (versionOf(connection) === sqliteVersion()) return connection
    if (versionOf(connection) !== 0)
      logger.warn(
        'the read models of the observation are built anew, as they are of another version',
      )
  } catch (error) {
    logger.warn(
      { reason: String(error) },
      'the read models of the observation are built anew, as they cannot be used',
    )
  }
  connection?.close()
  return makeFile(file)
}

/**
 * Builds the read models in a data directory from nothing, while others serve; `fill` does so, and
 * then they count: a service that runs goes on with them within seconds.
 */
export async function rebuildEmbedded(
  config: Config,
  fill: (log: SqliteEventLog, database: ObservationDatabase) => Promise<void>,
): Promise<void> {
  await readDatabase(config, async (sqlite) => {
    const building = join(config.DATA_DIR, 'observation-building.db')
    removeDatabase(building)
    appendFileSync(building, '', { mode: 0o600 })
    const { connection } = openSqlite(building)
    try {
      const { tables, indexes } = observationSchema('sqlite')
      // Where it does not come to its end the file is of no use.
      connection.exec(`
        pragma journal_mode = memory; pragma synchronous = off; pragma temp_store = file;
        pragma cache_size = -${BUILDING_CACHE_KIB}; ${tables}`)
      await fill(new SqliteEventLog(sqlite), new SqliteObservation(connection, () => {}))
      connection.exec(`${indexes} pragma user_version = ${sqliteVersion()}`)
    } finally {
      connection.close()
    }
    await flushFile(building)
    renameSync(building, fileOf(config.DATA_DIR, latestReadModels(config.DATA_DIR) + 1))
  })
}

/**
 * Compares what the observation keeps with the log. Undefined where there is no observation of this
 * version.
 */
export async function verifyEmbeddedObservation(
  config: Config,
  log: SqliteEventLog,
  report: (difference: string) => void,
): Promise<Verification | undefined> {
  const file = fileOf(config.DATA_DIR, latestReadModels(config.DATA_DIR))
  if (!existsSync(file)) return undefined
  const { connection } = openSqlite(file, { readOnly: true })
  try {
    if (versionOf(connection) !== sqliteVersion()) return undefined
    const database = new SqliteObservation(connection, () => {})
    return await verifyObservation({ database, begin: 'begin', bytes: 'blob' }, log, report)
  } finally {
    connection.close()
  }
}

function removeDatabase(file: string): void {
  if (existsSync(file) && statSync(file).isDirectory())
    throw new StartupError(
      `${file} is a directory, where the observation keeps its read models: move it away`,
    )
  for (const ending of ['', '-wal', '-shm']) rmSync(`${file}${ending}`, { force: true })
}
