/** One bcrypt operation on a thread of the pool. */
import { setPriority } from 'node:os'
import { compareSync, hashSync } from 'bcryptjs'

export type BcryptTask =
  | { operation: 'hash'; secret: string; cost: number }
  | { operation: 'compare'; secret: string; stored: string }

try {
  // On Linux 0 is this thread, not the process: requests already under way come before new log-ins.
  if (process.platform === 'linux') setPriority(0, 10)
} catch {
  // A sandbox may forbid it; then the threads compete evenly.
}

export default function run(task: BcryptTask): string | boolean {
  return task.operation === 'hash' ? hashSync(task.secret, task.cost) : compareSync(task.secret, task.stored)
}
