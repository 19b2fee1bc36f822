/**
 * Read models in Postgres: one is added without touching anything else, and `verify` finds what was
 * changed in any.
 */
import { randomUUID } from 'node:crypto'
import { sql } from 'kysely'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type PostgresDatabase, sharedPostgres } from '../../lab/servers.ts'
import type { LoggedEvent } from '../../src/events/event.ts'
import { verifyPostgres } from '../../src/maintenance/verify-postgres.ts'
import { type Database, openPostgres, openPostgresSession } from '../../src/platform/database.ts'
import { migrate, POSTGRES } from '../../src/platform/migrate.ts'
import { DatabaseProjection } from '../../src/projector/database-projection.ts'
import { readModels } from '../../src/storage/read-models.ts'
import { deleted, keyRemoved, redacted, sent, written } from '../conformance/support.ts'
import { FUNCTION, lastWrites, TABLE } from '../support/last-writes.ts'

const OPERATOR = randomUUID()
const [ONE, TWO, PUSHED] = ['tab_one', 'tab_two', 'tab_pushed'] as const
const MODELS = [...readModels({ maxQueue: 2 }), lastWrites]

let server: PostgresDatabase
let database: Database
let projection: DatabaseProjection
const log: LoggedEvent[] = []

beforeAll(async () => {
  server = await sharedPostgres()
  database = openPostgres({ url: server.ownerUrl, poolMode: 'session', maxConnections: 2 })
  await migrate(database, POSTGRES)
  await sql.raw(`${TABLE}; ${FUNCTION}`).execute(database)
  await sql`
    insert into operators (operator_id, token_lookup, token_hash) values (${OPERATOR}, '', '')`.execute(
    database,
  )
  for (const address of [ONE, TWO, PUSHED]) {
    await sql`
      insert into agents (address, operator_id, token_lookup, token_hash)
      values (${address}, ${OPERATOR}, '', '')`.execute(database)
  }
  projection = new DatabaseProjection(database, MODELS)
  await projection.acquire('test', 600_000)
  await append(
    {
      type: 'operator_created',
      data: { operator_id: OPERATOR, contact_hash: '', accepted_terms: true },
    },
    ...[ONE, TWO, PUSHED].map((address) => ({
      type: 'agent_registered',
      data: { address, operator_id: OPERATOR, has_webhook: address === PUSHED },
    })),
  )
  await append(written('a', '1', ONE), written('é', '2', TWO), written('gone', '3', TWO))
  await append(deleted('gone', ONE), written('a', '4', ONE))
  const delivered = sent(TWO, 'delivered', ONE)
  await append(delivered)
  await append({
    type: 'message_delivered',
    data: { message_id: delivered.data.message_id, to: TWO, delivery_method: 'pull' },
  })
  await append(...['dropped', 'dropped', 'y', 'z'].map((content) => sent(TWO, content, ONE)))
  const moved = sent(PUSHED, 'moved', ONE)
  await append({ ...moved, via: 'webhook' }, { ...sent(PUSHED, 'z', ONE), via: 'webhook' })
  await append({
    type: 'push_failed',
    data: { message_id: moved.data.message_id, to: PUSHED, reason: 'undeliverable' },
  })
  await append(written('illegal', '5', ONE))
  await append(keyRemoved('illegal'), redacted(moved.data.message_id))
})
afterAll(async () => {
  await database?.destroy()
  await server?.[Symbol.asyncDispose]()
})

/** Appends events in one batch, and applies it. */
async function append(...events: object[]): Promise<void> {
  const from = log.length
  for (const event of events)
    log.push({ ts: '2026-01-01T00:00:00.000Z', ...event, seq: log.length + 1 } as LoggedEvent)
  await projection.apply('test', from, log.slice(from))
}

async function differences(): Promise<string[]> {
  const session = openPostgresSession({
    url: server.ownerUrl,
    poolMode: 'session',
    maxConnections: 1,
  })
  const told: string[] = []
  const read = async (since: number, limit: number) => log.slice(since, since + limit)
  try {
    await verifyPostgres(session, { read, lastSeq: async () => log.length }, MODELS, (each) =>
      told.push(each),
    )
  } finally {
    await session.destroy()
  }
  return told
}

it('one that is added takes its own events in, and its checks are made', async () => {
  const { rows } = await sql`select * from last_writes order by writer`.execute(database)
  expect(rows).toEqual([
    { writer: ONE, writes: 3, seq: 19 },
    { writer: TWO, writes: 2, seq: 7 },
  ])
  expect(await differences()).toEqual([])
})

it('a name that is not one is refused, and nothing is applied', async () => {
  const call = (changes: string) =>
    sql`select apply_events('test', ${log.length}, ${log.length + 1}, ${changes}::json)`.execute(
      database,
    )
  await expect(call('{"state(null); drop table state; --": {}}')).rejects.toThrow(
    'no name of a read model',
  )
  expect(await projection.acquire('test', 600_000)).toBe(log.length)
})

const TABLES = [
  'operators',
  'agents',
  'registry_totals',
  'state',
  'state_usage',
  'state_blocks',
  'queued_messages',
  'queues',
  'webhook_lanes',
  'removals',
  'projections',
  'last_writes',
]
const PULL = `select max(seq) from queued_messages where recipient = '${TWO}'`

it.each([
  [`update state set value = '3' where key = 'a'`, 'state: key a has another value than the log'],
  [
    `update state set modified_by = 'tab_x' where key = 'a'`,
    'state: key a has another value than the log',
  ],
  [
    `update state set seq = seq + 1000 where key = 'a'`,
    'state: key a has another sequence number than in the log',
  ],
  [`update state set size = 5 where key = 'a'`, 'state: key a counts 5 bytes, it has 2'],
  [`delete from state where key = 'a'`, 'state: key a is missing'],
  [
    `insert into state values ('new', '', 3, 1, 'tab_x', now())`,
    'state: key new should have been deleted',
  ],
  [
    'update state_usage set used_bytes = used_bytes + 1',
    'capacity: used_bytes is 6, the keys and values have 5',
  ],
  ['update state_usage set key_count = 9', 'capacity: key_count is 9, there are 2'],
  [
    'update state_usage set reserved_bytes = 3',
    'capacity: reserved_bytes is 3, the reservations and allotments hold 0',
  ],
  [
    'update state_usage set allotted_bytes = 3',
    'capacity: allotted_bytes is 3, the allotments hold 0',
  ],
  [
    'update state_blocks set keys = 3 where level = 1',
    'state: a block of level 1 counts 3 keys, there are 2',
  ],
  [
    'update state_blocks set keys = 3 where level = 2',
    'state: a block of level 2 counts 3 keys, there are 2',
  ],
  ['update registry_totals set agents = 7', 'registry: total is 7, there are 3'],
  [`delete from agents where address = '${ONE}'`, `registry: ${ONE} is in the log but not active`],
  [
    `update agents set seq = null where address = '${ONE}'`,
    `registry: ${ONE} is in the log but not active`,
  ],
  ['delete from operators', `registry: ${OPERATOR} is in the log but not active`],
  [
    `update agents set operator_id = gen_random_uuid() where address = '${ONE}'`,
    `registry: ${ONE} has another sequence number or operator than in the log`,
  ],
  [
    `update agents set seq = 1000 where address = '${ONE}'`,
    `registry: ${ONE} has another sequence number or operator than in the log`,
  ],
  [
    `update queues set length = 3 where recipient = '${TWO}'`,
    `queues: the queue of ${TWO} has length 3, there are 2`,
  ],
  [
    `delete from queues where recipient = '${TWO}'`,
    `queues: the queue of ${TWO} has length 0, there are 2`,
  ],
  [
    `delete from queued_messages where seq = (${PULL})`,
    `queues: 3 messages to ${TWO} are missing, of which 2 were dropped`,
  ],
  [
    `update queued_messages set message_id = gen_random_uuid() where seq = (${PULL})`,
    `to ${TWO} is queued, but the log says that it was delivered or never sent`,
  ],
  [
    `update queued_messages set recipient = 'tab_x' where seq = (${PULL})`,
    `to ${TWO} has another sequence number or recipient than in the log`,
  ],
  [
    `update queued_messages set seq = seq + 1000 where seq = (${PULL})`,
    `to ${TWO} has another sequence number or recipient than in the log`,
  ],
  [
    `update queued_messages set via_webhook = true where seq = (${PULL})`,
    `to ${TWO} is to be pushed, but the log says that it is in the pull queue`,
  ],
  [
    'update queued_messages set via_webhook = false where via_webhook',
    `to ${PUSHED} is in the pull queue, but the log says that it is to be pushed`,
  ],
  ['update webhook_lanes set pending = 3', `webhooks: the lane of ${PUSHED} counts 3, there are 1`],
  ['delete from webhook_lanes', `webhooks: the lane of ${PUSHED} counts 0, there are 1`],
  [
    'update webhook_lanes set next_at = null',
    `to ${PUSHED} waits in a lane that has been worked off`,
  ],
  [
    'update webhook_lanes set last_seq = 1',
    `to ${PUSHED} waits in a lane that has been worked off`,
  ],
  ['delete from removals where seq = 20', 'removals: the one at 20 is missing'],
  ['update removals set seq = 22 where seq = 20', 'removals: the one at 22 is not in the log'],
  [
    `update removals set reason = 'x' where seq = 21`,
    'removals: the one at 21 is told otherwise than in the log',
  ],
  [
    `update removals set key = 'x' where seq = 20`,
    'removals: the one at 20 is told otherwise than in the log',
  ],
  [
    `update removals set message_id = 'x' where seq = 21`,
    'removals: the one at 21 is told otherwise than in the log',
  ],
  [
    'update projections set applied_seq = 1000',
    'log: it ends at 21, the database has applied it up to 1000',
  ],
  ['update last_writes set seq = 1', `last writes: ${ONE} wrote last at 19`],
])('verify tells of `%s`', async (change, told) => {
  for (const table of TABLES)
    await sql.raw(`create table saved_${table} as table ${table}`).execute(database)
  try {
    expect((await sql.raw(change).execute(database)).numAffectedRows, change).toBeGreaterThan(0n)
    expect((await differences()).join('\n')).toContain(told)
  } finally {
    for (const table of TABLES) {
      await sql
        .raw(
          `delete from ${table}; insert into ${table} table saved_${table}; drop table saved_${table}`,
        )
        .execute(database)
    }
  }
})
