/** What a queue in Redis does that no other storage has to. */
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it, vi } from 'vitest'
import type { EventLog } from '../../src/events/event-log.ts'
import { LEASE_MS, QueueUnavailable } from '../../src/messaging/message-queue.ts'
import { changeQueues, queueKey, RedisMessageQueue, toPayload } from '../../src/messaging/redis-message-queue.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { COMMAND_TIMEOUT_MS, loadScript, RedisClient } from '../../src/platform/redis.ts'
import { startRedis } from '../support/servers.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const GENERATION = 'test'
/** Until a node notices that Redis is back, and some for a busy machine; far less than a lease lasts. */
const BACK_MS = 5_000
const FROZEN_MS = 1_500

it('a server that was frozen gives no lease that nobody waits for any more: what was sent first is received first', {
  timeout: 60_000,
}, async () => {
  await using server = await startRedis()
  const redis = await RedisClient.open(server.url, 'single', createLogger('silent', 'test'))
  try {
    const { queue, send } = queueOn(redis)
    // The one in flight while Redis freezes is the first lease ever of this process, and then it is not.
    for (const to of ['agent one', 'agent two']) {
      await send(1, to)
      await server.freeze()
      await expect(queue.lease(to, 10)).rejects.toThrow(QueueUnavailable)
      await sleep(FROZEN_MS)
      await server.thaw()
      await vi.waitFor(() => send(2, to), { timeout: BACK_MS, interval: 50 })
      const { messages } = await vi.waitFor(() => queue.lease(to, 10), { timeout: BACK_MS, interval: 50 })
      expect(messages.map(({ content }) => content)).toEqual(['1', '2'])
    }
  } finally {
    await redis.close()
  }
})

it('what an answer that came too late has leased is given back: what was sent first is received first', {
  timeout: 60_000,
}, async () => {
  await using server = await startRedis()
  await using proxy = await startTcpProxy(Number(new URL(server.url).port))
  const url = Object.assign(new URL(server.url), { port: proxy.port })
  const redis = await RedisClient.open(url.href, 'single', createLogger('silent', 'test'))
  try {
    const { queue, send } = queueOn(redis)
    const to = 'agent'
    await queue.lease(to, 1)
    await send(1, to)
    // The request is there in time; nobody waits for the answer any more.
    proxy.delay(0.6 * COMMAND_TIMEOUT_MS)
    await expect(queue.lease(to, 10)).rejects.toThrow(QueueUnavailable)
    proxy.heal()
    await vi.waitFor(() => send(2, to), { timeout: BACK_MS, interval: 50 })
    await vi.waitFor(
      async () => {
        const lease = await queue.lease(to, 10)
        const contents = lease.messages.map(({ content }) => content)
        if (contents[0] !== '1') await lease.release()
        expect(contents).toEqual(['1', '2'])
      },
      { timeout: BACK_MS, interval: 50 },
    )
  } finally {
    await redis.close()
  }
})

it('a lease that has run out is not given back: its messages may be in other hands', async () => {
  await using server = await startRedis()
  const redis = await RedisClient.open(server.url, 'single', createLogger('silent', 'test'))
  try {
    const { queue, send } = queueOn(redis)
    const to = 'agent'
    await send(1, to)
    await queue.lease(to, 1)
    const script = loadScript('release_messages', new URL('../../src/messaging/lua/release.lua', import.meta.url), 1)
    const release = async (until: number) => {
      await redis.script(script, [queueKey(GENERATION, to)], [until, LEASE_MS, '1-0'])
      return (await queue.lease(to, 1)).messages.length
    }
    const [seconds] = await redis.connection.time()
    const now = Number(seconds) * 1_000
    expect(await release(now)).toBe(0)
    expect(await release(now + LEASE_MS)).toBe(1)
  } finally {
    await redis.close()
  }
})

function queueOn(redis: RedisClient) {
  // Short messages are in Redis whole.
  const noLog = { get: async () => [] } as unknown as EventLog
  const queue = new RedisMessageQueue(redis, noLog, () => {
    const { incarnation } = redis
    return incarnation === undefined ? undefined : { generation: GENERATION, incarnation }
  })
  const send = async (seq: number, to: string) => {
    const payload = toPayload({ seq, message_id: `id ${seq}`, from: 'a', to, content: `${seq}`, timestamp: 'now' })
    await changeQueues(redis, GENERATION, [{ recipient: to, added: [[seq, payload]], removed: [] }], 100)
  }
  return { queue, send }
}
