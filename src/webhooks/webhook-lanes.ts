/**
 * The port of the webhook lanes: what is to be pushed, an ordered lane for each agent, and which
 * worker has which lane. The projection of the event log fills the lanes, so they are as durable as
 * it, and what a worker knows of a lane outlives it.
 */

/**
 * What the last attempt says of an agent's endpoint.
 *
 * - `unknown`: there was none yet
 * - `fast`: it was over soon, whether or not the message was delivered
 * - `slow`: it took long
 * - `open`: the circuit is open, or half-open
 */
export const STANDINGS = ['unknown', 'fast', 'slow', 'open'] as const
export type Standing = (typeof STANDINGS)[number]

/** A lane and its state, which this worker alone may work on until its lease runs out. */
export interface ClaimedLane {
  recipient: string
  /** Names this claim: a later one of the same lane has another. */
  claim: number
  standing: Standing
  /** Messages in the lane. */
  pending: number
  /** Sequence number of the newest message. */
  lastSeq: number
  /** Sequence number up to which all have been delivered or given up on. */
  doneSeq: number
  /** Failed attempts so far at the message at `retriedSeq`. */
  retriedSeq: number
  attempts: number
  /**
   * The circuit, as `circuit-breaker.ts` has it. There is one attempt at a time anyway, so no probe
   * to claim.
   */
  failures: number
  openUntil: number
  bucketFullAt: number
  /** The database's clock, which all workers share, in ms since 1970. */
  now: number
  /** The agent's endpoint; null where it has none. */
  url: string | null
  sealedSecret: string | null
  /**
   * The worker that had the lane last did not give it back: what it delivered last may be among the
   * messages still.
   */
  wasHeld: boolean
  /** The oldest messages, in order. */
  messages: { seq: number; id: string }[]
}

/** What a turn leaves of a lane. */
export type LaneTurn = Pick<
  ClaimedLane,
  | 'recipient'
  | 'claim'
  | 'standing'
  | 'doneSeq'
  | 'retriedSeq'
  | 'attempts'
  | 'failures'
  | 'openUntil'
  | 'bucketFullAt'
> & {
  /** Until the next turn, in ms. */
  delay: number
}

/** How many lanes a worker takes on. */
export interface Quota {
  readonly total: number
  /** Of these, lanes that are not `fast`. */
  readonly unproven: number
  /** Of these, lanes that are `slow`, or `open` and to be probed. */
  readonly slow: number
  /**
   * Lanes of one operator that have yet to be tried, those that the worker has already included.
   */
  readonly ofOneOperator: number
}

export interface Backlog {
  /** Messages that wait for their delivery, in all lanes. */
  readonly messages: number
  /** Sequence number of the oldest. */
  readonly oldestSeq: number | undefined
  readonly openCircuits: number
}

/**
 * Any of its methods throws `Unavailable` when the database is out. None costs in proportion to all
 * lanes.
 */
export interface WebhookLanes {
  /**
   * Claims lanes that have something to do now: lanes that rest first, as their messages need no
   * attempt; then such as may take long, those that have waited longest; then such as have yet to
   * be tried, by their operators in turn; then the fast ones.
   *
   * Now and then it also takes times back that are further ahead than any that is set, as the clock
   * was set back.
   *
   * @param holder names the worker
   * @param leaseMs a claim that is not prolonged or given back within it is over
   * @param quota how many lanes of each kind at most
   * @param turnMessages so many messages of each lane come with it, the oldest
   */
  claim(holder: string, leaseMs: number, quota: Quota, turnMessages: number): Promise<ClaimedLane[]>

  /**
   * @returns ms until a lane has something to do; 0 or less if one has now, infinite if none has
   */
  due(): Promise<number>

  /**
   * Prolongs leases, by their claims, for `leaseMs` from now.
   *
   * @returns the recipients whose lanes are the worker's still
   */
  renew(
    holder: string,
    claimed: readonly Pick<ClaimedLane, 'recipient' | 'claim'>[],
    leaseMs: number,
  ): Promise<Set<string>>

  /** Gives a lane back. One that was claimed anew meanwhile is left alone. */
  release(turn: LaneTurn): Promise<void>

  /** What waits, for the metrics. */
  backlog(): Promise<Backlog>
}

export interface WebhookLanesOptions {
  /** How long a circuit rests at most; default as the contract has it. */
  readonly circuitMs?: number
}

/**
 * No turn puts the next one off for longer: the longest back-off with its jitter is 90 s, see
 * `back-off.ts`.
 */
export const MAX_DELAY_MS = 120_000
/** How often times are looked for that are further ahead than any that is set. */
export const CLOCK_CHECK_MS = 1_000
/** Of these so many at once, at most; the rest follows. */
export const MENDED_AT_ONCE = 5_000
