/** What the observation service stands on, put together: on one machine, and in a cluster. */

import { randomUUID } from 'node:crypto'
import { readdirSync, rmSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { sql } from 'kysely'
import { type Config, ConfigError } from '../config.ts'
import { JetStreamEventLog } from '../events/jetstream-event-log.ts'
import { PostgresErasures } from '../events/postgres-erasures.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import type { ObservationStorage } from '../observe/observation.ts'
import { observationSchema, PostgresObservation, SqliteObservation } from '../observe/observation-database.ts'
import { PostgresObservationLease } from '../observe/postgres-observation-lease.ts'
import { type Database, openPostgresSession, roundTrip } from '../platform/database.ts'
import type { Logger } from '../platform/logger.ts'
import { connectNats } from '../platform/nats.ts'
import { forServing, openSqlite } from '../platform/sqlite.ts'
import { StartupError, untilThere } from '../platform/startup-error.ts'
import { PostgresRemovals } from '../removal/postgres-removals.ts'
import { SqliteRemovals } from '../removal/sqlite-removals.ts'
import { StateTables } from '../state/postgres-state-tables.ts'
import { SqliteStateReader } from '../state/sqlite-state-reader.ts'
import { connectDatabase } from './cluster.ts'
import { databaseFile } from './embedded.ts'

/** The schema of Postgres that the observers' role owns, and the one in which it builds another. */
export const SCHEMA = 'observation'
export const NEXT_SCHEMA = 'observation_next'

/** Read models in files beside the kernel's database: the one with the highest number counts. */
const FILE = /^observation-(\d+)\.db$/

export async function openEmbeddedObservation(config: Config, logger: Logger): Promise<ObservationStorage> {
  const file = databaseFile(config)
  const onRuin = (error: Error) => {
    logger.fatal({ err: error }, 'the observation cannot read its database any more and ends')
    // Of the thread alone, where it runs in one.
    process.exit(1)
  }
  const reader = forServing(openSqlite(file, { readOnly: true }), onRuin)
  const connection = openReadModels(config.DATA_DIR, logger)
  return {
    log: new SqliteEventLog(reader),
    state: new SqliteStateReader(reader),
    removals: new SqliteRemovals(reader),
    database: new SqliteObservation(connection, onRuin),
    checks: { servers: {}, work: {} },
    close: async () => {
      connection.close()
      reader.connection.close()
    },
  }
}

/** Opens the read models in a data directory, and begins new ones where there are none of this version. */
function openReadModels(directory: string, logger: Logger): DatabaseSync {
  const numbers = readdirSync(directory).flatMap((name) => FILE.exec(name)?.[1] ?? [])
  const number = Math.max(1, ...numbers.map(Number))
  for (const old of numbers) if (Number(old) < number) removeDatabase(join(directory, `observation-${old}.db`))
  const file = join(directory, `observation-${number}.db`)
  const { text, hash } = observationSchema('sqlite')
  // As much of the hash as the header of a database has room for.
  const version = Number.parseInt(hash.slice(0, 7), 16)
  const open = () => {
    const connection = new DatabaseSync(file, { timeout: 5_000 })
    // All of it can be made again from the log: a power failure may take the last moments, never a part of them.
    connection.exec('pragma journal_mode = wal; pragma synchronous = normal; pragma cache_size = -16384;')
    connection.exec('pragma journal_size_limit = 67108864; pragma temp_store = file;')
    return connection
  }
  const versionOf = (connection: DatabaseSync) => Number(connection.prepare('pragma user_version').get()?.user_version)
  let connection: DatabaseSync | undefined
  try {
    connection = open()
    if (versionOf(connection) === version) return connection
    if (versionOf(connection) !== 0)
      logger.warn('the read models of the observation are built anew, as they are of another version')
  } catch (error) {
    logger.warn({ reason: String(error) }, 'the read models of the observation are built anew, as they cannot be used')
  }
  connection?.close()
  removeDatabase(file)
  const fresh = open()
  fresh.exec(`begin; ${text}; pragma user_version = ${version}; commit`)
  return fresh
}

function removeDatabase(file: string): void {
  for (const ending of ['', '-wal', '-shm']) rmSync(`${file}${ending}`, { force: true })
}

/** Waits for the servers for so long as is set. Throws `StartupError`. */
export async function openClusterObservation(config: Config, logger: Logger): Promise<ObservationStorage> {
  const { DATABASE_URL: databaseUrl, NATS_URL: natsUrls } = config
  if (databaseUrl === undefined || natsUrls.length === 0) {
    throw new ConfigError('observe needs DATABASE_URL and NATS_URL of a cluster, or neither: then it reads DATA_DIR')
  }
  const startBy = performance.now() + config.STARTUP_TIMEOUT
  const there = <T>(open: () => Promise<T>) => untilThere(open, Math.max(0, startBy - performance.now()), logger)
  const holder = `observe-${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`
  const database = await there(() => connectDatabase(config, databaseUrl))
  const replicaUrl = config.OBSERVE_DATABASE_URL
  const reader = replicaUrl === undefined ? database : await there(() => connectDatabase(config, replicaUrl))
  await there(() => ensureReadModels(config, databaseUrl, logger))
  const nats = await there(() => connectNats(natsUrls, holder, logger))
  const erasures = new PostgresErasures(async () => reader)
  const log = await there(() => JetStreamEventLog.open(nats, config.EVENTS_REPLICAS, { erasures, isObserver: true }))
  return {
    log,
    state: new StateTables(reader, config.STATE_CAPACITY_BYTES),
    removals: new PostgresRemovals(reader),
    database: new PostgresObservation(database, { schema: SCHEMA, reader }),
    lease: new PostgresObservationLease(database, { schema: SCHEMA, holder }),
    checks: {
      servers: {
        postgres: () => roundTrip(reader, 'check', () => sql`select 1`.execute(reader)).then(() => undefined),
        nats: () => nats.rtt().then(() => undefined),
      },
      work: {},
    },
    close: async () => {
      await log.close()
      if (reader !== database) await reader.destroy()
      await database.destroy()
    },
  }
}

/** Of all that make the tables, one does. */
const SCHEMA_LOCK = 7_821_114_306

/** Makes the tables where there are none of this version. Throws `StartupError` where the role may not. */
async function ensureReadModels(config: Config, url: string, logger: Logger): Promise<void> {
  const database = await connectDatabase(config, url, openPostgresSession)
  try {
    await makeTables(database, SCHEMA, async (found) => {
      if (found) logger.warn('the read models of the observation are built anew, as they are of another version')
      return true
    })
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    // invalid_schema_name, insufficient_privilege
    if (code !== '3F000' && code !== '42501') throw error
    throw new StartupError(
      `DATABASE_URL of observe is to be of a role that owns the schema ${SCHEMA} (deploy/postgres/init): ${(error as Error).message}`,
    )
  } finally {
    await database.destroy()
  }
}

/** Makes the tables in a schema unless they are there in this version, and `isWanted` says so of those that are there. */
export async function makeTables(
  database: Database,
  schema: string,
  isWanted: (found: string | undefined) => Promise<boolean>,
): Promise<void> {
  const { text, hash } = observationSchema('postgres')
  await database.transaction().execute(async (transaction) => {
    await sql`select pg_advisory_xact_lock(${sql.lit(SCHEMA_LOCK)})`.execute(transaction)
    const { rows } = await sql<{ name: string; hash: string | null }>`
      select c.relname as name, obj_description(c.oid, 'pg_class') as hash
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = ${schema} and c.relkind = 'r'`.execute(transaction)
    const found = rows.find(({ name }) => name === 'position')?.hash ?? undefined
    if (found === hash || !(await isWanted(found))) return
    for (const { name } of rows) await sql`drop table ${sql.table(`${schema}.${name}`)}`.execute(transaction)
    await sql`set local search_path to ${sql.ref(schema)}`.execute(transaction)
    await sql.raw(text).execute(transaction)
    await sql`comment on table position is ${sql.lit(hash)}`.execute(transaction)
  })
}
