/** The conformance suite of the webhook lanes on Postgres. */
import { sql } from 'kysely'
import { PostgresWebhookLanes } from '../../src/webhooks/postgres-webhook-lanes.ts'
import { describeWebhookLanes, type StoredLane } from '../conformance/webhook-lanes.ts'
import { applyEvents, openFreshPostgres } from './support.ts'

describeWebhookLanes('Postgres', async () => {
  const { database, [Symbol.asyncDispose]: dispose } = await openFreshPostgres({
    maxConnections: 4,
  })
  let seq = 0
  return {
    open: (options) => new PostgresWebhookLanes(database, options),
    async append(events) {
      const logged = events.map((event) => ({ ...event, seq: ++seq }))
      await applyEvents(database, logged)
      return logged
    },
    async register({ address, operatorId, url, sealedSecret }) {
      await sql`
        insert into agents (address, operator_id, token_lookup, token_hash, webhook_url, webhook_secret)
        values (${address}, ${operatorId}, ${Buffer.from(address)}, '', ${url}, ${sealedSecret})`.execute(
        database,
      )
    },
    async alter(recipients, { standing, holder, nextMs, restMs }) {
      const time = (ms: number | null) =>
        ms === null ? sql`null` : sql`clock_timestamp() + ${ms} * interval '1 millisecond'`
      const changes = [
        ...(standing === undefined ? [] : [sql`standing = ${standing}`]),
        ...(holder === undefined ? [] : [sql`holder = ${holder}`]),
        ...(nextMs === undefined ? [] : [sql`next_at = ${time(nextMs)}`]),
        ...(restMs === undefined ? [] : [sql`open_until = ${time(restMs)}`]),
      ]
      await sql`
        update webhook_lanes set ${sql.join(changes)} where recipient in (${sql.join(recipients)})`.execute(
        database,
      )
    },
    async stored() {
      const { rows } = await sql<{ recipient: string } & StoredLane>`
        select recipient, operator_id as "operatorId", last_seq as "lastSeq", done_seq as "doneSeq", standing, holder,
               extract(epoch from next_at - clock_timestamp())::float8 * 1000 as "nextMs",
               extract(epoch from open_until - clock_timestamp())::float8 * 1000 as "restMs"
        from webhook_lanes`.execute(database)
      return rows
    },
    async clear() {
      await sql`delete from webhook_lanes`.execute(database)
      await sql`delete from queued_messages`.execute(database)
    },
    [Symbol.asyncDispose]: dispose,
  }
})
