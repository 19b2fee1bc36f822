/** What things take: Redis bytes a queued message, and bytes of the log an event. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { connect } from 'nats'
import { type Agent, Client } from '../lab/client.ts'
import { startCluster } from '../lab/cluster.ts'
import { natsOptions } from '../lab/servers.ts'

const MESSAGES = 1_000
const AT_ONCE = 16
const CONTENT_BYTES = { '100 B': 100, '10 KB': 10_000, '64 KB': 65_536 }
const VALUE_BYTES = 1_000
const SETTLED_MS = 1_000

/** By what it is: bytes of each, and how many were measured. */
export async function benchSizes(
  settings: Readonly<Record<string, string>>,
): Promise<Record<string, Record<string, number>>> {
  await using cluster = await startCluster({ nodes: 1, workers: 1, settings })
  const redis = new Redis(cluster.redis.adminUrl)
  const nats = await connect(natsOptions(cluster.nats.adminUrl))
  try {
    const client = new Client(cluster.baseUrl)
    const sender = await client.registerAgent()
    const manager = await nats.jetstreamManager()
    const log = async () => {
      const { messages, bytes } = (await manager.streams.info('EVENTS')).state
      return { messages, bytes }
    }
    /** Of the whole server: keys, their tables, and what is allocated and not used. */
    const redisBytes = async () =>
      Number(/^used_memory_dataset:(\d+)/m.exec(await redis.info('memory'))?.[1])
    const sizes: Record<string, Record<string, number>> = {}
    const measure = async (
      name: string,
      times: number,
      ask: (index: number) => Promise<unknown>,
    ) => {
      const before = { log: await log(), redis: await redisBytes() }
      let next = 0
      await Promise.all(
        Array.from({ length: AT_ONCE }, async () => {
          while (next < times) await ask(next++)
        }),
      )
      // Reads, which nobody waits for, are stored a moment later.
      await sleep(SETTLED_MS)
      const after = { log: await log(), redis: await redisBytes() }
      sizes[name] = {
        'events a message': Number((times / (after.log.messages - before.log.messages)).toFixed(1)),
        'log bytes an event': Math.round((after.log.bytes - before.log.bytes) / times),
        'Redis bytes each': Math.round((after.redis - before.redis) / times),
      }
    }
    for (const [name, bytes] of Object.entries(CONTENT_BYTES)) {
      const recipient: Agent = await client.registerAgent()
      const content = 'x'.repeat(bytes)
      await measure(`message of ${name}, queued`, MESSAGES, () =>
        sender.send(recipient.address, content),
      )
    }
    await measure(`write of ${VALUE_BYTES} bytes`, MESSAGES, (index) =>
      sender.write(`sizes/${index}`, 'x'.repeat(VALUE_BYTES)),
    )
    await measure('read', MESSAGES, (index) => sender.read(`sizes/${index}`))
    await measure('removal', MESSAGES, (index) => sender.remove(`sizes/${index}`))
    return sizes
  } finally {
    redis.disconnect()
    await nats.close()
  }
}
