/** The conformance suite of the webhook lanes on embedded storage. */
import { stat } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import { SqliteEventLog } from '../../src/events/sqlite-event-log.ts'
import { openSqlite } from '../../src/platform/sqlite.ts'
import { SqliteWebhookLanes } from '../../src/webhooks/sqlite-webhook-lanes.ts'
import { freeLanes } from '../../src/webhooks/sqlite-webhook-writes.ts'
import { openFreshSqlite } from '../support/embedded-database.ts'
import { inParallel, sent } from './support.ts'
import { describeWebhookLanes, type StoredLane } from './webhook-lanes.ts'

describeWebhookLanes('SQLite', async () => {
  const { file, reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite()
  const log = new SqliteEventLog(reader, writer)
  /** A process beside. */
  const { connection, sql } = openSqlite(file)
  let agents = 0
  return {
    open: (options) => new SqliteWebhookLanes(reader, writer, options),
    append: (events) =>
      inParallel(events.length, async (index) => {
        const { via, about, ...event } = events[index] as (typeof events)[number]
        const routing = { ...(via && { via }), ...(about !== undefined && { about }) }
        return { ...event, ...routing, seq: (await log.append(event, routing)).seq }
      }),
    async register({ address, operatorId, url, sealedSecret }) {
      sql.run`
        insert into agents (
          seq, address, operator_id, token_lookup, token_hash, webhook_url, webhook_secret, registered_at)
        values (
          ${++agents}, ${address}, ${operatorId}, ${Buffer.from(address)}, '', ${url}, ${sealedSecret}, '')`
    },
    async alter(recipients, { standing, holder, nextMs, restMs }) {
      const now = Date.now()
      for (const to of recipients) {
        if (standing !== undefined)
          sql.run`update webhook_lanes set standing = ${standing} where recipient = ${to}`
        if (holder !== undefined)
          sql.run`update webhook_lanes set holder = ${holder} where recipient = ${to}`
        const nextAt = typeof nextMs === 'number' ? now + nextMs : null
        if (nextMs !== undefined)
          sql.run`update webhook_lanes set next_at = ${nextAt} where recipient = ${to}`
        const openUntil = typeof restMs === 'number' ? now + restMs : null
        if (restMs !== undefined)
          sql.run`update webhook_lanes set open_until = ${openUntil} where recipient = ${to}`
      }
    },
    async stored() {
      const now = Date.now()
      return sql.all`
        select recipient, operator_id as "operatorId", last_seq as "lastSeq", done_seq as "doneSeq", standing, holder,
               next_at - ${now} as "nextMs", open_until - ${now} as "restMs"
        from webhook_lanes` as unknown as ({ recipient: string } & StoredLane)[]
    },
    async clear() {
      connection.exec(
        'delete from webhook_lanes; delete from queued_messages; update webhook_totals set pending = 0;',
      )
    },
    async [Symbol.asyncDispose]() {
      connection.close()
      await log.close()
      await dispose()
    },
  }
})

describe('webhook lanes: SQLite', () => {
  const QUOTA = { total: 10, unproven: 10, slow: 10, ofOneOperator: 10 }

  it('cost no write while there is nothing to do', async () => {
    await using database = await openFreshSqlite()
    const { reader, writer } = database
    const written: string[] = []
    const run: typeof writer.run = (name, input) => {
      written.push(name)
      return writer.run(name, input)
    }
    const lanes = new SqliteWebhookLanes(reader, { run })
    expect(await lanes.claim('worker', 10_000, QUOTA, 1)).toEqual([])
    await new SqliteEventLog(reader, writer).append(sent(newAddress(), 'x'), { via: 'webhook' })
    expect(await lanes.claim('worker', 10_000, QUOTA, 1)).toHaveLength(1)
    expect(await lanes.claim('worker', 10_000, QUOTA, 1)).toEqual([])
    expect(written).toEqual(['claimLanes'])
  })

  it('cost no flush where what there is to do has to wait for a slot', async () => {
    await using database = await openFreshSqlite()
    const { file, reader, writer } = database
    await new SqliteEventLog(reader, writer).append(sent(newAddress(), 'x'), { via: 'webhook' })
    const { size } = await stat(`${file}-wal`)
    const lanes = new SqliteWebhookLanes(reader, writer)
    expect(await lanes.claim('worker', 10_000, { ...QUOTA, unproven: 0, slow: 0 }, 1)).toEqual([])
    expect((await stat(`${file}-wal`)).size).toBe(size)
  })
})

it('those that a process had in its hands when it died can be claimed at once after the next start', async () => {
  await using fresh = await openFreshSqlite()
  const log = new SqliteEventLog(fresh.reader, fresh.writer)
  const lanes = new SqliteWebhookLanes(fresh.reader, fresh.writer)
  const to = newAddress()
  const { seq } = await log.append(sent(to, 'x'), { via: 'webhook' })
  const quota = { total: 1, unproven: 1, slow: 1, ofOneOperator: 1 }
  expect(await lanes.claim('gone', 600_000, quota, 1)).toHaveLength(1)
  expect(await lanes.due()).toBeGreaterThan(0)
  const beside = openSqlite(fresh.file)
  freeLanes(beside)
  beside.connection.close()
  expect(await lanes.claim('next', 600_000, quota, 1)).toMatchObject([
    { recipient: to, wasHeld: true, lastSeq: seq },
  ])
})
