/**
 * What a worker does in a turn of a lane: each message is delivered, moved to the pull queue, or
 * waits for its next attempt, which ends the turn. How a message ended is in the log before the
 * next one is begun.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Allowance, takeFrom } from '../access/admission.ts'
import type { NewEvent, PushFailure } from '../events/event.ts'
import { type AppendOptions, type EventLog, LogUnavailable } from '../events/event-log.ts'
import type { Message } from '../messaging/message-queue.ts'
import { toLeasedMessage } from '../messaging/messages-of-log.ts'
import type { Logger } from '../platform/logger.ts'
import { redact } from '../removal/redaction.ts'
import type { Removals } from '../removal/removals.ts'
import { type RetryPolicy, retryDelay } from './back-off.ts'
import {
  type CircuitMode,
  type CircuitPolicy,
  circuitMode,
  recordFailure,
} from './circuit-breaker.ts'
import type { DeliveryOutcome } from './delivery-outcome.ts'
import { type Held, type LaneLeases, LeaseLapsed } from './lane-leases.ts'
import { SecretNotOpened } from './secret-box.ts'
import { signatureHeaders } from './signature.ts'
import type { WebhookClient } from './webhook-client.ts'
import type { ClaimedLane, LaneTurn } from './webhook-lanes.ts'
import { attemptSeconds, attempts, deliverySeconds, fallbacks } from './webhook-metrics.ts'
import type { WebhookSecrets } from './webhook-secrets.ts'

/** A turn begins no message after this time: others may be waiting. */
const TURN_MS = 1_000
/** An answer within this is fast. Five times what a request around the globe takes. */
const FAST_MS = 1_000
/** Before the log is tried again where it is out. */
const OUTAGE_MS = 250
const USER_AGENT = 'Tabulum-Webhooks/1'

export interface DeliveryOptions {
  readonly log: EventLog
  /** Asked before each attempt: what was removed is not sent. */
  readonly removals: Removals
  readonly client: Pick<WebhookClient, 'post'>
  readonly secrets: Pick<WebhookSecrets, 'open'>
  readonly logger: Logger
  readonly retry: RetryPolicy
  readonly circuit: CircuitPolicy
  /** Attempts to deliver to one agent. */
  readonly outbound: Allowance
  /**
   * Messages that may wait for one agent; past that the oldest goes to the pull queue, which is
   * bounded itself.
   */
  readonly maxBacklog: number
  /** From 0 to below 1. Default `Math.random`. */
  readonly random?: () => number
}

export class LaneDeliveries {
  readonly #options: DeliveryOptions
  readonly #leases: Pick<LaneLeases, 'check'>
  readonly #random: () => number
  readonly #stop: AbortSignal

  /** @param stop when it aborts, no other message is begun */
  constructor(options: DeliveryOptions, leases: Pick<LaneLeases, 'check'>, stop: AbortSignal) {
    this.#options = options
    this.#leases = leases
    this.#random = options.random ?? Math.random
    this.#stop = stop
  }

  /**
   * Goes through the lane's messages, and keeps in `turn` what has become of it. Throws
   * `Unavailable`, and `LeaseLapsed` where the lane may be another worker's by now.
   */
  async work(held: Held, turn: LaneTurn): Promise<void> {
    const { lane } = held
    const endAt = performance.now() + TURN_MS
    if (lane.messages.length === 0) turn.doneSeq = lane.lastSeq
    for (const [index, message] of lane.messages.entries()) {
      if (this.#stop.aborted || performance.now() > endAt) return
      const mode = circuitMode({ ...turn, probeUntil: 0 }, databaseClock(held))
      if (mode === 'open') await this.#giveUp(held, turn, message, 'circuit_open')
      else if (lane.pending - index > this.#options.maxBacklog)
        await this.#giveUp(held, turn, message, 'backlog_full')
      else if (!(await this.#attempt(held, turn, message, mode))) return
    }
  }

  /** One attempt at a message. Returns whether to go on to the next one. */
  async #attempt(
    held: Held,
    turn: LaneTurn,
    { seq, id }: QueuedMessage,
    mode: CircuitMode,
  ): Promise<boolean> {
    const { log, removals, outbound } = this.#options
    const { state, fullAtMs } = takeFrom(turn.bucketFullAt, outbound, databaseClock(held))
    if (!state.allowed) {
      // Where the clock was set back, this is less than it was.
      turn.bucketFullAt = fullAtMs
      turn.delay = Math.ceil(state.retryAfterMs)
      return false
    }
    const [event] = await redact(await log.get([seq]), removals)
    if (event === undefined) throw new LogUnavailable(`event ${seq} was not found`)
    const message = toLeasedMessage(event)
    turn.bucketFullAt = fullAtMs
    const startedAt = performance.now()
    const outcome = await this.#post(held, message)
    const durationMs = performance.now() - startedAt
    attempts.inc({ outcome: outcome.kind === 'failed' ? outcome.stage : outcome.kind })
    attemptSeconds.observe({ kind: outcome.kind }, durationMs / 1_000)
    // What it answered does not matter here: what it costs the others is the time for which it
    // holds a slot.
    const standing = durationMs <= FAST_MS ? 'fast' : 'slow'
    if (outcome.kind === 'delivered') {
      await this.#record(held, delivered(message), { about: seq, id: `delivered-${id}` })
      deliverySeconds.observe(Math.max(0, Date.now() - Date.parse(message.timestamp)) / 1_000)
      const well = { attempts: 0, standing, failures: 0, openUntil: 0 } as const
      Object.assign(turn, { doneSeq: seq, ...well } satisfies Partial<LaneTurn>)
      return true
    }
    turn.attempts = (turn.retriedSeq === seq ? turn.attempts : 0) + 1
    turn.retriedSeq = seq
    turn.standing = standing
    this.#options.logger.info(
      {
        agent: message.to,
        message_id: id,
        attempt: turn.attempts,
        duration_ms: Math.round(durationMs),
        ...outcome,
      },
      'webhook attempt failed',
    )
    return this.#failed(held, turn, { seq, id }, { outcome, mode })
  }

  /** Whether to try again, or give the message up. Returns whether to go on to the next one. */
  async #failed(
    held: Held,
    turn: LaneTurn,
    message: QueuedMessage,
    { outcome, mode }: { outcome: DeliveryOutcome; mode: CircuitMode },
  ): Promise<boolean> {
    const { retry, circuit } = this.#options
    // A probe is one attempt: an endpoint that is still down need not be asked four times.
    const refusal = outcome.kind === 'rejected' ? outcome : undefined
    const delay =
      mode === 'half-open' ? undefined : retryDelay(turn.attempts, this.#random, retry, refusal)
    if (delay !== undefined) {
      turn.delay = delay
      return false
    }
    await this.#giveUp(held, turn, message, 'undeliverable')
    const clock = databaseClock(held)
    const { failures, openUntil } = recordFailure({ ...turn, probeUntil: 0 }, clock, circuit)
    const isOpen = openUntil > 0
    turn.failures = failures
    turn.openUntil = openUntil
    if (isOpen) turn.standing = 'open'
    return isOpen
  }

  async #post(held: Held, message: Message): Promise<DeliveryOutcome> {
    this.#leases.check(held)
    const { lane, lapse } = held
    if (lane.url === null || lane.sealedSecret === null)
      return { kind: 'failed', stage: 'url', reason: 'the agent has no webhook' }
    const { message_id, from, to, content, timestamp } = message
    const body = JSON.stringify({ message_id, from, to, content, timestamp })
    let proof: Record<string, string>
    try {
      const { secret, authorization } = this.#options.secrets.open(
        lane.sealedSecret,
        lane.recipient,
      )
      proof = {
        ...signatureHeaders({ secret, id: message_id, now: Date.now(), body }),
        ...(authorization !== undefined && { authorization }),
      }
    } catch (error) {
      if (!(error instanceof SecretNotOpened)) throw error
      return {
        kind: 'failed',
        stage: 'sign',
        reason: 'the secret does not open: is WEBHOOK_SECRET_KEY the right one?',
      }
    }
    const headers = { 'content-type': 'application/json', 'user-agent': USER_AGENT, ...proof }
    return this.#options.client.post(lane.url, { headers, body }, lapse.signal)
  }

  /** Moves a message to the pull queue. */
  async #giveUp(
    held: Held,
    turn: LaneTurn,
    { seq, id }: QueuedMessage,
    reason: PushFailure,
  ): Promise<void> {
    const to = held.lane.recipient
    const event: NewEvent = {
      ts: new Date().toISOString(),
      type: 'push_failed',
      agent: to,
      data: { message_id: id, to, reason },
    }
    await this.#record(held, event, { about: seq, id: `push-failed-${id}` })
    fallbacks.inc({ reason })
    turn.doneSeq = seq
    turn.attempts = 0
  }

  /**
   * Appends how a message ended, and tries again while the log is out: the lane must not go on
   * without.
   */
  async #record(held: Held, event: NewEvent, options: AppendOptions): Promise<void> {
    for (;;) {
      try {
        // What another worker may have delivered meanwhile must not come to the queue; that this
        // one has delivered stays true.
        const notAfter = event.type === 'push_failed' ? { notAfter: held.validUntil } : {}
        await this.#options.log.append(event, { ...options, ...notAfter })
        return
      } catch (error) {
        if (!(error instanceof LogUnavailable)) throw error
        if (performance.now() > held.validUntil) throw new LeaseLapsed()
        if (this.#stop.aborted) throw error
        await sleep(OUTAGE_MS)
      }
    }
  }
}

type QueuedMessage = ClaimedLane['messages'][number]

/** A turn that has not begun: all is as the claim found it. */
export function beginTurn(lane: ClaimedLane): LaneTurn {
  const {
    recipient,
    claim,
    standing,
    doneSeq,
    retriedSeq,
    attempts,
    failures,
    openUntil,
    bucketFullAt,
  } = lane
  return {
    recipient,
    claim,
    standing,
    doneSeq,
    retriedSeq,
    attempts,
    failures,
    openUntil,
    bucketFullAt,
    delay: 0,
  }
}

/** The clock that all workers share, in ms since 1970. */
function databaseClock({ lane, claimedAt }: Held): number {
  return lane.now + performance.now() - claimedAt
}

function delivered({ message_id, to }: Message): NewEvent {
  return {
    ts: new Date().toISOString(),
    type: 'message_delivered',
    agent: to,
    data: { message_id, to, delivery_method: 'push' },
  }
}
