/** One job of maintenance, and one run of it: bounded, counted, logged. */
import { Counter, Gauge, Histogram } from 'prom-client'
import { inBackground } from '../platform/background.ts'
import type { Logger } from '../platform/logger.ts'

export interface Job {
  readonly name: string
  /** When it runs, as cron has it, in UTC. */
  readonly schedule: string
  /**
   * Does its work in batches, each with a deadline, and yields how many rows each has changed. May
   * be ended between any two of them, and begun again at any time, also where another process runs
   * it: it goes by what it finds.
   */
  run(signal: AbortSignal): AsyncIterable<number>
}

/** `unfinished`: it was told to stop, or took its time, and the next run goes on. */
export type Outcome = 'done' | 'unfinished' | 'failed'

export interface RunResult {
  readonly outcome: Outcome
  readonly rows: number
  readonly seconds: number
  /** Why it failed. */
  readonly reason?: string
}

/** Rows that one batch changes at most. */
export const BATCH_ROWS = 1_000
/** After this no other batch is begun. */
const RUN_MS = 60_000

const runs = new Counter({
  name: 'tabulum_maintenance_runs_total',
  help: 'Runs of each task of maintenance: done, unfinished (stopped, or out of time), or failed.',
  labelNames: ['task', 'outcome'] as const,
})
const changed = new Counter({
  name: 'tabulum_maintenance_rows_total',
  help: 'Rows, or keys of Redis, that each task of maintenance has removed or put right.',
  labelNames: ['task'] as const,
})
const duration = new Histogram({
  name: 'tabulum_maintenance_seconds',
  help: 'Time that a run of each task of maintenance took.',
  labelNames: ['task'] as const,
  buckets: [0.01, 0.1, 1, 5, 15, 30, 60],
})
const lastSuccess = new Gauge({
  name: 'tabulum_maintenance_last_success_timestamp_seconds',
  help: 'When each task of maintenance was done last, in the process that did it.',
  labelNames: ['task'] as const,
})

/** Begins to count, so that a task which is never done is told from one that nobody knows of. */
export function countRuns(jobs: readonly Job[]): void {
  for (const { name } of jobs) {
    for (const outcome of ['done', 'unfinished', 'failed']) runs.inc({ task: name, outcome }, 0)
    changed.inc({ task: name }, 0)
  }
}

/**
 * Runs a job until there is nothing more to do, its time is over, or `signal` aborts. Never throws.
 */
export async function runJob(
  job: Job,
  { signal, logger, runMs = RUN_MS }: { signal: AbortSignal; logger: Logger; runMs?: number },
): Promise<RunResult> {
  const task = job.name
  const start = performance.now()
  let rows = 0
  const work = async (): Promise<Outcome> => {
    for await (const count of job.run(signal)) {
      rows += count
      changed.inc({ task }, count)
      if (signal.aborted || performance.now() > start + runMs) return 'unfinished'
    }
    return 'done'
  }
  const working = work()
  let outcome: Outcome
  let reason: string | undefined
  try {
    outcome = await working
  } catch (error) {
    // Told to stop, it may end with whatever it waited for.
    outcome = signal.aborted ? 'unfinished' : 'failed'
    if (outcome === 'failed') {
      reason = reasonOf(error)
      // A defect is counted and logged with its stack as all work in the background is.
      inBackground(`maintain_${task}`, working)
    }
  }
  const seconds = (performance.now() - start) / 1_000
  runs.inc({ task, outcome })
  duration.observe({ task }, seconds)
  if (outcome === 'done') lastSuccess.set({ task }, Date.now() / 1_000)
  if (outcome === 'failed') logger.warn({ task, rows, seconds, reason }, 'maintenance failed')
  else logger[rows > 0 ? 'info' : 'debug']({ task, rows, seconds, outcome }, 'maintenance')
  return { outcome, rows, seconds, ...(reason !== undefined && { reason }) }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message
}
