/** Milliseconds of a clock that all threads of the process share, and that does not jump: `performance.now()` is each thread's own. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}
