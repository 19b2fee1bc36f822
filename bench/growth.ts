/**
 * What pages and receiving cost as the kernel fills: the same requests at each size, on a cluster
 * with one api node. Agents, keys and queued messages go straight into Postgres and Redis, as
 * registering a million agents would take hours of bcrypt.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client, percentEncode } from '../lab/client.ts'
import { startCluster } from '../lab/cluster.ts'
import { changeQueues, type QueueChange } from '../src/messaging/redis-message-queue.ts'
import { CursorSeal } from '../src/platform/cursor.ts'
import { type Database, openPostgres } from '../src/platform/database.ts'
import { createLogger } from '../src/platform/logger.ts'
import { PostgresSigningKeys } from '../src/platform/postgres-signing-keys.ts'
import { RedisClient } from '../src/platform/redis.ts'
import { cpuTimes, median, type Pids, serverPids } from './load.ts'

/** Far above the places that the log gives out meanwhile. */
const FIRST_PLACE = 1_000_000_000
const BATCH = 5_000
/** A short message as the queue keeps it. */
const PAYLOAD = JSON.stringify([
  '3f6c1e9e-7d7b-4d0c-9d42-5a4a0f5f3b11',
  '',
  '',
  'x'.repeat(100),
  '',
])
const PAGE = 50
/** Rounds of measuring; the median counts. */
const ROUNDS = 8
const PAUSE_MS = 200
/**
 * Of a round: first some that count for nothing, as they are slower after another cluster was
 * asked. Few, as receiving takes messages out.
 */
const WARM_UP_REQUESTS = 40
const REQUESTS = 80
const SETTLE_MS = 5_000
/** Filling goes on for longer than a request may. */
const FILL_TIMEOUT: Readonly<Record<string, string>> = { statement_timeout: '0', lock_timeout: '0' }

/** A cluster that has been filled, and the requests whose cost is compared. */
interface Filled extends AsyncDisposable {
  readonly size: string
  readonly url: string
  readonly token: string
  readonly paths: Readonly<Record<string, string>>
  readonly pids: Pids
}

/**
 * Median of each request in ms, and its CPU time in all processes, by size. The sizes take turns,
 * so that all meet the same moods of the machine.
 */
export async function benchGrowth(
  sizes: readonly number[],
  settings: Readonly<Record<string, string>>,
): Promise<Record<string, Record<string, number>>> {
  await using stack = new AsyncDisposableStack()
  const clusters: Filled[] = []
  for (const size of sizes) clusters.push(stack.use(await startFilled(size, settings)))
  await sleep(SETTLE_MS)
  const forth = [...clusters.entries()]
  const back = forth.toReversed()
  const names = Object.keys(clusters[0]?.paths ?? {})
  const figures: Record<string, Record<string, number>> = {}
  for (const name of names) {
    const medians = clusters.map((): number[] => [])
    const cpu = clusters.map(() => 0)
    for (let round = 0; round < ROUNDS; round++) {
      // Back and forth, and with a pause for what the one before still does after its answers.
      for (const [index, { url, token, paths, pids }] of round % 2 === 0 ? forth : back) {
        await sleep(PAUSE_MS)
        const client = new Client(url)
        const path = paths[name] ?? ''
        await times(client, path, token, WARM_UP_REQUESTS)
        const before = total(cpuTimes(pids))
        medians[index]?.push(median(await times(client, path, token, REQUESTS)))
        cpu[index] = (cpu[index] ?? 0) + total(cpuTimes(pids)) - before
      }
    }
    const row = (title: string, values: readonly number[]) => {
      figures[title] = {
        ...Object.fromEntries(clusters.map(({ size }, index) => [size, round(values[index] ?? 0)])),
        'last to first': round((values.at(-1) ?? 0) / (values[0] ?? 1)),
      }
    }
    row(name, medians.map(median))
    row(
      `${name}: CPU`,
      cpu.map((ms) => ms / (ROUNDS * REQUESTS)),
    )
  }
  return figures
}

async function startFilled(
  size: number,
  settings: Readonly<Record<string, string>>,
): Promise<Filled> {
  await using stack = new AsyncDisposableStack()
  const cluster = stack.use(await startCluster({ nodes: 1, workers: 1, settings }))
  const [node] = cluster.nodes
  const [agent] = await new Client(cluster.baseUrl).registerAgents(1)
  if (!node || !agent) throw new Error('a node and an agent were asked for')
  const database = openPostgres({
    url: cluster.postgres.superuserUrl,
    poolMode: 'session',
    maxConnections: 1,
  })
  const redis = await RedisClient.open(
    cluster.redis.adminUrl,
    'single',
    createLogger('silent', 'bench'),
  )
  try {
    for (const [name, value] of Object.entries(FILL_TIMEOUT))
      await sql`select set_config(${name}, ${value}, false)`.execute(database)
    await fillRegistry(database, size)
    await fillState(database, size)
    await fillQueue(redis, agent.address, size)
    await settle(database, redis)
    const cursors = await CursorSeal.load(new PostgresSigningKeys(database))
    const middle = Math.floor(size / 2)
    const registryCursor = cursors.seal('registry', Buffer.from(String(FIRST_PLACE + middle)))
    const stateCursor = cursors.seal('state growth/', Buffer.from(keyOf(middle)))
    const owner = stack.move()
    return {
      size: size.toLocaleString('en'),
      url: node.url,
      token: agent.token,
      pids: {
        kernel: () => [...cluster.nodes, ...cluster.workers].map(({ pid }) => pid),
        ...serverPids(cluster),
      },
      paths: {
        'registry, first page': `/v1/registry?limit=${PAGE}`,
        'registry, from the middle': `/v1/registry?limit=${PAGE}&cursor=${percentEncode(registryCursor)}`,
        'state, first page': `/v1/state?prefix=growth/&limit=${PAGE}`,
        'state, from the middle': `/v1/state?prefix=growth/&limit=${PAGE}&cursor=${percentEncode(stateCursor)}`,
        'receive, one message': '/v1/messages?limit=1',
      },
      [Symbol.asyncDispose]: () => owner.disposeAsync(),
    }
  } finally {
    await redis.close()
    await database.destroy()
  }
}

/** Of requests one after the other, each in ms. */
async function times(
  client: Client,
  path: string,
  token: string,
  count: number,
): Promise<number[]> {
  const times: number[] = []
  for (let index = 0; index < count; index++) {
    const begin = performance.now()
    const answer = await client.request('GET', path, { token })
    times.push(performance.now() - begin)
    if (answer.status !== 200) throw new Error(`${answer}`)
  }
  return times
}

function total(values: Readonly<Record<string, number>>): number {
  return Object.values(values).reduce((sum, value) => sum + value, 0)
}

function round(value: number): number {
  return Number(value.toFixed(2))
}

function keyOf(number: number): string {
  return `growth/${String(number).padStart(8, '0')}`
}

async function fillRegistry(database: Database, size: number): Promise<void> {
  await sql`
    insert into agents (address, operator_id, token_lookup, token_hash, seq, registered_at)
    select 'tab_' || lpad(n::text, 20, '0'), gen_random_uuid(), substr(sha256(n::text::bytea), 1, 8), '',
      ${FIRST_PLACE}::bigint + n, now()
    from generate_series(1, ${size}::integer) n`.execute(database)
  await sql`update registry_totals set agents = agents + ${size}::bigint`.execute(database)
}

async function fillState(database: Database, size: number): Promise<void> {
  for (let first = 0; first < size; first += BATCH) {
    await sql`
      select project_state((
        select json_build_object('reservations', '[]'::json, 'finals', json_agg(json_build_object('key', encode(('growth/' || lpad(n::text, 8, '0'))::bytea, 'base64'),
          'value', encode(repeat('x', 100)::bytea, 'base64'), 'deleted', false,
          'seq', ${FIRST_PLACE}::bigint + n, 'by', 'bench', 'at', now())))
        from generate_series(${first}::integer + 1, ${Math.min(size, first + BATCH)}::integer) n))`.execute(
      database,
    )
  }
}

/**
 * Waits until what the filling left to do in the background is done, which would be measured with
 * the rest.
 */
async function settle(database: Database, redis: RedisClient): Promise<void> {
  await sql`vacuum analyze`.execute(database)
  await sql`checkpoint`.execute(database)
  while (
    /aof_rewrite_(in_progress|scheduled):1/.test(
      await redis.run('info', (connection) => connection.info('persistence')),
    )
  )
    await sleep(500)
}

async function fillQueue(redis: RedisClient, recipient: string, size: number): Promise<void> {
  const generation = await redis.run('generation', (connection) =>
    connection.hget('{queues}:position', 'generation'),
  )
  if (generation === null) throw new Error('there are no queues')
  for (let first = 0; first < size; first += BATCH) {
    const added: QueueChange['added'] = Array.from(
      { length: Math.min(BATCH, size - first) },
      (_, index) => [FIRST_PLACE + first + index, PAYLOAD],
    )
    await changeQueues(redis, generation, [{ recipient, added, removed: [] }])
  }
}
