/** What a queue in Redis does that no other storage has to. */
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { expect, it, vi } from 'vitest'
import type { EventLog } from '../../src/events/event-log.ts'
import { LEASE_MS, QueueUnavailable } from '../../src/messaging/message-queue.ts'
import {
  changeQueues,
  EMPTY_QUEUE_TTL_MS,
  QueuesLost,
  queueKey,
  RedisMessageQueue,
  toPayload,
} from '../../src/messaging/redis-message-queue.ts'
import type { Database } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { COMMAND_TIMEOUT_MS, loadScript, RedisClient } from '../../src/platform/redis.ts'
import { LeaseLost } from '../../src/projector/projector.ts'
import { QueueProjection } from '../../src/projector/queue-projection.ts'
import { holdUp } from '../support/hold-up.ts'
import { startRedis } from '../support/servers.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const GENERATION = 'test'
/** Until a node notices that Redis is back, and some for a busy machine; less than a lease lasts. */
const BACK = { timeout: 20_000, interval: 50 }
const FROZEN_MS = 3 * COMMAND_TIMEOUT_MS
const TEST_MS = 120_000
const HELD_UP_MS = 3_000
const nextTick = promisify(process.nextTick)

it('is opened also by a process that is held up for longer than a connection may take', async () => {
  await using server = await startRedis()
  const opening = RedisClient.open(server.url, 'single', createLogger('silent', 'test'))
  // As soon as the connection has been asked for.
  await nextTick()
  holdUp(HELD_UP_MS)
  const redis = await opening
  expect(redis.available).toBe(true)
  await redis.close()
})

it('a server that was frozen gives no lease that nobody waits for any more: what was sent first is received first', {
  timeout: TEST_MS,
}, async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  const scripts = vi.spyOn(redis, 'script')
  try {
    const { queue, send, expectInOrder } = queueOn(redis)
    // The one in flight while Redis freezes is the first lease ever of this process, and then it is not.
    for (const to of ['agent one', 'agent two']) {
      await vi.waitFor(() => send(1, to), BACK)
      await server.freeze()
      await expect(queue.lease(to, 10)).rejects.toThrow(QueueUnavailable)
      await sleep(FROZEN_MS)
      await server.thaw()
      await vi.waitFor(() => send(2, to), BACK)
      // It has answered what it was asked before: had that leased something, it would be on its way back now.
      const called = scripts.mock.calls.filter(([, [key]]) => key === queueKey(GENERATION, to))
      expect(called.map(([{ name }]) => name).filter((name) => name !== 'add_messages')).toEqual(['lease'])
      await expectInOrder(to)
    }
  } finally {
    await redis.close()
  }
})

it('what an answer that came too late has leased is given back: what was sent first is received first', {
  timeout: TEST_MS,
}, async () => {
  await using server = await startRedis()
  await using proxy = await startTcpProxy(Number(new URL(server.url).port))
  const redis = await open(Object.assign(new URL(server.url), { port: proxy.port }).href)
  try {
    const { queue, send, expectInOrder } = queueOn(redis)
    const to = 'agent'
    await vi.waitFor(() => queue.lease(to, 1), BACK)
    await vi.waitFor(() => send(1, to), BACK)
    // The request is there in time; nobody waits for the answer any more.
    proxy.hold('answers')
    await expect(queue.lease(to, 10)).rejects.toThrow(QueueUnavailable)
    proxy.heal()
    await vi.waitFor(() => send(2, to), BACK)
    await expectInOrder(to)
  } finally {
    await redis.close()
  }
})

it('a lease that has run out is not given back: its messages may be in other hands', { timeout: TEST_MS }, async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const { queue, send } = queueOn(redis)
    const to = 'agent'
    const lease = async () => (await queue.lease(to, 1)).messages.length
    /** What an answer that came too late has leased is there again a moment later. */
    const expectOne = () => vi.waitFor(async () => expect(await lease()).toBe(1), BACK)
    await vi.waitFor(() => send(1, to), BACK)
    await expectOne()
    const script = loadScript('release_messages', new URL('../../src/messaging/lua/release.lua', import.meta.url), 1)
    const release = (until: number) =>
      vi.waitFor(() => redis.script(script, [queueKey(GENERATION, to)], [until, LEASE_MS, '1-0']), BACK)
    const [seconds] = await redis.connection.time()
    const now = Number(seconds) * 1_000
    await release(now)
    expect(await vi.waitFor(lease, BACK)).toBe(0)
    await release(now + LEASE_MS)
    await expectOne()
  } finally {
    await redis.close()
  }
})

it('queues that Redis has lost do not come back with what is new alone, which would then come before what was lost', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  const admin = await open(server.adminUrl)
  try {
    const positionKey = '{queues}:position'
    const to = 'agent'
    const key = queueKey(GENERATION, to)
    const add = (seq: number) =>
      changeQueues(redis, GENERATION, [{ recipient: to, added: [[seq, '']], removed: [] }], { positionKey })
    await redis.connection.hset(positionKey, 'generation', GENERATION)
    await add(1)
    expect(await admin.connection.xlen(key)).toBe(1)
    await admin.connection.flushall()
    await expect(add(2)).rejects.toThrow(QueuesLost)
    expect(await admin.connection.exists(key)).toBe(0)
    await redis.connection.hset(positionKey, 'generation', 'the next')
    await expect(add(3)).rejects.toThrow(QueuesLost)
    expect(await admin.connection.exists(key)).toBe(0)
  } finally {
    await redis.close()
    await admin.close()
  }
})

it('queues of an earlier generation are removed by whoever leads, and by nobody who leads no more', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const agents = Array.from({ length: 3_000 }, (_, index) => `agent ${index}`)
    const fill = (generation: string) =>
      changeQueues(
        redis,
        generation,
        agents.map((recipient) => ({ recipient, added: [[1, '']], removed: [] })),
      )
    const left = async (generation: string) =>
      (await Promise.all(agents.map((to) => redis.connection.exists(queueKey(generation, to))))).filter(Boolean).length
    await fill('earlier')
    await fill(GENERATION)
    const position = { generation: GENERATION, incarnation: redis.incarnation ?? '', position: '1' }
    await redis.connection.hset('{queues}:position', position)
    // This one has replaced nothing itself: the leader that did is gone. There is nothing to ask the database for.
    const projection = new QueueProjection(redis, {} as Database, { maxQueue: 10 })
    expect(await projection.acquire('late', 60_000, new AbortController().signal)).toBe(1)
    await projection.pass('late', 1, 3)
    await expect(projection.pass('late', 1, 4)).rejects.toThrow('the queues are not at 1 any more')
    await projection.release('late')
    const next = new QueueProjection(redis, {} as Database, { maxQueue: 10 })
    expect(await next.acquire('next', 60_000, new AbortController().signal)).toBe(3)
    await expect(projection.pass('late', 3, 4)).rejects.toBeInstanceOf(LeaseLost)
    // What it finds may be a generation that the other one builds.
    await projection.tidy(new AbortController().signal)
    expect(await left('earlier')).toBe(agents.length)
    await next.tidy(new AbortController().signal)
    expect(await left('earlier')).toBe(0)
    expect(await left(GENERATION)).toBe(agents.length)
  } finally {
    await redis.close()
  }
})

it('a queue that a node has emptied while the projector cannot go on remembers what it had, for longer than one that the projector has', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const { queue, send } = queueOn(redis)
    await send(1, 'agent')
    const { messages } = await queue.lease('agent', 10)
    await queue.remove('agent', messages)
    const key = queueKey(GENERATION, 'agent')
    expect(await redis.connection.pttl(key)).toBeGreaterThan(12 * 3_600_000)
    await send(1, 'agent')
    expect(await redis.connection.xlen(key)).toBe(0)
    await changeQueues(redis, GENERATION, [{ recipient: 'agent', added: [], removed: [1] }])
    expect(await redis.connection.pttl(key)).toBeLessThanOrEqual(EMPTY_QUEUE_TTL_MS)
  } finally {
    await redis.close()
  }
})

/** One that does not answer at once is an error at the start, and no more than that here. */
function open(url: string): Promise<RedisClient> {
  return vi.waitFor(() => RedisClient.open(url, 'single', createLogger('silent', 'test')), BACK)
}

function queueOn(redis: RedisClient) {
  // Short messages are in Redis whole.
  const noLog = { get: async () => [] } as unknown as EventLog
  const queue = new RedisMessageQueue(
    redis,
    noLog,
    () => {
      const { incarnation } = redis
      return incarnation === undefined ? undefined : { generation: GENERATION, incarnation }
    },
    { maxContentBytes: 65_536 },
  )
  const send = async (seq: number, to: string) => {
    const payload = toPayload({ seq, message_id: `id ${seq}`, from: 'a', to, content: `${seq}`, timestamp: 'now' })
    await changeQueues(redis, GENERATION, [{ recipient: to, added: [[seq, payload]], removed: [] }])
  }
  /** Leases until what was sent first comes first: what a late answer has leased is given back a moment later. */
  const expectInOrder = (to: string) =>
    vi.waitFor(async () => {
      const lease = await queue.lease(to, 10)
      const contents = lease.messages.map(({ content }) => content)
      if (contents[0] !== '1') await lease.release()
      expect(contents).toEqual(['1', '2'])
    }, BACK)
  return { queue, send, expectInOrder }
}
