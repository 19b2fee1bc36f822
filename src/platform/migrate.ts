/**
 * Brings a database's schema up to date, and checks that it is. Tables are made by the steps of
 * `migrations/`, numbered files that run once each, forward only. The functions of Postgres are
 * replaced whenever their files have changed.
 */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { sql } from 'kysely'
import {
  DEFAULT_MIGRATION_LOCK_TABLE,
  MIGRATION_LOCK_ID,
  type Migration,
  Migrator,
} from 'kysely/migration'
import { type Database, roundTrip } from './database.ts'
import { type FunctionChanges, foreignFunctions, installFunctions } from './postgres-functions.ts'
import { NotThereYet } from './startup-error.ts'

/** What a database is to be made with. */
export interface SchemaFiles {
  /** The directory of its steps. */
  readonly steps: string
  /** The directory of the capabilities, each with its functions in `sql/`. Postgres only. */
  readonly functions?: string
}

export interface SchemaChanges extends FunctionChanges {
  steps: string[]
}

/** The schema is not the one that this version of the program needs. */
export class SchemaDiffers extends NotThereYet {}

const ROOT = join(import.meta.dirname, '../..')
export const POSTGRES: SchemaFiles = {
  steps: join(ROOT, 'migrations/postgres'),
  functions: join(ROOT, 'src'),
}

/** A migration under way may hold the table of steps, or keep the server busy. */
const SCHEMA_TIMEOUT_MS = 10_000
const LOCK = { lockTable: DEFAULT_MIGRATION_LOCK_TABLE, lockRowId: MIGRATION_LOCK_ID }

/**
 * Runs the steps that have not run yet, each once, and makes the functions this version's: all of
 * it or nothing, under a lock that lets several machines start this at the same time. Returns what
 * it changed. A step may take hours on a large database: `database` is to be one without limits,
 * see `openPostgresSession`. Steps that this version does not know, as a later one has run them,
 * are left as they are.
 */
export async function migrate(database: Database, files: SchemaFiles): Promise<SchemaChanges> {
  return database.transaction().execute(async (transaction) => {
    // Before the migrator looks which steps there are, and until the functions are there too.
    await transaction.getExecutor().adapter.acquireMigrationLock(transaction, LOCK)
    const known = await stepNames(files)
    const ahead = (await appliedSteps(transaction)).filter((name) => !known.includes(name))
    const steps = [...known, ...ahead].map((name) => [name, step(files, name)])
    const migrator = new Migrator({
      db: transaction,
      provider: { getMigrations: async () => Object.fromEntries(steps) },
    })
    const { error, results = [] } = await migrator.migrateToLatest()
    if (error) throw error
    return {
      steps: results.map(({ migrationName }) => migrationName),
      ...(files.functions === undefined
        ? { installed: [], dropped: [] }
        : await installFunctions(transaction, files.functions)),
    }
  })
}

/**
 * Throws `SchemaDiffers` unless every step that this version knows has been applied, and every
 * function is this version's. Later steps, and functions that it does not call, are welcome.
 */
export async function checkSchema(database: Database, files: SchemaFiles): Promise<void> {
  const difference = await roundTrip(
    database,
    'schema',
    () => differenceFrom(database, files),
    SCHEMA_TIMEOUT_MS,
  )
  if (difference !== undefined) throw new SchemaDiffers(difference)
}

async function differenceFrom(database: Database, files: SchemaFiles): Promise<string | undefined> {
  const applied = await appliedSteps(database)
  const missing = (await stepNames(files)).filter((name) => !applied.includes(name))
  if (missing.length > 0)
    return `the database lacks ${missing.join(', ')}: run the migrate command of this version first`
  const foreign =
    files.functions === undefined ? [] : await foreignFunctions(database, files.functions)
  if (foreign.length > 0)
    return `the database has functions of another version than this one (${foreign.join(', ')}): run the migrate command of the version that is to serve`
  return undefined
}

function step({ steps }: SchemaFiles, name: string): Migration {
  return {
    up: async (transaction) => {
      const file = `${name}.sql`
      try {
        await sql.raw(await readFile(join(steps, file), 'utf8')).execute(transaction)
      } catch (error) {
        throw new Error(`${file}: ${error instanceof Error ? error.message : error}`, {
          cause: error,
        })
      }
    },
  }
}

async function stepNames({ steps }: SchemaFiles): Promise<string[]> {
  const files = await readdir(steps)
  return files
    .filter((file) => file.endsWith('.sql'))
    .map((file) => file.slice(0, -'.sql'.length))
    .sort()
}

async function appliedSteps(database: Database): Promise<string[]> {
  const tables = await database.introspection.getTables({ withInternalKyselyTables: true })
  if (!tables.some(({ name }) => name === 'kysely_migration')) return []
  const { rows } = await sql<{
    name: string
  }>`select name from kysely_migration order by name`.execute(database)
  return rows.map((row) => row.name)
}
