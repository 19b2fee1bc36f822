/** When a delivery that failed is tried again. */

export interface RetryPolicy {
  /** Attempts in all, the first included. */
  readonly maxAttempts: number
  /** Before the second attempt, in ms. */
  readonly minDelay: number
  /** Before any attempt, in ms, not counting the jitter; also where a receiver asks for more. */
  readonly maxDelay: number
  /** By which the delay grows from one attempt to the next. */
  readonly multiplier: number
  /** The most that is added at random, as a share of the delay. */
  readonly jitter: number
}

/**
 * The contract's rule: up to 3 retries, exponential back-off from 1 s. So 1 s, 2 s and 4 s, each up
 * to half longer.
 */
export const RETRY_POLICY: RetryPolicy = {
  maxAttempts: 4,
  minDelay: 1_000,
  maxDelay: 60_000,
  multiplier: 2,
  jitter: 0.5,
}

/** An answer that was not 2xx, as far as it matters for the next attempt. */
export interface Refusal {
  readonly status: number
  /** How long the receiver asks us to wait, in ms. */
  readonly retryAfterMs?: number
}

/**
 * The receiver says that it is not coming back (RFC 9110 section 15.5.11): to ask again is to
 * bother it.
 */
const GONE = 410

/**
 * How long to wait before the next attempt, in ms; undefined when there is to be none.
 *
 * A receiver that says when to come again is heeded, up to the longest delay: the messages behind
 * this one wait too. It can make a delay longer, and never shorter. One that is gone is not asked
 * again.
 *
 * The jitter spreads out deliveries that failed together, when an endpoint that serves many agents
 * went down. It is added, and never taken off: "from 1 s" stays true.
 *
 * @param attempts how many have been made and failed, at least 1
 * @param random from 0 to below 1, as `Math.random` gives it
 * @param refusal what the receiver answered, if it did
 */
export function retryDelay(
  attempts: number,
  random: () => number,
  policy: RetryPolicy = RETRY_POLICY,
  refusal?: Refusal,
): number | undefined {
  if (attempts >= policy.maxAttempts || refusal?.status === GONE) return undefined
  const backOff = policy.minDelay * policy.multiplier ** (attempts - 1)
  const delay = Math.min(policy.maxDelay, Math.max(backOff, refusal?.retryAfterMs ?? 0))
  return Math.round(delay * (1 + policy.jitter * random()))
}
