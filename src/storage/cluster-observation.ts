/**
 * What the observation service stands on in a cluster: the log, read as an observer, and schemas of
 * Postgres that its role owns.
 */
import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { type Config, ConfigError } from '../config.ts'
import type { EventLog } from '../events/event-log.ts'
import { JetStreamEventLog } from '../events/jetstream-event-log.ts'
import { PostgresErasures } from '../events/postgres-erasures.ts'
import type { Verification } from '../maintenance/verification.ts'
import type { ObservationStorage } from '../observe/observation.ts'
import { type ObservationDatabase, observationSchema } from '../observe/observation-database.ts'
import { ObservationWriter } from '../observe/observation-writer.ts'
import { PostgresObservation } from '../observe/postgres-observation.ts'
import { catchUp } from '../observe/rebuild.ts'
import { verifyObservation } from '../observe/verify-observation.ts'
import { type Database, openPostgresSession, roundTrip } from '../platform/database.ts'
import { Lease } from '../platform/lease.ts'
import type { Logger } from '../platform/logger.ts'
import { connectNats } from '../platform/nats.ts'
import { StartupError, untilThere } from '../platform/startup-error.ts'
import { PostgresRemovals } from '../removal/postgres-removals.ts'
import { StateTables } from '../state/postgres-state-tables.ts'
import { connectDatabase } from './cluster.ts'

/** The schema of Postgres that the observers' role owns, and the one in which it builds another. */
export const SCHEMA = 'observation'
export const NEXT_SCHEMA = 'observation_next'
/** A check of `verify` looks at all that there is. */
const VERIFY_TIMEOUT_MS = 6 * 3_600_000

/** The servers that an observer needs. Throws `ConfigError`. */
function observerServers({ DATABASE_URL: databaseUrl, NATS_URL: natsUrls }: Config) {
  if (databaseUrl === undefined || natsUrls.length === 0) {
    throw new ConfigError(
      'observe needs DATABASE_URL and NATS_URL of a cluster, or neither: then it reads DATA_DIR',
    )
  }
  return { databaseUrl, natsUrls }
}

/** Waits for the servers for so long as is set. Throws `StartupError`. */
export async function openClusterObservation(
  config: Config,
  logger: Logger,
): Promise<ObservationStorage> {
  const { databaseUrl, natsUrls } = observerServers(config)
  const startBy = performance.now() + config.STARTUP_TIMEOUT
  const there = <T>(open: () => Promise<T>) =>
    untilThere(open, Math.max(0, startBy - performance.now()), logger)
  const holder = `observe-${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`
  const database = await there(() => connectDatabase(config, databaseUrl))
  const replicaUrl = config.OBSERVE_DATABASE_URL
  const reader =
    replicaUrl === undefined ? database : await there(() => connectDatabase(config, replicaUrl))
  await there(() => ensureReadModels(config, databaseUrl, logger))
  const nats = await there(() => connectNats(natsUrls, holder, logger))
  const erasures = new PostgresErasures(async () => reader)
  const log = await there(() =>
    JetStreamEventLog.open(nats, config.EVENTS_REPLICAS, { erasures, isObserver: true }),
  )
  return {
    log,
    state: new StateTables(reader, config.STATE_CAPACITY_BYTES),
    removals: new PostgresRemovals(reader),
    database: new PostgresObservation(database, { schema: SCHEMA, reader }),
    lease: new Lease(database, 'observer', holder, `${SCHEMA}.leases`),
    checks: {
      servers: {
        postgres: () =>
          roundTrip(reader, 'check', () => sql`select 1`.execute(reader)).then(() => undefined),
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

/**
 * Builds the read models from nothing, in a schema beside the one that serves, and puts them in its
 * place; `fill` does so.
 */
export async function rebuildInCluster(
  config: Config,
  logger: Logger,
  fill: (log: JetStreamEventLog, database: ObservationDatabase) => Promise<void>,
): Promise<void> {
  const { databaseUrl, natsUrls } = observerServers(config)
  const database = await connectDatabase(config, databaseUrl, openPostgresSession)
  try {
    await makeTables(database, NEXT_SCHEMA, { isAnew: true })
    const nats = await connectNats(natsUrls, `observe-rebuild-${process.pid}`, logger)
    const erasures = new PostgresErasures(async () => database)
    const log = await JetStreamEventLog.open(nats, config.EVENTS_REPLICAS, {
      erasures,
      isObserver: true,
    })
    try {
      await fill(log, new PostgresObservation(database, { schema: NEXT_SCHEMA }))
      await makeIndexes(database, NEXT_SCHEMA)
      await exchange(database, log)
    } finally {
      await log.close()
    }
  } finally {
    await database.destroy()
  }
}

/**
 * So long the exchange waits for whoever uses a table. Those who ask wait behind it meanwhile; and
 * it is shorter than what Postgres waits before it looks for a deadlock (1 s), so that none of them
 * is ever the one who has to give way.
 */
const EXCHANGE_LOCK_MS = 250
/** `verify` reads the tables in one transaction, which may take minutes. */
const EXCHANGE_FOR_MS = 10 * 60_000
const EXCHANGE_RETRY_MS = 200

/** Puts the tables that were built in the place of those that serve. */
async function exchange(database: Database, log: EventLog): Promise<void> {
  const deadline = performance.now() + EXCHANGE_FOR_MS
  for (;;) {
    try {
      // Most of what came since they were built, while nobody waits.
      await catchUpIn(database, log)
      return await database.transaction().execute(async (transaction) => {
        await sql`set local lock_timeout = ${sql.lit(EXCHANGE_LOCK_MS)}`.execute(transaction)
        await sql`select pg_advisory_xact_lock(${sql.lit(SCHEMA_LOCK)})`.execute(transaction)
        const old = await tablesIn(transaction, SCHEMA)
        if (old.some(({ name }) => name === 'position'))
          // Nobody applies anything to them any more; they are read still.
          await sql`lock table ${sql.table(`${SCHEMA}.position`)} in exclusive mode`.execute(
            transaction,
          )
        await catchUpIn(transaction, log)
        for (const { name } of old)
          await sql`drop table ${sql.table(`${SCHEMA}.${name}`)}`.execute(transaction)
        for (const { name } of await tablesIn(transaction, NEXT_SCHEMA))
          await sql`alter table ${sql.table(`${NEXT_SCHEMA}.${name}`)} set schema ${sql.ref(SCHEMA)}`.execute(
            transaction,
          )
      })
    } catch (error) {
      if (codeOf(error) !== LOCK_NOT_AVAILABLE || performance.now() > deadline) throw error
      await sleep(EXCHANGE_RETRY_MS)
    }
  }
}

/** Has the tables that were built as far as those that serve, where these are of this version. */
async function catchUpIn(database: Database, log: EventLog): Promise<void> {
  if ((await versionIn(database, SCHEMA)) !== observationSchema('postgres').hash) return
  const seq = await new ObservationWriter(
    new PostgresObservation(database, { schema: SCHEMA }),
  ).position()
  await catchUp(log, new PostgresObservation(database, { schema: NEXT_SCHEMA }), seq)
}

/**
 * Compares what the observation keeps with the log. Undefined where there is no observation of this
 * version. @param session one of its own, with the rights of api nodes
 */
export async function verifyClusterObservation(
  session: Database,
  log: Pick<EventLog, 'read'>,
  report: (difference: string) => void,
): Promise<Verification | undefined> {
  if ((await versionIn(session, SCHEMA)) !== observationSchema('postgres').hash) return undefined
  const database = new PostgresObservation(session, {
    schema: SCHEMA,
    timeoutMs: VERIFY_TIMEOUT_MS,
  })
  return verifyObservation(
    { database, begin: 'begin isolation level repeatable read', bytes: 'bytea' },
    log,
    report,
  )
}

/** Of all that make the tables, one does. */
const SCHEMA_LOCK = 7_821_114_306

/**
 * Makes the tables where there are none of this version. Throws `StartupError` where the role may
 * not.
 */
async function ensureReadModels(config: Config, url: string, logger: Logger): Promise<void> {
  const database = await connectDatabase(config, url, openPostgresSession)
  try {
    const isAnew = await makeTables(database, SCHEMA)
    if (isAnew)
      logger.warn('the read models of the observation are built from the beginning of the log')
  } catch (error) {
    const code = codeOf(error)
    if (code !== INVALID_SCHEMA && code !== INSUFFICIENT_PRIVILEGE) throw error
    throw new StartupError(
      `DATABASE_URL of observe is to be of a role that owns the schema ${SCHEMA} (deploy/postgres/init): ${(error as Error).message}`,
    )
  } finally {
    await database.destroy()
  }
}

/** SQLSTATE. */
const INVALID_SCHEMA = '3F000'
const INSUFFICIENT_PRIVILEGE = '42501'
const LOCK_NOT_AVAILABLE = '55P03'

function codeOf(error: unknown): unknown {
  return error instanceof Error && 'code' in error ? error.code : undefined
}

/**
 * Makes the tables in a schema; those that are there are left alone where they are of this version
 * and not wanted anew; then without indexes. Returns whether it did.
 */
export async function makeTables(
  database: Database,
  schema: string,
  { isAnew = false } = {},
): Promise<boolean> {
  const { tables, indexes, hash } = observationSchema('postgres')
  return database.transaction().execute(async (transaction) => {
    await sql`select pg_advisory_xact_lock(${sql.lit(SCHEMA_LOCK)})`.execute(transaction)
    if (!isAnew && (await versionIn(transaction, schema)) === hash) return false
    for (const { name } of await tablesIn(transaction, schema))
      await sql`drop table ${sql.table(`${schema}.${name}`)}`.execute(transaction)
    await sql`set local search_path to ${sql.ref(schema)}`.execute(transaction)
    await sql.raw(tables + (isAnew ? '' : indexes)).execute(transaction)
    await sql`comment on table position is ${sql.lit(hash)}`.execute(transaction)
    return true
  })
}

async function makeIndexes(database: Database, schema: string): Promise<void> {
  await database.transaction().execute(async (transaction) => {
    await sql`set local search_path to ${sql.ref(schema)}`.execute(transaction)
    await sql.raw(observationSchema('postgres').indexes).execute(transaction)
  })
}

async function tablesIn(
  database: Database,
  schema: string,
): Promise<{ name: string; comment: string | null }[]> {
  const { rows } = await sql<{ name: string; comment: string | null }>`
    select c.relname as name, obj_description(c.oid, 'pg_class') as comment
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = ${schema} and c.relkind = 'r' order by 1`.execute(database)
  return rows
}

/** The hash of the file that the tables in a schema were made by. */
async function versionIn(database: Database, schema: string): Promise<string | undefined> {
  return (
    (await tablesIn(database, schema)).find(({ name }) => name === 'position')?.comment ?? undefined
  )
}
