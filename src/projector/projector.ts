/**
 * Keeps a projection up with the event log. Many processes run this for one projection; a lease
 * lets one of them work.
 *
 * Modes: *standing by* (another process holds the lease) → *leading* (got the lease) → standing by
 * (lost it, or a part is out; or gave it up, as the log has events of a newer version).
 */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { Counter, Gauge, Histogram } from 'prom-client'
import type { LoggedEvent } from '../events/event.ts'
import { type EventLog, type FollowOptions, LogUnavailable, OLDER } from '../events/event-log.ts'
import { checkTypes, NEWER_MS, NewerEvent } from '../events/newer-event.ts'
import { PROJECTOR_SILENCE_MS, type Progress } from '../events/progress.ts'
import { inBackground } from '../platform/background.ts'
import type { Logger } from '../platform/logger.ts'
import { OutageLog } from '../platform/outage-log.ts'

/** Another process has the lease now; what this one wanted to apply was refused whole. */
export class LeaseLost extends Error {
  override name = 'LeaseLost'
}

/**
 * A projection as its store keeps it: the data, the position in the log that they reflect, and the
 * lease.
 */
export interface Projection {
  readonly name: string
  /** Whose events it is made of (all unless given), and which of them nobody waits for. */
  readonly follows?: FollowOptions
  /**
   * Takes the lease. Returns the position, undefined if another process holds the lease. Throws
   * soon after `signal` aborts.
   */
  acquire(holder: string, leaseMs: number, signal: AbortSignal): Promise<number | undefined>
  /**
   * Prolongs the lease. Throws `LeaseLost` if it is another's now, or the store is not what this
   * process left.
   */
  renew(holder: string, leaseMs: number): Promise<void>
  /**
   * Applies events that follow position `from`; the last one's sequence number becomes the
   * position, in the same transaction. Throws `LeaseLost` if the position is not `from` or the
   * lease another's, and soon after `signal` aborts where it has to wait.
   */
  apply(
    holder: string,
    from: number,
    events: readonly LoggedEvent[],
    signal: AbortSignal,
  ): Promise<void>
  /**
   * Nothing in the log after position `from` concerns it up to `to`, which becomes the position: it
   * need not be read again. Throws like `apply`.
   */
  pass(holder: string, from: number, to: number): Promise<void>
  /** Whether `apply` waits for room in the store, for as long as that may take. */
  readonly isHeldUp?: boolean
  /** Gives the lease back, so that another process need not wait for its end. */
  release(holder: string): Promise<void>
  /** Everything in the log has been applied for now. */
  caughtUp?(): void
}

/** How long a process that died or froze holds the others up: the stall that agents see. */
export const LEASE_MS = 1_000
const RENEW_MS = 250
/** A standby asks for the lease this often when no projector is heard of. */
const STANDBY_MS = 200
const BACK_OFF_MS = 250

// One that does its work loses no lease, and one that died is replaced before it is given up.
assert(3 * RENEW_MS < LEASE_MS)
assert(LEASE_MS + STANDBY_MS + RENEW_MS <= PROJECTOR_SILENCE_MS)

const appliedGauge = new Gauge({
  name: 'tabulum_projection_applied_seq',
  help: 'Sequence number of the last event that the projection has applied, as this process knows it.',
  labelNames: ['projection'] as const,
})
const leadingGauge = new Gauge({
  name: 'tabulum_projection_leading',
  help: '1 in the process that applies the projection.',
  labelNames: ['projection'] as const,
})
const lagHistogram = new Histogram({
  name: 'tabulum_projection_lag_seconds',
  help: 'Time from an event to its application; requests that change something wait for it.',
  labelNames: ['projection'] as const,
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300],
})
const failures = new Counter({
  name: 'tabulum_projection_failures_total',
  help: 'Times that a leading projector had to start over.',
  labelNames: ['projection'] as const,
})

export interface ProjectorOptions {
  projection: Projection
  log: EventLog
  progress: Progress
  logger: Logger
  /** A name of this process that no other has. */
  holder: string
  /**
   * Tells other processes where the projection is: those that wait for these events, or all, which
   * is now and then.
   */
  announce?: (seq: number, events?: readonly LoggedEvent[]) => void
  /** Called with each batch that was applied. */
  onApplied?: (events: readonly LoggedEvent[]) => void
  /** Standing by, wait until no projector has been heard of for so long. */
  silentMs?: number
  /** Stand by for so long at first: another process that starts now is to lead. */
  startDelayMs?: number
}

/** Runs until `signal` aborts; then gives the lease back. Never throws: it logs and starts over. */
export async function runProjector(options: ProjectorOptions, signal: AbortSignal): Promise<void> {
  const { projection, progress, logger, holder, silentMs = 0, startDelayMs = 0 } = options
  const outages = new OutageLog(logger)
  await sleep(startDelayMs, undefined, { signal }).catch(() => {})
  while (!signal.aborted) {
    try {
      const position =
        progress.silenceMs() < silentMs
          ? undefined
          : await projection.acquire(holder, LEASE_MS, signal)
      if (position === undefined) {
        await sleep(STANDBY_MS, undefined, { signal })
        continue
      }
      logger.info({ projection: projection.name, position }, 'projector leads')
      await lead(options, position, signal)
    } catch (error) {
      if (signal.aborted) break
      failures.inc({ projection: projection.name })
      outages.met(projection.name, 'projector starts over', String(error))
      const isOld = error instanceof NewerEvent
      if (isOld) await giveBack(projection, holder)
      await sleep(isOld ? NEWER_MS : BACK_OFF_MS, undefined, { signal }).catch(() => {})
    } finally {
      leadingGauge.set({ projection: projection.name }, 0)
    }
  }
  await giveBack(projection, holder)
}

/** Not given back, the lease runs out. */
async function giveBack(projection: Projection, holder: string): Promise<void> {
  const releasing = projection.release(holder)
  inBackground('release_projection', releasing)
  await releasing.catch(() => {})
}

async function lead(options: ProjectorOptions, start: number, signal: AbortSignal): Promise<void> {
  const { projection, log, progress, holder, logger } = options
  const labels = { projection: projection.name }
  leadingGauge.set(labels, 1)
  const lost = new AbortController()
  const stop = AbortSignal.any([signal, lost.signal])
  let position = start
  let wasCaughtUp = false

  const announce = (events?: readonly LoggedEvent[]) => {
    appliedGauge.set(labels, position)
    progress.advance(position, projection.isHeldUp)
    options.announce?.(position, events)
  }
  const renewing = (async () => {
    while (!stop.aborted) {
      await sleep(RENEW_MS, undefined, { signal: stop }).catch(() => {})
      if (stop.aborted) return
      await projection.renew(holder, LEASE_MS)
      announce()
    }
  })().catch((error: unknown) => {
    logger.warn({ ...labels, error: String(error) }, 'projector could not prolong its lease')
    lost.abort()
  })

  try {
    const end = await log.lastSeq()
    // Of a leader just elected, this may be true for a moment.
    if (end < start)
      throw new LogUnavailable(`the event log ends at ${end}, before ${start}, ${OLDER}`)
    announce()
    let passed = start
    const onPassed = (seq: number) => {
      passed = seq
    }
    for await (const events of log.follow(position, stop, { ...projection.follows, onPassed })) {
      const last = events.at(-1)
      if (last) {
        checkTypes(events)
        await projection.apply(holder, position, events, stop)
        position = last.seq
        options.onApplied?.(events)
        lagHistogram.observe(labels, Math.max(0, Date.now() - Date.parse(last.ts)) / 1_000)
        announce(events)
      } else {
        const hasPassed = passed > position
        if (hasPassed) {
          await projection.pass(holder, position, passed)
          position = passed
        }
        projection.caughtUp?.()
        if (hasPassed || !wasCaughtUp) announce()
        wasCaughtUp = true
      }
    }
  } finally {
    lost.abort()
    await renewing
  }
}
