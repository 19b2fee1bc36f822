/**
 * The commands that may take hours on a large database: no limit of serving nodes ends them, and
 * they hold nobody up.
 */
import { sql } from 'kysely'
import postgres from 'postgres'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type PostgresDatabase, sharedPostgres } from '../../lab/servers.ts'
import type { LoggedEvent } from '../../src/events/event.ts'
import { verifyPostgres } from '../../src/maintenance/verify-postgres.ts'
import { openPostgresSession } from '../../src/platform/database.ts'
import { migrate, POSTGRES } from '../../src/platform/migrate.ts'
import { readModels } from '../../src/storage/read-models.ts'

const START_MS = 120_000
const TEST_MS = 120_000
/** Above `statement_timeout` and `lock_timeout` of serving nodes, which are 10 s and 3 s. */
const LONG_S = 11

let server: PostgresDatabase
let superuser: postgres.Sql

beforeAll(async () => {
  server = await sharedPostgres()
  superuser = postgres(server.superuserUrl, { max: 2, onnotice: () => {} })
}, START_MS)

afterAll(async () => {
  await superuser?.end()
  await server?.[Symbol.asyncDispose]()
}, START_MS)

const open = (url: string) => openPostgresSession({ url, poolMode: 'session', maxConnections: 1 })

it('migrate waits for a lock, and for a statement, for longer than a serving node may', {
  timeout: TEST_MS,
}, async () => {
  const database = open(server.ownerUrl)
  try {
    await migrate(database, POSTGRES)
    const holding = Promise.withResolvers<void>()
    const holder = superuser.begin(async (transaction) => {
      // The migrator asks this table first.
      await transaction.unsafe('lock table kysely_migration_lock in access exclusive mode')
      holding.resolve()
      await transaction.unsafe(`select pg_sleep(${LONG_S})`)
    })
    await holding.promise
    await Promise.all([
      expect(migrate(database, POSTGRES)).resolves.toEqual({
        steps: [],
        installed: [],
        dropped: [],
      }),
      holder,
    ])
  } finally {
    await database.destroy()
  }
})

it('a session that was lost says so from then on, rather than go on in another without its tables', {
  timeout: TEST_MS,
}, async () => {
  const database = open(server.ownerUrl)
  try {
    await sql`create temporary table mine (id int)`.execute(database)
    await superuser`
      select pg_terminate_backend(pid) from pg_stat_activity
      where usename = 'tabulum_owner' and datname = current_database()`
    await expect(sql`select pg_sleep(1)`.execute(database)).rejects.toThrow()
    await expect(sql`select * from mine`.execute(database)).rejects.toThrow(
      'the session with Postgres was lost',
    )
  } finally {
    await database.destroy()
  }
})

it('verify of a long log holds no transaction but for the last stretch, while the log grows', {
  timeout: TEST_MS,
}, async () => {
  const PAGES = 40
  const PAGE = 1_000
  const GROWTH = 300
  let end = PAGES * PAGE
  const moveTo = (position: number) =>
    superuser`update projections set applied_seq = ${position} where name = 'database'`
  await moveTo(end)
  let pages = 0
  let pagesInTransactions = 0
  const read = async (since: number): Promise<LoggedEvent[]> => {
    pages++
    const [row] = await superuser<{ open: number }[]>`
      select count(*)::int as open from pg_stat_activity
      where usename = 'tabulum' and datname = current_database()
        and (state <> 'idle' or backend_xmin is not null or backend_xid is not null)`
    if ((row?.open ?? 0) > 0) pagesInTransactions++
    end += GROWTH
    await moveTo(end)
    return Array.from({ length: Math.min(PAGE, end - since) }, (_, index) => ({
      seq: since + 1 + index,
      ts: '2026-01-01T00:00:00.000Z',
      type: 'registry_read',
      agent: 'tab_aaaaaaaaaaaaaaaaaaaa',
      data: { read_by: 'tab_aaaaaaaaaaaaaaaaaaaa' },
    }))
  }
  const database = open(server.appUrl)
  try {
    const differences: string[] = []
    const result = await verifyPostgres(
      database,
      { read, lastSeq: async () => end },
      readModels({ maxQueue: 10 }),
      (each) => differences.push(each),
    )
    expect(differences).toEqual([])
    expect(result.seq).toBeGreaterThan(PAGES * PAGE)
    expect(result.events).toBe(result.seq)
    expect(pages).toBeGreaterThan(PAGES)
    // Five thousand events, and what came while the last of them were read.
    expect(pagesInTransactions).toBeGreaterThan(0)
    expect(pagesInTransactions).toBeLessThanOrEqual(8)
  } finally {
    await database.destroy()
    await moveTo(0)
  }
})
