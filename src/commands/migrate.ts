/** `migrate`: brings the schema of a cluster's database up to date. */
import { type Config, ConfigError } from '../config.ts'
import { migrate as runMigrations } from '../platform/migrate.ts'
import { connectDatabase } from './cluster.ts'

export async function migrate(config: Config): Promise<void> {
  if (config.DATABASE_URL === undefined)
    throw new ConfigError('DATABASE_URL is missing: migrate needs the owner of the schema')
  const database = await connectDatabase(config, config.DATABASE_URL)
  try {
    const steps = await runMigrations(database)
    console.log(steps.length === 0 ? 'The schema is up to date.' : `Applied ${steps.join(', ')}.`)
  } finally {
    await database.destroy()
  }
}
