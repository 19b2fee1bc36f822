/**
 * Servers that are started once and hand out places of their own: a database of Postgres with the
 * kernel's schema, a database of Redis, an account of NATS. For all that does not stop, break or
 * configure a server. Who asks first has them started, for this process and those that it starts.
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type NatsAccount, numberedAccount, startNats } from './nats.ts'
import { makeDatabase, type PostgresDatabase, preparePostgres, startPostgres } from './postgres.ts'
import { numberedDatabase, type RedisDatabase, startRedis, withRedis } from './redis.ts'

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'main.ts')
const MIGRATE_DEADLINE_MS = 120_000

/** Says where they are. */
const SHARED = 'TABULUM_TEST_SERVERS'
/** Each process of a cluster may have ten, and several clusters run at once. */
const POSTGRES_CONNECTIONS = 500
const REDIS_DATABASES = 1_000
/** Those that are given back are handed out again. */
const NATS_ACCOUNTS = 40

interface Servers {
  readonly postgres: { readonly host: string; readonly port: number }
  readonly redis: { readonly host: string; readonly port: number; readonly adminUrl: string }
  readonly nats: { readonly ports: readonly number[]; readonly version: string }
}

/** Starts them, for this process and those that it starts, until they are disposed of. */
export async function shareServers(): Promise<AsyncDisposable> {
  await theServers()
  return running
}

/** A database with the kernel's schema and nothing in it. */
export async function sharedPostgres(): Promise<PostgresDatabase> {
  const { postgres, redis } = await theServers()
  return makeDatabase(postgres, `tabulum_${await nextNumber(redis, 'postgres')}`)
}

export async function sharedRedis(): Promise<RedisDatabase> {
  const { redis } = await theServers()
  const number = await nextNumber(redis, 'redis')
  if (number >= REDIS_DATABASES)
    throw new Error(`the shared Redis has ${REDIS_DATABASES} databases: all are taken`)
  return numberedDatabase(redis, number)
}

/** An account without a stream. */
export async function sharedNats(): Promise<NatsAccount> {
  const { nats, redis } = await theServers()
  const given = await withRedis(redis.adminUrl, (client) => client.lpop('free:nats'))
  const number = given === null ? await nextNumber(redis, 'nats') : Number(given)
  if (number > NATS_ACCOUNTS)
    throw new Error(`the shared NATS has ${NATS_ACCOUNTS} accounts: all are taken`)
  const account = numberedAccount(nats, number)
  return {
    ...account,
    async [Symbol.asyncDispose]() {
      await account[Symbol.asyncDispose]()
      await withRedis(redis.adminUrl, (client) => client.rpush('free:nats', number))
    },
  }
}

let starting: Promise<Servers> | undefined
/** Those that this process has started. */
const running = new AsyncDisposableStack()

async function theServers(): Promise<Servers> {
  const told = process.env[SHARED]
  if (told !== undefined) return JSON.parse(told) as Servers
  starting ??= start()
  return await starting
}

async function start(): Promise<Servers> {
  const [postgres, redis, nats] = await Promise.all([
    preparePostgres(migrate).then(() =>
      startPostgres({ migrated: true, maxConnections: POSTGRES_CONNECTIONS }),
    ),
    startRedis({ persistence: false, args: ['--databases', String(REDIS_DATABASES)] }),
    startNats({ accounts: NATS_ACCOUNTS }),
  ])
  for (const server of [postgres, redis, nats]) running.use(server)
  const servers: Servers = {
    postgres: { host: postgres.host, port: postgres.port },
    redis: { host: redis.host, port: redis.port, adminUrl: redis.adminUrl },
    nats: { ports: nats.servers.map(({ port }) => port), version: nats.version },
  }
  process.env[SHARED] = JSON.stringify(servers)
  return servers
}

async function migrate(ownerUrl: string): Promise<void> {
  const env = { PATH: process.env.PATH ?? '', DATABASE_URL: ownerUrl }
  await promisify(execFile)(process.execPath, [MAIN, 'migrate'], {
    env,
    timeout: MIGRATE_DEADLINE_MS,
  })
}

/** From 1, and never the same again. Counted in the database of Redis that nobody is given. */
function nextNumber({ adminUrl }: Servers['redis'], of: string): Promise<number> {
  return withRedis(adminUrl, (client) => client.incr(`taken:${of}`))
}
