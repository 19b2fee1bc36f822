import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  CIRCUIT_POLICY,
  type CircuitState,
  CLOSED_CIRCUIT,
  circuitMode,
  mayAttempt,
  recordFailure,
  recordSuccess,
  startProbe,
} from '../../../src/webhooks/circuit-breaker.ts'

const NOW = 1_800_000_000_000
const MINUTE = 60_000

function failing(times: number, now = NOW, state: CircuitState = CLOSED_CIRCUIT): CircuitState {
  return times === 0 ? state : failing(times - 1, now, recordFailure(state, now))
}

describe('a circuit', () => {
  test('that nothing has happened to is closed', () => {
    expect(circuitMode(CLOSED_CIRCUIT, NOW)).toBe('closed')
    expect(mayAttempt(CLOSED_CIRCUIT, NOW)).toBe('attempt')
  })

  test('stays closed for 4 failures in a row, and opens for 5 minutes at the fifth', () => {
    expect(mayAttempt(failing(4), NOW)).toBe('attempt')
    const open = failing(5)
    expect(mayAttempt(open, NOW)).toBe('wait')
    expect(mayAttempt(open, NOW + 5 * MINUTE - 1)).toBe('wait')
    expect(mayAttempt(open, NOW + 5 * MINUTE)).toBe('probe')
  })

  test('counts failures in a row only', () => {
    const state = failing(4, NOW, recordSuccess())
    expect(mayAttempt(state, NOW)).toBe('attempt')
    expect(mayAttempt(failing(1, NOW, state), NOW)).toBe('wait')
  })

  test('lets one probe through when its time is up, and no second while that is on its way', () => {
    const later = NOW + 5 * MINUTE
    const probing = startProbe(failing(5), later, MINUTE)
    expect(mayAttempt(probing, later)).toBe('wait')
    expect(mayAttempt(probing, later + MINUTE - 1)).toBe('wait')
    expect(() => startProbe(probing, later, MINUTE)).toThrow('no probe')
  })

  test('lets another probe through when the first was never heard of again', () => {
    const later = NOW + 5 * MINUTE
    const probing = startProbe(failing(5), later, MINUTE)
    expect(mayAttempt(probing, later + MINUTE)).toBe('probe')
  })

  test('closes when the probe succeeds', () => {
    expect(recordSuccess()).toEqual(CLOSED_CIRCUIT)
  })

  test('opens for the whole time again when the probe fails', () => {
    const later = NOW + 5 * MINUTE
    const reopened = recordFailure(startProbe(failing(5), later, MINUTE), later + 1_000)
    expect(mayAttempt(reopened, later + 1_000 + 5 * MINUTE - 1)).toBe('wait')
    expect(mayAttempt(reopened, later + 1_000 + 5 * MINUTE)).toBe('probe')
  })

  test('opens again when the probe fails, although the threshold was raised since', () => {
    const later = NOW + 5 * MINUTE
    const reopened = recordFailure(startProbe(failing(5), later, MINUTE), later, {
      ...CIRCUIT_POLICY,
      threshold: 100,
    })
    expect(mayAttempt(reopened, later)).toBe('wait')
  })

  test('is not kept open by failures of what was begun before', () => {
    const open = failing(5)
    expect(recordFailure(open, NOW + MINUTE)).toEqual(open)
  })

  test('offers a probe only in its time', () => {
    expect(() => startProbe(CLOSED_CIRCUIT, NOW, MINUTE)).toThrow('no probe')
    expect(() => startProbe(failing(5), NOW, MINUTE)).toThrow('no probe')
  })
})

describe('whatever happens when', () => {
  type Step = { readonly wait: number; readonly what: 'success' | 'failure' | 'claim' }
  const steps: fc.Arbitrary<Step[]> = fc.array(
    fc.record({
      // Often none, often around the times that matter.
      wait: fc.oneof(
        fc.constant(0),
        fc.integer({ min: 0, max: 2_000 }),
        fc.constantFrom(999, 1_000, 1_001, 299, 300),
      ),
      what: fc.constantFrom('success', 'failure', 'failure', 'failure', 'claim'),
    }),
    { maxLength: 60 },
  )
  const policy = { threshold: 3, duration: 1_000 }
  const CLAIM = 300

  function run(
    history: Step[],
    visit: (state: CircuitState, now: number, before: CircuitState, step: Step) => void,
  ): void {
    let now = NOW
    let state = CLOSED_CIRCUIT
    for (const step of history) {
      now += step.wait
      const before = state
      if (step.what === 'success') state = recordSuccess()
      else if (step.what === 'failure') state = recordFailure(state, now, policy)
      else if (mayAttempt(state, now) === 'probe') state = startProbe(state, now, CLAIM)
      visit(state, now, before, step)
    }
  }

  test('a circuit survives being stored as JSON', () => {
    fc.assert(
      fc.property(steps, (history) =>
        run(history, (state) => expect(JSON.parse(JSON.stringify(state))).toEqual(state)),
      ),
    )
  })

  test('it never waits longer than the time it opens for, or than a claim', () => {
    fc.assert(
      fc.property(steps, (history) => {
        run(history, (state, now) => {
          expect(mayAttempt(state, now + Math.max(policy.duration, CLAIM))).not.toBe('wait')
        })
      }),
    )
  })

  test('it is open after a failure exactly if that was the third since the last success, or came after', () => {
    fc.assert(
      fc.property(steps, (history) => {
        let failures = 0
        run(history, (state, now, before, { what }) => {
          if (what === 'success') failures = 0
          if (what === 'failure' && circuitMode(before, now) !== 'open') failures += 1
          expect(circuitMode(state, now) === 'closed').toBe(failures < policy.threshold)
        })
      }),
    )
  })

  test('while it is not closed, attempts are at least a claim apart, unless one of them succeeded', () => {
    fc.assert(
      fc.property(steps, (history) => {
        let lastProbe = Number.NEGATIVE_INFINITY
        run(history, (state, now, before, { what }) => {
          if (what === 'success') lastProbe = Number.NEGATIVE_INFINITY
          if (what !== 'claim' || state === before) return
          expect(now - lastProbe).toBeGreaterThanOrEqual(CLAIM)
          lastProbe = now
        })
      }),
    )
  })

  test('the same policy as the contract’s is the default', () => {
    expect(CIRCUIT_POLICY).toEqual({ threshold: 5, duration: 5 * MINUTE })
    expect(recordFailure(CLOSED_CIRCUIT, NOW)).toEqual(
      recordFailure(CLOSED_CIRCUIT, NOW, CIRCUIT_POLICY),
    )
  })
})
