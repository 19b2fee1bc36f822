/**
 * What one call to each server costs, with the drivers that the kernel uses: alone, and 32 at once.
 */
import { randomBytes, randomUUID } from 'node:crypto'
import bcrypt from 'bcryptjs'
import { Redis } from 'ioredis'
import { connect } from 'nats'
import postgres from 'postgres'
import { startCluster } from '../lab/cluster.ts'
import { natsOptions } from '../lab/servers.ts'
import { loadConfig } from '../src/config.ts'

const AT_ONCE = 32
const { BCRYPT_COST } = loadConfig({})
const BCRYPT_CALLS = 10
const CONTENT = 'x'.repeat(200)

interface UnitCost {
  /** Median and 99th percentile of one call after the other. */
  readonly 'p50 ms': number
  readonly 'p99 ms': number
  /** With 32 under way. */
  readonly 'calls/s'?: number
}

/** @param seconds for each call, alone and at once */
export async function benchCosts(seconds: number): Promise<Record<string, UnitCost>> {
  await using cluster = await startCluster({ nodes: 0, workers: 0 })
  const redis = new Redis(cluster.redis.adminUrl)
  const sql = postgres(cluster.postgres.superuserUrl, { max: 10, onnotice: () => {} })
  const nats = await connect(natsOptions(cluster.nats.adminUrl))
  try {
    const manager = await nats.jetstreamManager()
    await manager.streams.add({ name: 'COSTS', subjects: ['costs.>'], num_replicas: 3 })
    const stream = nats.jetstream()
    await sql`create table costs (id uuid primary key, value text)`
    const [id] = [randomUUID()]
    await sql`insert into costs values (${id}, ${CONTENT})`
    await redis.set('costs', CONTENT)
    const calls: Record<string, () => Promise<unknown>> = {
      'Redis GET': () => redis.get('costs'),
      'Redis XADD': () =>
        redis.xadd('costs:stream', 'MAXLEN', '~', 10_000, '*', 'message', CONTENT),
      'Postgres select by key': () => sql`select value from costs where id = ${id}`,
      'Postgres insert': () => sql`insert into costs values (${randomUUID()}, ${CONTENT})`,
      'NATS publish, not confirmed': async () => nats.publish('elsewhere', CONTENT),
      'JetStream append, three replicas': () => stream.publish('costs.event', CONTENT),
    }
    const costs: Record<string, UnitCost> = {}
    for (const [name, call] of Object.entries(calls)) {
      const alone = await timed(seconds, 1, call)
      const together = await timed(seconds, AT_ONCE, call)
      costs[name] = {
        ...percentiles(alone.times),
        'calls/s': Math.round(together.times.length / together.seconds),
      }
    }
    const token = randomBytes(36).toString('hex')
    const times: number[] = []
    for (let index = 0; index < BCRYPT_CALLS; index++) {
      const begin = performance.now()
      await bcrypt.hash(token, BCRYPT_COST)
      times.push(performance.now() - begin)
    }
    costs[`bcrypt, cost ${BCRYPT_COST}`] = percentiles(times)
    return costs
  } finally {
    redis.disconnect()
    await Promise.all([sql.end({ timeout: 1 }), nats.close()])
  }
}

async function timed(seconds: number, atOnce: number, call: () => Promise<unknown>) {
  const times: number[] = []
  const begin = performance.now()
  const end = begin + seconds * 1_000
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (let before = performance.now(); before < end; ) {
        await call()
        const now = performance.now()
        times.push(now - before)
        before = now
      }
    }),
  )
  return { times, seconds: (performance.now() - begin) / 1_000 }
}

function percentiles(times: readonly number[]): UnitCost {
  const sorted = times.toSorted((one, other) => one - other)
  const at = (share: number) => Number((sorted[Math.floor(sorted.length * share)] ?? 0).toFixed(3))
  return { 'p50 ms': at(0.5), 'p99 ms': at(0.99) }
}
