/**
 * A signal that aborts after a time, or when the signal it hangs on does. Dispose of it to stop its
 * clock.
 */
export interface Deadline extends Disposable {
  readonly signal: AbortSignal
  /** True once the time is up; false while it runs, and when it was the parent that aborted. */
  readonly passed: boolean
}

/**
 * Starts a deadline of `ms` milliseconds. `AbortSignal.any` and `AbortSignal.timeout` would do the
 * same, but leave the timer running when the work is done, one for each delivery.
 *
 * @param parent aborting it aborts this too, with the same reason
 */
export function startDeadline(ms: number, parent?: AbortSignal): Deadline {
  const controller = new AbortController()
  let passed = false
  const timer = setTimeout(() => {
    passed = !controller.signal.aborted
    controller.abort(new DOMException(`not done within ${ms} ms`, 'TimeoutError'))
  }, ms)
  const abort = () => controller.abort(parent?.reason)
  if (parent?.aborted) abort()
  else parent?.addEventListener('abort', abort, { once: true })
  return {
    signal: controller.signal,
    get passed() {
      return passed
    },
    [Symbol.dispose]() {
      clearTimeout(timer)
      parent?.removeEventListener('abort', abort)
    },
  }
}

/**
 * `promise`, or the signal's reason as soon as it aborts: for work that cannot be trusted to heed
 * the signal itself. The work is then left to end alone; what it ends with is ignored.
 */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>()
  const abort = () => aborted.reject(signal.reason)
  if (signal.aborted) abort()
  else signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([promise, aborted.promise])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
