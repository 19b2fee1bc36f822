/**
 * Milliseconds of a clock that all threads of the process share, and that does not jump:
 * `performance.now()` is each thread's own.
 */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}

/**
 * A calendar for this process alone, in ms since 1970: that of the machine as it is now, and from
 * then on one that nobody sets.
 */
export function steadyClock(): () => number {
  const begun = Date.now() - performance.now()
  return () => Math.round(begun + performance.now())
}
