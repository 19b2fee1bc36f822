/** What workers write of the webhook lanes in SQLite. Times are milliseconds since 1970. */
import { randomUUID } from 'node:crypto'
import type { Sqlite } from '../platform/sqlite.ts'
import {
  type ClaimedLane,
  type LaneTurn,
  MAX_DELAY_MS,
  MENDED_AT_ONCE,
  type Quota,
  type Standing,
} from './webhook-lanes.ts'

export interface LaneClaim {
  readonly holder: string
  readonly leaseMs: number
  readonly quota: Quota
  readonly turnMessages: number
}

export interface LaneRenewal {
  readonly holder: string
  readonly claims: readonly Pick<ClaimedLane, 'recipient' | 'claim'>[]
  readonly leaseMs: number
}

/**
 * Lets lanes be claimed at once that a process which is gone had in its hands. For the start, when
 * nobody else can have any.
 */
export function freeLanes({ sql }: Pick<Sqlite, 'sql'>): void {
  sql.run`update webhook_lanes set next_at = ${Date.now()} where holder is not null`
}

export function webhookLaneWrites(sqlite: Sqlite) {
  const { sql } = sqlite
  return {
    /** As `WebhookLanes.claim` says. */
    claimLanes({ holder, leaseMs, quota, turnMessages }: LaneClaim): ClaimedLane[] {
      const now = Date.now()
      const ready = readyLanes(sqlite, now)
      const claimed: ClaimedLane[] = []
      const claim = (recipients: readonly string[]) => {
        for (const recipient of recipients) claimed.push(hold(recipient))
      }

      function hold(recipient: string): ClaimedLane {
        const lane = sql.get`
          select lane.*, agent.webhook_url, agent.webhook_secret
          from webhook_lanes lane left join agents agent on agent.address = lane.recipient
          where lane.recipient = ${recipient}` as unknown as LaneRow
        sql.run`
          update webhook_lanes set holder = ${holder}, claim = claim + 1, next_at = ${Math.ceil(now + leaseMs)}
          where recipient = ${recipient}`
        const messages = sql.all`
          select seq, message_id as id from queued_messages
          where recipient = ${recipient} and via_webhook = 1 and seq > ${lane.done_seq} order by seq limit ${turnMessages}`
        return {
          recipient,
          claim: lane.claim + 1,
          standing: lane.standing,
          pending: lane.pending,
          lastSeq: lane.last_seq,
          doneSeq: lane.done_seq,
          retriedSeq: lane.retried_seq,
          attempts: lane.attempts,
          failures: lane.failures,
          openUntil: lane.open_until ?? 0,
          bucketFullAt: lane.bucket_full_at ?? 0,
          now,
          url: lane.webhook_url,
          sealedSecret: lane.webhook_secret,
          wasHeld: lane.holder !== null,
          messages: messages as unknown as ClaimedLane['messages'],
        }
      }

      const left = () => quota.total - claimed.length
      claim(ready.resting(left()))
      // Where there is but one slot for both, neither is always first.
      const most =
        quota.unproven === 1 && Math.random() < 0.5 ? 0 : Math.min(quota.slow, quota.unproven)
      const slow = ready.slow(Math.min(most, left()))
      claim(slow)
      claim(
        ready.untried(holder, Math.min(quota.unproven - slow.length, left()), quota.ofOneOperator),
      )
      claim(ready.fast(left()))
      return claimed
    },

    /** Returns the recipients whose lanes are the worker's still. */
    renewLanes({ holder, claims, leaseMs }: LaneRenewal): string[] {
      const nextAt = Math.ceil(Date.now() + leaseMs)
      const kept = claims.filter(({ recipient, claim }) => {
        const { changes } = sql.run`
          update webhook_lanes set next_at = ${nextAt}
          where recipient = ${recipient} and claim = ${claim} and holder = ${holder}`
        return changes === 1
      })
      return kept.map(({ recipient }) => recipient)
    },

    releaseLane(turn: LaneTurn): void {
      sql.run`
        update webhook_lanes set
          holder = null, done_seq = ${turn.doneSeq}, retried_seq = ${turn.retriedSeq}, attempts = ${turn.attempts},
          standing = ${turn.standing}, failures = ${turn.failures}, open_until = ${timeOrNull(turn.openUntil)},
          bucket_full_at = ${timeOrNull(turn.bucketFullAt)},
          next_at = case when last_seq > ${turn.doneSeq} then ${Math.ceil(Date.now() + turn.delay)} end
        where recipient = ${turn.recipient} and claim = ${turn.claim}`
    },

    /**
     * Takes times back that are further ahead than any that is set: a lane that nobody holds may be
     * claimed now, a lease runs out a whole lease from now unless it is prolonged, and a circuit
     * rests for its whole time again at most.
     */
    mendLaneTimes({ leaseMs, circuitMs }: { leaseMs: number; circuitMs: number }): void {
      const now = Date.now()
      const furthest = now + MAX_DELAY_MS
      const longestRest = now + circuitMs
      sql.run`
        update webhook_lanes set
          next_at = case
            when next_at is null or next_at <= ${furthest} then next_at
            when holder is null then ${now}
            else ${Math.ceil(now + leaseMs)}
          end,
          open_until = case when open_until > ${longestRest} then ${longestRest} else open_until end
        where recipient in (
          select recipient from webhook_lanes
          where standing in ('unknown', 'fast', 'slow', 'open') and next_at > ${furthest}
          union all
          select recipient from webhook_lanes where standing = 'open' and open_until > ${longestRest}
          limit ${MENDED_AT_ONCE})`
    },
  }
}
export type WebhookLaneWrites = ReturnType<typeof webhookLaneWrites>

interface LaneRow {
  claim: number
  standing: Standing
  pending: number
  last_seq: number
  done_seq: number
  retried_seq: number
  attempts: number
  failures: number
  open_until: number | null
  bucket_full_at: number | null
  holder: string | null
  webhook_url: string | null
  webhook_secret: string | null
}

/** Whole milliseconds, as it is stored; 0 is no time. */
function timeOrNull(ms: number): number | null {
  return ms === 0 ? null : Math.ceil(ms)
}

/** Recipients of lanes whose time has come, by kinds, of each at most as many as are asked for. */
function readyLanes({ sql }: Sqlite, now: number) {
  const recipientsOf = (rows: Record<string, unknown>[]) =>
    rows.map((row) => row.recipient as string)
  return {
    /**
     * Their circuit is open: their messages go to the pull queue without an attempt. In the order
     * in which their rests end, as an index has it: others whose circuits are open may wait for a
     * probe, and are many.
     */
    resting: (limit: number): string[] =>
      recipientsOf(sql.all`
        select recipient from webhook_lanes indexed by webhook_lanes_open_ready
        where standing = 'open' and next_at <= ${now} and open_until > ${now} order by open_until limit ${limit}`),

    /**
     * The circuit's rest is over, and so one probe each; or the last attempt took long. Those that
     * have waited longest, of whichever kind: were one kind first, the other would never have a
     * slot where slots come free one by one.
     */
    slow: (limit: number): string[] =>
      recipientsOf(sql.all`
        select recipient from (
          select * from (
            select recipient, next_at from webhook_lanes indexed by webhook_lanes_ready
            where standing = 'open' and next_at <= ${now} and open_until <= ${now} order by next_at limit ${limit})
          union all
          select * from (
            select recipient, next_at from webhook_lanes indexed by webhook_lanes_ready
            where standing = 'slow' and next_at <= ${now} order by next_at limit ${limit}))
        order by next_at limit ${limit}`),

    fast: (limit: number): string[] =>
      recipientsOf(sql.all`
        select recipient from webhook_lanes indexed by webhook_lanes_ready
        where standing = 'fast' and next_at <= ${now} order by next_at limit ${limit}`),

    /**
     * Of operators by turns: those first of whose lanes the worker has the fewest. Each of these
     * lanes may turn out to be one that never answers, and a thousand of one operator must not keep
     * the first push of another waiting until all have timed out.
     */
    untried(holder: string, limit: number, ofOneOperator: number): string[] {
      const recipients: string[] = []
      let waiting = limit > 0 ? untriedOperators(sql, now, holder, limit) : []
      for (
        let turn = 1;
        turn <= ofOneOperator && recipients.length < limit && waiting.length > 0;
        turn++
      ) {
        waiting = waiting.filter((operator) => {
          if (operator.lanes >= turn || recipients.length === limit) return true
          const lane = sql.get`
            select recipient from webhook_lanes indexed by webhook_lanes_untried
            where standing = 'unknown' and operator_id = ${operator.id} and next_at <= ${now}
            order by next_at limit 1 offset ${operator.given}`
          if (!lane) return false
          recipients.push(lane.recipient as string)
          operator.lanes++
          operator.given++
          return true
        })
      }
      return recipients
    },
  }
}

interface UntriedOperator {
  readonly id: string
  /**
   * Of its lanes that have yet to be tried: how many the worker has, and how many of these from
   * this claim.
   */
  lanes: number
  given: number
}

/**
 * Operators with lanes that have yet to be tried, in any order. As many as there may be ones that
 * hold a slot already, and as many more as there is room for, from a random one on: it costs in
 * proportion to the worker's slots, however many lanes and operators wait, and none is passed over
 * for ever.
 */
function untriedOperators(
  sql: Sqlite['sql'],
  now: number,
  holder: string,
  quota: number,
): UntriedOperator[] {
  const rows = sql.all`
    select operator_id, count(*) as lanes from webhook_lanes indexed by webhook_lanes_ready
    where standing = 'unknown' and next_at > ${now} and holder = ${holder} group by operator_id`
  const held = new Map(rows.map((row) => [row.operator_id as string, row.lanes as number]))
  const after = (id: string) =>
    sql.get`
      select operator_id as id from webhook_lanes indexed by webhook_lanes_untried
      where standing = 'unknown' and next_at <= ${now} and operator_id > ${id} order by operator_id limit 1`
      ?.id as string | undefined

  const found = new Set<string>()
  const first = randomUUID()
  for (let id = after(first) ?? after(''); id !== undefined; id = after(id) ?? after('')) {
    if (found.has(id) || found.size === quota + held.size) break
    found.add(id)
  }
  return [...found]
    .map((id) => ({ id, lanes: held.get(id) ?? 0, given: 0, luck: Math.random() }))
    .toSorted((one, other) => one.luck - other.luck)
}
