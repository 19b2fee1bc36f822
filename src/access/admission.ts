/**
 * The port that each request passes: is there a live session for its token, and is there a request
 * left in its bucket.
 */
import type { PresentedToken } from './tokens.ts'

export const CATEGORIES = ['message', 'state_read', 'state_write', 'registry_read'] as const
export type Category = (typeof CATEGORIES)[number]

/** Who a verified token belongs to: an agent's address or an operator's id. */
export interface Session {
  identity: string
}

/** A token bucket's size and the time in which an empty one fills. */
export interface Allowance {
  limit: number
  periodMs: number
}

export interface BucketState {
  allowed: boolean
  limit: number
  /** Whole requests left. */
  remaining: number
  /** When the bucket is full again, unix time in ms. */
  fullAtMs: number
  /** Until the next request may come; 0 if allowed. */
  retryAfterMs: number
}

/** Any of its methods throws `Unavailable` when the part that it is kept in is out. */
export interface Admission {
  /**
   * Finds the session of a token and, if there is one, takes one request from the agent's bucket.
   * One round trip.
   *
   * @param category of the bucket; without it none is taken from
   * @returns undefined where there is no session: the token has yet to be verified
   */
  admit(
    token: PresentedToken,
    category?: Category,
  ): Promise<{ session: Session; bucket?: BucketState } | undefined>

  /**
   * Remembers a session that was just verified, for the session TTL at most, then admits it as
   * `admit` does.
   *
   * @returns undefined if the token was revoked meanwhile
   */
  open(
    token: PresentedToken,
    session: Session,
    category?: Category,
  ): Promise<{ session: Session; bucket?: BucketState } | undefined>

  /** Takes one request from the bucket of a client address for registering operators. */
  admitClient(clientAddress: string): Promise<BucketState>

  /** Ends the session of the token that is looked up by `lookup`, on every node. */
  revoke(lookup: Buffer): Promise<void>
}

/**
 * The generic cell rate algorithm (ITU-T I.371): a bucket as one number, the time at which it is
 * full again. The Lua script of the cluster does the same.
 *
 * @param fullAt that number as it was kept, in ms; undefined for a bucket that was never used
 * @param now in ms, by the same clock
 * @returns the number to keep, also where the request is refused: it may be less than it was
 */
export function takeFrom(
  fullAt: number | undefined,
  { limit, periodMs }: Allowance,
  now: number,
): { state: BucketState; fullAtMs: number } {
  const interval = periodMs / limit
  const furthest = now + periodMs + TOLERANCE * interval
  // One that is further ahead than any that is ever set says that the clock was set back: the
  // bucket is empty, and no emptier.
  const current =
    fullAt !== undefined && fullAt > furthest ? now + periodMs : Math.max(fullAt ?? now, now)
  const next = current + interval
  const allowed = next <= furthest
  const kept = allowed ? next : current
  return {
    fullAtMs: kept,
    state: {
      allowed,
      limit,
      remaining: Math.max(0, Math.floor((now + periodMs - kept) / interval + TOLERANCE)),
      fullAtMs: kept,
      retryAfterMs: allowed ? 0 : Math.min(next - now - periodMs, interval),
    },
  }
}

/**
 * Sums of intervals are not exact in floating point; this share of one interval is more than what
 * thousands of them are off by.
 */
const TOLERANCE = 0.02
