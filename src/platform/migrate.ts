/** Brings the database's schema up to date, and checks that it is. Steps are the numbered files of `migrations/`, forward only. */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { sql } from 'kysely'
import { type Migration, Migrator } from 'kysely/migration'
import { type Database, roundTrip } from './database.ts'
import { NotThereYet } from './startup-error.ts'

/** A migration under way may hold the table of steps, or keep the server busy. */
const SCHEMA_TIMEOUT_MS = 10_000
const DIRECTORY = join(import.meta.dirname, '../../migrations')

/** The schema lacks steps that this version of the program needs. */
export class SchemaTooOld extends NotThereYet {}

/**
 * Runs the steps that have not run yet, each once, under a lock that lets several machines start this at the same time.
 * Returns the names of those it ran. A step may take hours on a large database: `database` is to be one without limits, see
 * `openPostgresSession`. A database that is ahead of this version is left as it is.
 */
export async function migrate(database: Database): Promise<string[]> {
  const known = await stepNames()
  const ahead = (await appliedSteps(database)).filter((name) => !known.includes(name))
  const migrator = new Migrator({
    db: database,
    provider: { getMigrations: async () => Object.fromEntries([...known, ...ahead].map((name) => [name, step(name)])) },
  })
  const { error, results } = await migrator.migrateToLatest()
  if (error) throw error
  return (results ?? []).map((result) => result.migrationName)
}

/** Throws `SchemaTooOld` unless every step that this version knows has been applied. Later ones are welcome: they only add. */
export async function checkSchema(database: Database): Promise<void> {
  const applied = await appliedSteps(database)
  const missing = (await stepNames()).filter((name) => !applied.includes(name))
  if (missing.length > 0) {
    throw new SchemaTooOld(`the database lacks ${missing.join(', ')}: run the migrate command of this version first`)
  }
}

function step(name: string): Migration {
  return {
    up: async (database) => {
      await sql.raw(await readFile(join(DIRECTORY, `${name}.sql`), 'utf8')).execute(database)
    },
  }
}

async function stepNames(): Promise<string[]> {
  const files = await readdir(DIRECTORY)
  return files
    .filter((file) => file.endsWith('.sql'))
    .map((file) => file.slice(0, -'.sql'.length))
    .sort()
}

async function appliedSteps(database: Database): Promise<string[]> {
  const {
    rows: [present],
  } = await roundTrip(
    database,
    'schema',
    () => sql<{ present: boolean }>`select to_regclass('kysely_migration') is not null as present`.execute(database),
    SCHEMA_TIMEOUT_MS,
  )
  if (!present?.present) return []
  const { rows } = await roundTrip(
    database,
    'schema',
    () => sql<{ name: string }>`select name from kysely_migration order by name`.execute(database),
    SCHEMA_TIMEOUT_MS,
  )
  return rows.map((row) => row.name)
}
