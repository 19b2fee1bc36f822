/**
 * `remove --erase` on a cluster: a search of all files and stores finds nothing of what was erased.
 */
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { sql } from 'kysely'
import { afterAll, afterEach, beforeAll, expect, it, vi } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { type Cluster, startCluster } from '../../lab/cluster.ts'
import { openPostgres } from '../../src/platform/database.ts'
import { REDACTED } from '../../src/removal/redaction.ts'

const START_MS = 240_000
const TEST_MS = 900_000
/** NATS does it every two minutes, on each server by a clock of its own. */
const WITHIN = { timeout: 600_000, interval: 500 }
const SECRET = 'illegal-4c0f1e'
const CONTENTS = [`${SECRET} small`, `${SECRET} `.repeat(4_000)]

let cluster: Cluster
let agents: [Agent, Agent]

beforeAll(async () => {
  const settings = { RATE_LIMIT_MESSAGE_PER_MIN: '1000000' }
  cluster = await startCluster({ nodes: 1, workers: 1, settings })
  agents = (await new Client(cluster.baseUrl).registerAgents(2)) as [Agent, Agent]
}, START_MS)
afterAll(() => cluster?.[Symbol.asyncDispose](), START_MS)
afterEach(({ task }) => {
  if (task.result?.state === 'fail') console.error(cluster.output().slice(-5_000))
})

/** The files of the log in which it is: of the stream itself, or of what the servers agree by. */
function filesOfLogWith(text: string): string[] {
  return cluster.nats.servers.flatMap(({ name, directory }) =>
    filesWith(text, directory).map((file) => `${name}/${file}`),
  )
}

/** Those that go away meanwhile are not. */
function filesWith(text: string, directory: string): string[] {
  return globSync('**/*', { cwd: directory }).filter((file) => {
    try {
      return readFileSync(join(directory, file)).includes(text)
    } catch {
      return false
    }
  })
}

async function filesOfRedisWith(text: string): Promise<string[]> {
  const redis = new Redis(cluster.redis.adminUrl)
  try {
    const [, directory = ''] = (await redis.config('GET', 'dir')) as string[]
    return filesWith(text, directory)
  } finally {
    redis.disconnect()
  }
}

async function keysOfRedisWith(text: string): Promise<string[]> {
  const redis = new Redis(cluster.redis.adminUrl)
  try {
    const keys = await redis.keys('*')
    const dumps = await Promise.all(keys.map((key) => redis.dumpBuffer(key)))
    return keys.filter((_, index) => dumps[index]?.includes(text))
  } finally {
    redis.disconnect()
  }
}

async function tablesOfPostgresWith(text: string): Promise<string[]> {
  const database = openPostgres({
    url: cluster.postgres.ownerUrl,
    poolMode: 'session',
    maxConnections: 1,
  })
  try {
    const { rows } = await sql<{ name: string }>`
      select quote_ident(table_name) as name from information_schema.tables where table_schema = 'public'`.execute(
      database,
    )
    const inHex = Buffer.from(text).toString('hex')
    const found: string[] = []
    for (const { name } of rows) {
      const { rows: hits } = await sql`
        select 1 from ${sql.raw(name)} t where t::text like ${`%${text}%`} or t::text like ${`%${inHex}%`} limit 1`.execute(
        database,
      )
      if (hits.length > 0) found.push(name)
    }
    return found
  } finally {
    await database.destroy()
  }
}

/** On a busy machine again, as it is told. */
async function write(agent: Agent, key: string, value: string): Promise<void> {
  await vi.waitFor(async () => expect((await agent.tryWrite(key, value)).status).toBe(200), {
    timeout: 60_000,
    interval: 1_000,
  })
}

async function remove(...args: string[]): Promise<string> {
  const settings = { NATS_ADMIN_URL: cluster.nats.adminUrl, REDIS_URL: cluster.redis.adminUrl }
  const { code, output } = await cluster.run(
    'remove',
    [...args, '--reason', 'court order', '--yes'],
    settings,
  )
  expect(code, output).toBe(0)
  return output
}

it('needs the user who may delete', { timeout: TEST_MS }, async () => {
  await agents[0].write('kept', 'fine')
  const erase = ['state', '--key', 'kept', '--reason', 'x', '--yes', '--erase']
  const without = await cluster.run('remove', erase)
  expect(without).toMatchObject({
    code: 2,
    output: expect.stringContaining('--erase needs NATS_ADMIN_URL'),
  })
  expect((await agents[0].read('kept')).value).toBe('fine')
  // Who may not delete from the log, and who may not make Redis write its file anew, is told so.
  const asKernel = await cluster.run('remove', erase, { NATS_ADMIN_URL: cluster.nats.url })
  expect(asKernel.output).toContain('NATS_ADMIN_URL is to name a user who may delete from the log')
  expect(asKernel.code).toBe(2)
  expect((await agents[0].read('kept')).value).toBe('fine')
  const withoutRedis = await cluster.run('remove', erase, { NATS_ADMIN_URL: cluster.nats.adminUrl })
  expect(withoutRedis).toMatchObject({
    code: 0,
    output: expect.stringMatching(/until BGREWRITEAOF \(.*NOPERM/),
  })
})

it('takes contents out of the log and all stores, and the log stays whole', {
  timeout: TEST_MS,
}, async () => {
  const [one, two] = agents
  for (const content of CONTENTS) {
    // At once, so that others are in the same message of the stream.
    const others = [1, 2, 3, 4].map((index) => write(one, `fine/${index}`, 'fine'))
    await Promise.all([write(one, 'bad', content), write(one, 'also bad', content), ...others])
  }
  const ids: string[] = []
  for (const content of CONTENTS) ids.push((await one.send(two.address, content)).message_id)
  const json = { to: two.address, content: `${SECRET} once` }
  const headers = { 'Idempotency-Key': 'once' }
  const first = (await one.request('POST', '/v1/messages', { json, headers })).json as {
    message_id: string
  }
  const before = await cluster.events()
  expect(await keysOfRedisWith(SECRET)).not.toEqual([])
  await vi.waitFor(
    async () => expect(await tablesOfPostgresWith(SECRET)).toEqual(['state']),
    WITHIN,
  )
  expect(filesOfLogWith(SECRET)).not.toEqual([])
  await vi.waitFor(async () => expect(await filesOfRedisWith(SECRET)).not.toEqual([]), WITHIN)

  for (const key of ['bad', 'also bad']) {
    const output = await remove('state', '--key', key, '--erase')
    expect(output).toContain(`Erased what state key "${key}" said from 2 events of the log.`)
  }
  // As somebody may have begun it.
  await remove('message', '--id', ids[0] ?? '')
  for (const id of [...ids, first.message_id])
    expect(await remove('message', '--id', id, '--erase')).toContain('from 1 event ')
  expect(await remove('message', '--id', ids[0] ?? '', '--erase')).toContain(
    'from 0 events of the log.',
  )

  expect(await keysOfRedisWith(SECRET)).toEqual([])
  expect(await tablesOfPostgresWith(SECRET)).toEqual([])
  expect(filesOfLogWith(SECRET).filter((file) => file.includes('/streams/EVENTS/'))).toEqual([])
  const after = await cluster.events()
  expect(after.slice(0, before.length).map(({ seq, type }) => ({ seq, type }))).toEqual(
    before.map(({ seq, type }) => ({ seq, type })),
  )
  expect(JSON.stringify(after)).not.toContain(SECRET)
  expect(after.filter(({ data }) => data.key === 'fine/1').map(({ data }) => data.value)).toEqual([
    'fine',
    'fine',
  ])
  const again = await one.request('POST', '/v1/messages', { json, headers })
  expect({ status: again.status, json: again.json }).toMatchObject({ status: 202, json: first })
  expect((await two.receiveAll()).map(({ content }) => content)).toEqual([
    REDACTED,
    REDACTED,
    REDACTED,
  ])
  expect((await cluster.run('verify')).output).toMatch(/no differences\.\n$/)

  // The servers write anew what they agree by, and Redis its file, by themselves.
  await vi.waitFor(async () => expect(await filesOfRedisWith(SECRET)).toEqual([]), WITHIN)
  await vi.waitFor(async () => {
    await one.write('goes on', String(Date.now()))
    expect(filesOfLogWith(SECRET)).toEqual([])
  }, WITHIN)
})
