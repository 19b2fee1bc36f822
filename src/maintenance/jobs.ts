/**
 * The list of what is tidied now and then. What a job does is told by the capability that owns the
 * data; when, here.
 */
import type { CutOff } from './cut-off.ts'
import { BATCH_ROWS, type Job } from './job.ts'

/** Changes at most `limit` rows; returns how many it found. */
type Batch = (limit: number) => Promise<number>
/** … of what was there before a time until which all events have been applied. */
type SettledBatch = (before: Date, limit: number) => Promise<number>

const EVERY_MINUTE = '* * * * *'
/** What a node that died held is missed by those who write. */
const EVERY_TEN_SECONDS = '*/10 * * * * *'

/** What is tidied in a cluster. JetStream forgets idempotency keys by itself. */
export interface ClusterTidying {
  readonly challenges: Batch
  readonly registrations: SettledBatch
  readonly reservations: SettledBatch
  readonly allotments: SettledBatch
  /** Queues that were replaced. */
  readonly generations: () => AsyncIterable<number>
}

/** What is tidied on one machine, where nothing is staged or reserved. */
export interface EmbeddedTidying {
  readonly challenges: Batch
  readonly idempotency: Batch
}

export const CLUSTER_JOBS = [
  'challenges',
  'registrations',
  'reservations',
  'allotments',
  'generations',
] as const
export const EMBEDDED_JOBS = ['challenges', 'idempotency'] as const

export function clusterJobs(tidying: ClusterTidying, cutOff: Pick<CutOff, 'find'>): Job[] {
  const { challenges, registrations, reservations, allotments, generations } = tidying
  return [
    { name: 'challenges', schedule: EVERY_MINUTE, run: () => inBatches(challenges) },
    {
      name: 'registrations',
      schedule: EVERY_MINUTE,
      run: (signal) => settled(registrations, cutOff, signal),
    },
    {
      name: 'reservations',
      schedule: EVERY_TEN_SECONDS,
      run: (signal) => settled(reservations, cutOff, signal),
    },
    {
      name: 'allotments',
      schedule: EVERY_TEN_SECONDS,
      run: (signal) => settled(allotments, cutOff, signal),
    },
    { name: 'generations', schedule: EVERY_MINUTE, run: generations },
  ]
}

export function embeddedJobs({ challenges, idempotency }: EmbeddedTidying): Job[] {
  return [
    { name: 'challenges', schedule: EVERY_MINUTE, run: () => inBatches(challenges) },
    { name: 'idempotency', schedule: EVERY_MINUTE, run: () => inBatches(idempotency) },
  ]
}

/** Until a batch finds less than it may take. */
async function* inBatches(batch: Batch): AsyncGenerator<number> {
  for (;;) {
    const rows = await batch(BATCH_ROWS)
    yield rows
    if (rows < BATCH_ROWS) return
  }
}

async function* settled(
  batch: SettledBatch,
  cutOff: Pick<CutOff, 'find'>,
  signal: AbortSignal,
): AsyncGenerator<number> {
  const before = await cutOff.find(signal)
  yield* inBatches((limit) => batch(before, limit))
}
