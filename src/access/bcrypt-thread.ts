/** One bcrypt operation on a thread of the pool. */
import { setPriority } from 'node:os'
import { compareSync, hashSync } from 'bcryptjs'
import { monotonicMs } from '../platform/monotonic-clock.ts'

export type BcryptOperation =
  | { name: 'hash'; secret: string; cost: number }
  | { name: 'compare'; secret: string; stored: string }

export interface BcryptTask {
  operation: BcryptOperation
  /** After this time of `monotonicMs` nobody waits for it any more. */
  notAfter: number
}

try {
  // On Linux 0 is this thread, not the process: requests already under way come before new log-ins.
  // A third of the weight of the others, so that a machine which is busy with something else does
  // not starve it.
  if (process.platform === 'linux') setPriority(0, 5)
} catch {
  // A sandbox may forbid it; then the threads compete evenly.
}

/** Undefined where it comes too late. */
export default function run({ operation, notAfter }: BcryptTask): string | boolean | undefined {
  if (monotonicMs() > notAfter) return undefined
  return operation.name === 'hash'
    ? hashSync(operation.secret, operation.cost)
    : compareSync(operation.secret, operation.stored)
}
