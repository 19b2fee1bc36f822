/** `verify`: compares state, registry and queues with the log. */
import type { Config } from '../config.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import type { Verification } from '../maintenance/verification.ts'
import { verifyPostgres } from '../maintenance/verify-postgres.ts'
import { verifySqlite } from '../maintenance/verify-sqlite.ts'
import { openPostgresSession } from '../platform/database.ts'
import { checkSchema, POSTGRES } from '../platform/migrate.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import { StartupError } from '../platform/startup-error.ts'
import { clusterServers, connectDatabase, connectLog } from '../storage/cluster.ts'
import { verifyClusterObservation } from '../storage/cluster-observation.ts'
import { readDatabase } from '../storage/embedded-database.ts'
import { verifyEmbeddedObservation } from '../storage/embedded-observation.ts'
import { readModels } from '../storage/read-models.ts'

export async function verify(config: Config): Promise<void> {
  let differences = 0
  const report = (difference: string) => {
    differences++
    console.log(difference)
  }
  const { seq, events } = await (config.cluster
    ? verifyCluster(config, report)
    : readDatabase(config, (sqlite) => verifyEmbedded(config, sqlite, report)))
  console.log(
    `Compared ${events} events, up to ${seq}: ${differences === 0 ? 'no differences' : `${differences} differences`}.`,
  )
  if (differences > 0) process.exitCode = 1
}

async function verifyCluster(
  config: Config,
  report: (difference: string) => void,
): Promise<Verification> {
  if (config.DATABASE_POOL_MODE === 'transaction') {
    throw new StartupError(
      'verify works with temporary tables, which a pooler does not keep: give it DATABASE_URL of Postgres itself, and DATABASE_POOL_MODE=session',
    )
  }
  const { databaseUrl } = clusterServers(config, 'verify')
  const database = await connectDatabase(config, databaseUrl, openPostgresSession)
  const log = await connectLog(config, 'verify')
  try {
    await checkSchema(database, POSTGRES)
    const verification = await verifyPostgres(database, log, modelsOf(config), report)
    tellOf(await verifyClusterObservation(database, log, report))
    return verification
  } finally {
    await log.close()
    await database.destroy()
  }
}

async function verifyEmbedded(
  config: Config,
  sqlite: Sqlite,
  report: (difference: string) => void,
): Promise<Verification> {
  const verification = verifySqlite(sqlite, modelsOf(config), report)
  tellOf(await verifyEmbeddedObservation(config, new SqliteEventLog(sqlite), report))
  return verification
}

function tellOf(observation: Verification | undefined): void {
  console.log(
    observation === undefined
      ? 'There is no observation of this version to compare.'
      : `Compared the observation, ${observation.events} events, up to ${observation.seq}.`,
  )
}

function modelsOf({ MESSAGE_MAX_QUEUE_PER_AGENT: maxQueue }: Config) {
  return readModels({ maxQueue })
}
