/**
 * The floor of each endpoint on embedded storage: a bare Hono handler that makes only the
 * statements that no correct program on SQLite could do without. What is written in one turn of the
 * event loop is one transaction, flushed before anybody is answered. No credentials, no validation,
 * no limits, no metrics, no thread: a flush holds everybody up.
 */
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { serve } from '@hono/node-server'
import bcrypt from 'bcryptjs'
import { Hono } from 'hono'

const directory = mkdtempSync(join(tmpdir(), 'tabulum-floor-'))
process.on('SIGTERM', () => {
  rmSync(directory, { recursive: true, force: true })
  process.exit()
})
const database = new DatabaseSync(join(directory, 'floor.db'))
database.exec(`
  pragma journal_mode = wal; pragma synchronous = full; pragma wal_autocheckpoint = 16384;
  create table events (seq integer primary key, ts text, type text, agent text, data text) strict;
  create table state (key blob not null unique, value blob, modified_by text, modified_at text) strict;
  create table usage (used_bytes integer, key_count integer) strict;
  insert into usage values (0, 0);
  create table messages (seq integer primary key, recipient text) strict;
  create index messages_order on messages (recipient, seq);
  create table agents (seq integer primary key, address text unique, token_hash text, registered_at text) strict;
  create table challenges (challenge_id text primary key, answer blob, expires_at integer) strict, without rowid;`)
const sql = database.createTagStore(100)
const BCRYPT_COST = Number(process.env.FLOOR_BCRYPT_COST ?? 4)
const AGENT = 'X-Agent'

let waiting: {
  work: () => unknown
  resolve: (result: unknown) => void
  reject: (error: unknown) => void
}[] = []

/** Does it with all else that this turn writes. Resolves when it is on the disk. */
function write<T>(work: () => T): Promise<T> {
  if (waiting.length === 0) setImmediate(commit)
  return new Promise((resolve, reject) =>
    waiting.push({ work, resolve: resolve as (result: unknown) => void, reject }),
  )
}

function commit(): void {
  const batch = waiting
  waiting = []
  try {
    sql.run`begin immediate`
    const results = batch.map(({ work }) => work())
    sql.run`commit`
    for (const [index, { resolve }] of batch.entries()) resolve(results[index])
  } catch (error) {
    for (const { reject } of batch) reject(error)
  }
}

function append(type: string, agent: string, data: object): number {
  const { lastInsertRowid } = sql.run`
    insert into events (ts, type, agent, data)
    values (${new Date().toISOString()}, ${type}, ${agent}, ${JSON.stringify(data)})`
  return Number(lastInsertRowid)
}
const keyOf = (path: string) => decodeURIComponent(path.slice('/v1/state/'.length))
const sizeOf = (key: Buffer) =>
  sql.get`select length(value) as size from state where key = ${key}`?.size

await write(() => {
  for (let index = 0; index < 64; index++) {
    sql.run`insert into agents (address, registered_at) values (${`tab_${randomBytes(10).toString('hex')}`}, '')`
  }
})

const app = new Hono()
app.get('/v1/health', (context) => context.json({ status: 'ok', version: '0.1.0' }))
app.get('/v1/agents/me', (context) => {
  const agent = context.req.header(AGENT) ?? ''
  return context.json(
    sql.get`select address, registered_at from agents where address = ${agent}` ?? {},
  )
})
app.get('/v1/registry', (context) => {
  const agents = sql.all`
    select address, registered_at from agents order by seq limit ${Number(context.req.query('limit'))}`
  void write(() =>
    append('registry_read', context.req.header(AGENT) ?? '', {
      read_by: context.req.header(AGENT),
    }),
  )
  return context.json({ agents, total: agents.length })
})
app.get('/v1/state', (context) => {
  const prefix = Buffer.from(context.req.query('prefix') ?? '')
  const end = Buffer.concat([prefix, Buffer.of(255)])
  const rows = sql.all`
    select key from state where key >= ${prefix} and key < ${end} order by key
    limit ${Number(context.req.query('limit'))}`
  const total = sql.get`select count(*) as total from state where key >= ${prefix} and key < ${end}`
    ?.total
  const keys = rows.map(({ key }) => Buffer.from(key as Uint8Array))
  return context.json({ keys: keys.map(String), next_cursor: keys.at(-1)?.toString('hex'), total })
})
app.get('/v1/state/_capacity', (context) =>
  context.json(sql.get`select used_bytes, key_count from usage`),
)
app.get('/v1/state/*', (context) => {
  const key = keyOf(context.req.path)
  const row = sql.get`select value, modified_by, modified_at from state where key = ${Buffer.from(key)}`
  const by = context.req.header(AGENT) ?? ''
  void write(() => append('state_read', by, { key, read_by: by, found: row !== undefined }))
  return context.json({
    key,
    value: row && Buffer.from(row.value as Uint8Array).toString(),
    last_modified_by: row?.modified_by,
    last_modified_at: row?.modified_at,
  })
})
app.put('/v1/state/*', async (context) => {
  const key = keyOf(context.req.path)
  const bytes = Buffer.from(key)
  const { value } = await context.req.json()
  const by = context.req.header(AGENT) ?? ''
  const at = new Date().toISOString()
  await write(() => {
    const before = sizeOf(bytes)
    append('state_written', by, { key, value, written_by: by })
    const content = Buffer.from(value)
    sql.run`
      insert into state values (${bytes}, ${content}, ${by}, ${at}) on conflict (key)
      do update set value = excluded.value, modified_by = excluded.modified_by, modified_at = excluded.modified_at`
    sql.run`
      update usage set used_bytes = used_bytes + ${content.length - Number(before ?? 0)},
        key_count = key_count + ${before === undefined ? 1 : 0}`
  })
  return context.json({ key, written_by: by, written_at: at })
})
app.delete('/v1/state/*', async (context) => {
  const key = keyOf(context.req.path)
  const bytes = Buffer.from(key)
  const by = context.req.header(AGENT) ?? ''
  const isThere = await write(() => {
    const before = sizeOf(bytes)
    if (before === undefined) return false
    append('state_deleted', by, { key, deleted_by: by })
    sql.run`delete from state where key = ${bytes}`
    sql.run`update usage set used_bytes = used_bytes - ${Number(before)}, key_count = key_count - 1`
    return true
  })
  if (!isThere) return context.json({ error: 'not_found' }, 404)
  return context.json({ key, deleted_by: by, deleted_at: new Date() })
})
app.post('/v1/messages', async (context) => {
  const { to, content } = await context.req.json()
  const from = context.req.header(AGENT) ?? ''
  const message = { message_id: randomUUID(), from, to, timestamp: new Date() }
  await write(() => {
    const seq = append('message_sent', from, { ...message, content })
    sql.run`insert into messages values (${seq}, ${to})`
  })
  return context.json(message, 202)
})
/** Handed out, and still in the table: two who ask at once get different ones. */
const leased = new Set<number>()
app.get('/v1/messages', (context) => {
  const recipient = context.req.header(AGENT) ?? ''
  const limit = Number(context.req.query('limit'))
  const messages: object[] = []
  for (const row of sql.all`select seq from messages where recipient = ${recipient} order by seq`) {
    const seq = Number(row.seq)
    if (messages.length === limit) break
    if (leased.has(seq)) continue
    leased.add(seq)
    const { message_id, ...message } = JSON.parse(
      String(sql.get`select data from events where seq = ${seq}`?.data),
    )
    messages.push({ message_id, ...message })
    void write(() => {
      append('message_delivered', recipient, { message_id, to: recipient, delivery_method: 'pull' })
      sql.run`delete from messages where seq = ${seq}`
    }).then(() => leased.delete(seq))
  }
  const { remaining } =
    sql.get`select count(*) as remaining from messages where recipient = ${recipient}` ?? {}
  return context.json({ messages, remaining })
})
app.get('/v1/agents/verification-challenge', async (context) => {
  const challenge = {
    challenge_id: randomUUID(),
    challenge_type: 'pipeline',
    challenge_data: { seed: randomBytes(16).toString('hex') },
  }
  const expires = Date.now() + 300_000
  await write(
    () =>
      sql.run`insert into challenges values (${challenge.challenge_id}, ${randomBytes(32)}, ${expires})`,
  )
  return context.json({ ...challenge, expires_at: expires })
})
app.post('/v1/agents', async (context) => {
  const { verification_response } = await context.req.json()
  await write(
    () =>
      sql.run`delete from challenges where challenge_id = ${verification_response.challenge_id}`,
  )
  const address = `tab_${randomBytes(10).toString('hex')}`
  const token = `at_live_${randomBytes(32).toString('hex')}`
  const hash = await bcrypt.hash(token, BCRYPT_COST)
  const at = new Date().toISOString()
  await write(() => {
    const seq = append('agent_registered', address, { address, has_webhook: false })
    sql.run`insert into agents values (${seq + 1_000_000}, ${address}, ${hash}, ${at})`
  })
  return context.json({ agent_address: address, agent_token: token }, 201)
})
app.post('/v1/operators', async (context) => {
  const { contact_hash } = await context.req.json()
  const token = `sk_live_${randomBytes(32).toString('hex')}`
  const hash = await bcrypt.hash(token, BCRYPT_COST)
  const operator_id = randomUUID()
  await write(() => {
    const seq = append('operator_created', '', { operator_id, contact_hash, accepted_terms: true })
    sql.run`insert into agents values (${seq + 1_000_000}, ${operator_id}, ${hash}, '')`
  })
  return context.json({ operator_id, api_key: token }, 201)
})
app.onError((error) => {
  console.error(error)
  return new Response(String(error), { status: 500 })
})
serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }, ({ port }) => console.log(port))
