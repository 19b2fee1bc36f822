/**
 * A backup of Postgres as docs/deploying.md says: by the owner of the schema, who may not read what
 * other roles have.
 */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { expect, test } from 'vitest'
import { makeDirectory, removeDirectory } from '../../lab/servers/directory.ts'
import { findProgram } from '../../lab/servers/programs.ts'
import { sharedPostgres } from '../../lab/servers.ts'

const run = promisify(execFile)
const DOCUMENT = readFileSync(join(import.meta.dirname, '../../docs/deploying.md'), 'utf8')

/** The command of the document that begins with this word. */
function commandOf(program: 'pg_dump' | 'pg_restore'): string {
  const [command = ''] = new RegExp(`^${program} .*$`, 'm').exec(DOCUMENT) ?? []
  expect(command).toContain('$DATABASE_URL_OF_THE_OWNER')
  return command
}

test('takes what migrations made, and nothing of the observation service, which makes its own again', async () => {
  await using from = await sharedPostgres()
  await using to = await sharedPostgres()
  await using stack = new AsyncDisposableStack()
  const directory = makeDirectory('backup')
  stack.defer(() => removeDirectory(directory))
  const open = (url: string) => {
    const sql = postgres(url, { max: 1, onnotice: () => {} })
    stack.defer(() => sql.end())
    return sql
  }
  await open(from.ownerUrl)`CREATE TABLE note AS SELECT 'kept' AS body`
  const observer = open(from.observerUrl)
  const kernel = open(from.appUrl)
  for (const schema of ['observation', 'observation_next']) {
    await observer.unsafe(`CREATE TABLE ${schema}.figure AS SELECT 42 AS value`)
    // `verify` of the kernel compares them with the log, once the next are in the place of the old
    // ones.
    await observer.unsafe(`GRANT USAGE ON SCHEMA ${schema} TO tabulum`)
    expect([...(await kernel.unsafe(`SELECT value FROM ${schema}.figure`))]).toEqual([
      { value: 42 },
    ])
  }

  const path = `${dirname(await findProgram('pg_dump'))}:${process.env.PATH}`
  const as = (url: string) => ({
    cwd: directory,
    env: { PATH: path, DATABASE_URL_OF_THE_OWNER: url },
  })
  await run('sh', ['-c', commandOf('pg_dump')], as(from.ownerUrl))
  const { stderr } = await run('sh', ['-c', commandOf('pg_restore')], as(to.ownerUrl))
  expect(stderr).toBe('')
  expect([...(await open(to.appUrl)`SELECT body FROM note`)]).toEqual([{ body: 'kept' }])
  const made = await open(
    to.superuserUrl,
  )`SELECT schemaname FROM pg_tables WHERE tablename = 'figure'`
  expect([...made]).toEqual([])
})
