/**
 * The configuration in deploy/ on real servers: who may do what, what the load balancer does, and
 * that nothing is left behind.
 */
import { execFile, spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createServer, request, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { buffer, text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Redis } from 'ioredis'
import { AckPolicy, connect, DeliverPolicy, Events, type NatsConnection, StringCodec } from 'nats'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { errorBody } from '../../lab/client.ts'
import { DEPLOY } from '../../lab/servers/deploy.ts'
import { pidsIn } from '../../lab/servers/process.ts'
import {
  type HaproxyServer,
  type NatsCluster,
  type NatsServer,
  natsOptions,
  type PostgresServer,
  type RedisServer,
  startHaproxy,
  startNats,
  startPostgres,
  startRedis,
} from '../../lab/servers.ts'
import { startTcpProxy } from '../../lab/tcp-proxy.ts'
import { REFUSALS, type Refusal } from '../../src/platform/http-refusals.ts'
import { sendRaw } from '../support/raw-http.ts'

const run = promisify(execFile)
const START_TIMEOUT_MS = 180_000
/** Of what a server answers at once, on a machine that may be busy. */
const ANSWER_TIMEOUT_MS = 10_000
/** What `default-server` in haproxy.cfg says of health checks. */
const CHECKS = { everyMs: 250, toTakeOut: 2 }

describe('Postgres', () => {
  let server: PostgresServer
  let owner: postgres.Sql
  let app: postgres.Sql
  const open = (url: string) => postgres(url, { max: 1, connect_timeout: 30, onnotice: () => {} })

  beforeAll(async () => {
    server = await startPostgres()
    owner = open(server.ownerUrl)
    app = open(server.appUrl)
    await owner`CREATE TABLE note (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL)`
    await owner`CREATE SEQUENCE counter`
    await owner`CREATE FUNCTION double(value int) RETURNS int LANGUAGE sql RETURN value * 2`
  }, START_TIMEOUT_MS)
  afterAll(async () => {
    await Promise.all([owner?.end({ timeout: 1 }), app?.end({ timeout: 1 })])
    await server?.[Symbol.asyncDispose]()
  })

  test('runs on the settings in deploy/', async () => {
    const values = await app<{ name: string; setting: string }[]>`
      SELECT name, setting FROM pg_settings
      WHERE name IN ('password_encryption', 'max_connections', 'jit', 'synchronous_commit', 'TimeZone') ORDER BY name`
    expect(Object.fromEntries(values.map(({ name, setting }) => [name, setting]))).toEqual({
      TimeZone: 'UTC',
      jit: 'off',
      max_connections: '200',
      password_encryption: 'scram-sha-256',
      synchronous_commit: 'on',
    })
    expect(await owner`SHOW fsync`).toEqual([{ fsync: 'off' }])
  })

  test('flushes to disk when asked to', { timeout: START_TIMEOUT_MS }, async () => {
    await using durable = await startPostgres({ durable: true })
    const sql = open(durable.appUrl)
    expect(await sql`SHOW fsync`).toEqual([{ fsync: 'on' }])
    await sql.end()
  })

  test.each(['postgres', 'tabulum_owner', 'tabulum'])(
    'refuses %s with a wrong password',
    async (user) => {
      const url = new URL(server.appUrl)
      url.username = user
      url.password = 'wrong'
      const sql = open(url.href)
      await expect(sql`SELECT 1`).rejects.toMatchObject({ code: '28P01' })
      await sql.end()
    },
  )

  test('lets the application read and write what migrations have created', async () => {
    await app`INSERT INTO note (body) VALUES ('first')`
    await app`UPDATE note SET body = 'second'`
    expect(await app`SELECT body FROM note`).toEqual([{ body: 'second' }])
    await app`DELETE FROM note`
    expect(await app`SELECT nextval('counter')::int AS next, double(21)`).toEqual([
      { next: 1, double: 42 },
    ])
  })

  test.each([
    'CREATE TABLE mine (id int)',
    'ALTER TABLE note ADD COLUMN more text',
    'DROP TABLE note',
    'TRUNCATE note',
    'CREATE INDEX ON note (body)',
    'CREATE SCHEMA mine',
    'CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1',
    'CREATE ROLE mine',
    'CREATE DATABASE mine',
    'GRANT ALL ON note TO PUBLIC',
    'ALTER SYSTEM SET fsync = off',
    "SELECT pg_read_file('postgresql.conf')",
    'SET ROLE tabulum_owner',
  ])('denies the application: %s', async (statement) => {
    if (statement.startsWith('GRANT')) {
      // Granting what one may not grant is only warned of.
      await app.unsafe(statement)
      const rows =
        await owner`SELECT grantee FROM information_schema.role_table_grants WHERE table_name = 'note' AND grantee = 'PUBLIC'`
      expect(rows).toHaveLength(0)
      return
    }
    await expect(app.unsafe(statement)).rejects.toMatchObject({ code: '42501' })
  })

  test('keeps what was committed when it is killed', async () => {
    await app`INSERT INTO note (body) VALUES ('kept')`
    const before = server.process.pids()
    expect(before.length).toBeGreaterThan(3)
    await server.kill()
    await eventually(async () => expect(before.filter(isAlive)).toEqual([]))
    await server.restart()
    expect(await owner`SELECT body FROM note`).toEqual([{ body: 'kept' }])
  })

  test('does not answer while frozen, backends included', async () => {
    await app`SELECT 1`
    await server.freeze()
    const answer = app`SELECT 'thawed' AS said`.execute()
    expect(await Promise.race([answer, sleep(300, 'silence')])).toBe('silence')
    await server.thaw()
    expect(await answer).toEqual([{ said: 'thawed' }])
  })
})

describe('Redis', () => {
  let server: RedisServer
  let kernel: Redis
  const open = (url: string) => {
    const client = new Redis(url, {
      retryStrategy: () => null,
      lazyConnect: true,
      connectTimeout: 30_000,
      maxRetriesPerRequest: 0,
    })
    client.on('error', () => {})
    return client
  }

  beforeAll(async () => {
    server = await startRedis()
    kernel = open(server.url)
    await kernel.connect()
  }, START_TIMEOUT_MS)
  afterAll(async () => {
    kernel?.disconnect()
    await server?.[Symbol.asyncDispose]()
  })

  test('does for the kernel what it needs', async () => {
    await kernel.set('key', 'value', 'PX', 60_000)
    expect(await kernel.get('key')).toBe('value')
    await kernel.xgroup('CREATE', 'stream', 'group', '0', 'MKSTREAM')
    await kernel.xadd('stream', '1-0', 'field', 'value')
    expect(
      await kernel.xreadgroup('GROUP', 'group', 'me', 'COUNT', 1, 'STREAMS', 'stream', '>'),
    ).toEqual([['stream', [['1-0', ['field', 'value']]]]])
    expect(
      await kernel.eval(
        "return redis.call('TIME')[1] and redis.call('INCR', KEYS[1])",
        1,
        'counter',
      ),
    ).toBe(1)
    expect(await kernel.multi().incr('counter').unlink('key').exec()).toEqual([
      [null, 2],
      [null, 1],
    ])
    expect(await kernel.scan('0', 'COUNT', 100)).toEqual([
      '0',
      expect.arrayContaining(['counter', 'stream']),
    ])
    expect(await kernel.config('GET', 'maxmemory-policy')).toEqual([
      'maxmemory-policy',
      'noeviction',
    ])
    expect(await kernel.info('server')).toContain('run_id:')

    const listener = open(server.url)
    await listener.connect()
    await listener.subscribe('channel')
    const heard = new Promise((resolve) =>
      listener.once('message', (_channel, message) => resolve(message)),
    )
    await kernel.publish('channel', 'hello')
    expect(await heard).toBe('hello')
    listener.disconnect()
  })

  test.each([
    'FLUSHALL',
    'FLUSHDB',
    'CONFIG SET maxmemory-policy allkeys-lru',
    'CONFIG REWRITE',
    'SHUTDOWN',
    'KEYS *',
    'ACL LIST',
    'ACL SETUSER kernel allcommands',
    'REPLICAOF 127.0.0.1 1',
    'SAVE',
    'BGREWRITEAOF',
    'MONITOR',
    'CLIENT KILL TYPE normal',
    'SWAPDB 0 1',
    'SCRIPT FLUSH',
    'FUNCTION LIST',
    'MODULE LIST',
  ])('denies the kernel: %s', async (line) => {
    const [command = '', ...args] = line.split(' ')
    await expect(kernel.call(command, ...args)).rejects.toThrow(/^NOPERM/)
  })

  test('denies scripts of the kernel what it denies the kernel', async () => {
    await expect(kernel.eval("return redis.call('FLUSHALL')", 0)).rejects.toThrow(
      /can't run this command/,
    )
  })

  test('refuses a wrong password, a wrong user and none', async () => {
    for (const userinfo of ['kernel:wrong', 'admin:kernel-password', 'default:kernel-password']) {
      const client = open(`redis://${userinfo}@127.0.0.1:${server.port}`)
      await expect(client.connect().then(() => client.get('key'))).rejects.toThrow()
      client.disconnect()
    }
    const anonymous = open(`redis://127.0.0.1:${server.port}`)
    await expect(anonymous.connect().then(() => anonymous.get('key'))).rejects.toThrow(
      /NOAUTH|closed/,
    )
    anonymous.disconnect()
  })

  test('has no password among its arguments or files', () => {
    const home = `/proc/${server.process.pid}`
    expect(readFileSync(`${home}/cmdline`, 'utf8')).toContain('redis-server')
    expect(readFileSync(`${home}/cmdline`, 'utf8')).not.toContain('password')
    expect(readFileSync(`${home}/environ`, 'utf8')).not.toContain('password')
  })

  test('keeps its keys over a restart, and none over a wipe', async () => {
    await kernel.set('kept', 'yes')
    kernel.disconnect()
    await server.restart()
    kernel = open(server.url)
    await kernel.connect()
    expect(await kernel.get('kept')).toBe('yes')
    await server.wipe()
    expect(await kernel.get('kept')).toBeNull()
  })

  test('keeps what transactions and scripts wrote over a restart', async () => {
    await using own = await startRedis()
    const before = open(own.url)
    await before.connect()
    await before.eval(
      "redis.call('SET', KEYS[1], 1) redis.call('SET', KEYS[2], 2)",
      2,
      '{kept}:1',
      '{kept}:2',
    )
    await before.multi().set('{kept}:3', 3).set('{kept}:4', 4).exec()
    await own.restart()
    const after = open(own.url)
    await after.connect()
    expect(await after.mget('{kept}:1', '{kept}:2', '{kept}:3', '{kept}:4')).toEqual([
      '1',
      '2',
      '3',
      '4',
    ])
    expect(own.process.output()).not.toMatch(/NOPERM/)
    before.disconnect()
    after.disconnect()
  })

  test('begins empty after a restart when it is to keep nothing', {
    timeout: START_TIMEOUT_MS,
  }, async () => {
    await using forgetful = await startRedis({ persistence: false })
    for (const expected of [null, null]) {
      const client = open(forgetful.url)
      await client.connect()
      expect(await client.get('key')).toBe(expected)
      await client.set('key', 'value')
      client.disconnect()
      await forgetful.restart()
    }
  })

  test('does not answer while frozen', async () => {
    await server.freeze()
    const answer = kernel.ping()
    expect(await Promise.race([answer, sleep(300, 'silence')])).toBe('silence')
    await server.thaw()
    expect(await answer).toBe('PONG')
  })
})

describe('NATS', () => {
  const { encode } = StringCodec()
  const subject = 'events.message'
  let cluster: NatsCluster
  let kernel: NatsConnection
  let observer: NatsConnection
  let admin: NatsConnection

  beforeAll(async () => {
    cluster = await startNats()
    kernel = await connect({
      ...natsOptions(cluster.url),
      reconnect: true,
      maxReconnectAttempts: -1,
      reconnectTimeWait: 50,
    })
    observer = await connect({
      ...natsOptions(cluster.observerUrl),
      reconnect: true,
      maxReconnectAttempts: -1,
    })
    admin = await connect({
      ...natsOptions(cluster.adminUrl),
      reconnect: true,
      maxReconnectAttempts: -1,
    })
    const manager = await kernel.jetstreamManager({ timeout: 60_000 })
    await manager.streams.add({
      name: 'EVENTS',
      subjects: ['events.*'],
      num_replicas: 3,
      allow_direct: true,
    })
    await manager.consumers.add('EVENTS', {
      durable_name: 'webhooks',
      ack_policy: AckPolicy.Explicit,
    })
    for (const number of [1, 2, 3])
      await kernel.jetstream().publish(subject, encode(`event ${number}`))
  }, START_TIMEOUT_MS)
  afterAll(async () => {
    await Promise.all([kernel?.close(), observer?.close(), admin?.close()])
    await cluster?.[Symbol.asyncDispose]()
  })

  const lastSeq = async () =>
    (await (await kernel.jetstreamManager()).streams.info('EVENTS')).state.last_seq
  /** As soon as there is one. */
  const streamLeader = () =>
    eventually(async () => {
      const leader = await cluster.streamLeader('EVENTS')
      if (leader === undefined) throw new Error('no server leads the stream')
      return leader
    })
  /** The server tells of a forbidden publish on the side, not in answer to it. */
  const denied = async (connection: NatsConnection, act: () => void) => {
    const { promise, resolve } = Promise.withResolvers<string>()
    const statuses = connection.status()
    void (async () => {
      for await (const status of statuses)
        if (status.type === Events.Error) resolve(String(status.permissionContext?.subject))
    })()
    act()
    await connection.flush()
    return await Promise.race([promise, sleep(3_000, 'allowed', { ref: false })])
  }

  test('runs on the settings in deploy/', async () => {
    expect(kernel.info?.max_payload).toBe(8 * 1_048_576)
    expect(kernel.info?.connect_urls).toBeUndefined()
    const names = cluster.servers.map(({ name }) => name)
    // One that is slow to answer is not heard.
    await eventually(async () => expect(names).toContain((await cluster.leader())?.name))
    await eventually(async () =>
      expect(names).toContain((await cluster.streamLeader('EVENTS'))?.name),
    )
    const current = !cluster.version.startsWith('2.9.')
    const [{ process }] = cluster.servers as [(typeof cluster.servers)[0]]
    expect(readFileSync(`/proc/${process.pid}/cmdline`, 'utf8')).toContain(
      current ? '/nats.conf' : '/nats-2.9.conf',
    )
  })

  test.each(['kernel', 'observer', 'admin', 'system', 'route', 'nobody'])(
    'refuses %s with a wrong password',
    async (user) => {
      const { servers } = natsOptions(cluster.url)
      await expect(
        connect({ servers: servers ?? [], user, pass: 'wrong', reconnect: false }),
      ).rejects.toThrow(/Authorization/)
    },
  )

  test('refuses who says no name', async () => {
    const { servers } = natsOptions(cluster.url)
    await expect(connect({ servers: servers ?? [], reconnect: false })).rejects.toThrow(
      /Authorization/,
    )
  })

  test('takes the kernel an event of 6 MiB, and broadcasts', async () => {
    const { seq } = await kernel.jetstream().publish(subject, new Uint8Array(6 * 1_048_576))
    expect(seq).toBe(await lastSeq())
    const heard = kernel.subscribe('tabulum.>', { max: 1 })
    kernel.publish('tabulum.applied', encode('7'))
    for await (const message of heard) expect(message.string()).toBe('7')
  })

  test.each([
    'STREAM.DELETE.EVENTS',
    'STREAM.PURGE.EVENTS',
    'STREAM.UPDATE.EVENTS',
    'STREAM.MSG.DELETE.EVENTS',
    'STREAM.CREATE.OTHER',
  ])('denies the kernel %s', async (action) => {
    expect(await denied(kernel, () => kernel.publish(`$JS.API.${action}`))).toBe(
      `$JS.API.${action}`,
    )
  })

  test('lets the observer ask about the stream, get an event directly, and consume from any place', async () => {
    const manager = await observer.jetstreamManager()
    expect((await manager.streams.info('EVENTS')).config.name).toBe('EVENTS')
    const timeout = ANSWER_TIMEOUT_MS
    const second = await observer.request('$JS.API.DIRECT.GET.EVENTS', encode('{"seq":2}'), {
      timeout,
    })
    expect(second.string()).toBe('event 2')

    const client = observer.jetstream()
    const consumer = await client.consumers.get('EVENTS', {
      name_prefix: 'observer',
      filterSubjects: 'events.message',
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: 2,
    })
    const messages = await consumer.consume({ max_messages: 10 })
    const seen: string[] = []
    for await (const message of messages) {
      if (message.data.length > 100) continue
      seen.push(`${message.seq} ${message.string()}`)
      if (seen.length === 2) await kernel.jetstream().publish(subject, encode('as it happens'))
      if (seen.length === 3) break
    }
    await messages.close()
    expect(seen).toEqual(['2 event 2', '3 event 3', `${await lastSeq()} as it happens`])
  })

  test('lets the observer use a consumer of its own by name', async () => {
    const manager = await observer.jetstreamManager()
    await manager.consumers.add('EVENTS', {
      name: 'observer-1',
      ack_policy: AckPolicy.None,
      inactive_threshold: 60e9,
    })
    expect((await manager.consumers.info('EVENTS', 'observer-1')).name).toBe('observer-1')
    const consumer = await observer.jetstream().consumers.get('EVENTS', 'observer-1')
    const first = await consumer.next({ expires: ANSWER_TIMEOUT_MS })
    expect(first?.string()).toBe('event 1')
  })

  test.each([
    subject,
    'events.anything',
    'tabulum.applied',
    'anything',
    '_INBOX.somebody',
    '$JS.API.STREAM.CREATE.EVENTS',
    '$JS.API.STREAM.CREATE.MINE',
    '$JS.API.STREAM.UPDATE.EVENTS',
    '$JS.API.STREAM.DELETE.EVENTS',
    '$JS.API.STREAM.PURGE.EVENTS',
    '$JS.API.STREAM.MSG.DELETE.EVENTS',
    '$JS.API.STREAM.SNAPSHOT.EVENTS',
    '$JS.API.STREAM.LEADER.STEPDOWN.EVENTS',
    '$JS.API.CONSUMER.NAMES.EVENTS',
    '$JS.API.CONSUMER.LIST.EVENTS',
    '$JS.API.CONSUMER.CREATE.EVENTS',
    '$JS.API.CONSUMER.CREATE.OTHER.mine',
    '$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.mine',
    '$JS.API.CONSUMER.CREATE.EVENTS.webhooks',
    '$JS.API.CONSUMER.CREATE.EVENTS.webhooks.events.message',
    '$JS.API.CONSUMER.DELETE.EVENTS.webhooks',
    '$JS.API.CONSUMER.INFO.EVENTS.webhooks',
    '$JS.API.CONSUMER.MSG.NEXT.EVENTS.webhooks',
    '$JS.ACK.EVENTS.webhooks.1.1.1.1.0',
    '$SYS.REQ.SERVER.PING',
  ])('denies the observer to publish to %s', async (forbidden) => {
    expect(await denied(observer, () => observer.publish(forbidden))).toBe(forbidden)
  })

  test.each(['>', 'events.>', 'tabulum.>', '$SYS.>', '$JS.>'])(
    'denies the observer to subscribe to %s',
    async (forbidden) => {
      expect(
        await denied(observer, () => void observer.subscribe(forbidden, { callback: () => {} })),
      ).toBe(forbidden)
    },
  )

  test('appends nothing and broadcasts nothing for an observer who has answers sent there', async () => {
    const before = await lastSeq()
    const heard: string[] = []
    const broadcasts = kernel.subscribe('tabulum.>', {
      callback: (_error, message) => void heard.push(message.subject),
    })
    await kernel.flush()
    for (const reply of ['events.forged', 'tabulum.forged']) {
      observer.publish('$JS.API.DIRECT.GET.EVENTS', encode('{"seq":1}'), { reply })
      observer.publish('$JS.API.STREAM.INFO.EVENTS', undefined, { reply })
      observer.publish('$JS.API.CONSUMER.MSG.NEXT.EVENTS.observer-1', encode('1'), { reply })
    }
    // A consumer that pushes, to where the observer may not publish. `events.…` the server itself
    // refuses.
    const manager = await observer.jetstreamManager()
    for (const target of [
      'tabulum.forged',
      '$JS.API.STREAM.DELETE.EVENTS',
      '$JS.API.CONSUMER.DELETE.EVENTS.webhooks',
    ]) {
      const name = `push-${target.replaceAll(/\W/g, '-')}`
      const added = manager.consumers.add('EVENTS', {
        name,
        deliver_subject: target,
        ack_policy: AckPolicy.None,
      })
      await added.catch(() => {})
    }
    await observer.flush()
    await kernel.jetstream().publish(subject, encode('the only one'))
    await sleep(1_000)
    expect(heard).toEqual([])
    expect(await lastSeq()).toBe(before + 1)
    expect(
      (await (await kernel.jetstreamManager()).consumers.info('EVENTS', 'webhooks')).name,
    ).toBe('webhooks')
    broadcasts.unsubscribe()
  })

  test('lets the administrator do what repairs need, and the system user no more than look', async () => {
    const manager = await admin.jetstreamManager()
    await manager.streams.add({ name: 'SCRATCH', subjects: ['scratch'], num_replicas: 1 })
    expect(await manager.streams.delete('SCRATCH')).toBe(true)
    const system = await connect(natsOptions(cluster.systemUrl))
    const answer = await system.request('$SYS.REQ.SERVER.PING', undefined, {
      timeout: ANSWER_TIMEOUT_MS,
    })
    expect(answer.json()).toHaveProperty('server')
    await expect(system.jetstreamManager()).rejects.toThrow()
    await system.close()
  })

  test('goes on without one server, and takes it back with what it missed', {
    timeout: START_TIMEOUT_MS,
  }, async () => {
    const leader = await streamLeader()
    await leader.kill()
    const published = await eventually(() =>
      kernel.jetstream().publish(subject, encode('without it'), { timeout: 1_000 }),
    )
    await leader.restart()
    await eventually(async () => expect(await lastSeq()).toBe(published.seq))
    await streamLeader()
  })

  test('stops acknowledging without a majority, and goes on where it was', {
    timeout: START_TIMEOUT_MS,
  }, async () => {
    const before = await eventually(lastSeq)
    const [one, two] = cluster.servers as [NatsServer, NatsServer]
    const publish = () =>
      kernel.jetstream().publish(subject, encode('refused'), { timeout: 1_000, msgID: 'once' })
    await Promise.all([one.kill(), two.kill()])
    await expect(publish()).rejects.toThrow()
    await Promise.all([one.restart(), two.restart()])
    // It is 0 while what was sent before is on its way to the quorum.
    await eventually(async () => expect((await publish()).seq).toBe(before + 1))
    expect(await eventually(lastSeq)).toBe(before + 1)
  })
})

/** An api node that does as it is told. */
interface FakeNode extends AsyncDisposable {
  readonly host: string
  readonly port: number
  readonly internalPort: number
  readonly requests: {
    method: string
    path: string
    forwardedFor: string | undefined
    bytes: number
  }[]
  ready: boolean
  /** When it was asked for its health. */
  readonly checkedAt: number[]
  /** Called before the answer; a rejection ends the connection without one. */
  before: () => Promise<void>
}

async function startNode(name: string): Promise<FakeNode> {
  const node = {
    requests: [] as FakeNode['requests'],
    ready: true,
    checkedAt: [] as number[],
    before: async () => {},
  }
  const api = createServer(async (incoming, outgoing) => {
    const bytes = (await buffer(incoming)).length
    const forwardedFor = incoming.headers['x-forwarded-for']
    node.requests.push({
      method: incoming.method ?? '',
      path: incoming.url ?? '',
      forwardedFor: Array.isArray(forwardedFor) ? forwardedFor.join(', ') : forwardedFor,
      bytes,
    })
    try {
      await node.before()
      outgoing.end(name)
    } catch {
      outgoing.destroy()
    }
  })
  const internal = createServer((_incoming, outgoing) => {
    node.checkedAt.push(performance.now())
    outgoing.statusCode = node.ready ? 200 : 503
    outgoing.end()
  })
  const [port, internalPort] = await Promise.all([listen(api), listen(internal)])
  return Object.assign(node, {
    host: '127.0.0.1',
    port,
    internalPort,
    async [Symbol.asyncDispose]() {
      for (const server of [api, internal]) {
        server.closeAllConnections()
        if (server.listening) await new Promise((resolve) => server.close(resolve))
      }
    },
  })
}

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}

describe('HAProxy', () => {
  const errors = join(DEPLOY, 'haproxy', 'errors')

  /** All nodes taken into use. */
  async function balance(nodes: readonly FakeNode[]): Promise<HaproxyServer> {
    const haproxy = await startHaproxy({ nodes })
    await eventually(async () =>
      expect((await haproxy.nodes()).map(({ status }) => status)).toEqual(nodes.map(() => 'UP')),
    )
    return haproxy
  }

  interface Answer {
    status: number
    headers: Record<string, string | string[] | undefined>
    body: string
  }

  function ask(
    haproxy: HaproxyServer,
    options: { method?: string; headers?: Record<string, string>; body?: Buffer } = {},
  ): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    const { method = 'GET', headers = {}, body } = options
    const outgoing = request(
      `${haproxy.url}/v1/health`,
      { method, headers, agent: false, timeout: 20_000 },
      async (incoming) => {
        resolve({
          status: incoming.statusCode ?? 0,
          headers: incoming.headers,
          body: await text(incoming),
        })
      },
    )
    outgoing.on('error', reject)
    outgoing.end(body)
    return promise
  }

  function expectError(
    { status, headers, body }: Answer,
    expected: { status: number; error: string },
  ): void {
    expect({ status, error: errorBody.parse(JSON.parse(body)).error }).toEqual(expected)
    expect(headers['content-type']).toBe('application/json')
  }

  test.each<Refusal>(Object.values(REFUSALS))(
    'says what a node says: $status',
    ({ status, error, message }) => {
      const file = join(errors, `${status}.http`)
      // The others are said by nodes alone.
      expect(existsSync(file)).toBe(![405, 417].includes(status))
      if (existsSync(file))
        expect(readFileSync(file, 'utf8')).toContain(
          `\r\n\r\n${JSON.stringify({ error, message })}`,
        )
    },
  )

  test.each(readdirSync(errors))("has the contract's shape in errors/%s", (file) => {
    const [head = '', body = ''] = readFileSync(join(errors, file), 'utf8').split('\r\n\r\n')
    expect(errorBody.parse(JSON.parse(body)).error).toMatch(
      /^(bad_request|value_too_large|internal_error|unavailable)$/,
    )
    expect(head).toContain(`\r\nContent-Length: ${Buffer.byteLength(body)}\r\n`)
    expect(head.includes('Retry-After: 1')).toBe(head.includes(' 503 '))
  })

  test('answers 503 while there is no node', async () => {
    await using haproxy = await startHaproxy({ nodes: [] })
    const answer = await ask(haproxy)
    expectError(answer, { status: 503, error: 'unavailable' })
    expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1)
  })

  test('says that it lives while there is no node, as nodes have a health of their own', async () => {
    await using haproxy = await startHaproxy({ nodes: [] })
    // What docker-compose.yml asks.
    const asked = new URL('/livez', haproxy.metricsUrl)
    const alive = await fetch(asked)
    expect([alive.status, await alive.json()]).toEqual([200, { status: 'ok' }])
    const other = await fetch(new URL('/else', asked))
    expect([other.status, errorBody.parse(await other.json()).error]).toEqual([404, 'not_found'])
    await haproxy.kill()
    await expect(fetch(asked)).rejects.toThrow()
  })

  test.each(['/v1/state/a|b^c', '/v1/state/a\\b', '/v1/state/%D0%BA//..%2F?x="<>'])(
    'leaves a path as it is: %s',
    async (path) => {
      await using node = await startNode('one')
      await using haproxy = await balance([node])
      const [answer] = await sendRaw(
        haproxy.port,
        `GET ${path} HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n`,
      )
      expect(answer?.status).toBe(200)
      expect(Buffer.from(node.requests[0]?.path ?? '', 'latin1').toString()).toBe(path)
    },
  )

  test('asks nodes in turn', async () => {
    await using one = await startNode('one')
    await using two = await startNode('two')
    await using haproxy = await balance([one, two])
    const answers = await Promise.all(Array.from({ length: 10 }, () => ask(haproxy)))
    expect(answers.filter(({ body }) => body === 'one')).toHaveLength(5)
    expect(answers.filter(({ body }) => body === 'two')).toHaveLength(5)
  })

  test("appends the client's address to what the client says", async () => {
    await using node = await startNode('one')
    await using haproxy = await balance([node])
    await ask(haproxy)
    await ask(haproxy, { headers: { 'X-Forwarded-For': '203.0.113.7' } })
    expect(node.requests.map(({ forwardedFor }) => forwardedFor)).toEqual([
      '127.0.0.1',
      '203.0.113.7, 127.0.0.1',
    ])
  })

  test('lets bodies of 8 MiB through', async () => {
    await using node = await startNode('one')
    await using haproxy = await balance([node])
    const body = Buffer.alloc(8 * 1_048_576, 'x')
    expect((await ask(haproxy, { method: 'PUT', body })).status).toBe(200)
    expect(node.requests.at(-1)?.bytes).toBe(body.length)
  })

  test('tries another node where nothing was sent', async () => {
    await using node = await startNode('one')
    await using gone = await startNode('gone')
    await using haproxy = await balance([gone, node])
    await gone[Symbol.asyncDispose]()
    const answers = await Promise.all(
      Array.from({ length: 6 }, () => ask(haproxy, { method: 'POST', body: Buffer.from('{}') })),
    )
    expect(answers.map(({ status, body }) => ({ status, body }))).toEqual(
      answers.map(() => ({ status: 200, body: 'one' })),
    )
  })

  test.each(['GET', 'POST', 'PUT', 'DELETE'])(
    'sends a %s that was sent never again, and answers 503',
    async (method) => {
      await using one = await startNode('one')
      await using two = await startNode('two')
      await using haproxy = await balance([one, two])
      for (const node of [one, two]) node.before = () => Promise.reject(new Error('the node dies'))
      const answer = await ask(haproxy, { method })
      expectError(answer, { status: 503, error: 'unavailable' })
      expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1)
      expect(one.requests.length + two.requests.length).toBe(1)
    },
  )

  test('sends a node that is not ready nothing new, and lets it finish', async () => {
    await using one = await startNode('one')
    await using two = await startNode('two')
    await using haproxy = await balance([one, two])
    const finish = Promise.withResolvers<void>()
    one.before = () => finish.promise
    const slow = [ask(haproxy), ask(haproxy)]
    await eventually(async () => expect(one.requests).toHaveLength(1))
    const failedBefore = (await haproxy.nodes())[0]?.failedChecks ?? 0
    one.ready = false
    await eventually(async () => expect((await haproxy.nodes())[0]?.status).toBe('DOWN'))
    const failed = ((await haproxy.nodes())[0]?.failedChecks ?? Number.NaN) - failedBefore
    // One more may have failed just before, on a machine that is busy, and the next have not.
    expect(failed).toBeLessThanOrEqual(CHECKS.toTakeOut + 1)
    const answers = await Promise.all(Array.from({ length: 6 }, () => ask(haproxy)))
    expect(answers.every(({ body }) => body === 'two')).toBe(true)
    finish.resolve()
    expect((await Promise.all(slow)).map(({ body }) => body).sort()).toEqual(['one', 'two'])

    one.ready = true
    one.before = async () => {}
    await eventually(async () => expect((await haproxy.nodes())[0]?.status).toBe('UP'))
    expect(
      (await Promise.all([ask(haproxy), ask(haproxy)])).map(({ body }) => body).sort(),
    ).toEqual(['one', 'two'])
  })

  test('looks after a node so often that one which is not ready is found within half a second', async () => {
    await using node = await startNode('one')
    await using _haproxy = await balance([node])
    const begun = node.checkedAt.length
    await eventually(async () => expect(node.checkedAt.length).toBeGreaterThan(begun + 5))
    const times = node.checkedAt.slice(begun)
    const gaps = times.slice(1).map((time, index) => time - (times[index] ?? Number.NaN))
    // The shortest: a machine that is busy makes some longer.
    expect(Math.min(...gaps)).toBeLessThan(2 * CHECKS.everyMs)
  })

  test('takes other nodes without losing a request', async () => {
    await using one = await startNode('one')
    await using two = await startNode('two')
    await using haproxy = await balance([one])
    let going = true
    const statuses = new Map<number, number>()
    const load = (async () => {
      while (going) {
        const { status } = await ask(haproxy)
        statuses.set(status, (statuses.get(status) ?? 0) + 1)
      }
    })()
    await haproxy.setNodes([two])
    await eventually(async () => expect(two.requests.length).toBeGreaterThan(0))
    going = false
    await load
    expect([...statuses.keys()]).toEqual([200])
  })

  test('shows its metrics', async () => {
    await using haproxy = await startHaproxy({ nodes: [] })
    const answer = await fetch(haproxy.metricsUrl)
    expect(answer.status).toBe(200)
    expect(await answer.text()).toContain('haproxy_frontend_http_requests_total{proxy="agents"}')
  })

  test('is gone while it is down, silent while it is frozen, and back on the same port', async () => {
    await using node = await startNode('one')
    await using haproxy = await balance([node])
    await haproxy.kill()
    await expect(ask(haproxy)).rejects.toThrow(/ECONNREFUSED/)
    await haproxy.restart()
    await haproxy.freeze()
    const answer = ask(haproxy)
    expect(await Promise.race([answer, sleep(300, 'silence')])).toBe('silence')
    await haproxy.thaw()
    expect((await answer).body).toBe('one')
  })
})

describe('a TCP proxy', () => {
  test('passes on, delays, cuts and heals', async () => {
    await using node = await startNode('one')
    await using proxy = await startTcpProxy(node.port)
    const ask = async () => {
      const answer = await fetch(`http://127.0.0.1:${proxy.port}/`, {
        headers: { Connection: 'close' },
      })
      return await answer.text()
    }
    expect(await ask()).toBe('one')

    proxy.delay(150)
    const began = performance.now()
    expect(await ask()).toBe('one')
    // Once on the way there and once on the way back.
    expect(performance.now() - began).toBeGreaterThanOrEqual(290)
    proxy.delay(0)

    const stuck = Promise.withResolvers<void>()
    node.before = () => stuck.promise
    const open = ask()
    await eventually(async () => expect(proxy.connections()).toBe(1))
    proxy.cut()
    await expect(open).rejects.toThrow()
    await expect(ask()).rejects.toThrow()
    stuck.resolve()
    node.before = async () => {}
    proxy.heal()
    expect(await ask()).toBe('one')
  })
})

describe('nothing is left behind', () => {
  interface Started {
    root: string
    pids: number[]
    /** The shared memory of its Postgres. */
    segment: string
  }

  /**
   * Starts one of each in a process of its own, with a client's connection to Postgres, and tells
   * what there is.
   */
  async function startAll(then: string) {
    const source = `
      import { dirname } from 'node:path'
      import { readFileSync, readlinkSync } from 'node:fs'
      import postgres from 'postgres'
      import { startHaproxy, startNats, startPostgres, startRedis, pidsIn } from ${JSON.stringify(join(import.meta.dirname, '../../lab/servers.ts'))}
      const servers = await Promise.all([startPostgres(), startRedis(), startNats(), startHaproxy({ nodes: [] })])
      const [database] = servers
      const sql = postgres(database.appUrl, { max: 3, onnotice: () => {} })
      await Promise.all([sql\`SELECT pg_sleep(0.1)\`, sql\`SELECT pg_sleep(0.1)\`])
      const root = dirname(readlinkSync('/proc/' + servers[1].process.pid + '/cwd'))
      const pidFile = readFileSync(database.dataDirectory + '/postmaster.pid', 'utf8')
      // Line 7 is the key and the number of the shared memory.
      const segment = pidFile.split('\\n')[6].trim().split(/ +/)[1]
      console.log(JSON.stringify({ root, pids: pidsIn(root), segment }))
      ${then}`
    const child = spawn(process.execPath, ['--input-type=module-typescript', '--eval', source], {
      cwd: join(import.meta.dirname, '../..'),
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    let printed = ''
    const started = await new Promise<Started>((resolve, reject) => {
      child.stdout.setEncoding('utf8').on('data', (piece: string) => {
        printed += piece
        const [line, rest] = printed.split('\n', 2)
        if (rest !== undefined) resolve(JSON.parse(line ?? '') as Started)
      })
      child.once('exit', (code) => reject(new Error(`ended with ${code} before all had started`)))
    })
    // Postgres and its processes, Redis, three NATS servers, two of HAProxy.
    expect(started.pids.length).toBeGreaterThan(10)
    return { child, ...started }
  }

  async function expectNothing({ root, pids, segment }: Started): Promise<void> {
    await eventually(async () => {
      expect(pids.filter(isAlive)).toEqual([])
      expect(existsSync(root)).toBe(false)
    })
    expect(pidsIn(root)).toEqual([])
    expect(await segments()).not.toContain(segment)
  }

  test('when the test process is killed, even of what is frozen', {
    timeout: START_TIMEOUT_MS,
  }, async () => {
    const started = await startAll(
      'await Promise.all(servers.slice(0, 2).map((server) => server.freeze())); setInterval(() => {}, 1000)',
    )
    await eventually(async () => expect(started.pids.some(isFrozen)).toBe(true))
    expect(await segments()).toContain(started.segment)
    started.child.kill('SIGKILL')
    await expectNothing(started)
  })

  test('when the test process ends by itself', { timeout: START_TIMEOUT_MS }, async () => {
    const started = await startAll('process.exit(0)')
    await expectNothing(started)
  })

  test('after disposal, while the test process goes on', {
    timeout: START_TIMEOUT_MS,
  }, async () => {
    const started = await startAll(
      'await Promise.all(servers.map((server) => server[Symbol.asyncDispose]())); setInterval(() => {}, 1000)',
    )
    await eventually(async () => expect(started.pids.filter(isAlive)).toEqual([]))
    expect(started.child.exitCode).toBeNull()
    started.child.kill('SIGKILL')
    await expectNothing(started)
  })

  async function segments(): Promise<string[]> {
    const { stdout } = await run('ipcs', ['-m'])
    return stdout.split('\n').flatMap((line) => line.split(/ +/)[1] ?? [])
  }
})

function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}`)
}

function isFrozen(pid: number): boolean {
  try {
    return /\) T /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

/** What `act` resolves to, once it does; its last error when it has not within 60 s. */
async function eventually<T>(act: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + 60_000
  for (;;) {
    try {
      return await act()
    } catch (error) {
      if (Date.now() > deadline) throw error
      await sleep(25)
    }
  }
}
