/**
 * Which generations of queues Redis is to keep, and the removal of all others. The position names
 * the generation that agents are served from, and the one that is being built, before the first key
 * of that is written.
 */
import type { RedisClient } from '../platform/redis.ts'

/**
 * A hash: `generation`, `incarnation` and `position` of the queues that are current, and
 * `building`, the generation to come.
 */
export const POSITION_KEY = '{queues}:position'

/** Keys of Redis that one step looks at, about. */
const SCAN_COUNT = 1_000

/**
 * Removes the queues of generations that are neither current nor being built, and yields how many
 * after each step. Needs no lease: a generation whose keys were there when a step looked for them
 * and that the position does not name after that was given up, and never becomes current. Where no
 * generation is current nothing is removed.
 */
export async function* removeOldGenerations(redis: RedisClient): AsyncGenerator<number> {
  yield* removeGenerations(redis, async () => {
    const [current, building] = await redis.run('generations', (connection) =>
      connection.hmget(POSITION_KEY, 'generation', 'building'),
    )
    return current ? [current, ...(building ? [building] : [])] : undefined
  })
}

/**
 * Removes the queues of all generations but those that `kept` gives, which is asked after each look
 * at the keys: what is written later is not among them. Undefined ends it.
 */
export async function* removeGenerations(
  redis: RedisClient,
  kept: () => Promise<readonly string[] | undefined>,
): AsyncGenerator<number> {
  for (const server of redis.masters) {
    let cursor = '0'
    do {
      const [next, keys] = await redis.run('sweep', () =>
        server.scan(cursor, 'MATCH', 'queue:*', 'COUNT', SCAN_COUNT),
      )
      const generations = keys.length > 0 ? await kept() : []
      if (generations === undefined) return
      const old = keys.filter(
        (key) => !generations.some((generation) => key.startsWith(`queue:${generation}:`)),
      )
      // One by one, as in Redis Cluster they are of different slots; they go out in one write.
      if (old.length > 0)
        await redis.run('sweep', () => Promise.all(old.map((key) => server.unlink(key))))
      yield old.length
      cursor = next
    } while (cursor !== '0')
  }
}
