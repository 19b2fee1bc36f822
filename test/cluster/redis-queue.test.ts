/** What a queue in Redis does that no other storage has to. */
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Redis } from 'ioredis'
import { expect, it, vi } from 'vitest'
import { startRedis } from '../../lab/servers.ts'
import { startTcpProxy } from '../../lab/tcp-proxy.ts'
import { indexOf, messageOf } from '../../src/events/batch.ts'
import type { EventLog } from '../../src/events/event-log.ts'
import { LEASE_MS, QueueUnavailable } from '../../src/messaging/message-queue.ts'
import { POSITION_KEY, removeOldGenerations } from '../../src/messaging/queue-generations.ts'
import {
  changeQueues,
  EMPTY_QUEUE_TTL_MS,
  PAYLOADS,
  QueuesLost,
  queueKey,
  RedisMessageQueue,
  redactQueued,
  toPayload,
} from '../../src/messaging/redis-message-queue.ts'
import type { Database } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import {
  COMMAND_TIMEOUT_MS,
  callScript,
  loadScript,
  RedisClient,
  type Script,
} from '../../src/platform/redis.ts'
import { LeaseLost } from '../../src/projector/projector.ts'
import { QueueProjection } from '../../src/projector/queue-projection.ts'
import { noRemovals } from '../conformance/support.ts'
import { holdUp } from '../support/hold-up.ts'

const GENERATION = 'test'
/**
 * Until a node notices that Redis is back, and some for a busy machine; less than a lease lasts.
 */
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
    // The one in flight while Redis freezes is the first lease ever of this process, and then it is
    // not.
    for (const to of ['agent one', 'agent two']) {
      await vi.waitFor(() => send(1, to), BACK)
      await server.freeze()
      await expect(queue.lease(to, 10)).rejects.toThrow(QueueUnavailable)
      await sleep(FROZEN_MS)
      await server.thaw()
      await vi.waitFor(() => send(2, to), BACK)
      // It has answered what it was asked before: had that leased something, it would be on its way
      // back now.
      const called = scripts.mock.calls.filter(([, [key]]) => key === queueKey(GENERATION, to))
      expect(called.map(([{ name }]) => name).filter((name) => name !== 'add_messages')).toEqual([
        'lease',
      ])
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

it('a lease that has run out is not given back: its messages may be in other hands', {
  timeout: TEST_MS,
}, async () => {
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
    const script = loadScript(
      'release_messages',
      new URL('../../src/messaging/lua/release.lua', import.meta.url),
      1,
    )
    const release = (until: number) =>
      vi.waitFor(
        () => redis.script(script, [queueKey(GENERATION, to)], [until, LEASE_MS, '0-1']),
        BACK,
      )
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
      changeQueues(redis, GENERATION, [{ recipient: to, added: [[seq, '']], removed: [] }], {
        positionKey,
      })
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

/** Queues of some generations, as many agents have one in each. */
function generationsOn(redis: RedisClient, count: number) {
  const agents = Array.from({ length: count }, (_, index) => `agent ${index}`)
  const messages = (to: readonly string[]) =>
    to.map((recipient) => ({ recipient, added: [[1, ''] as [number, string]], removed: [] }))
  return {
    agents,
    fill: (generation: string) =>
      vi.waitFor(() => changeQueues(redis, generation, messages(agents)), BACK),
    left: async (generation: string) =>
      (
        await Promise.all(agents.map((to) => redis.connection.exists(queueKey(generation, to))))
      ).filter(Boolean).length,
    position: (fields: Record<string, string>) =>
      redis.connection.hset(POSITION_KEY, {
        incarnation: redis.incarnation ?? '',
        position: '1',
        ...fields,
      }),
  }
}

/**
 * Removes old generations until there is nothing left to look at; `beforeEach` runs before each
 * step. Where Redis is late, from the beginning.
 */
async function sweep(redis: RedisClient, beforeEach = async () => {}): Promise<number> {
  let removed = 0
  await vi.waitFor(async () => {
    const steps = removeOldGenerations(redis)
    for (;;) {
      await beforeEach()
      const { value, done } = await steps.next()
      if (done) return
      removed += value
    }
  }, BACK)
  return removed
}

it('queues of generations that were given up are removed by a process that leads nothing; of the current one and the next, none', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const { agents, fill, left, position } = generationsOn(redis, 3_000)
    for (const generation of ['earlier', 'abandoned', 'next', GENERATION]) await fill(generation)
    // Nobody knows which are needed.
    expect(await sweep(redis)).toBe(0)
    await position({ generation: GENERATION, building: 'next' })
    expect(await sweep(redis)).toBe(2 * agents.length)
    for (const [generation, kept] of [
      ['earlier', 0],
      ['abandoned', 0],
      ['next', agents.length],
      [GENERATION, agents.length],
    ] as const)
      expect(await left(generation), generation).toBe(kept)
    expect(await sweep(redis)).toBe(0)
  } finally {
    await redis.close()
  }
})

it('the position moves past what is for others, by the leader and from where it is', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    await redis.connection.hset(POSITION_KEY, {
      generation: GENERATION,
      incarnation: redis.incarnation ?? '',
      position: '1',
    })
    // There is nothing to ask the database for.
    const [first, next] = [1, 2].map(
      () => new QueueProjection(redis, {} as Database, { maxQueue: 10 }),
    ) as [QueueProjection, QueueProjection]
    const signal = new AbortController().signal
    expect(await first.acquire('first', 60_000, signal)).toBe(1)
    await first.pass('first', 1, 3)
    await expect(first.pass('first', 1, 4)).rejects.toThrow('the queues are not at 1 any more')
    await first.release('first')
    expect(await next.acquire('next', 60_000, signal)).toBe(3)
    await expect(first.pass('first', 3, 4)).rejects.toBeInstanceOf(LeaseLost)
  } finally {
    await redis.close()
  }
})

it('a sweep while generations are built, made current and given up never removes a key that is needed', {
  timeout: TEST_MS,
}, async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const { agents, fill, left, position } = generationsOn(redis, 1_500)
    const advance = loadScript(
      'advance',
      new URL('../../src/projector/lua/advance.lua', import.meta.url),
      2,
    )
    const build = loadScript(
      'build_generation',
      new URL('../../src/projector/lua/build.lua', import.meta.url),
      2,
    )
    // Answered however late.
    const run = (script: Script, ...args: (string | number)[]) =>
      callScript(redis.connection, script, ['{queues}:lease', POSITION_KEY], ['leader', ...args])
    await fill('0')
    await position({ generation: '0' })
    await redis.connection.set('{queues}:lease', 'leader')
    let isOver = false
    const sweeping = (async () => {
      while (!isOver) await sweep(redis)
    })()
    for (let generation = 1; generation <= 12; generation++) {
      expect(await run(build, generation, 600_000)).toBe(1)
      await fill(String(generation))
      expect(await left(String(generation))).toBe(agents.length)
      // Every third one is given up half way: its leader has died.
      if (generation % 3 === 0) continue
      expect(await run(advance, generation, 'i', '', 1, 600_000)).toBe(1)
      expect(await left(String(generation))).toBe(agents.length)
    }
    isOver = true
    await sweeping
    await sweep(redis)
    expect(await left('11')).toBe(agents.length)
    expect(await left('12')).toBe(agents.length)
    for (let generation = 0; generation <= 10; generation++)
      expect(await left(String(generation))).toBe(0)
  } finally {
    await redis.close()
  }
})

it('what was found before a generation was begun does not end it: the position is asked after each look', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const { agents, fill, left, position } = generationsOn(redis, 3_000)
    await fill(GENERATION)
    await position({ generation: GENERATION })
    let steps = 0
    await sweep(redis, async () => {
      if (steps++ !== 1) return
      await position({ building: 'next' })
      await fill('next')
    })
    expect(steps).toBeGreaterThan(2)
    expect(await left('next')).toBe(agents.length)
  } finally {
    await redis.close()
  }
})

it('a leader that was away while another began to build makes nothing current: its queues may have been removed', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  try {
    const { position } = generationsOn(redis, 0)
    /**
     * A database that waits for `goOn` before it gives the page that a rebuild asks for, which is
     * empty.
     */
    const databaseWith = (goOn: Promise<void>): Database => {
      const query: unknown = new Proxy(
        {},
        {
          get: (_, name) => {
            if (name === 'executeTakeFirstOrThrow') return async () => ({ applied_seq: 7 })
            if (name === 'execute') return async () => goOn.then(() => [])
            return () => query
          },
        },
      )
      return query as Database
    }
    const building = async () => redis.connection.hget(POSITION_KEY, 'building')
    const signal = new AbortController().signal
    await position({ generation: GENERATION, incarnation: 'another' })
    const first = Promise.withResolvers<void>()
    const away = new QueueProjection(redis, databaseWith(first.promise), { maxQueue: 10 })
    const acquiring = away.acquire('first', 60_000, signal)
    acquiring.catch(() => {})
    const begun = await vi.waitFor(async () => {
      const generation = await building()
      expect(generation).toBeTruthy()
      return generation
    }, BACK)
    // Frozen for longer than its lease. Another leads, and finds what it has begun: even what was
    // complete is built anew.
    await redis.connection.del('{queues}:lease')
    await position({ incarnation: redis.incarnation ?? '' })
    const second = Promise.withResolvers<void>()
    const next = new QueueProjection(redis, databaseWith(second.promise), { maxQueue: 10 })
    const taking = next.acquire('second', 60_000, signal)
    await vi.waitFor(async () => expect(await building()).not.toBe(begun), BACK)
    // By chance it has the lease again.
    await redis.connection.set('{queues}:lease', 'first')
    first.resolve()
    await expect(acquiring).rejects.toThrow(LeaseLost)
    expect(await redis.connection.hget(POSITION_KEY, 'generation')).toBe(GENERATION)
    await redis.connection.set('{queues}:lease', 'second')
    second.resolve()
    expect(await taking).toBe(7)
    expect(await redis.connection.hget(POSITION_KEY, 'generation')).not.toBe(GENERATION)
    expect(await building()).toBeNull()
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
    noRemovals,
    () => {
      const { incarnation } = redis
      return incarnation === undefined ? undefined : { generation: GENERATION, incarnation }
    },
    { maxContentBytes: 65_536 },
  )
  const send = async (seq: number, to: string) => {
    const payload = toPayload({
      seq,
      message_id: `id ${seq}`,
      from: 'a',
      to,
      content: `${seq}`,
      timestamp: 'now',
    })
    await changeQueues(redis, GENERATION, [{ recipient: to, added: [[seq, payload]], removed: [] }])
  }
  /**
   * Leases until what was sent first comes first: what a late answer has leased is given back a
   * moment later.
   */
  const expectInOrder = (to: string) =>
    vi.waitFor(async () => {
      const lease = await queue.lease(to, 10)
      const contents = lease.messages.map(({ content }) => content)
      if (contents[0] !== '1') await lease.release()
      expect(contents).toEqual(['1', '2'])
    }, BACK)
  return { queue, send, expectInOrder }
}

it('what is redacted is gone from Redis, and nothing else of the queue has changed', async () => {
  await using server = await startRedis()
  const redis = await open(server.url)
  // The kernel's user may not look at everything.
  const admin = new Redis(server.adminUrl)
  try {
    const { queue, send } = queueOn(redis)
    const to = 'agent'
    const key = queueKey(GENERATION, to)
    const ids = Array.from({ length: 2_500 }, (_, index) => index + 1)
    const added = ids.map((seq): [number, string] => {
      const message = {
        seq,
        message_id: `id ${seq}`,
        from: 'a',
        to,
        content: `content ${seq}`,
        timestamp: 'now',
      }
      return [seq, toPayload(message)]
    })
    await changeQueues(redis, GENERATION, [{ recipient: to, added, removed: [] }])
    // Leased, by one and another, some given back, some delivered, the last and one in the middle
    // gone.
    const leases = [
      await queue.lease(to, 1_100),
      await queue.lease(to, 5),
      await queue.lease(to, 3),
    ]
    await leases[1]?.release()
    await queue.remove(to, leases[2]?.messages ?? [])
    await changeQueues(redis, GENERATION, [{ recipient: to, added: [], removed: [1_500, 2_500] }])
    // Idle for a known time, long ago enough that a slow machine's is another.
    await admin.xclaim(
      key,
      'agents',
      'responses',
      0,
      '0-7',
      'IDLE',
      20_000,
      'RETRYCOUNT',
      4,
      'JUSTID',
    )
    const look = async () => ({
      entries: await admin.xrange(key, '-', '+'),
      pending: (await admin.xpending(key, 'agents', '-', '+', 10_000)) as [
        string,
        string,
        number,
        number,
      ][],
      groups: await admin.xinfo('GROUPS', key),
      stream: ((await admin.xinfo('STREAM', key)) as unknown[]).filter((_, index, all) =>
        ['last-generated-id', 'entries-added', 'max-deleted-entry-id'].includes(
          String(all[index - 1]),
        ),
      ),
      ttl: await admin.pttl(key),
    })
    const before = await look()
    const redacted = [7, 1_103, 1_107, 2_000]
    await redactQueued(redis, GENERATION, to, [...redacted, 1_500, 9_999])
    const after = await look()
    const gone = new Set(redacted.map((seq) => `${messageOf(seq)}-${indexOf(seq)}`))
    expect(after.entries).toEqual(
      before.entries.map(([id, fields]) => [id, gone.has(id) ? ['m', PAYLOADS.redacted] : fields]),
    )
    expect(after.groups).toEqual(before.groups)
    expect(after.stream).toEqual(before.stream)
    expect(after.ttl).toBe(before.ttl)
    const bare = ({ pending }: typeof before) =>
      pending.map(([id, consumer, , times]) => ({ id, consumer, times }))
    expect(bare(after)).toEqual(bare(before))
    for (const [index, [id, , idle]] of after.pending.entries()) {
      expect(idle, id).toBeGreaterThanOrEqual(before.pending[index]?.[2] ?? 0)
      expect(idle, id).toBeLessThan((before.pending[index]?.[2] ?? 0) + 15_000)
    }
    // Neither is there another key left.
    expect((await admin.keys('*')).filter((name) => name.includes('redacted'))).toEqual([])
    // A second time nothing is written anew, and what came before is refused as ever.
    await redactQueued(redis, GENERATION, to, redacted)
    await send(2_500, to)
    expect((await look()).entries).toEqual(after.entries)
  } finally {
    admin.disconnect()
    await redis.close()
  }
})
