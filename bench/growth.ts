/**
 * What pages and receiving cost as the kernel fills: the same requests at each size, on a cluster with one api node. Agents, keys and queued
 * messages go straight into Postgres and Redis, as registering a million agents would take hours of bcrypt.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { changeQueues, type QueueChange } from '../src/messaging/redis-message-queue.ts'
import { CursorSeal } from '../src/platform/cursor.ts'
import { type Database, openPostgres } from '../src/platform/database.ts'
import { createLogger } from '../src/platform/logger.ts'
import { RedisClient } from '../src/platform/redis.ts'
import { Client, percentEncode } from '../test/support/client.ts'
import { startCluster } from '../test/support/cluster.ts'
import { load } from './load.ts'

/** Far above the places that the log gives out meanwhile. */
const FIRST_PLACE = 1_000_000_000
const BATCH = 5_000
/** A short message as the queue keeps it. */
const PAYLOAD = JSON.stringify(['3f6c1e9e-7d7b-4d0c-9d42-5a4a0f5f3b11', '', '', 'x'.repeat(100), ''])
const PAGE = 50
const SETTLE_MS = 3_000
/** Filling goes on for longer than a request may. */
const FILL_TIMEOUT = { statement_timeout: '0', lock_timeout: '0' }

/** p50 in ms of each request, by size. */
export async function benchGrowth(
  sizes: readonly number[],
  seconds: number,
  settings: Readonly<Record<string, string>>,
): Promise<Record<string, Record<string, number>>> {
  await using cluster = await startCluster({ nodes: 1, workers: 1, settings })
  const [node] = cluster.nodes
  if (!node) throw new Error('the cluster has no node')
  const [agent] = await new Client(node.url).registerAgents(1)
  if (!agent) throw new Error('an agent was asked for')
  const database = openPostgres({ url: cluster.postgres.superuserUrl, poolMode: 'session', maxConnections: 1 })
  const redis = await RedisClient.open(cluster.redis.url, 'single', createLogger('silent', 'bench'))
  const figures: Record<string, Record<string, number>> = {}
  try {
    for (const [name, value] of Object.entries(FILL_TIMEOUT))
      await sql`select set_config(${name}, ${value}, false)`.execute(database)
    const cursors = await CursorSeal.load(database)
    let filled = 0
    for (const size of sizes) {
      await fillRegistry(database, filled, size)
      await fillState(database, filled, size)
      await fillQueue(redis, agent.address, filled, size)
      await settle(database, redis)
      filled = size
      const middle = Math.floor(size / 2)
      const registryCursor = cursors.seal('registry', Buffer.from(String(FIRST_PLACE + middle)))
      const stateCursor = cursors.seal('state growth/', Buffer.from(keyOf(middle)))
      const requests: Record<string, string> = {
        'registry, first page': `/v1/registry?limit=${PAGE}`,
        'registry, from the middle': `/v1/registry?limit=${PAGE}&cursor=${percentEncode(registryCursor)}`,
        'state, first page': `/v1/state?prefix=growth/&limit=${PAGE}`,
        'state, from the middle': `/v1/state?prefix=growth/&limit=${PAGE}&cursor=${percentEncode(stateCursor)}`,
        'receive, one message': '/v1/messages?limit=1',
      }
      for (const [name, path] of Object.entries(requests)) {
        const { p50Ms, failed } = await load(
          node.url,
          seconds,
          () => ({ method: 'GET', path, token: agent.token }),
          {},
          1,
        )
        if (failed > 0) throw new Error(`${failed} requests failed: ${name}`)
        const row = figures[name] ?? {}
        figures[name] = row
        row[size.toLocaleString('en')] = p50Ms
      }
    }
  } finally {
    await redis.close()
    await database.destroy()
  }
  const [least, most] = [sizes[0], sizes.at(-1)].map((size) => size?.toLocaleString('en') ?? '')
  for (const row of Object.values(figures)) row.ratio = (row[most ?? ''] ?? 0) / (row[least ?? ''] ?? 1)
  return figures
}

function keyOf(number: number): string {
  return `growth/${String(number).padStart(8, '0')}`
}

async function fillRegistry(database: Database, from: number, to: number): Promise<void> {
  await sql`
    insert into agents (address, operator_id, token_lookup, token_hash, seq, registered_at)
    select 'tab_' || lpad(n::text, 20, '0'), gen_random_uuid(), substr(sha256(n::text::bytea), 1, 8), '',
      ${FIRST_PLACE}::bigint + n, now()
    from generate_series(${from}::integer + 1, ${to}::integer) n`.execute(database)
  await sql`update registry_totals set agents = agents + ${to - from}::bigint`.execute(database)
}

async function fillState(database: Database, from: number, to: number): Promise<void> {
  for (let first = from; first < to; first += BATCH) {
    await sql`
      select project_state((
        select json_agg(json_build_object('key', encode(('growth/' || lpad(n::text, 8, '0'))::bytea, 'base64'),
          'value', encode(repeat('x', 100)::bytea, 'base64'), 'seq', ${FIRST_PLACE}::bigint + n, 'by', 'bench', 'at', now()))
        from generate_series(${first}::integer + 1, ${Math.min(to, first + BATCH)}::integer) n), '[]')`.execute(
      database,
    )
  }
}

/** Waits until what the filling left to do in the background is done, which would be measured with the rest. */
async function settle(database: Database, redis: RedisClient): Promise<void> {
  await sql`vacuum analyze`.execute(database)
  await sql`checkpoint`.execute(database)
  while (
    /aof_rewrite_(in_progress|scheduled):1/.test(
      await redis.run('info', (connection) => connection.info('persistence')),
    )
  )
    await sleep(500)
  await sleep(SETTLE_MS)
}

async function fillQueue(redis: RedisClient, recipient: string, from: number, to: number): Promise<void> {
  const generation = await redis.run('generation', (connection) => connection.hget('{queues}:position', 'generation'))
  if (generation === null) throw new Error('there are no queues')
  for (let first = from; first < to; first += BATCH) {
    const added: QueueChange['added'] = Array.from({ length: Math.min(BATCH, to - first) }, (_, index) => [
      FIRST_PLACE + first + index,
      PAYLOAD,
    ])
    await changeQueues(redis, generation, [{ recipient, added, removed: [] }], Number.MAX_SAFE_INTEGER)
  }
}
