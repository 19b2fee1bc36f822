/** `migrate`: brings the schema of a cluster's database up to date. */
import { type Config, ConfigError } from '../config.ts'
import { openPostgresSession } from '../platform/database.ts'
import { createLogger } from '../platform/logger.ts'
import { POSTGRES, migrate as runMigrations } from '../platform/migrate.ts'
import { untilThere } from '../platform/startup-error.ts'
import { connectDatabase } from '../storage/cluster.ts'

export async function migrate(config: Config): Promise<void> {
  const url = config.DATABASE_URL
  if (url === undefined)
    throw new ConfigError('DATABASE_URL is missing: migrate needs the owner of the schema')
  const database = await untilThere(
    () => connectDatabase(config, url, openPostgresSession),
    config.STARTUP_TIMEOUT,
    createLogger(config.LOG_LEVEL, 'migrate'),
  )
  try {
    const { steps, installed, dropped } = await runMigrations(database, POSTGRES)
    if (steps.length > 0) console.log(`Applied ${steps.join(', ')}.`)
    if (installed.length > 0) console.log(`Installed the functions ${installed.join(', ')}.`)
    if (dropped.length > 0) console.log(`Dropped the functions ${dropped.join(', ')}.`)
    if (steps.length + installed.length + dropped.length === 0)
      console.log('The schema is up to date.')
  } finally {
    await database.destroy()
  }
}
