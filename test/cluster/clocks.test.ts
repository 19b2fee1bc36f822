/**
 * What Redis has stored when its clock is set back: nobody is refused, and nothing put off, for
 * longer than its period.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { type RedisServer, startRedis } from '../../lab/servers.ts'
import type { Allowance } from '../../src/access/admission.ts'
import { RedisAdmission } from '../../src/access/redis-admission.ts'
import { newAddress, newToken, type PresentedToken } from '../../src/access/tokens.ts'
import type { EventLog } from '../../src/events/event-log.ts'
import {
  changeQueues,
  queueKey,
  RedisMessageQueue,
  toPayload,
} from '../../src/messaging/redis-message-queue.ts'
import type { Database } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { RedisClient } from '../../src/platform/redis.ts'
import { QueueProjection } from '../../src/projector/queue-projection.ts'
import { noRemovals } from '../conformance/support.ts'

const HOUR_MS = 3_600_000
const SESSION_TTL_MS = 30_000
/** Of a machine that is busy. */
const SLACK_MS = 5_000
const WAIT = { timeout: 60_000, interval: 100 }

let server: RedisServer
let redis: RedisClient

beforeAll(async () => {
  server = await startRedis()
  redis = await RedisClient.open(server.url, 'single', createLogger('silent', 'test'))
})

afterAll(async () => {
  await redis?.close()
  await server?.[Symbol.asyncDispose]()
})

const admissionWith = (allowance: Allowance) =>
  new RedisAdmission(redis, {
    sessionTtlMs: SESSION_TTL_MS,
    allowances: {
      message: allowance,
      state_read: allowance,
      state_write: allowance,
      registry_read: allowance,
      operator_registration: allowance,
    },
  })

const tagOf = ({ lookup }: PresentedToken) => `{agent:${lookup.toString('hex')}}`

it('buckets: whatever time is stored, nobody waits for longer than one interval, from the first refusal on', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        limit: fc.integer({ min: 1, max: 1_000 }),
        periodMs: fc.integer({ min: 60_000, max: HOUR_MS }),
      }),
      fc.integer({ min: -HOUR_MS, max: 1_000 * HOUR_MS }),
      async (allowance, aheadMs) => {
        const { limit, periodMs } = allowance
        const interval = periodMs / limit
        const admission = admissionWith(allowance)
        const token = newToken('agent')
        const session = { identity: newAddress() }
        await admission.open(token, session)
        const bucket = `bucket:${tagOf(token)}:message`
        const now = await redisClock()
        await redis.connection.set(bucket, String(now + aheadMs), 'PX', Math.max(SLACK_MS, aheadMs))
        const take = async () => {
          const { bucket: state } = (await admission.open(token, session, 'message')) ?? {}
          if (!state) throw new Error('no bucket')
          return state
        }
        const first = await take()
        // To the thousandth of a millisecond, as it is answered.
        expect(first.retryAfterMs).toBeLessThanOrEqual(interval + 0.001)
        const kept = Number(await redis.connection.get(bucket))
        expect(kept).toBeLessThanOrEqual((await redisClock()) + periodMs + interval)
        expect(await redis.connection.pttl(bucket)).toBeLessThanOrEqual(
          Math.max(SLACK_MS, periodMs + interval),
        )
        if (first.allowed) return
        // As if the time had passed that it was told to wait.
        await redis.connection.set(bucket, String(kept - first.retryAfterMs), 'KEEPTTL')
        expect((await take()).allowed).toBe(true)
      },
    ),
    { numRuns: 200 },
  )
})

it('sessions end in their time', async () => {
  const admission = admissionWith({ limit: 10, periodMs: 60_000 })
  const token = newToken('agent')
  await admission.open(token, { identity: newAddress() })
  const key = `session:${tagOf(token)}`
  await redis.connection.pexpire(key, HOUR_MS)
  expect(await admission.admit(token)).toBeDefined()
  expect(await redis.connection.pttl(key)).toBeLessThanOrEqual(SESSION_TTL_MS)
})

it('the lease of a projector that is gone ends in its time', async () => {
  const leaseKey = '{queues}:lease'
  const position = { generation: 'g', incarnation: redis.incarnation ?? '', position: '1' }
  await redis.connection.hset('{queues}:position', position)
  await redis.connection.set(leaseKey, 'gone', 'PX', HOUR_MS)
  // There is nothing to ask the database for.
  const projection = new QueueProjection(redis, {} as Database, { maxQueue: 10 })
  const acquire = () => projection.acquire('next', 1_000, new AbortController().signal)
  expect(await acquire()).toBeUndefined()
  expect(await redis.connection.pttl(leaseKey)).toBeLessThanOrEqual(1_000)
  await vi.waitFor(async () => expect(await acquire()).toBe(1), WAIT)
})

it('messages whose lease was never settled are visible again when it has run out, and no later; others stay where they are', async () => {
  const admin = await RedisClient.open(server.adminUrl, 'single', createLogger('silent', 'test'))
  try {
    const noLog = { get: async () => [] } as unknown as EventLog
    const generation = {
      generation: randomUUID().slice(0, 8),
      incarnation: redis.incarnation ?? '',
    }
    const queue = new RedisMessageQueue(redis, noLog, noRemovals, () => generation, {
      maxContentBytes: 65_536,
    })
    const to = 'agent'
    const key = queueKey(generation.generation, to)
    // More than are looked at in one go.
    const added = Array.from({ length: 2_100 }, (_, index): [number, string] => {
      const message = { message_id: `${index + 1}`, from: 'a', to, content: 'x', timestamp: 'now' }
      return [index + 1, toPayload({ seq: index + 1, ...message })]
    })
    await changeQueues(redis, generation.generation, [{ recipient: to, added, removed: [] }])
    const before = await redisClock()
    for (let leased = 0; leased < 2_000; leased += 100) await queue.lease(to, 100)
    await setBack(admin, key, before, await redisClock())

    // Those that were not leased yet, as ever.
    const { messages } = await queue.lease(to, 50)
    expect(messages.map(({ seq }) => seq)).toEqual(
      Array.from({ length: 50 }, (_, index) => 2_001 + index),
    )
    // The others as if they were leased now. That their time is over is told by claiming them:
    // nobody waits for half a minute here.
    const pending = (await redis.connection.xpending(key, 'agents', '-', '+', 3_000)) as [
      string,
      string,
      number,
    ][]
    expect(pending).toHaveLength(2_050)
    const passed = 200
    await sleep(passed)
    const [, claimed] = (await redis.connection.xautoclaim(
      key,
      'agents',
      'responses',
      passed / 2,
      '0-0',
      'COUNT',
      3_000,
      'JUSTID',
    )) as [string, string[]]
    expect(claimed).toHaveLength(2_050)
  } finally {
    await admin.close()
  }
})

async function redisClock(): Promise<number> {
  const [seconds, microseconds] = await redis.connection.time()
  return Number(seconds) * 1_000 + Number(microseconds) / 1_000
}

/**
 * Leaves a stream as it is where the clock was set back by an hour since: all times in it between
 * `from` and `until` are an hour later. There is no command for that, but a dump has them as 8
 * bytes each, little-endian, and an unchecked sum at its end.
 */
async function setBack(
  admin: RedisClient,
  key: string,
  from: number,
  until: number,
): Promise<void> {
  const dump = await admin.connection.dumpBuffer(key)
  if (!dump) throw new Error(`there is no ${key}`)
  let changed = 0
  for (let at = 0; at + 8 <= dump.length - 10; at++) {
    const time = Number(dump.readBigUInt64LE(at))
    if (time < Math.floor(from) || time > until) continue
    dump.writeBigUInt64LE(BigInt(time + HOUR_MS), at)
    changed++
  }
  expect(changed).toBeGreaterThanOrEqual(2_000)
  dump.writeBigUInt64LE(crc64(dump.subarray(0, -8)), dump.length - 8)
  await admin.connection.restore(key, 0, dump, 'REPLACE')
}

/** The sum of Redis (crc64.c): Jones' polynomial, reflected, from 0. */
function crc64(bytes: Uint8Array): bigint {
  let sum = 0n
  for (const byte of bytes) {
    sum ^= BigInt(byte)
    for (let bit = 0; bit < 8; bit++) sum = sum & 1n ? (sum >> 1n) ^ 0x95ac9329ac4bc9b5n : sum >> 1n
  }
  return sum
}
