/**
 * The webhook lanes in Postgres, which workers on several machines share. The projector fills them.
 */
import { sql } from 'kysely'
import { z } from 'zod'
import { batched } from '../platform/batch.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { CIRCUIT_POLICY } from './circuit-breaker.ts'
import {
  type Backlog,
  CLOCK_CHECK_MS,
  type ClaimedLane,
  type LaneTurn,
  MAX_DELAY_MS,
  MENDED_AT_ONCE,
  type Quota,
  STANDINGS,
  type WebhookLanes,
  type WebhookLanesOptions,
} from './webhook-lanes.ts'

const claimedLane = z.object({
  recipient: z.string(),
  claim: z.int(),
  standing: z.enum(STANDINGS),
  pending: z.int(),
  lastSeq: z.int(),
  doneSeq: z.int(),
  retriedSeq: z.int(),
  attempts: z.int(),
  failures: z.int(),
  openUntil: z.number(),
  bucketFullAt: z.number(),
  now: z.number(),
  url: z.string().nullable(),
  sealedSecret: z.string().nullable(),
  wasHeld: z.boolean(),
  messages: z.array(z.object({ seq: z.int(), id: z.uuid() })),
}) satisfies z.ZodType<ClaimedLane>

const MAX_RELEASES_WAITING = 20_000
/** Claims and releases touch many rows; nobody waits for them but messages. */
const TIMEOUT_MS = 5_000

export class PostgresWebhookLanes implements WebhookLanes {
  readonly #database: Database
  readonly #circuitMs: number
  /** When times were looked at last, by `performance.now()`. */
  #clockCheckedAt = Number.NEGATIVE_INFINITY
  readonly release: (turn: LaneTurn) => Promise<void>

  constructor(
    database: Database,
    { circuitMs = CIRCUIT_POLICY.duration }: WebhookLanesOptions = {},
  ) {
    this.#database = database
    this.#circuitMs = circuitMs
    this.release = batched((turns) => this.#release(turns), {
      maxItems: 500,
      maxWaiting: MAX_RELEASES_WAITING,
    })
  }

  async claim(
    holder: string,
    leaseMs: number,
    quota: Quota,
    turnMessages: number,
  ): Promise<ClaimedLane[]> {
    if (performance.now() - this.#clockCheckedAt > CLOCK_CHECK_MS) {
      this.#clockCheckedAt = performance.now()
      await this.#mendTimes(leaseMs)
    }
    const { rows } = await roundTrip(
      this.#database,
      'claim_lanes',
      () =>
        sql<{ lane: unknown }>`
          select lane from claim_webhook_lanes(
            ${holder}, ${leaseMs}, ${quota.total}, ${quota.unproven}, ${quota.slow},
            ${quota.ofOneOperator}, ${turnMessages})`.execute(this.#database),
      TIMEOUT_MS,
    )
    return rows.map(({ lane }) => claimedLane.parse(lane))
  }

  /**
   * Takes times back that are further ahead than any that is set, as the database's clock was set
   * back: a lane that nobody holds may be claimed now, a lease runs out a whole lease from now
   * unless it is prolonged, and a circuit rests for its whole time again at most.
   */
  async #mendTimes(leaseMs: number): Promise<void> {
    await roundTrip(
      this.#database,
      'mend_lane_times',
      () =>
        sql`
          with clock as (
            select clock_timestamp() as now,
                   clock_timestamp() + ${MAX_DELAY_MS} * interval '1 millisecond' as furthest,
                   clock_timestamp() + ${this.#circuitMs} * interval '1 millisecond' as longest_rest
          ), ahead as (
            select recipient from webhook_lanes, clock
            where (standing in ('unknown', 'fast', 'slow', 'open') and next_at > furthest)
               or (standing = 'open' and open_until > longest_rest)
            limit ${MENDED_AT_ONCE} for update of webhook_lanes skip locked
          )
          update webhook_lanes set
            next_at = case
              when next_at <= furthest or next_at is null then next_at
              when holder is null then now
              else now + ${leaseMs} * interval '1 millisecond'
            end,
            open_until = case when open_until > longest_rest then longest_rest else open_until end
          from ahead, clock where webhook_lanes.recipient = ahead.recipient`.execute(
          this.#database,
        ),
      TIMEOUT_MS,
    )
  }

  async due(): Promise<number> {
    const { rows } = await roundTrip(
      this.#database,
      'due_lanes',
      () =>
        sql<{ due: number | null }>`
          select (extract(epoch from min(first.next_at) - clock_timestamp()) * 1000)::double precision as due
          from (values ('unknown'), ('fast'), ('slow'), ('open')) as kind (standing)
          cross join lateral (
            select next_at from webhook_lanes l
            where l.standing = kind.standing and next_at is not null order by next_at limit 1
          ) as first`.execute(this.#database),
      TIMEOUT_MS,
    )
    return rows[0]?.due ?? Number.POSITIVE_INFINITY
  }

  async renew(
    holder: string,
    claimed: readonly Pick<ClaimedLane, 'recipient' | 'claim'>[],
    leaseMs: number,
  ): Promise<Set<string>> {
    const claims = JSON.stringify(claimed.map(({ recipient, claim }) => ({ recipient, claim })))
    const { rows } = await roundTrip(this.#database, 'renew_lanes', () =>
      sql<{
        recipient: string
      }>`select recipient from renew_webhook_lanes(${holder}, ${claims}::json, ${leaseMs}) as recipient`.execute(
        this.#database,
      ),
    )
    return new Set(rows.map(({ recipient }) => recipient))
  }

  async #release(turns: LaneTurn[]): Promise<undefined[]> {
    await roundTrip(
      this.#database,
      'release_lanes',
      () =>
        sql`select release_webhook_lanes(${JSON.stringify(turns)}::json)`.execute(this.#database),
      TIMEOUT_MS,
    )
    return turns.map(() => undefined)
  }

  /** What waits, for the metrics: in proportion to the lanes that something waits in. */
  async backlog(): Promise<Backlog> {
    const { rows } = await roundTrip(
      this.#database,
      'webhook_backlog',
      () =>
        sql<{ messages: number; oldest: number | null; open: number }>`
          select coalesce((select sum(pending) from webhook_lanes where pending > 0), 0)::bigint as messages,
                 (select min(seq) from queued_messages where via_webhook) as oldest,
                 (select count(*) from webhook_lanes where open_until > clock_timestamp()) as open`.execute(
          this.#database,
        ),
      TIMEOUT_MS,
    )
    const [row] = rows
    return {
      messages: row?.messages ?? 0,
      oldestSeq: row?.oldest ?? undefined,
      openCircuits: row?.open ?? 0,
    }
  }
}
