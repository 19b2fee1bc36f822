/** What a process knows of a Redis Cluster: all its masters, or it says that it does not. */
import { setTimeout as sleep } from 'node:timers/promises'
import pino from 'pino'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { type RedisCluster, startRedisCluster } from '../../lab/servers.ts'
import { RedisClient, RedisUnavailable } from '../../src/platform/redis.ts'

const WAIT = { timeout: 60_000, interval: 50 }

const logger = pino({ level: 'silent' })
let redis: RedisCluster

beforeAll(async () => {
  redis = await startRedisCluster()
}, 180_000)

afterAll(() => redis?.[Symbol.asyncDispose]())

it('names all running servers, and others after the restart of one, never some of them', {
  timeout: 240_000,
}, async () => {
  // One that does not answer at once is an error at the start, and no more than that here.
  const client = await vi.waitFor(() => RedisClient.open(redis.url, 'cluster', logger), WAIT)
  try {
    const seen = new Set<string>()
    const watching = setInterval(() => seen.add(client.incarnation ?? ''), 1)
    const asking = setInterval(
      () =>
        void client
          .run('get', (connection) => connection.get(`${Math.random()}`))
          .catch(ignoreOutage),
      5,
    )
    for (const master of redis.masters.slice(1)) {
      // Not known for a moment where a server was slow to answer.
      const before = await vi.waitFor(() => {
        const { incarnation } = client
        expect(serversIn(incarnation)).toHaveLength(redis.masters.length)
        return incarnation
      }, WAIT)
      await master.kill()
      await sleep(2_500)
      await master.restart()
      await vi.waitFor(() => expect(client.incarnation ?? before).not.toBe(before), WAIT)
    }
    clearInterval(watching)
    clearInterval(asking)
    expect(
      [...seen].filter((name) => name !== '' && serversIn(name).length !== redis.masters.length),
    ).toEqual([])
    expect(seen.size).toBeGreaterThanOrEqual(redis.masters.length)
  } finally {
    await client.close()
  }
})

function serversIn(incarnation = ''): string[] {
  return incarnation.split('-')
}

function ignoreOutage(error: unknown): void {
  if (!(error instanceof RedisUnavailable)) throw error
}
