/**
 * The circuit breaker of one agent's webhook, as a record and functions on it: the record may be
 * kept wherever all workers see it, in a table or in Redis. Times are in ms since 1970, all from
 * one clock (the store's, best).
 *
 * What counts is messages and not attempts: one that is delivered at the third attempt is a
 * success, one that is given up on is one failure.
 *
 * Modes, and what moves it from one to another:
 *
 * - closed: anything may be attempted. `threshold` failures in a row → open. A success starts the
 *   count afresh.
 * - open, until `openUntil`: nothing may be attempted. The time is up → half-open.
 * - half-open: one attempt may be made, the probe, claimed with `startProbe`. Until `probeUntil`
 *   nobody else may make one; if its worker dies, the next may claim it then. A success → closed; a
 *   failure → open for the whole time again.
 *
 * Outcomes of attempts that were begun before the circuit opened may still come in while it is
 * open: a success closes it, for the endpoint works; a failure changes nothing, for it says nothing
 * new.
 */
export interface CircuitState {
  /** Messages that have failed since the last success. */
  readonly failures: number
  /** When the circuit may be tried again; 0 while it is closed. */
  readonly openUntil: number
  /** When the claim of the probe now in flight runs out; 0 if there is none. */
  readonly probeUntil: number
}

export type CircuitMode = 'closed' | 'open' | 'half-open'

export interface CircuitPolicy {
  /** Failures in a row that open the circuit. */
  readonly threshold: number
  /** How long it then stays open, in ms. */
  readonly duration: number
}

/** The contract's rule: after 5 messages in a row have failed, 5 minutes. */
export const CIRCUIT_POLICY: CircuitPolicy = { threshold: 5, duration: 300_000 }

/** A circuit that nothing has happened to; also what to assume when there is no record. */
export const CLOSED_CIRCUIT: CircuitState = { failures: 0, openUntil: 0, probeUntil: 0 }

export function circuitMode({ openUntil }: CircuitState, now: number): CircuitMode {
  if (openUntil === 0) return 'closed'
  return now < openUntil ? 'open' : 'half-open'
}

/**
 * What a worker may do now.
 *
 * - `attempt`: the circuit is closed
 * - `probe`: it is half-open and the probe is free. Claim it with `startProbe` first, by
 *   compare-and-set where the record is kept, so that just one worker does.
 * - `wait`: it is open, or half-open with the probe in flight
 */
export function mayAttempt(state: CircuitState, now: number): 'attempt' | 'probe' | 'wait' {
  switch (circuitMode(state, now)) {
    case 'closed':
      return 'attempt'
    case 'open':
      return 'wait'
    case 'half-open':
      return now < state.probeUntil ? 'wait' : 'probe'
  }
}

/**
 * Claims the probe.
 *
 * @param claim how long a probe may take before another worker may make one, in ms: above the time
 *   that a message's attempts can take, retries and their delays included
 * @throws Error unless `mayAttempt` says `probe`
 */
export function startProbe(state: CircuitState, now: number, claim: number): CircuitState {
  if (mayAttempt(state, now) !== 'probe') throw new Error('the circuit has no probe to claim')
  return { ...state, probeUntil: now + claim }
}

/** After a message was delivered. */
export function recordSuccess(): CircuitState {
  return CLOSED_CIRCUIT
}

/** After a message was given up on. */
export function recordFailure(
  state: CircuitState,
  now: number,
  { threshold, duration }: CircuitPolicy = CIRCUIT_POLICY,
): CircuitState {
  const mode = circuitMode(state, now)
  if (mode === 'open') return state
  const failures = state.failures + 1
  const opens = mode === 'half-open' || failures >= threshold
  return { failures, openUntil: opens ? now + duration : 0, probeUntil: 0 }
}
