/**
 * The floor of each endpoint: a bare Hono handler that makes only the calls to the same servers
 * that no correct program could do without, with the same payloads, one call at a time for each
 * request. No credentials, no validation, no metrics, no recovery.
 *
 * What cannot be done without: one round trip to Redis for a session and a limit that the whole
 * cluster shares; for a write, room reserved before it and settled after it; for a deletion,
 * whether the key is there; for messages, that two who ask at once get different ones; for what
 * changes something, a confirmed append to a replicated stream that remembers its id, so that what
 * has to be sent again is stored once, in a batch with what came meanwhile, and the change in the
 * store that others read; for reads that are logged, an append that nobody waits for.
 *
 * With FLOOR_IN_LOG_ORDER the handlers of messages and state do not apply what they have appended:
 * one consumer of the stream does, in the stream's order and as much at once as there is, and they
 * wait for it. Only so do log and stores agree whoever writes at the same time or dies in between.
 */
import { randomBytes, randomUUID } from 'node:crypto'
import { serve } from '@hono/node-server'
import bcrypt from 'bcryptjs'
import { Hono } from 'hono'
import { type ChainableCommander, Redis } from 'ioredis'
import { AckPolicy, connect, DeliverPolicy } from 'nats'
import postgres from 'postgres'
import { z } from 'zod'
import { natsOptions } from '../lab/servers.ts'
import { batched } from '../src/platform/batch.ts'

const {
  FLOOR_DATABASE_URL,
  FLOOR_REDIS_URL,
  FLOOR_NATS_URL,
  FLOOR_BCRYPT_COST,
  FLOOR_IN_LOG_ORDER,
} = z
  .object({
    FLOOR_DATABASE_URL: z.string(),
    FLOOR_REDIS_URL: z.string(),
    FLOOR_NATS_URL: z.string(),
    FLOOR_BCRYPT_COST: z.coerce.number(),
    FLOOR_IN_LOG_ORDER: z.literal('yes').optional(),
  })
  .parse(process.env)

/** Of everything that is this program's: two of them share the servers. */
const NAME = FLOOR_IN_LOG_ORDER ? 'ordered_floor' : 'floor'
const SESSION = `${NAME}:session`
const BUCKET = `${NAME}:bucket`
const RESERVED = `${NAME}:reserved`
/** Events that are stored or applied in one go. */
const BATCH = 500
const MAX_WAITING = 10_000
const NOTE_MS = 250
const OPERATOR = randomUUID()
/** Of those that messages are handed to: each to one. */
const GROUP = 'agents'
/** Who has a queue with that group. */
const grouped = new Set<string>()

const sql = postgres(FLOOR_DATABASE_URL, { max: 10, onnotice: () => {} })
const redis = new Redis(FLOOR_REDIS_URL)
const nats = await connect(natsOptions(FLOOR_NATS_URL))
const manager = await nats.jetstreamManager()
await manager.streams.add({ name: NAME, subjects: [`${NAME}.>`], num_replicas: 3 })
const stream = nats.jetstream()
const STATE = sql(`${NAME}_state`)
const AGENTS = sql(`${NAME}_agents`)
const CHALLENGES = sql(`${NAME}_challenges`)
await redis.set(
  SESSION,
  JSON.stringify({ address: 'tab_'.padEnd(24, '0'), digest: 'x'.repeat(64) }),
)
await sql`create table ${STATE} (key bytea primary key, value bytea not null, modified_by text, modified_at timestamptz)`
await sql`create table ${AGENTS} (address text primary key, token_hash text not null, registered_at timestamptz)`
await sql`create table ${CHALLENGES} (challenge_id uuid primary key, answer bytea, expires_at timestamptz)`

/** A session, and one request less in a bucket. */
const admit = () => redis.pipeline().get(SESSION).incrby(BUCKET, 1).exec()
const reserve = (bytes: number) => redis.incrby(RESERVED, bytes)
const eventOf = (type: string, data: object) =>
  JSON.stringify({ ts: new Date().toISOString(), type, data })
/**
 * Puts what comes while a batch is under way into the next one, a message of the stream, as anybody
 * would today.
 */
const storeBatch = batched(
  async (lines: string[]) => {
    const { seq } = await stream.publish(`${NAME}.change`, lines.join('\n'), {
      msgID: randomUUID(),
    })
    return lines.map((_, index) => seq * BATCH + index)
  },
  { maxItems: BATCH, maxWaiting: MAX_WAITING },
)
const append = async (type: string, data: object) => ({
  seq: await storeBatch(eventOf(type, data)),
})
/** What nobody waits for goes together a few times a second. */
const noted: string[] = []
setInterval(() => {
  if (noted.length > 0) nats.publish(`${NAME}.read`, noted.splice(0).join('\n'))
}, NOTE_MS)
const note = (type: string, data: object) => void noted.push(eventOf(type, data))
const keyOf = (path: string) => decodeURIComponent(path.slice('/v1/state/'.length))
const queueOf = (recipient: string) => `${NAME}:queue:${recipient}`
const takeOut = (pipeline: ChainableCommander, recipient: string, entry: string) =>
  pipeline.xack(queueOf(recipient), GROUP, entry).xdel(queueOf(recipient), entry)
async function ensureQueue(recipient: string): Promise<void> {
  if (grouped.has(recipient)) return
  grouped.add(recipient)
  await redis.xgroup('CREATE', queueOf(recipient), GROUP, '0', 'MKSTREAM')
}
/** Sends who asks without a token's check: the bench names the agent in a header. */
const AGENT = 'X-Agent'

/**
 * What changes messages or state, as this program has appended it; of the fields each type has
 * some.
 */
interface Change {
  readonly type: string
  readonly ts: string
  readonly data: Readonly<Record<'key' | 'value' | 'written_by' | 'to' | 'entry', string>>
}

/** Applies changes that follow each other: in each store in one go, the last one of each key. */
async function apply(changes: readonly Change[]): Promise<void> {
  const queues = redis.pipeline()
  const finals = new Map<string, Change>()
  for (const change of changes) {
    const { type, data } = change
    if (type === 'message_sent') queues.xadd(queueOf(data.to), '*', 'message', JSON.stringify(data))
    else if (type === 'message_delivered') takeOut(queues, data.to, data.entry)
    else finals.set(data.key, change)
  }
  const written = [...finals.values()].filter(({ type }) => type === 'state_written')
  const deleted = [...finals.values()].filter(({ type }) => type === 'state_deleted')
  await Promise.all([
    queues.length > 0 && queues.exec(),
    written.length > 0 &&
      sql`
        insert into ${STATE} ${sql(written.map(({ ts, data }) => ({ key: Buffer.from(data.key), value: Buffer.from(data.value), modified_by: data.written_by, modified_at: ts })))}
        on conflict (key) do update set value = excluded.value, modified_by = excluded.modified_by, modified_at = excluded.modified_at`,
    deleted.length > 0 &&
      sql`delete from ${STATE} where key in ${sql(deleted.map(({ data }) => Buffer.from(data.key)))}`,
  ])
}

const arrived: { seq: number; change: Change }[] = []
const waiting = new Map<number, () => void>()
let applied = 0
let applying = false

async function applyArrived(): Promise<void> {
  if (applying) return
  applying = true
  while (arrived.length > 0) {
    const batch = arrived.splice(0, BATCH)
    await apply(batch.map(({ change }) => change))
    for (const { seq } of batch) {
      applied = seq
      waiting.get(seq)?.()
      waiting.delete(seq)
    }
  }
  applying = false
}

/** Appends a change, and resolves when it is applied: by `now`, or in its turn. */
async function change(type: string, data: object, now: () => Promise<unknown>): Promise<void> {
  const { seq } = await append(type, data)
  if (!FLOOR_IN_LOG_ORDER) await now()
  else if (seq > applied) await new Promise<void>((resolve) => waiting.set(seq, resolve))
}

if (FLOOR_IN_LOG_ORDER) {
  await manager.consumers.add(NAME, {
    name: NAME,
    ack_policy: AckPolicy.None,
    deliver_policy: DeliverPolicy.All,
    filter_subject: `${NAME}.change`,
    mem_storage: true,
    num_replicas: 1,
  })
  const consumer = await stream.consumers.get(NAME, NAME)
  await consumer.consume({
    max_messages: 1_000,
    callback: (message) => {
      for (const [index, line] of message.string().split('\n').entries())
        arrived.push({ seq: message.seq * BATCH + index, change: JSON.parse(line) as Change })
      void applyArrived()
    },
  })
}

const app = new Hono()
app.get('/v1/health', (context) => context.json({ status: 'ok', version: '0.1.0' }))
app.get('/v1/agents/me', async (context) => {
  await admit()
  const [agent] =
    await sql`select address, registered_at from agents where address = ${context.req.header(AGENT) ?? ''}`
  return context.json(agent ?? {})
})
app.get('/v1/registry', async (context) => {
  await admit()
  const rows = await sql`
    select address, registered_at, (select agents from registry_totals) as total
    from agents where seq > 0 order by seq limit ${Number(context.req.query('limit'))}`
  note('registry_read', { read_by: context.req.header(AGENT) })
  return context.json({
    agents: rows.map(({ address, registered_at }) => ({ address, registered_at })),
    total: rows[0]?.total,
  })
})
app.get('/v1/state', async (context) => {
  await admit()
  const prefix = Buffer.from(context.req.query('prefix') ?? '')
  const end = Buffer.concat([prefix, Buffer.of(255)])
  const rows = await sql`
    select key, (select count(*) from state where key >= ${prefix} and key < ${end})::int as total
    from state where key >= ${prefix} and key < ${end} order by key limit ${Number(context.req.query('limit'))}`
  return context.json({
    keys: rows.map(({ key }) => key.toString()),
    next_cursor: rows.at(-1)?.key.toString('hex'),
    total: rows[0]?.total,
  })
})
app.get('/v1/state/_capacity', async (context) => {
  await admit()
  const [usage] = await sql`select used_bytes::int, key_count::int from state_usage`
  return context.json(usage ?? {})
})
app.get('/v1/state/*', async (context) => {
  await admit()
  const key = keyOf(context.req.path)
  const [row] =
    await sql`select value, modified_by, modified_at from state where key = ${Buffer.from(key)}`
  note('state_read', { key, read_by: context.req.header(AGENT), found: row !== undefined })
  return context.json({
    key,
    value: row?.value.toString(),
    last_modified_by: row?.modified_by,
    last_modified_at: row?.modified_at,
  })
})
app.put('/v1/state/*', async (context) => {
  await admit()
  const key = keyOf(context.req.path)
  const { value } = await context.req.json()
  const by = context.req.header(AGENT) ?? ''
  await reserve(value.length)
  const at = new Date()
  await change(
    'state_written',
    { key, value, written_by: by },
    () => sql`
      insert into ${STATE} values (${Buffer.from(key)}, ${Buffer.from(value)}, ${by}, ${at})
      on conflict (key) do update set value = excluded.value, modified_by = excluded.modified_by, modified_at = excluded.modified_at`,
  )
  void reserve(-value.length)
  return context.json({ key, written_by: by, written_at: at })
})
app.delete('/v1/state/*', async (context) => {
  await admit()
  const key = keyOf(context.req.path)
  // What is not there must not be in the log as deleted.
  const [row] = await sql`select 1 from ${STATE} where key = ${Buffer.from(key)}`
  if (row === undefined) return context.json({ error: 'not_found' }, 404)
  await change(
    'state_deleted',
    { key, deleted_by: context.req.header(AGENT) },
    () => sql`delete from ${STATE} where key = ${Buffer.from(key)}`,
  )
  return context.json({ key, deleted_by: context.req.header(AGENT), deleted_at: new Date() })
})
app.post('/v1/messages', async (context) => {
  await admit()
  const { to, content } = await context.req.json()
  const message = {
    message_id: randomUUID(),
    from: context.req.header(AGENT),
    to,
    timestamp: new Date(),
  }
  await ensureQueue(to)
  await change('message_sent', { ...message, content }, () =>
    redis.xadd(queueOf(to), '*', 'message', JSON.stringify({ ...message, content })),
  )
  return context.json(message, 202)
})
app.get('/v1/messages', async (context) => {
  await admit()
  const recipient = context.req.header(AGENT) ?? ''
  await ensureQueue(recipient)
  const [remaining, read] = await Promise.all([
    redis.xlen(queueOf(recipient)),
    redis.xreadgroup(
      'GROUP',
      GROUP,
      'floor',
      'COUNT',
      Number(context.req.query('limit')),
      'STREAMS',
      queueOf(recipient),
      '>',
    ) as Promise<[string, [string, string[]][]][] | null>,
  ])
  const entries = read?.[0]?.[1] ?? []
  const messages = entries.map(([, [, text = '{}']]) => JSON.parse(text))
  for (const [index, [entry]] of entries.entries()) {
    const delivery = {
      message_id: messages[index].message_id,
      to: recipient,
      delivery_method: 'pull',
    }
    void change('message_delivered', FLOOR_IN_LOG_ORDER ? { ...delivery, entry } : delivery, () =>
      takeOut(redis.pipeline(), recipient, entry).exec(),
    )
  }
  return context.json({ messages, remaining })
})
app.get('/v1/agents/verification-challenge', async (context) => {
  await admit()
  const challenge = {
    challenge_id: randomUUID(),
    challenge_type: 'pipeline',
    challenge_data: { seed: randomBytes(16).toString('hex') },
  }
  const expires = new Date(Date.now() + 300_000)
  await sql`insert into ${CHALLENGES} values (${challenge.challenge_id}, ${randomBytes(32)}, ${expires})`
  return context.json({ ...challenge, expires_at: expires })
})
app.post('/v1/agents', async (context) => {
  await admit()
  const { verification_response } = await context.req.json()
  await sql`delete from ${CHALLENGES} where challenge_id = ${verification_response.challenge_id}`
  const address = `tab_${randomBytes(10).toString('hex')}`
  const token = `at_live_${randomBytes(32).toString('hex')}`
  const hash = await bcrypt.hash(token, FLOOR_BCRYPT_COST)
  await append('agent_registered', { address, operator_id: OPERATOR, has_webhook: false })
  await sql`insert into ${AGENTS} values (${address}, ${hash}, now())`
  return context.json({ agent_address: address, agent_token: token }, 201)
})
app.post('/v1/operators', async (context) => {
  await admit()
  const { contact_hash } = await context.req.json()
  const token = `sk_live_${randomBytes(32).toString('hex')}`
  const hash = await bcrypt.hash(token, FLOOR_BCRYPT_COST)
  const operator_id = randomUUID()
  await append('operator_created', { operator_id, contact_hash, accepted_terms: true })
  await sql`insert into ${AGENTS} values (${operator_id}, ${hash}, now())`
  return context.json({ operator_id, api_key: token }, 201)
})
app.onError((error) => {
  console.error(error)
  return new Response(String(error), { status: 500 })
})
serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }, ({ port }) => console.log(port))
