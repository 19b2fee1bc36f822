/**
 * Runs the jobs of maintenance when they are due, on one process at a time: the one that holds a
 * lease. One that dies is replaced within a minute; one that loses its lease begins no other batch.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { createTask } from 'node-cron'
import { Gauge } from 'prom-client'
import { inBackground } from '../platform/background.ts'
import type { Lease } from '../platform/lease.ts'
import type { Logger } from '../platform/logger.ts'
import { countRuns, type Job, runJob } from './job.ts'

/**
 * How long a keeper that died or froze is waited for. It is asked for, and prolonged, four times as
 * often.
 */
export const KEEPER_LEASE_MS = 20_000
/**
 * A batch that is under way when the process is to end is waited for so long; it has a deadline,
 * and is whole or nothing.
 */
const STOP_MS = 2_000
/** Timers may go off a millisecond early, and a run must not be due twice. */
const LATE_MS = 50

const keeping = new Gauge({
  name: 'tabulum_maintenance_keeping',
  help: '1 in the process that runs maintenance.',
})

export interface KeeperOptions {
  readonly jobs: readonly Job[]
  readonly logger: Logger
  /** Undefined where no other process can be. */
  readonly lease?: Pick<Lease, 'take' | 'release'>
  readonly leaseMs?: number
  /** Step in when nobody has had the lease for so long. */
  readonly vacantMs?: number
}

export interface Keeper {
  /** Begins nothing more, and resolves within seconds. */
  stop(): Promise<void>
}

export function startKeeper({
  jobs,
  logger,
  lease,
  leaseMs = KEEPER_LEASE_MS,
  vacantMs = 0,
}: KeeperOptions): Keeper {
  countRuns(jobs)
  const stop = new AbortController()
  const work = async (signal: AbortSignal) => {
    keeping.set(1)
    try {
      await Promise.all(jobs.map((job) => follow(job, signal, logger)))
    } finally {
      keeping.set(0)
    }
  }
  const running = lease
    ? keep({ lease, leaseMs, vacantMs, logger }, work, stop.signal)
    : work(stop.signal)
  inBackground('maintenance', running)
  return {
    async stop() {
      stop.abort()
      await Promise.race([running.catch(() => {}), sleep(STOP_MS, undefined, { ref: false })])
    },
  }
}

/**
 * Runs a job each time that it is due, until `signal` aborts. The library knows when that is; its
 * timers are not used, as they wait for a time of the clock: an hour where that was set back by
 * one, and where it was set forward they count each time that was passed over, for seconds.
 */
async function follow(job: Job, signal: AbortSignal, logger: Logger): Promise<void> {
  const task = createTask(job.schedule, () => {}, { name: job.name, timezone: 'UTC' })
  try {
    while (!signal.aborted) {
      const [due] = task.getNextRuns(1)
      await pause(Math.max(0, Number(due) - Date.now()) + LATE_MS, signal)
      if (!signal.aborted) await runJob(job, { signal, logger })
    }
  } finally {
    await task.destroy()
  }
}

type Holding = Required<Pick<KeeperOptions, 'lease' | 'leaseMs' | 'vacantMs' | 'logger'>>

/** Does the work for as long as this process has the lease, and asks for it while it has not. */
async function keep(
  holding: Holding,
  work: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { leaseMs, vacantMs, logger } = holding
  while (!signal.aborted) {
    const askedAt = performance.now()
    if (await takes(holding, vacantMs)) {
      logger.info('this process runs maintenance')
      const lost = new AbortController()
      const prolonging = prolong(holding, askedAt + leaseMs, signal).then(() => {
        lost.abort()
        if (!signal.aborted) logger.warn('another process may run maintenance: this one stops')
      })
      // What is under way has a deadline, and must not be begun a second time beside it.
      await Promise.all([prolonging, work(AbortSignal.any([signal, lost.signal]))])
    }
    await pause(leaseMs / 4, signal)
  }
}

/** Prolongs the lease until it is lost or may be, or `signal` aborts; then gives it back. */
async function prolong(holding: Holding, until: number, signal: AbortSignal): Promise<void> {
  const { lease, leaseMs } = holding
  const over = new AbortController()
  const stop = AbortSignal.any([signal, over.signal])
  let end = setTimeout(() => over.abort(), until - performance.now())
  const renewing = (async () => {
    for (;;) {
      await pause(leaseMs / 4, stop)
      if (stop.aborted) return
      const askedAt = performance.now()
      const answer = await takes(holding, 0)
      if (answer === false) over.abort()
      if (answer !== true || stop.aborted) continue
      clearTimeout(end)
      end = setTimeout(() => over.abort(), askedAt + leaseMs - performance.now())
    }
  })()
  inBackground('prolong_maintenance', renewing)
  await new Promise<void>((resolve) => {
    if (stop.aborted) resolve()
    stop.addEventListener('abort', () => resolve(), { once: true })
  })
  clearTimeout(end)
  // Not given back, it runs out.
  if (signal.aborted) inBackground('release_maintenance', lease.release())
}

/** Undefined where nobody knows: the database is out. */
async function takes({ lease, leaseMs }: Holding, vacantMs: number): Promise<boolean | undefined> {
  const asking = lease.take(leaseMs, vacantMs)
  inBackground('take_lease', asking)
  return asking.catch(() => undefined)
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return sleep(ms, undefined, { signal }).catch(() => {})
}
