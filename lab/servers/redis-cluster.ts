import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { releasePorts, reservePorts } from './directory.ts'
import { type RedisServer, startRedis } from './redis.ts'

const MASTERS = 3
const SLOTS = 16_384
const READY_DEADLINE_MS = 60_000
const POLL_MS = 50
const COMMAND_TIMEOUT_MS = 10_000

export interface RedisCluster extends AsyncDisposable {
  readonly masters: readonly RedisServer[]
  /**
   * Resolves when every master knows that all take part: a while after one that was restarted
   * answers.
   */
  whole(): Promise<void>
  /** Of the first master, from which a client learns of the others. */
  readonly url: string
}

/**
 * Starts a Redis Cluster of three masters without replicas, each with the configuration and users
 * of deploy/.
 */
export async function startRedisCluster(): Promise<RedisCluster> {
  await using stack = new AsyncDisposableStack()
  const ports = await reservePorts(MASTERS)
  stack.defer(() => releasePorts(ports))
  const masters = await Promise.all(
    ports.map(async (busPort) =>
      stack.use(
        await startRedis({
          args: [
            ...['--cluster-enabled', 'yes', '--cluster-port', String(busPort)],
            ...['--cluster-announce-ip', '127.0.0.1', '--cluster-node-timeout', '2000'],
          ],
        }),
      ),
    ),
  )
  await join(masters, ports)
  const owner = stack.move()
  const [first] = masters
  if (first === undefined) throw new Error('a cluster has a first master')
  return {
    masters,
    url: first.url,
    whole: () => whole(masters),
    [Symbol.asyncDispose]: () => owner.disposeAsync(),
  }
}

/** Shares the slots among the masters and makes them know each other. */
async function join(masters: readonly RedisServer[], busPorts: readonly number[]): Promise<void> {
  await withClients(masters, async (clients) => {
    await Promise.all(
      clients.map((client, index) => {
        const first = Math.ceil((SLOTS * index) / clients.length)
        const next = Math.ceil((SLOTS * (index + 1)) / clients.length)
        return client.cluster('ADDSLOTSRANGE', first, next - 1)
      }),
    )
    for (const [index, { port }] of masters.entries())
      if (index > 0)
        await clients[0]?.call('CLUSTER', 'MEET', '127.0.0.1', port, busPorts[index] as number)
  })
  await whole(masters)
}

/** Resolves when each master says that it serves, and that nobody doubts any of them. */
async function whole(masters: readonly RedisServer[]): Promise<void> {
  await withClients(masters, async (clients) => {
    const deadline = performance.now() + READY_DEADLINE_MS
    for (const client of clients) {
      for (;;) {
        const info = (await client.cluster('INFO')).split('\r\n')
        if (info.includes('cluster_state:ok') && info.includes(`cluster_slots_ok:${SLOTS}`)) break
        if (performance.now() > deadline)
          throw new Error('the masters of a Redis Cluster did not agree in time')
        await sleep(POLL_MS)
      }
    }
  })
}

async function withClients(
  masters: readonly RedisServer[],
  run: (clients: readonly Redis[]) => Promise<void>,
): Promise<void> {
  const clients = masters.map(
    ({ adminUrl }) => new Redis(adminUrl, { commandTimeout: COMMAND_TIMEOUT_MS }),
  )
  try {
    await run(clients)
  } finally {
    for (const client of clients) client.disconnect()
  }
}
