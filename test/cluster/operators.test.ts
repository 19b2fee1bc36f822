/** The operator's commands, and what a process says that cannot start. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Client } from '../../lab/client.ts'
import { type Cluster, startCluster } from '../../lab/cluster.ts'
import {
  makeDirectory,
  releasePorts,
  removeDirectory,
  reservePorts,
} from '../../lab/servers/directory.ts'
import { Process } from '../../lab/servers/process.ts'
import { findProgram } from '../../lab/servers/programs.ts'

const START_MS = 240_000
/** Commands are processes, some of which wait for servers that they cannot use. */
const TEST_MS = 180_000

let cluster: Cluster
let owner: postgres.Sql
let superuser: postgres.Sql

beforeAll(async () => {
  cluster = await startCluster({ nodes: 1, workers: 1 })
  owner = postgres(cluster.postgres.ownerUrl, { max: 1, onnotice: () => {} })
  superuser = postgres(cluster.postgres.superuserUrl, { max: 1, onnotice: () => {} })
}, START_MS)

afterAll(async () => {
  await owner?.end()
  await superuser?.end()
  await cluster?.[Symbol.asyncDispose]()
}, START_MS)

function withPort(url: string, port: number): string {
  const changed = new URL(url)
  changed.port = String(port)
  return changed.href
}

function withPassword(url: string): string {
  const changed = new URL(url)
  changed.password = 'not-the-password'
  return changed.href
}

describe('a node that cannot start says what to do, in one message, with exit code 2', {
  timeout: TEST_MS,
}, () => {
  async function expectRefusal(settings: Record<string, string>, message: RegExp) {
    const { code, output } = await cluster.run('api', [], {
      PORT: '0',
      INTERNAL_PORT: '0',
      OBSERVE_PORT: '0',
      STARTUP_TIMEOUT: '1ms',
      ...settings,
    })
    expect(output).toMatch(message)
    expect(output).not.toMatch(/^\s+at /m)
    for (const url of [
      cluster.postgres.appUrl,
      cluster.redis.url,
      cluster.nats.url.split(',')[0] ?? '',
    ])
      expect(output).not.toContain(new URL(url).password)
    expect(output).not.toContain('not-the-password')
    expect(code).toBe(2)
  }
  const firstNats = () => cluster.nats.url.split(',')[0] ?? ''

  it('Postgres unreachable', () =>
    expectRefusal(
      { DATABASE_URL: withPort(cluster.postgres.appUrl, 1) },
      /DATABASE_URL: cannot use Postgres at 127\.0\.0\.1:1\/\w+: .*ECONNREFUSED/,
    ))
  it('Postgres, wrong password', () =>
    expectRefusal(
      { DATABASE_URL: withPassword(cluster.postgres.appUrl) },
      /DATABASE_URL: cannot use Postgres at .*password authentication failed/,
    ))
  it('Redis unreachable', () =>
    expectRefusal(
      { REDIS_URL: withPort(cluster.redis.url, 1) },
      /REDIS_URL: cannot use Redis at 127\.0\.0\.1:1: /,
    ))
  it('Redis, wrong password', () =>
    expectRefusal(
      { REDIS_URL: withPassword(cluster.redis.url) },
      /REDIS_URL: cannot use Redis at .*WRONGPASS/,
    ))
  it('NATS unreachable', () =>
    expectRefusal(
      { NATS_URL: withPort(firstNats(), 1) },
      /NATS_URL: cannot connect to any of nats:\/\/127\.0\.0\.1:1: /,
    ))
  it('NATS, wrong password', () =>
    expectRefusal(
      { NATS_URL: withPassword(firstNats()) },
      /NATS_URL: cannot connect to any of .*Authorization Violation/i,
    ))
  it('fewer NATS servers than replicas', () =>
    expectRefusal({ EVENTS_REPLICAS: '5' }, /EVENTS_REPLICAS/))

  it('Redis that evicts', async () => {
    const admin = new Redis(cluster.redis.adminUrl)
    try {
      await admin.config('SET', 'maxmemory-policy', 'allkeys-lru')
      await expectRefusal({}, /set maxmemory-policy to noeviction \(it is allkeys-lru\)/)
    } finally {
      await admin.config('SET', 'maxmemory-policy', 'noeviction')
      admin.disconnect()
    }
  })

  it.each([
    ['max_payload under 8 MB', '', /set max_payload to at least 8388608 \(8MB\)/],
    ['JetStream off', 'max_payload: 8MB', /JetStream is off on the NATS server/],
  ])('NATS with %s', async (_name, configuration, message) => {
    const [port] = (await reservePorts(1)) as [number]
    const directory = makeDirectory('plain-nats')
    const file = join(directory, 'nats.conf')
    await writeFile(file, `host: 127.0.0.1\nport: ${port}\n${configuration}\n`)
    const server = new Process({
      name: 'plain-nats',
      file: await findProgram('nats-server'),
      args: ['-c', file],
      env: {},
      directory,
    })
    try {
      server.start()
      await expect.poll(() => server.output(), { timeout: 60_000 }).toContain('Server is ready')
      await expectRefusal({ NATS_URL: `nats://127.0.0.1:${port}` }, message)
    } finally {
      await server.kill()
      await removeDirectory(directory)
      releasePorts([port])
    }
  })
})

describe('migrate', { timeout: TEST_MS }, () => {
  const inDatabase = (url: string, name: string) =>
    Object.assign(new URL(url), { pathname: `/${name}` }).href

  it('a node refuses a schema that is older than it needs; started by several at once each step runs once; then it serves', async () => {
    await superuser.unsafe('create database fresh owner tabulum_owner')
    await superuser.unsafe('grant connect on database fresh to tabulum')
    const settings = {
      DATABASE_URL: inDatabase(cluster.postgres.appUrl, 'fresh'),
      PORT: '0',
      INTERNAL_PORT: '0',
    }
    const early = await cluster.run('verify', [], settings)
    expect(early.output).toMatch(
      /lacks .*0001_registry.*: run the migrate command of this version first/,
    )
    expect(early.code).toBe(2)

    const asOwner = { DATABASE_URL: inDatabase(cluster.postgres.ownerUrl, 'fresh') }
    const runs = await Promise.all(
      Array.from({ length: 3 }, () => cluster.run('migrate', [], asOwner)),
    )
    expect(
      runs.map(({ code }) => code),
      runs.map(({ output }) => output).join('\n'),
    ).toEqual([0, 0, 0])
    const applied = runs.flatMap(({ output }) => output.match(/\d{4}_\w+/g) ?? [])
    expect(applied.length).toBeGreaterThanOrEqual(5)
    expect(new Set(applied).size).toBe(applied.length)
    expect((await cluster.run('migrate', [], asOwner)).output).toBe('The schema is up to date.\n')
  })

  it('a node refuses functions of another version, and serves when migrate has replaced them', async () => {
    const settings = { PORT: '0', INTERNAL_PORT: '0', STARTUP_TIMEOUT: '1ms' }
    const [{ hash } = { hash: '' }] = await owner<{ hash: string }[]>`
      update installed_functions set hash = 'another' where name = 'apply_events'
      returning (select hash from installed_functions where name = 'apply_events')`
    for (const command of ['api', 'worker', 'verify']) {
      const { code, output } = await cluster.run(command, [], settings)
      expect(output).toContain(
        'the database has functions of another version than this one (apply_events): run the migrate command of the version that is to serve',
      )
      expect(output).not.toMatch(/^\s+at /m)
      expect(code).toBe(2)
    }

    const { output } = await cluster.run('migrate', [], { DATABASE_URL: cluster.postgres.ownerUrl })
    expect(output).toBe('Installed the functions apply_events.\n')
    expect(await owner`select hash from installed_functions where name = 'apply_events'`).toEqual([
      { hash },
    ])
    expect((await cluster.run('verify', [], settings)).code).toBe(0)
  })
})

describe('verify', { timeout: TEST_MS }, () => {
  it('finds no difference where there is none, prints each where there are some, and exits with 1', async () => {
    const client = new Client(cluster.baseUrl)
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    for (const key of ['kept', 'changed', 'lost']) await one.write(key, 'as the log has it')
    await one.send(two.address, 'kept')
    await one.send(two.address, 'lost')
    const sound = await cluster.run('verify')
    expect(sound.output).toMatch(/no differences/)
    expect(sound.code).toBe(0)

    await owner`update state set value = 'something else' where key = 'changed'`
    await owner`delete from state where key = 'lost'`
    await owner`update state_usage set used_bytes = used_bytes + 1`
    await owner`delete from queued_messages where seq = (select max(seq) from queued_messages)`
    await owner`update registry_totals set agents = agents + 1`
    const { code, output } = await cluster.run('verify')
    expect(output).toMatch(/^state: key changed has another value than the log$/m)
    expect(output).toMatch(/^state: key lost is missing$/m)
    expect(output).toMatch(/^capacity: used_bytes is \d+, the keys and values have \d+$/m)
    expect(output).toMatch(new RegExp(`^queues: 1 messages to ${two.address} are missing`, 'm'))
    expect(output).toMatch(/^registry: total is \d+, there are \d+$/m)
    expect(output).not.toMatch(/key kept/)
    expect(code).toBe(1)
  })
})
