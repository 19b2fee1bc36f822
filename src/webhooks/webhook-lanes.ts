/**
 * What is to be pushed, an ordered lane for each agent, and which worker has which lane. In the database: the projector fills the lanes
 * from the event log, so they are as durable as it, and what a worker knows of a lane outlives it.
 */
import { sql } from 'kysely'
import { z } from 'zod'
import { batched } from '../platform/batch.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { CIRCUIT_POLICY } from './circuit-breaker.ts'

/**
 * What the last attempt says of an agent's endpoint.
 *
 * - `unknown`: there was none yet
 * - `prompt`: it was over soon, whether or not the message was delivered
 * - `doubtful`: it took long
 * - `open`: the circuit is open, or half-open
 */
const standing = z.enum(['unknown', 'prompt', 'doubtful', 'open'])
export type Standing = z.infer<typeof standing>

const claimedLane = z.object({
  recipient: z.string(),
  /** Names this claim: a later one of the same lane has another. */
  claim: z.int(),
  standing,
  /** Messages in the lane. */
  pending: z.int(),
  /** Place of the newest message. */
  lastSeq: z.int(),
  /** Place up to which all have been delivered or given up on. */
  doneSeq: z.int(),
  /** Failed attempts so far at the message at `retriedSeq`. */
  retriedSeq: z.int(),
  attempts: z.int(),
  /** The circuit, as `circuit-breaker.ts` has it. There is one attempt at a time anyway, so no probe to claim. */
  failures: z.int(),
  openUntil: z.number(),
  bucketFullAt: z.number(),
  /** The database's clock, which all workers share, in ms since 1970. */
  now: z.number(),
  url: z.string().nullable(),
  sealedSecret: z.string().nullable(),
  /** The worker that had the lane last did not give it back: what it delivered last may be among the messages still. */
  wasHeld: z.boolean(),
  /** The oldest messages, in order. */
  messages: z.array(z.object({ seq: z.int(), id: z.uuid() })),
})
/** A lane and its state, which this worker alone may work on until its lease runs out. */
export type ClaimedLane = z.infer<typeof claimedLane>

/** What a turn leaves of a lane. */
export type LaneTurn = Pick<
  ClaimedLane,
  'recipient' | 'claim' | 'standing' | 'doneSeq' | 'retriedSeq' | 'attempts' | 'failures' | 'openUntil' | 'bucketFullAt'
> & {
  /** Until the next turn, in ms. */
  delay: number
}

/** How many lanes a worker takes on. */
export interface Room {
  readonly total: number
  /** Of these, lanes that are not `prompt`. */
  readonly unproven: number
  /** Of these, lanes that are `doubtful`, or `open` and to be probed. */
  readonly doubtful: number
  /** Lanes of one operator that have yet to be tried, those that the worker has already included. */
  readonly ofOneOperator: number
}

export interface Backlog {
  /** Messages that wait for their delivery, in all lanes. */
  readonly messages: number
  /** Place of the oldest. */
  readonly oldestSeq: number | undefined
  readonly openCircuits: number
}

const MAX_RELEASES_WAITING = 20_000
/** Claims and releases touch many rows; nobody waits for them but messages. */
const TIMEOUT_MS = 5_000
/** No turn puts the next one off for longer: the longest back-off with its jitter is 90 s, see `back-off.ts`. */
const MAX_DELAY_MS = 120_000
/** How often times are looked for that are further ahead than any that is set. */
const CLOCK_CHECK_MS = 1_000
/** Of these so many at once, at most; the rest follows. */
const MENDED_AT_ONCE = 5_000

export class WebhookLanes {
  readonly #database: Database
  readonly #circuitMs: number
  /** When times were looked at last, by `performance.now()`. */
  #clockCheckedAt = Number.NEGATIVE_INFINITY
  /** Gives a lane back. One that was claimed anew meanwhile is left alone. Throws `DatabaseUnavailable`. */
  readonly release: (turn: LaneTurn) => Promise<void>

  /** @param options.circuitMs how long a circuit rests at most; default as the contract has it */
  constructor(database: Database, { circuitMs = CIRCUIT_POLICY.duration }: { circuitMs?: number } = {}) {
    this.#database = database
    this.#circuitMs = circuitMs
    this.release = batched((turns) => this.#release(turns), { maxItems: 500, maxWaiting: MAX_RELEASES_WAITING })
  }

  /**
   * Claims lanes that have something to do now, those first that have waited longest, and the first messages of each. Those
   * that have yet to be tried by their operators in turn. Throws `DatabaseUnavailable`.
   */
  async claim(holder: string, leaseMs: number, room: Room, turnMessages: number): Promise<ClaimedLane[]> {
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
            ${holder}, ${leaseMs}, ${room.total}, ${room.unproven}, ${room.doubtful},
            ${room.ofOneOperator}, ${turnMessages})`.execute(this.#database),
      TIMEOUT_MS,
    )
    return rows.map(({ lane }) => claimedLane.parse(lane))
  }

  /**
   * Takes times back that are further ahead than any that is set, as the database's clock was set back: a lane that nobody holds may be claimed
   * now, a lease runs out a whole lease from now unless it is prolonged, and a circuit rests for its whole time again at most.
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
            where (standing in ('unknown', 'prompt', 'doubtful', 'open') and next_at > furthest)
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
          from ahead, clock where webhook_lanes.recipient = ahead.recipient`.execute(this.#database),
      TIMEOUT_MS,
    )
  }

  /** Milliseconds until a lane has something to do; 0 or less if there is one now, infinite if there is none. Throws `DatabaseUnavailable`. */
  async due(): Promise<number> {
    const { rows } = await roundTrip(
      this.#database,
      'due_lanes',
      () =>
        sql<{ due: number | null }>`
          select (extract(epoch from min(first.next_at) - clock_timestamp()) * 1000)::double precision as due
          from (values ('unknown'), ('prompt'), ('doubtful'), ('open')) as kind (standing)
          cross join lateral (
            select next_at from webhook_lanes l
            where l.standing = kind.standing and next_at is not null order by next_at limit 1
          ) as first`.execute(this.#database),
      TIMEOUT_MS,
    )
    return rows[0]?.due ?? Number.POSITIVE_INFINITY
  }

  /** Prolongs leases, by their claims; returns the recipients whose lanes are the worker's still. Throws `DatabaseUnavailable`. */
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
      () => sql`select release_webhook_lanes(${JSON.stringify(turns)}::json)`.execute(this.#database),
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
                 (select min(seq) from queued_messages where pushed) as oldest,
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
