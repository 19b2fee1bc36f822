import { cpSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Redis } from 'ioredis'
import { DEPLOY, loopbackUrl } from './deploy.ts'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './directory.ts'
import { Process } from './process.ts'
import { findProgram } from './programs.ts'

const START_DEADLINE_MS = 60_000
/** Of a server that runs, on a machine that may be busy. */
const ANSWER_TIMEOUT_MS = 10_000
const PASSWORDS = { kernel: 'kernel-password', admin: 'admin-password' }

export interface RedisDatabase extends AsyncDisposable {
  readonly host: string
  readonly port: number
  /** As the user of the kernel. */
  readonly url: string
  readonly adminUrl: string
  /** Removes every key. */
  wipe(): Promise<void>
}

/** The one database of a server of its own. */
export interface RedisServer extends RedisDatabase {
  readonly process: Process
  stop(): Promise<void>
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  /** Stops it if it runs, and starts it on the same port and data. */
  restart(): Promise<void>
  /**
   * Gives the kernel's user another password, as an operator would, and disconnects it; without
   * one, the first.
   */
  setKernelPassword(password?: string): Promise<void>
  /**
   * Copies what is on disk, as a backup would; what it returns puts that back, into a server that
   * does not run.
   */
  backUp(): () => void
}

export interface RedisOptions {
  /** One that nothing listens on; a free one unless given. */
  readonly port?: number
  /** Without it a restart begins empty. */
  readonly persistence?: boolean
  /** More for its command line. */
  readonly args?: readonly string[]
}

/** Starts a Redis of its own with the configuration and users of deploy/. */
export async function startRedis({
  port: given,
  persistence = true,
  args = [],
}: RedisOptions = {}): Promise<RedisServer> {
  const directory = makeDirectory('redis')
  const files = join(directory, 'appendonlydir')
  const reserved = given === undefined ? await reservePorts(1) : []
  const port = given ?? (reserved[0] as number)
  const server = new Process({
    name: 'redis-server',
    file: 'sh',
    args: [
      join(DEPLOY, 'redis', 'start.sh'),
      ...['--port', String(port), '--bind', '127.0.0.1'],
      ...(persistence ? [] : ['--appendonly', 'no']),
      ...args,
    ],
    env: {
      // The script starts the first redis-server on PATH.
      PATH: `${dirname(await findProgram('redis-server'))}:${process.env.PATH ?? ''}`,
      REDIS_DATA_DIR: directory,
      REDIS_KERNEL_PASSWORD: PASSWORDS.kernel,
      REDIS_ADMIN_PASSWORD: PASSWORDS.admin,
    },
    directory,
  })
  const url = (user: keyof typeof PASSWORDS) => loopbackUrl('redis', user, PASSWORDS[user], port)
  const start = async () => {
    server.start()
    // It refuses commands while it reads its data.
    await server.ready(
      () => withRedis(url('admin'), async (client) => (await client.ping()) === 'PONG'),
      START_DEADLINE_MS,
    )
  }
  const dispose = async () => {
    await removeDirectory(directory)
    releasePorts(reserved)
  }
  try {
    await start()
  } catch (error) {
    await dispose()
    throw error
  }
  return {
    host: '127.0.0.1',
    port,
    url: url('kernel'),
    adminUrl: url('admin'),
    process: server,
    stop: async () => void (await server.stop()),
    kill: () => server.kill(),
    freeze: () => server.freeze(),
    thaw: () => server.thaw(),
    async restart() {
      if (server.running) await server.stop()
      await start()
    },
    async wipe() {
      await withRedis(url('admin'), (client) => client.flushall())
    },
    async setKernelPassword(password = PASSWORDS.kernel) {
      await withRedis(url('admin'), async (client) => {
        await client.call('ACL', 'SETUSER', 'kernel', 'resetpass', `>${password}`)
        await client.call('CLIENT', 'KILL', 'USER', 'kernel')
      })
    },
    backUp() {
      const copy = makeDirectory('redis-copy')
      cpSync(files, copy, { recursive: true })
      return () => {
        if (server.running) throw new Error('Redis must not run while its files are replaced')
        rmSync(files, { recursive: true })
        cpSync(copy, files, { recursive: true })
      }
    },
    [Symbol.asyncDispose]: dispose,
  }
}

/**
 * One of the databases of a server that several use, by its number. It is empty when disposed of.
 */
export function numberedDatabase(
  { host, port }: { host: string; port: number },
  number: number,
): RedisDatabase {
  const url = (user: keyof typeof PASSWORDS) =>
    loopbackUrl('redis', user, PASSWORDS[user], port, String(number))
  const wipe = async () => void (await withRedis(url('admin'), (client) => client.flushdb()))
  return {
    host,
    port,
    url: url('kernel'),
    adminUrl: url('admin'),
    wipe,
    [Symbol.asyncDispose]: wipe,
  }
}

/** What only whoever runs the server may do. */
export function redisAdmin(url: string) {
  const usedMemory = () =>
    withRedis(url, async (client) =>
      Number(/^used_memory:(\d+)/m.exec(await client.info('memory'))?.[1]),
    )
  return {
    usedMemory,
    /** Commands that were refused since it started, as its memory was at the limit. */
    refused: () =>
      withRedis(url, async (client) =>
        Number(/^errorstat_OOM:count=(\d+)/m.exec(await client.info('errorstats'))?.[1] ?? 0),
      ),
    /**
     * Limits its memory to so much more (or less) than it uses now; without a number, not at all.
     */
    async limitMemory(moreBytes?: number): Promise<void> {
      const limit = moreBytes === undefined ? 0 : (await usedMemory()) + moreBytes
      await withRedis(url, (client) => client.config('SET', 'maxmemory', limit))
    },
  }
}

export async function withRedis<T>(url: string, use: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis(url, {
    lazyConnect: true,
    retryStrategy: () => null,
    connectTimeout: ANSWER_TIMEOUT_MS,
    commandTimeout: ANSWER_TIMEOUT_MS,
  })
  // Rejected calls say what happened; without a listener the same would be printed too.
  client.on('error', () => {})
  try {
    await client.connect()
    return await use(client)
  } finally {
    client.disconnect()
  }
}
