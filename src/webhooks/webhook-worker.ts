/**
 * Pushes messages to webhooks. Any number of workers share the lanes (`webhook-lanes.ts`): a worker
 * claims lanes that have something to do, gives each a *turn*, and gives it back. As a lane is in
 * one worker's hands at a time and goes message by message, an agent's messages are attempted in
 * the order of the log; as a turn ends where a message has to wait, waiting holds no slot.
 *
 * How a message ends is appended to the log: delivered (`message_delivered`), or moved to the pull
 * queue (`push_failed`). A worker that is killed leaves its lanes to the others when its leases run
 * out; only the deliveries it had in flight may be made again.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Allowance, takeFrom } from '../access/admission.ts'
import type { NewEvent, PushFailure } from '../events/event.ts'
import { type AppendOptions, type EventLog, LogUnavailable } from '../events/event-log.ts'
import { type Applied, PROJECTOR_SILENCE_MS, ProjectionBehind } from '../events/progress.ts'
import type { Message } from '../messaging/message-queue.ts'
import { toLeasedMessage } from '../messaging/messages-of-log.ts'
import { inBackground } from '../platform/background.ts'
import type { Logger } from '../platform/logger.ts'
import { OutageLog } from '../platform/outage-log.ts'
import { Unavailable } from '../platform/unavailable.ts'
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
import { DeliverySlots } from './delivery-slots.ts'
import type { Doorbell } from './doorbell.ts'
import { type Held, LaneLeases, LeaseLapsed } from './lane-leases.ts'
import { SecretNotOpened } from './secret-box.ts'
import { signatureHeaders } from './signature.ts'
import type { WebhookClient } from './webhook-client.ts'
import type { ClaimedLane, LaneTurn, WebhookLanes } from './webhook-lanes.ts'
import {
  attemptSeconds,
  attempts,
  backlogAge,
  backlogMessages,
  deliverySeconds,
  fallbacks,
  inFlight,
  openCircuits,
} from './webhook-metrics.ts'
import type { WebhookSecrets } from './webhook-secrets.ts'

/** How long the lanes of a worker that died or froze stay with it. */
const LEASE_MS = 10_000
/**
 * What has come due is looked for so often: where there was no slot for it, and where a ring went
 * astray.
 */
const POLL_MS = 100
const IDLE_POLL_MS = 1_000
/** Between two claims at least, however much there is to do. */
const CLAIM_GAP_MS = 5
/**
 * A turn takes so many messages at most, and begins none after this time: others may be waiting.
 */
const TURN_MESSAGES = 20
const TURN_MS = 1_000
/** An answer within this is fast. Five times what a request around the globe takes. */
const FAST_MS = 1_000
/** Before the next try where a part of ours is out. */
const OUTAGE_MS = 250
/** Before the next turn of a lane that met a defect. */
const DEFECT_MS = 10_000
/** And is waited for so long at a time: it says where it is every 250 ms. */
const CATCH_UP_MS = 750
const BACKLOG_EVERY_MS = 5_000
const USER_AGENT = 'Tabulum-Webhooks/1'

export interface WebhookWorkerOptions {
  lanes: WebhookLanes
  log: EventLog
  /** Asked before each attempt: what was removed is not sent. */
  removals: Removals
  client: Pick<WebhookClient, 'post'>
  secrets: Pick<WebhookSecrets, 'open'>
  /** Of the projection that fills the lanes. */
  progress: Applied
  /** Rings when there is something new in them. */
  pushes: Doorbell
  logger: Logger
  /** A name of this process that no other has. */
  holder: string
  /** Lanes that are worked on at once, and so deliveries in flight, at most. */
  concurrency: number
  retry: RetryPolicy
  circuit: CircuitPolicy
  /** Attempts to deliver to one agent. */
  outbound: Allowance
  /**
   * Messages that may wait for one agent; past that the oldest goes to the pull queue, which is
   * bounded itself.
   */
  maxBacklog: number
  /** How long a worker that died keeps its lanes from the others. Default 10,000. */
  leaseMs?: number
  /** From 0 to below 1. Default `Math.random`. */
  random?: () => number
}

/**
 * Pushes until `signal` aborts; then lets the deliveries in flight finish and gives the lanes back.
 * Never throws.
 */
export async function runWebhookWorker(
  options: WebhookWorkerOptions,
  signal: AbortSignal,
): Promise<void> {
  await new WebhookWorker(options, signal).run()
}

class WebhookWorker {
  readonly #options: WebhookWorkerOptions
  readonly #leaseMs: number
  readonly #leases: LaneLeases
  readonly #outages: OutageLog
  readonly #random: () => number
  readonly #stop: AbortSignal
  readonly #slots: DeliverySlots
  /** Bounded by the slots. */
  readonly #turns = new Set<Promise<void>>()
  /**
   * What the lanes say may be older than what the log says: nothing is claimed until they have
   * caught up.
   */
  #isBehind = true
  #woken = false
  #wake: () => void = () => {}

  constructor(options: WebhookWorkerOptions, signal: AbortSignal) {
    this.#options = options
    const { lanes, holder, logger } = options
    this.#leaseMs = options.leaseMs ?? LEASE_MS
    this.#outages = new OutageLog(logger)
    this.#leases = new LaneLeases({
      lanes,
      holder,
      leaseMs: this.#leaseMs,
      onFailure: (error) => {
        this.#isBehind = true
        this.#outages.met('leases', 'webhook worker could not prolong its leases', String(error))
      },
    })
    this.#random = options.random ?? Math.random
    this.#stop = signal
    this.#slots = new DeliverySlots(options.concurrency)
  }

  async run(): Promise<void> {
    const wake = () => this.#wakeUp()
    const unsubscribe = this.#options.pushes.onRing(wake)
    this.#stop.addEventListener('abort', wake, { once: true })
    const ended = new AbortController()
    const beside = [this.#leases.keep(ended.signal), this.#measureBacklog(ended.signal)]
    while (!this.#stop.aborted) {
      this.#woken = false
      let pause = POLL_MS
      try {
        // Where there is no room, the next slot that comes free wakes it.
        const mayClaim = this.#slots.quota.total > 0 && (await this.#mayClaim())
        const isIdle = mayClaim && (await this.#claim()) === 0
        if (isIdle && !this.#woken)
          pause = Math.min(Math.max(POLL_MS, await this.#options.lanes.due()), IDLE_POLL_MS)
      } catch (error) {
        this.#isBehind = true
        this.#outages.met('claim', 'webhook worker cannot claim', String(error))
        await this.#pause(OUTAGE_MS)
      }
      await sleep(CLAIM_GAP_MS)
      if (!this.#woken) await this.#pause(pause)
    }
    unsubscribe()
    while (this.#turns.size > 0) await Promise.all(this.#turns)
    ended.abort()
    await Promise.all(beside)
  }

  #wakeUp(): void {
    this.#woken = true
    this.#wake()
  }

  async #pause(ms: number): Promise<void> {
    if (this.#stop.aborted) return
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#wake = resolve
    const timer = setTimeout(resolve, ms)
    await promise
    clearTimeout(timer)
  }

  /** Not while messages that were delivered may still be in the lanes. */
  async #mayClaim(): Promise<boolean> {
    const { progress } = this.#options
    if (progress.silenceMs() > PROJECTOR_SILENCE_MS) this.#isBehind = true
    if (!this.#isBehind) return true
    try {
      await this.#untilCaughtUp(CATCH_UP_MS)
    } catch (error) {
      if (error instanceof ProjectionBehind) return false
      throw error
    }
    this.#isBehind = progress.silenceMs() > PROJECTOR_SILENCE_MS
    return !this.#isBehind
  }

  /** Until all that the log says now is in the lanes. Throws `ProjectionBehind`. */
  async #untilCaughtUp(silentMs?: number): Promise<void> {
    const { progress, log } = this.#options
    await progress.reached(await log.lastSeq(), silentMs)
  }

  /** Claims what there is room for, and begins its turns. Returns how many. */
  async #claim(): Promise<number> {
    const quota = this.#slots.quota
    const claimedAt = performance.now()
    const lanes = await this.#options.lanes.claim(
      this.#options.holder,
      this.#leaseMs,
      quota,
      TURN_MESSAGES,
    )
    for (const lane of lanes) {
      const turn = this.#turn(this.#leases.hold(lane, claimedAt))
      this.#turns.add(turn)
      inBackground(
        'webhook_turn',
        turn.finally(() => this.#turns.delete(turn)),
      )
    }
    return lanes.length
  }

  async #turn(held: Held): Promise<void> {
    const { lane } = held
    const { logger, lanes } = this.#options
    // One that rests sends nothing, and so takes no time.
    const isResting = lane.standing === 'open' && lane.now < lane.openUntil
    const giveBack = this.#slots.take(isResting ? 'fast' : lane.standing)
    inFlight.set(this.#slots.inUse)
    const turn = beginTurn(lane)
    try {
      // Given back as it was, to be claimed again without what the worker before has delivered.
      if (lane.wasHeld) await this.#untilCaughtUp()
      else await this.#work(held, turn)
      await lanes.release(turn)
    } catch (error) {
      // The lane is another worker's now, or will be when the lease runs out.
      const isLost = error instanceof LeaseLapsed || error instanceof ProjectionBehind
      if (held.lapse.signal.aborted || isLost) this.#isBehind = true
      else await this.#releaseLate(held, turn, error)
    } finally {
      this.#leases.drop(held)
      giveBack()
      inFlight.set(this.#slots.inUse)
      this.#wakeUp()
      logger.trace({ agent: lane.recipient }, 'webhook turn over')
    }
  }

  /**
   * Gives back a lane whose turn did not end well; while the database is out, until the lease runs
   * out.
   */
  async #releaseLate(held: Held, turn: LaneTurn, error: unknown): Promise<void> {
    const { logger, lanes } = this.#options
    const isOutage = error instanceof Unavailable
    const agent = turn.recipient
    if (isOutage)
      this.#outages.met('turn', 'webhook turn ended by an outage', String(error), { agent })
    else logger.error({ agent, err: error }, 'webhook turn failed')
    while (performance.now() < held.validUntil) {
      try {
        return await lanes.release({ ...turn, delay: isOutage ? OUTAGE_MS : DEFECT_MS })
      } catch {
        this.#isBehind = true
        await sleep(OUTAGE_MS)
      }
    }
  }

  /** Goes through the lane's messages, and keeps in `turn` what has become of it. */
  async #work(held: Held, turn: LaneTurn): Promise<void> {
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
    const { log, removals, outbound, retry, circuit } = this.#options
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
    // What it answered does not matter here: what it costs the others is the time for which it
    // holds a slot.
    const standing = durationMs <= FAST_MS ? 'fast' : 'slow'
    attempts.inc({ outcome: outcome.kind === 'failed' ? outcome.stage : outcome.kind })
    attemptSeconds.observe({ kind: outcome.kind }, durationMs / 1_000)
    if (outcome.kind === 'delivered') {
      await this.#record(held, delivered(message), { about: seq, id: `delivered-${id}` })
      deliverySeconds.observe(Math.max(0, Date.now() - Date.parse(message.timestamp)) / 1_000)
      Object.assign(turn, {
        doneSeq: seq,
        attempts: 0,
        standing,
        failures: 0,
        openUntil: 0,
      } satisfies Partial<LaneTurn>)
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
    // A probe is one attempt: an endpoint that is still down need not be asked four times.
    const refusal = outcome.kind === 'rejected' ? outcome : undefined
    const delay =
      mode === 'half-open' ? undefined : retryDelay(turn.attempts, this.#random, retry, refusal)
    if (delay !== undefined) {
      turn.delay = delay
      return false
    }
    await this.#giveUp(held, turn, { seq, id }, 'undeliverable')
    const { failures, openUntil } = recordFailure(
      { ...turn, probeUntil: 0 },
      databaseClock(held),
      circuit,
    )
    const isOpen = openUntil > 0
    Object.assign(turn, {
      failures,
      openUntil,
      standing: isOpen ? 'open' : standing,
    } satisfies Partial<LaneTurn>)
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

  async #measureBacklog(ended: AbortSignal): Promise<void> {
    const { lanes, log } = this.#options
    while (!ended.aborted) {
      try {
        const { messages, oldestSeq, openCircuits: open } = await lanes.backlog()
        const [oldest] = oldestSeq === undefined ? [] : await log.get([oldestSeq])
        backlogMessages.set(messages)
        backlogAge.set(
          oldest === undefined ? 0 : Math.max(0, Date.now() - Date.parse(oldest.ts)) / 1_000,
        )
        openCircuits.set(open)
      } catch (error) {
        this.#options.logger.debug({ error: String(error) }, 'webhook backlog not measured')
      }
      await sleep(BACKLOG_EVERY_MS, undefined, { signal: ended }).catch(() => {})
    }
  }
}

type QueuedMessage = ClaimedLane['messages'][number]

function beginTurn(lane: ClaimedLane): LaneTurn {
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
