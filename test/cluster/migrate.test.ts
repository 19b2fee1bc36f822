/** How a schema comes to be what this version needs, and how a node finds out that it is not. */
import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { sql } from 'kysely'
import postgres from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type PostgresServer, startPostgres } from '../../lab/servers.ts'
import { type Database, openPostgres, openPostgresSession } from '../../src/platform/database.ts'
import {
  checkSchema,
  migrate,
  POSTGRES,
  SchemaDiffers,
  type SchemaFiles,
} from '../../src/platform/migrate.ts'

const START_MS = 120_000
const NOTHING = { steps: [], installed: [], dropped: [] }

const steps = (await readdir(POSTGRES.steps)).map((file) => basename(file, '.sql')).toSorted()

let server: PostgresServer
let superuser: postgres.Sql
let directory: string
/** Of a database of its own, without a schema. */
let url: string
let database: Database
let databases = 0
/** Opened by a test beside `database`. */
let others: Database[] = []

beforeAll(async () => {
  server = await startPostgres()
  superuser = postgres(server.superuserUrl, { max: 1, onnotice: () => {} })
  await superuser`create role visitor`
}, START_MS)
afterAll(async () => {
  await superuser?.end()
  await server?.[Symbol.asyncDispose]()
}, START_MS)

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tabulum-test-'))
  const name = `migrated_${++databases}`
  const template = new URL(server.superuserUrl).pathname.slice(1)
  await superuser.unsafe(`create database ${name} template ${template} owner tabulum_owner`)
  url = Object.assign(new URL(server.ownerUrl), { pathname: `/${name}` }).href
  database = open()
})
afterEach(async () => {
  await Promise.all([database, ...others].map((opened) => opened.destroy()))
  others = []
  await rm(directory, { recursive: true, force: true })
})

function open(): Database {
  return openPostgresSession({ url, poolMode: 'session', maxConnections: 1 })
}

function another(): Database {
  const opened = open()
  others.push(opened)
  return opened
}

async function applied(): Promise<string[]> {
  const { rows } = await sql<{
    name: string
  }>`select name from kysely_migration order by name`.execute(database)
  return rows.map(({ name }) => name)
}

/** Each function in the schema, with how it is called. */
async function functions(): Promise<{ name: string; parameters: string; oid: number }[]> {
  const { rows } = await sql<{ name: string; parameters: string; oid: number }>`
    select proname as name, pg_get_function_identity_arguments(oid) as parameters, oid
    from pg_proc where pronamespace = 'public'::regnamespace order by 1, 2`.execute(database)
  return rows
}

describe('migrate', () => {
  it('runs each step once, in order; a second time it runs none and loses nothing', async () => {
    expect(steps.length).toBeGreaterThan(3)
    await expect(checkSchema(database, POSTGRES)).rejects.toBeInstanceOf(SchemaDiffers)
    expect((await migrate(database, POSTGRES)).steps).toEqual(steps)
    await sql`insert into queues (recipient, length) values ('kept', 1)`.execute(database)
    const { rows: before } = await sql`select key from signing_keys`.execute(database)
    const functionsBefore = await functions()
    expect(await migrate(database, POSTGRES)).toEqual(NOTHING)
    expect(await applied()).toEqual(steps)
    expect(await functions()).toEqual(functionsBefore)
    expect((await sql`select key from signing_keys`.execute(database)).rows).toEqual(before)
    expect((await sql`select recipient from queues`.execute(database)).rows).toEqual([
      { recipient: 'kept' },
    ])
    await checkSchema(database, POSTGRES)
  })

  it('started several times at once runs each step and installs each function once', async () => {
    const ran = await Promise.all(
      [database, another(), another()].map((each) => migrate(each, POSTGRES)),
    )
    expect(ran.flatMap((changes) => changes.steps).toSorted()).toEqual(steps)
    expect(await applied()).toEqual(steps)
    const installed = ran.flatMap((changes) => changes.installed)
    expect(installed.toSorted()).toEqual((await functions()).map(({ name }) => name))
  })

  it('leaves the steps of a later version as they are', async () => {
    await migrate(database, POSTGRES)
    await sql`insert into kysely_migration (name, timestamp) values ('9999_later', ${new Date().toISOString()})`.execute(
      database,
    )
    expect(await migrate(database, POSTGRES)).toEqual(NOTHING)
    await checkSchema(database, POSTGRES)
    expect(await applied()).toEqual([...steps, '9999_later'])
  })

  it('that lacks a step is found out before it is used', async () => {
    await migrate(database, POSTGRES)
    await sql`delete from kysely_migration where name = ${steps.at(-1)}`.execute(database)
    await expect(checkSchema(database, POSTGRES)).rejects.toThrow(
      `the database lacks ${steps.at(-1)}`,
    )
  })

  it('takes all steps or none, and says which one failed', async () => {
    // A table in the way makes the second step fail.
    await sql`create table state_usage (other text)`.execute(database)
    await expect(migrate(database, POSTGRES)).rejects.toThrow(
      '0002_state.sql: relation "state_usage" already exists',
    )
    const { rows } = await sql`select tablename from pg_tables where schemaname = 'public'`.execute(
      database,
    )
    expect(rows).toEqual([{ tablename: 'state_usage' }])
    await sql`drop table state_usage`.execute(database)
    await migrate(database, POSTGRES)
    await checkSchema(database, POSTGRES)
  })

  it('makes of each file the function of its name and nothing else', async () => {
    const { installed } = await migrate(database, POSTGRES)
    const found = await readdir(join(import.meta.dirname, '../../src'), { recursive: true })
    const names = found
      .filter((file) => file.endsWith('.sql'))
      .map((file) => basename(file, '.sql'))
    expect(installed).toEqual(names.toSorted())
    expect((await functions()).map(({ name }) => name)).toEqual(installed)
  })
})

describe('migrate, of functions', () => {
  let files: SchemaFiles

  beforeEach(async () => {
    files = { steps: POSTGRES.steps, functions: directory }
    await write('answer', returning('integer', '41'))
    await write('kept', returning('text', `'kept'`, 'kept'))
    await migrate(database, files)
  })

  function returning(
    type: string,
    value: string,
    name = 'answer',
    parameters = 'asked integer',
  ): string {
    return `create or replace function ${name}(${parameters}) returns ${type} language sql as $$ select ${value} $$;`
  }

  async function write(name: string, text: string, capability = 'things'): Promise<void> {
    await mkdir(join(directory, capability, 'sql'), { recursive: true })
    await writeFile(join(directory, capability, 'sql', `${name}.sql`), text)
  }

  async function answer(): Promise<unknown> {
    const { rows } = await sql<{ answer: unknown }>`select answer(1)`.execute(database)
    return rows[0]?.answer
  }

  async function mayCall(role: string): Promise<unknown> {
    const [{ oid } = { oid: 0 }] = (await functions()).filter(({ name }) => name === 'answer')
    const { rows } =
      await sql`select has_function_privilege(${role}, ${oid}::oid, 'execute') as may`.execute(
        database,
      )
    return rows
  }

  const CHANGES: [string, string, unknown][] = [
    ['what it does', returning('integer', '42'), 42],
    ['the type of its result', returning('text', `'forty-two'`), 'forty-two'],
    ['the names of its parameters', returning('integer', '43', 'answer', 'question integer'), 43],
    ['the types of its parameters', returning('integer', '44', 'answer', 'asked bigint'), 44],
    [
      'their number',
      returning('integer', '45', 'answer', 'asked integer, again integer default 0'),
      45,
    ],
  ]

  it.each(CHANGES)(
    'replaces one that has changed, in %s, and who may call it still may',
    async (_, text, expected) => {
      await sql`grant execute on function answer to visitor`.execute(database)
      expect(await mayCall('visitor')).toEqual([{ may: true }])
      const [, keptBefore] = await functions()

      await write('answer', text)
      expect(await migrate(database, files)).toEqual({ ...NOTHING, installed: ['answer'] })
      expect(await answer()).toBe(expected)
      expect(await mayCall('visitor')).toEqual([{ may: true }])
      expect(await mayCall('tabulum')).toEqual([{ may: true }])
      const [changed, kept, ...more] = await functions()
      expect(changed?.name).toBe('answer')
      expect(kept).toEqual(keptBefore)
      expect(more).toEqual([])
      expect(await migrate(database, files)).toEqual(NOTHING)
    },
  )

  it('lets nobody call it who might not before', async () => {
    const [{ may } = { may: true }] = (await mayCall('visitor')) as { may: boolean }[]
    expect(may).toBe(false)
    await write('answer', returning('text', `'forty-two'`))
    await migrate(database, files)
    expect(await mayCall('visitor')).toEqual([{ may: false }])
  })

  it('who calls one while it is replaced has an answer', async () => {
    const [before] = await functions()
    const pool = openPostgres({ url, poolMode: 'session', maxConnections: 4 })
    others.push(pool)
    const answers = new Set<unknown>()
    let isReplaced = false
    const callers = Array.from({ length: 4 }, async () => {
      while (!isReplaced) {
        const asked = sql<{ answer: number }>`select answer(${1})`.execute(pool)
        answers.add(await asked.then(({ rows }) => rows[0]?.answer, String))
      }
    })
    const rounds = Array.from({ length: 20 }, (_, round) => round)
    for (const round of rounds) {
      const body = `begin return ${round}; end`
      await write(
        'answer',
        returning('integer', '').replace(
          /language .*/,
          `language plpgsql as $body$ ${body} $body$`,
        ),
      )
      await migrate(database, files)
      await expect.poll(() => answers.has(round), { timeout: START_MS }).toBe(true)
    }
    isReplaced = true
    await Promise.all(callers)
    answers.delete(41)
    expect([...answers]).toEqual(rounds)
    // In place: one that is made anew is not found by a few of ten thousand calls.
    expect((await functions())[0]).toEqual(before)
  })

  it('drops one that is in no file any more', async () => {
    await rm(join(directory, 'things/sql/answer.sql'))
    expect(await migrate(database, files)).toEqual({ ...NOTHING, dropped: ['answer'] })
    expect((await functions()).map(({ name }) => name)).toEqual(['kept'])
    expect(await migrate(database, files)).toEqual(NOTHING)
  })

  it('leaves alone what it has not made', async () => {
    await sql.raw(returning('integer', '0', 'of_somebody_else')).execute(database)
    expect(await migrate(database, files)).toEqual(NOTHING)
    expect((await functions()).map(({ name }) => name)).toEqual([
      'answer',
      'kept',
      'of_somebody_else',
    ])
  })

  it.each([
    ['is no SQL', 'create or replace function kept() returns nothing at all', /syntax error/],
    [
      'asks for what is not there',
      returning('text', 'missing from nowhere', 'kept'),
      /"nowhere" does not exist/,
    ],
    ['makes another function', returning('integer', '1', 'neither'), /it makes no function last/],
  ])(
    'one whose file %s undoes all else, steps too, and the message names it',
    async (_, text, message) => {
      const steps = join(directory, 'steps')
      await cp(POSTGRES.steps, steps, { recursive: true })
      await writeFile(join(steps, '9998_more.sql'), 'create table more (id integer)')
      await write('answer', returning('integer', '42'))
      await write('last', text, 'later')
      const before = await functions()

      const migrating = migrate(database, { steps, functions: directory })
      await expect(migrating).rejects.toThrow(/^later\/sql\/last\.sql: /)
      await expect(migrating).rejects.toThrow(message)
      expect(await functions()).toEqual(before)
      expect(await answer()).toBe(41)
      expect(await applied()).not.toContain('9998_more')
      await expect(checkSchema(database, files)).rejects.toThrow('(answer, last)')

      await rm(join(directory, 'later'), { recursive: true })
      expect(await migrate(database, { steps, functions: directory })).toEqual({
        steps: ['9998_more'],
        installed: ['answer'],
        dropped: [],
      })
    },
  )

  it('refuses two files of one name', async () => {
    await write('answer', returning('integer', '42'), 'other')
    await expect(migrate(database, files)).rejects.toThrow(
      'things/sql/answer.sql: other/sql/answer.sql has the same name',
    )
  })

  it('a node finds out that one is not its own, or is gone, and not that there are more', async () => {
    await checkSchema(database, files)
    await write('answer', returning('integer', '42'))
    const refusal = expect(checkSchema(database, files)).rejects
    await refusal.toBeInstanceOf(SchemaDiffers)
    await refusal.toThrow('has functions of another version than this one (answer)')
    await migrate(database, files)
    await checkSchema(database, files)

    await sql`drop function answer`.execute(database)
    await expect(checkSchema(database, files)).rejects.toThrow('(answer)')
    expect(await migrate(database, files)).toEqual({ ...NOTHING, installed: ['answer'] })
    await checkSchema(database, files)

    await rm(join(directory, 'things/sql/kept.sql'))
    await checkSchema(database, files)
  })
})
