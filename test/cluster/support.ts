/** What the tests of the tables in Postgres share. */

import { sharedPostgres } from '../../lab/servers.ts'
import type { LoggedEvent, NewEvent } from '../../src/events/event.ts'
import type { Appended } from '../../src/events/event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { batched } from '../../src/platform/batch.ts'
import { type Database, openPostgres } from '../../src/platform/database.ts'
import { migrate, POSTGRES } from '../../src/platform/migrate.ts'
import { DatabaseProjection } from '../../src/projector/database-projection.ts'
import { PostgresRegistryStore } from '../../src/registry/postgres-registry-store.ts'
import { RegistryTables } from '../../src/registry/postgres-registry-tables.ts'
import { readModels } from '../../src/storage/read-models.ts'

export interface FreshPostgres extends AsyncDisposable {
  readonly database: Database
}

/**
 * A migrated database that nothing else uses. With one connection by default, as suites make
 * temporary tables.
 */
export async function openFreshPostgres({ maxConnections = 1 } = {}): Promise<FreshPostgres> {
  const postgres = await sharedPostgres()
  const database = openPostgres({ url: postgres.ownerUrl, poolMode: 'session', maxConnections })
  await migrate(database, POSTGRES)
  return {
    database,
    async [Symbol.asyncDispose]() {
      await database.destroy()
      await postgres[Symbol.asyncDispose]()
    },
  }
}

/** Applies events as the projector does, wherever the projection stands. */
export async function applyEvents(
  database: Database,
  events: readonly LoggedEvent[],
): Promise<void> {
  const projection = new DatabaseProjection(database, readModels({ maxQueue: 10_000 }))
  const position = (await projection.acquire('test', 60_000)) ?? 0
  await projection.apply('test', position, events)
}

/**
 * The registry on a database that nothing else uses. Its log is in memory, and applied as the
 * projector does.
 */
export async function openRegistry() {
  const { database, [Symbol.asyncDispose]: dispose } = await openFreshPostgres()
  const tables = new RegistryTables(database)
  const progress = new Progress()
  const events: LoggedEvent[] = []
  const project = batched(
    async (batch: LoggedEvent[]) => {
      await applyEvents(database, batch)
      progress.advance(batch.at(-1)?.seq ?? 0)
      return batch
    },
    { maxItems: 500, maxWaiting: 10_000 },
  )
  const log = {
    async append(event: NewEvent): Promise<Appended> {
      const logged = { seq: events.length + 1, ...event }
      events.push(logged)
      // So nobody waits for it against a clock, on however busy a machine.
      await project(logged)
      return { seq: logged.seq, duplicate: false }
    },
    read: async (since: number, limit: number) => events.slice(since, since + limit),
    lastSeq: async () => events.length,
  }
  return {
    database,
    tables,
    log,
    store: new PostgresRegistryStore(tables, log, progress),
    [Symbol.asyncDispose]: dispose,
  }
}
