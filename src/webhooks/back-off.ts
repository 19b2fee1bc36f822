/** When a delivery that failed is tried again. */

export interface RetryPolicy {
  /** Attempts in all, the first included. */
  readonly maxAttempts: number
  /** Before the second attempt, in ms. */
  readonly minDelay: number
  /** Before any attempt, in ms, not counting the jitter. */
  readonly maxDelay: number
  /** By which the delay grows from one attempt to the next. */
  readonly multiplier: number
  /** The most that is added at random, as a share of the delay. */
  readonly jitter: number
}

/** The contract's rule: up to 3 retries, exponential back-off from 1 s. So 1 s, 2 s and 4 s, each up to half longer. */
export const RETRY_POLICY: RetryPolicy = {
  maxAttempts: 4,
  minDelay: 1_000,
  maxDelay: 60_000,
  multiplier: 2,
  jitter: 0.5,
}

/**
 * How long to wait before the next attempt, in ms; undefined when there is to be none.
 *
 * The jitter spreads out deliveries that failed together, when an endpoint that serves many agents went down. It is
 * added, and never taken off: "from 1 s" stays true.
 *
 * @param attempts how many have been made and failed, at least 1
 * @param random from 0 to below 1, as `Math.random` gives it
 */
export function retryDelay(
  attempts: number,
  random: () => number,
  policy: RetryPolicy = RETRY_POLICY,
): number | undefined {
  if (attempts >= policy.maxAttempts) return undefined
  const delay = Math.min(policy.maxDelay, policy.minDelay * policy.multiplier ** (attempts - 1))
  return Math.round(delay * (1 + policy.jitter * random()))
}
