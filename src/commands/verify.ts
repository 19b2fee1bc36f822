/** `verify`: compares state, registry and queues with the log. */
import { join } from 'node:path'
import type { Config } from '../config.ts'
import { EmbeddedEventLog } from '../events/embedded-event-log.ts'
import type { EventLog } from '../events/event-log.ts'
import { JetStreamEventLog } from '../events/jetstream-event-log.ts'
import { verify as verifyProjections } from '../maintenance/verify.ts'
import { type Database, openEmbedded, openPostgresSession } from '../platform/database.ts'
import { inDirectory, lockDirectory } from '../platform/directory-lock.ts'
import { createLogger } from '../platform/logger.ts'
import { checkSchema, POSTGRES } from '../platform/migrate.ts'
import { connectNats } from '../platform/nats.ts'
import { StartupError } from '../platform/startup-error.ts'
import { connectDatabase } from './cluster.ts'

export async function verify(config: Config): Promise<void> {
  if (config.cluster && config.DATABASE_POOL_MODE === 'transaction') {
    throw new StartupError(
      'verify works with temporary tables, which a pooler does not keep: give it DATABASE_URL of Postgres itself, and DATABASE_POOL_MODE=session',
    )
  }
  const { database, log, close } = await openForReading(config)
  try {
    await checkSchema(database, POSTGRES)
    let differences = 0
    const { seq, events } = await verifyProjections(database, log, (difference) => {
      differences++
      console.log(difference)
    })
    console.log(
      `Compared ${events} events, up to ${seq}: ${differences === 0 ? 'no differences' : `${differences} differences`}.`,
    )
    if (differences > 0) process.exitCode = 1
  } finally {
    await close()
  }
}

/** The log and the database, without taking part in the work. */
export async function openForReading(
  config: Config,
): Promise<{ database: Database; log: EventLog; close: () => Promise<void> }> {
  if (!config.cluster) {
    const unlock = await lockDirectory(config.DATA_DIR)
    const database = await inDirectory(config.DATA_DIR, () => openEmbedded(join(config.DATA_DIR, 'database')))
    return {
      database,
      log: await EmbeddedEventLog.open(database),
      close: async () => {
        await database.destroy()
        unlock()
      },
    }
  }
  const logger = createLogger(config.LOG_LEVEL, 'operator')
  const database = await connectDatabase(config, config.cluster.databaseUrl, openPostgresSession)
  const log = await JetStreamEventLog.open(
    await connectNats(config.cluster.natsUrls, 'operator', logger),
    config.EVENTS_REPLICAS,
  )
  return {
    database,
    log,
    close: async () => {
      await log.close()
      await database.destroy()
    },
  }
}
