import { cp, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type Database, openEmbedded } from '../../src/platform/database.ts'
import { checkSchema, migrate, SchemaTooOld } from '../../src/platform/migrate.ts'

const steps = (await readdir(join(import.meta.dirname, '../../migrations')))
  .map((file) => file.replace('.sql', ''))
  .toSorted()

let parent: string
let empty: string
let database: Database
beforeAll(async () => {
  parent = await mkdtemp(join(tmpdir(), 'tabulum-test-'))
  // Making one takes longer than copying one.
  empty = join(parent, 'empty')
  await (await openEmbedded(empty)).destroy()
}, 120_000)
beforeEach(async () => {
  const directory = await mkdtemp(join(parent, 'copy-'))
  await cp(empty, directory, { recursive: true })
  database = await openEmbedded(directory)
})
afterEach(() => database.destroy())
afterAll(() => rm(parent, { recursive: true, force: true }))

async function applied(): Promise<string[]> {
  const { rows } = await sql<{ name: string }>`select name from kysely_migration order by name`.execute(database)
  return rows.map(({ name }) => name)
}

describe('migrate', () => {
  it('runs each step once, in order; a second time it runs none and loses nothing', async () => {
    expect(steps.length).toBeGreaterThan(3)
    await expect(checkSchema(database)).rejects.toBeInstanceOf(SchemaTooOld)
    expect(await migrate(database)).toEqual(steps)
    await sql`insert into queues (recipient, length) values ('kept', 1)`.execute(database)
    const { rows: before } = await sql`select key from signing_keys`.execute(database)
    expect(await migrate(database)).toEqual([])
    expect(await applied()).toEqual(steps)
    expect((await sql`select key from signing_keys`.execute(database)).rows).toEqual(before)
    expect((await sql`select recipient from queues`.execute(database)).rows).toEqual([{ recipient: 'kept' }])
    await checkSchema(database)
  })

  it('started several times at once runs each step once', async () => {
    const ran = await Promise.all([migrate(database), migrate(database), migrate(database)])
    expect(ran.flat().toSorted()).toEqual(steps)
    expect(await applied()).toEqual(steps)
  })

  it('leaves a database that is ahead of this version as it is', async () => {
    await migrate(database)
    await sql`insert into kysely_migration (name, timestamp) values ('9999_later', ${new Date().toISOString()})`.execute(
      database,
    )
    expect(await migrate(database)).toEqual([])
    await checkSchema(database)
    expect(await applied()).toEqual([...steps, '9999_later'])
  })

  it('that lacks a step is found out before it is used', async () => {
    await migrate(database)
    await sql`delete from kysely_migration where name = ${steps.at(-1)}`.execute(database)
    await expect(checkSchema(database)).rejects.toThrow(`the database lacks ${steps.at(-1)}`)
  })

  it('takes a step whole or not at all', async () => {
    // A table in the way makes the second step fail.
    await sql`create table state_usage (other text)`.execute(database)
    await expect(migrate(database)).rejects.toThrow()
    const { rows } = await sql<{ present: boolean }>`
      select to_regclass('agents') is not null or to_regclass('state') is not null as present`.execute(database)
    const names = rows[0]?.present ? await applied() : []
    expect(rows[0]?.present).toBe(names.length > 0)
    await sql`drop table state_usage`.execute(database)
    await migrate(database)
    await checkSchema(database)
  })
})
