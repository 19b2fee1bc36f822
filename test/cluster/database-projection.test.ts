/** The lease on the projection in Postgres. */
import { sql } from 'kysely'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { type PostgresServer, startPostgres } from '../../lab/servers.ts'
import { type Database, openPostgres } from '../../src/platform/database.ts'
import { DatabaseProjection } from '../../src/projector/database-projection.ts'
import { LeaseLost } from '../../src/projector/projector.ts'
import { readModels } from '../../src/storage/read-models.ts'

const LEASE_MS = 1_000

let postgres: PostgresServer
let database: Database
let projection: DatabaseProjection

beforeAll(async () => {
  postgres = await startPostgres({ migrated: true })
  database = openPostgres({ url: postgres.ownerUrl, poolMode: 'session', maxConnections: 4 })
  projection = new DatabaseProjection(database, readModels({ maxQueue: 10 }))
})
afterAll(async () => {
  await database?.destroy()
  await postgres?.[Symbol.asyncDispose]()
})
beforeEach(() => database.updateTable('projections').set({ holder: null }).execute())

/**
 * Runs `work` while a batch is being applied, as far as others can tell: the projection's row is
 * held.
 */
async function whileApplying(work: () => Promise<void>): Promise<void> {
  await database.transaction().execute(async (applying) => {
    await sql`select from projections where name = 'database' for update`.execute(applying)
    await work()
  })
}

async function expiresInMs(): Promise<number> {
  const { rows } = await sql<{ left: number }>`
    select extract(epoch from lease_expires_at - clock_timestamp())::float8 * 1000 as left
    from projections where name = 'database'`.execute(database)
  return rows[0]?.left ?? Number.NaN
}

describe('the lease', () => {
  it('is one process’s until it ends, and then another’s', async () => {
    expect(await projection.acquire('one', 60_000)).toBe(0)
    expect(await projection.acquire('two', LEASE_MS)).toBeUndefined()
    await expect(projection.renew('two', LEASE_MS)).rejects.toBeInstanceOf(LeaseLost)
    await projection.renew('one', 1)
    await vi.waitFor(async () => expect(await projection.acquire('two', 60_000)).toBe(0), {
      timeout: 30_000,
      interval: 50,
    })
    await expect(projection.renew('one', LEASE_MS)).rejects.toBeInstanceOf(LeaseLost)
    await projection.renew('two', LEASE_MS)
  })

  it('of a process that is gone ends in its time also where the clock was set back', async () => {
    await projection.acquire('gone', LEASE_MS)
    await sql`update projections set lease_expires_at = lease_expires_at + interval '1 hour'`.execute(
      database,
    )
    expect(await projection.acquire('next', LEASE_MS)).toBeUndefined()
    expect(await expiresInMs()).toBeLessThanOrEqual(LEASE_MS)
    await vi.waitFor(async () => expect(await projection.acquire('next', LEASE_MS)).toBe(0), {
      timeout: 30_000,
      interval: 50,
    })
  })

  it('lets the position move where what comes is for nobody, and nobody else move it', async () => {
    await projection.acquire('one', LEASE_MS)
    await projection.pass('one', 0, 5)
    await expect(projection.pass('one', 0, 6)).rejects.toBeInstanceOf(LeaseLost)
    await expect(projection.pass('two', 5, 6)).rejects.toBeInstanceOf(LeaseLost)
    expect(await projection.acquire('one', LEASE_MS)).toBe(5)
    await database
      .updateTable('projections')
      .set({ applied_seq: 0 })
      .where('name', '=', 'database')
      .execute()
  })

  it('is prolonged', async () => {
    await projection.acquire('one', 100)
    await projection.renew('one', 60_000)
    expect(await expiresInMs()).toBeGreaterThan(50_000)
  })

  it('is answered for at once while a batch is being applied', async () => {
    await projection.acquire('one', LEASE_MS)
    await whileApplying(async () => {
      await projection.renew('one', LEASE_MS)
      await expect(projection.renew('two', LEASE_MS)).rejects.toBeInstanceOf(LeaseLost)
    })
  })

  it('is nobody’s once given back', async () => {
    await projection.acquire('one', LEASE_MS)
    await projection.release('one')
    await expect(projection.renew('one', LEASE_MS)).rejects.toBeInstanceOf(LeaseLost)
    expect(await projection.acquire('two', LEASE_MS)).toBe(0)
  })
})
