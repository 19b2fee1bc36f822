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
import { type Applied, PROJECTOR_SILENCE_MS, ProjectionBehind } from '../events/progress.ts'
import { inBackground } from '../platform/background.ts'
import { OutageLog } from '../platform/outage-log.ts'
import { Unavailable } from '../platform/unavailable.ts'
import { DeliverySlots } from './delivery-slots.ts'
import type { Doorbell } from './doorbell.ts'
import { beginTurn, type DeliveryOptions, LaneDeliveries } from './lane-deliveries.ts'
import { type Held, LaneLeases, LeaseLapsed } from './lane-leases.ts'
import type { LaneTurn, WebhookLanes } from './webhook-lanes.ts'
import { backlogAge, backlogMessages, inFlight, openCircuits } from './webhook-metrics.ts'

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
/** A turn takes so many messages at most: others may be waiting. */
const TURN_MESSAGES = 20
/** Before the next try where a part of ours is out. */
const OUTAGE_MS = 250
/** Before the next turn of a lane that met a defect. */
const DEFECT_MS = 10_000
/** And is waited for so long at a time: it says where it is every 250 ms. */
const CATCH_UP_MS = 750
const BACKLOG_EVERY_MS = 5_000

export interface WebhookWorkerOptions extends DeliveryOptions {
  readonly lanes: WebhookLanes
  /** Of the projection that fills the lanes. */
  readonly progress: Applied
  /** Rings when there is something new in them. */
  readonly pushes: Doorbell
  /** A name of this process that no other has. */
  readonly holder: string
  /** Lanes that are worked on at once, and so deliveries in flight, at most. */
  readonly concurrency: number
  /** How long a worker that died keeps its lanes from the others. Default 10,000. */
  readonly leaseMs?: number
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

/**
 * Modes: *behind* (what the lanes say may be older than the log: nothing is claimed) → *claiming*
 * (all that the log says is in the lanes) → behind, where no projector is heard of, a lease could
 * not be kept, or a part is out; and *stopping* (claims nothing, ends the turns that it has).
 */
class WebhookWorker {
  readonly #options: WebhookWorkerOptions
  readonly #leaseMs: number
  readonly #leases: LaneLeases
  readonly #outages: OutageLog
  readonly #deliveries: LaneDeliveries
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
    this.#stop = signal
    this.#deliveries = new LaneDeliveries(options, this.#leases, signal)
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
      else await this.#deliveries.work(held, turn)
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
