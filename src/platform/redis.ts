/**
 * The connection to Redis (or Redis Cluster), its scripts, and a breaker that keeps requests from
 * waiting for a Redis that is out.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Cluster, Redis, type RedisOptions } from 'ioredis'
import { Counter, Gauge, Histogram } from 'prom-client'
import { inBackground } from './background.ts'
import type { Logger } from './logger.ts'
import { SilenceTimeout } from './silence-timeout.ts'
import { NotThereYet, StartupError } from './startup-error.ts'
import { Unavailable } from './unavailable.ts'

/** Redis did not answer in time. Nothing is known of what it did. */
export class RedisUnavailable extends Unavailable {
  override name = 'RedisUnavailable'
}

/**
 * Redis is at its memory limit and took nothing of what it was to add. It is not out: what reads,
 * leases and removes goes on, in scripts with the flag `allow-oom`.
 */
export class RedisFull extends RedisUnavailable {
  override name = 'RedisFull'
}

/** Not all servers of a Redis Cluster are known, or they change. */
class ServersChanging extends Error {
  override name = 'ServersChanging'
}

/** A server that answers nothing is waited for so long. */
export const COMMAND_TIMEOUT_MS = 500
/**
 * A connection on which an answer is due and nothing comes for so long is given up, and made anew.
 * Until then a late answer can be made use of.
 */
const SILENCE_MS = 5_000
const CONNECT_TIMEOUT_MS = 1_000
/** The first connection, while a process still loads its code, and all may be starting at once. */
const FIRST_CONNECT_TIMEOUT_MS = 5_000
const PROBE_MS = 200
/**
 * Servers of a Redis Cluster that has just been made, or has just changed, need a moment to tell
 * each other.
 */
const IDENTIFY_TIMEOUT_MS = 5_000

const seconds = new Histogram({
  name: 'tabulum_redis_seconds',
  help: 'Time of one round trip to Redis, by what it was for.',
  labelNames: ['operation'] as const,
  buckets: [0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5],
})
const failures = new Counter({
  name: 'tabulum_redis_unavailable_total',
  help: 'Round trips to Redis that failed because it did not answer.',
  labelNames: ['operation'] as const,
})
const up = new Gauge({ name: 'tabulum_redis_up', help: '1 while Redis answers.' })

export type RedisConnection = Redis | Cluster

/** A Lua script in a file. */
export interface Script {
  name: string
  lua: string
  /** How many it takes; undefined where that differs from call to call. */
  keys: number | undefined
}

export function loadScript(name: string, url: URL, keys?: number): Script {
  return { name, lua: readFileSync(url, 'utf8'), keys }
}

export class RedisClient {
  readonly connection: RedisConnection
  readonly #silence = new SilenceTimeout()
  #out = false
  #closed = false
  #corked: Redis['stream'] | undefined
  #probing = false
  /**
   * Identifies the running servers: changes when one of them was restarted or replaced. Empty while
   * not known.
   */
  #incarnation = ''
  /** How often what servers there are was learned anew. */
  #changes = 0

  private constructor(connection: RedisConnection) {
    this.connection = connection
  }

  /**
   * Connects and checks that the server keeps what it is given. Throws `NotThereYet` if it cannot,
   * `StartupError` if the server does not.
   */
  static async open(url: string, mode: 'single' | 'cluster', logger: Logger): Promise<RedisClient> {
    const options = {
      socketTimeout: SILENCE_MS,
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      autoResendUnfulfilledCommands: false,
      retryStrategy: () => PROBE_MS,
      lazyConnect: true,
    } satisfies RedisOptions
    const { hostname, port, username, password, protocol } = new URL(url)
    const credentials = {
      ...(username && { username: decodeURIComponent(username) }),
      ...(password && { password: decodeURIComponent(password) }),
      ...(protocol === 'rediss:' && { tls: {} }),
    }
    const connection =
      mode === 'single'
        ? new Redis(url, { ...options, connectTimeout: FIRST_CONNECT_TIMEOUT_MS })
        : new Cluster([{ host: hostname, port: Number(port || 6379) }], {
            redisOptions: {
              socketTimeout: SILENCE_MS,
              connectTimeout: CONNECT_TIMEOUT_MS,
              maxRetriesPerRequest: 0,
              ...credentials,
            },
            enableOfflineQueue: false,
            clusterRetryStrategy: () => PROBE_MS,
            // What was sent to a server that is gone may have been done: nothing is sent twice
            // behind the caller's back.
            retryDelayOnFailover: 0,
            retryDelayOnClusterDown: 0,
            lazyConnect: true,
          })
    const client = new RedisClient(connection)
    // What `connect` fails with says only that the connection closed; why it did came as an event.
    let reason: unknown
    connection.on('error', (error: Error) => {
      reason = error
      client.#markOut(error, logger)
    })
    connection.on('close', () => client.#markOut(new Error('connection closed'), logger))
    for (const change of ['+node', '-node']) connection.on(change, () => client.#forget())
    try {
      await connection.connect()
      await client.#identified()
      const [, policy] = (await connection.config('GET', 'maxmemory-policy')) as string[]
      if (policy !== 'noeviction') {
        throw new StartupError(
          `Redis may throw queues away: set maxmemory-policy to noeviction (it is ${policy})`,
        )
      }
    } catch (error) {
      client.#closed = true
      connection.disconnect()
      if (error instanceof StartupError) throw error
      throw new NotThereYet(
        `REDIS_URL: cannot use Redis at ${hostname}:${port || 6379}: ${reason ?? error}`,
      )
    }
    if (connection instanceof Redis) connection.options.connectTimeout = CONNECT_TIMEOUT_MS
    client.#out = false
    up.set(1)
    return client
  }

  /** Whether requests may count on Redis now. */
  get available(): boolean {
    return !this.#out && !this.#closed
  }

  /** Names the running servers; differs after a restart. Undefined while Redis is out. */
  get incarnation(): string | undefined {
    return this.available && this.#incarnation !== '' ? this.#incarnation : undefined
  }

  /** The servers that hold data, each once. */
  get masters(): Redis[] {
    return this.connection instanceof Cluster ? this.connection.nodes('master') : [this.connection]
  }

  /** Keys of different slots that one script may be given: in Redis Cluster just one. */
  get keysAtOnce(): number {
    return this.connection instanceof Cluster ? 1 : Number.POSITIVE_INFINITY
  }

  /** Memory of all masters together; a limit of 0 is none. */
  async memory(): Promise<{ usedBytes: number; limitBytes: number }> {
    const answers = await this.run('memory', () =>
      Promise.all(this.masters.map((master) => master.info('memory'))),
    )
    const sum = (field: string) =>
      answers.reduce(
        (total, text) => total + Number(new RegExp(`^${field}:(\\d+)`, 'm').exec(text)?.[1] ?? 0),
        0,
      )
    return { usedBytes: sum('used_memory'), limitBytes: sum('maxmemory') }
  }

  /**
   * Has each master write its append-only file anew, in its own time, so that it holds what is
   * there now and no more. Throws `RedisUnavailable`.
   */
  async rewriteFiles(): Promise<void> {
    await this.run('rewrite_files', () =>
      Promise.all(this.masters.map((master) => master.bgrewriteaof())),
    )
  }

  /**
   * One round trip. Throws `RedisUnavailable` when it takes too long, and at once while Redis is
   * known to be out; `RedisFull`. `late` is given an answer that came after that: what the command
   * did, nobody else has heard of.
   */
  async run<T>(
    operation: string,
    command: (connection: RedisConnection) => Promise<T>,
    late?: (answer: T) => void,
  ): Promise<T> {
    if (!this.available) throw new RedisUnavailable('Redis is out')
    const stop = seconds.startTimer({ operation })
    this.#cork()
    const answer = command(this.connection)
    try {
      // Of several servers, the answers of one say nothing of another.
      const silence = this.connection instanceof Cluster ? new SilenceTimeout() : this.#silence
      return await silence.wait(answer, COMMAND_TIMEOUT_MS, () => new Error('no answer in time'))
    } catch (error) {
      if (isFull(error)) throw new RedisFull('Redis is at its memory limit', { cause: error })
      if (isReply(error)) throw error
      if (late) answer.then(late, () => {})
      failures.inc({ operation })
      this.#markOut(error)
      throw new RedisUnavailable(
        `Redis did not answer: ${error instanceof Error ? error.message : error}`,
        {
          cause: error,
        },
      )
    } finally {
      stop()
    }
  }

  /**
   * What is asked in one turn of the event loop goes out in one write, which is most of what a
   * command costs. (The library's own way, `enableAutoPipelining`, ends the process when a
   * connection breaks: ioredis 6.0.0.) Not in Redis Cluster, which has a connection a server.
   */
  #cork(): void {
    const { connection } = this
    if (connection instanceof Cluster || connection.stream === this.#corked) return
    const { stream } = connection
    this.#corked = stream
    stream.cork()
    setImmediate(() => {
      this.#corked = undefined
      stream.uncork()
    })
  }

  /**
   * Runs a script, by its hash; sends it whole where the server does not have it. Keys must be of
   * one slot.
   */
  async script(
    script: Script,
    keys: readonly string[],
    args: readonly (string | number)[],
    late?: (answer: unknown) => void,
  ): Promise<unknown> {
    return this.run(script.name, (connection) => callScript(connection, script, keys, args), late)
  }

  #markOut(error: unknown, logger?: Logger): void {
    if (this.#out || this.#closed) return
    this.#out = true
    up.set(0)
    logger?.warn({ error: String(error) }, 'redis is out')
    this.#forget()
  }

  /** Which servers there are has to be asked again. */
  #forget(): void {
    this.#incarnation = ''
    this.#changes++
    if (!this.#probing) inBackground('probe_redis', this.#probe())
  }

  async #probe(): Promise<void> {
    this.#probing = true
    while (!this.#closed && this.#incarnation === '') {
      await sleep(PROBE_MS, undefined, { ref: false })
      try {
        await this.#identify()
        this.#out = false
        up.set(1)
      } catch {
        // Still out, or not all servers are known yet.
      }
    }
    this.#probing = false
  }

  /** Resolves when all servers are known. Throws what the last try failed with. */
  async #identified(): Promise<void> {
    const deadline = performance.now() + IDENTIFY_TIMEOUT_MS
    for (;;) {
      try {
        return await this.#identify()
      } catch (error) {
        if (!(error instanceof ServersChanging) || performance.now() > deadline) throw error
        await sleep(PROBE_MS)
      }
    }
  }

  async #identify(): Promise<void> {
    const changes = this.#changes
    const { masters, connection } = this
    if (connection instanceof Cluster) {
      // The library may know fewer than there are: it has asked one that did not know them yet, or
      // has given one up that was away.
      const views = await Promise.all(masters.map((master) => master.cluster('INFO')))
      const sizes = views.map((view) => Number(/^cluster_size:(\d+)/m.exec(view)?.[1]))
      if (sizes.length === 0 || sizes.some((size) => size !== masters.length)) {
        connection.refreshSlotsCache()
        throw new ServersChanging(`${masters.length} servers are known, of ${sizes}`)
      }
    }
    const infos = await Promise.all(masters.map((server) => server.info('server')))
    if (changes !== this.#changes) throw new ServersChanging('the servers have changed')
    this.#incarnation = infos
      .map((info) => /^run_id:(\w+)/m.exec(info)?.[1] ?? '')
      .sort()
      .join('-')
  }

  async close(): Promise<void> {
    this.#closed = true
    this.connection.disconnect()
  }
}

/** Calls a script on a connection or in a pipeline. */
export function callScript(
  target: Pick<RedisConnection, 'defineCommand'>,
  { name, lua, keys: numberOfKeys }: Script,
  keys: readonly string[],
  args: readonly (string | number)[],
): Promise<unknown> {
  const commands = target as unknown as Record<
    string,
    ((...args: (string | number)[]) => Promise<unknown>) | undefined
  >
  if (!Object.hasOwn(target, name))
    target.defineCommand(name, { lua, ...(numberOfKeys !== undefined && { numberOfKeys }) })
  const command = commands[name]
  if (!command) throw new TypeError(`the script ${name} is not defined`)
  return command.call(
    target,
    ...(numberOfKeys === undefined ? [keys.length] : []),
    ...keys,
    ...args,
  )
}

/**
 * Replies by which Redis says that a command of ours is wrong, or that one of our scripts refuses
 * it (LOST). Asked again, it would answer the same.
 */
const MISTAKES =
  /^(ERR(?! max number of clients)|WRONGTYPE|NOSCRIPT|EXECABORT|CROSSSLOT|NOGROUP|BUSYGROUP|LOST)\b/

function isFull(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError' && error.message.startsWith('OOM ')
}

/**
 * Whether it is the answer to a command. All else is an outage, such as a server that starts, or
 * does not accept the password.
 */
function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError' && MISTAKES.test(error.message)
}
