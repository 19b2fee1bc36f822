/**
 * Keeps the read models up with the log. Any number of processes run this for the same ones; a
 * lease lets one of them work.
 *
 * Modes: *standing by* (another process has the lease) → *leading* (got the lease) → standing by
 * (lost it, or a part is out).
 */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { Counter, Gauge } from 'prom-client'
import type { EventLog } from '../events/event-log.ts'
import { checkTypes, NEWER_MS, NewerEvent } from '../events/newer-event.ts'
import type { Lease } from '../platform/lease.ts'
import type { Logger } from '../platform/logger.ts'
import { OutageLog } from '../platform/outage-log.ts'
import { inBatches } from './batches.ts'
import type { Freshness } from './freshness.ts'
import type { ObservationWriter } from './observation-writer.ts'

export const LEASE_MS = 5_000
const RENEW_MS = 1_000
const STANDBY_MS = 500
const BACK_OFF_MS = 500
assert(3 * RENEW_MS < LEASE_MS)
/**
 * So long after a batch the next one is applied, if nobody waits for it: few large batches cost
 * less.
 */
const PACE_MS = 100

const applied = new Gauge({
  name: 'tabulum_observation_applied_seq',
  help: 'Sequence number up to which the read models of the observation have applied the log, in the process that does it.',
})
const leading = new Gauge({
  name: 'tabulum_observation_leading',
  help: '1 in the process that applies the log to the read models of the observation.',
})
const lag = new Gauge({
  name: 'tabulum_observation_lag_seconds',
  help: 'Age of the last event when it was applied to the read models of the observation, in the process that does it.',
})
const failures = new Counter({
  name: 'tabulum_observation_failures_total',
  help: 'Times that the process which applies the log to the read models of the observation had to start over.',
})

export type ObservationLease = Pick<Lease, 'take' | 'release'>

export interface ObserverParts {
  readonly log: Pick<EventLog, 'follow'>
  readonly writer: Pick<ObservationWriter, 'position' | 'apply'>
  readonly freshness: Pick<Freshness, 'advance' | 'pause'>
  /**
   * Saves others the work; that two apply nothing twice is for the position to say, which each
   * batch must find where it left it. Undefined where there is no other process.
   */
  readonly lease?: ObservationLease | undefined
  readonly logger: Logger
}

/** Runs until `signal` aborts; then gives the lease back. Never throws: it logs and starts over. */
export async function runObserver(parts: ObserverParts, signal: AbortSignal): Promise<void> {
  const { lease, logger } = parts
  const outages = new OutageLog(logger)
  while (!signal.aborted) {
    try {
      if (lease === undefined || (await lease.take(LEASE_MS, 0))) await lead(parts, signal)
      else await pause(STANDBY_MS, signal)
    } catch (error) {
      if (signal.aborted) break
      failures.inc()
      outages.met('observation', 'the observation starts over', String(error))
      const isOld = error instanceof NewerEvent
      if (isOld) await lease?.release().catch(() => {})
      await pause(isOld ? NEWER_MS : BACK_OFF_MS, signal)
    }
  }
  // Not given back, it runs out.
  await lease?.release().catch(() => {})
}

/** Applies the log until the lease is lost. */
async function lead(
  { log, writer, freshness, lease }: ObserverParts,
  signal: AbortSignal,
): Promise<void> {
  const lost = new AbortController()
  const stop = AbortSignal.any([signal, lost.signal])
  const renewing = lease && renew(lease, lost, stop)
  leading.set(1)
  try {
    let position = await writer.position()
    freshness.advance(position)
    applied.set(position)
    for await (const events of inBatches(log, position, stop)) {
      if (stop.aborted) break
      const last = events.at(-1)
      if (last === undefined) continue
      checkTypes(events)
      // Whoever was slower finds the position another.
      if (!(await writer.apply(position, events))) return
      position = last.seq
      freshness.advance(position)
      applied.set(position)
      lag.set(Math.max(0, Date.now() - Date.parse(last.ts)) / 1_000)
      await freshness.pause(PACE_MS, stop)
    }
  } finally {
    leading.set(0)
    lost.abort()
    await renewing
  }
}

/** Prolongs the lease until `stop` aborts; aborts `lost` where that was not to be had in time. */
async function renew(
  lease: ObservationLease,
  lost: AbortController,
  stop: AbortSignal,
): Promise<void> {
  let until = performance.now() + LEASE_MS
  while (!stop.aborted) {
    await pause(RENEW_MS, stop)
    if (stop.aborted) return
    const askedAt = performance.now()
    const isMine = await lease.take(LEASE_MS, 0).catch(() => undefined)
    if (isMine === true) until = askedAt + LEASE_MS
    if (isMine === false || performance.now() > until) lost.abort()
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return sleep(ms, undefined, { signal }).catch(() => {})
}
