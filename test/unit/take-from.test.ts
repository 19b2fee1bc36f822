import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { takeFrom } from '../../src/access/admission.ts'

const NOW = 1_700_000_000_000
const allowance = fc.record({
  limit: fc.integer({ min: 1, max: 10_000 }),
  periodMs: fc.constantFrom(60_000, 3_600_000),
})

describe('takeFrom', () => {
  it('starts with a full bucket', () => {
    const { state, fullAtMs } = takeFrom(undefined, { limit: 60, periodMs: 60_000 }, NOW)
    expect(state).toEqual({
      allowed: true,
      limit: 60,
      remaining: 59,
      fullAtMs: NOW + 1_000,
      retryAfterMs: 0,
    })
    expect(fullAtMs).toBe(NOW + 1_000)
  })

  it('a bucket that was full in the past is full', () => {
    expect(takeFrom(NOW - 1, { limit: 60, periodMs: 60_000 }, NOW).state.remaining).toBe(59)
  })

  it('allows exactly the limit in a burst, counting down, and says when to come again', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000 }),
        fc.constantFrom(60_000, 3_600_000),
        (limit, periodMs) => {
          let fullAt: number | undefined
          for (let taken = 1; taken <= limit; taken++) {
            const { state, fullAtMs } = takeFrom(fullAt, { limit, periodMs }, NOW)
            expect(state).toMatchObject({
              allowed: true,
              remaining: limit - taken,
              retryAfterMs: 0,
            })
            fullAt = fullAtMs
          }
          const { state, fullAtMs } = takeFrom(fullAt, { limit, periodMs }, NOW)
          expect(state).toMatchObject({ allowed: false, remaining: 0 })
          expect(state.retryAfterMs / (periodMs / limit)).toBeCloseTo(1, 1)
          expect(fullAtMs).toBe(fullAt)
          expect(
            takeFrom(fullAtMs, { limit, periodMs }, NOW + state.retryAfterMs).state.allowed,
          ).toBe(true)
          expect(
            takeFrom(fullAtMs, { limit, periodMs }, NOW + state.retryAfterMs * 0.95).state.allowed,
          ).toBe(false)
        },
      ),
    )
  })

  it('never allows more than the limit and the refill together, whenever requests come', () => {
    fc.assert(
      fc.property(
        allowance,
        fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 200 }),
        ({ limit, periodMs }, gaps) => {
          let fullAt: number | undefined
          let now = NOW
          let allowed = 0
          for (const gap of gaps) {
            now += (gap ** 8 * 3 * periodMs) / Math.sqrt(limit)
            const { state, fullAtMs } = takeFrom(fullAt, { limit, periodMs }, now)
            fullAt = fullAtMs
            if (state.allowed) allowed++
            expect(allowed).toBeLessThanOrEqual(limit + (limit * (now - NOW)) / periodMs + 0.05)
            expect(state.remaining).toBeGreaterThanOrEqual(0)
            expect(state.remaining).toBeLessThan(limit)
            expect(state.fullAtMs).toBeLessThanOrEqual(now + periodMs + (0.05 * periodMs) / limit)
          }
        },
      ),
    )
  })

  it('whatever time is stored, as where the clock was set back: nobody waits for longer than one interval, from the first refusal on', () => {
    fc.assert(
      fc.property(
        allowance,
        fc.double({ min: -1e12, max: 1e12, noNaN: true }),
        ({ limit, periodMs }, ahead) => {
          const interval = periodMs / limit
          const { state, fullAtMs } = takeFrom(NOW + ahead, { limit, periodMs }, NOW)
          expect(state.retryAfterMs).toBeLessThanOrEqual(interval)
          expect(fullAtMs).toBeLessThanOrEqual(NOW + periodMs + interval * 0.05)
          if (state.allowed) return
          // Who asks meanwhile, and is refused, puts nothing off.
          const meanwhile = takeFrom(fullAtMs, { limit, periodMs }, NOW + state.retryAfterMs / 2)
          const kept = meanwhile.state.allowed ? fullAtMs : meanwhile.fullAtMs
          expect(takeFrom(kept, { limit, periodMs }, NOW + state.retryAfterMs).state.allowed).toBe(
            true,
          )
        },
      ),
    )
  })

  it('says right what remains: so many more are allowed at once, and then none', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 50 }),
        fc.double({ min: 0, max: 60_000, noNaN: true }),
        (limit, debt) => {
          const first = takeFrom(NOW + debt, { limit, periodMs: 60_000 }, NOW)
          let fullAt = first.fullAtMs
          let more = 0
          for (;;) {
            const { state, fullAtMs } = takeFrom(fullAt, { limit, periodMs: 60_000 }, NOW)
            if (!state.allowed) break
            fullAt = fullAtMs
            more++
          }
          expect(more).toBe(first.state.remaining)
        },
      ),
    )
  })

  it('keeps its rate over a long time, at limits that do not divide the period', () => {
    for (const limit of [3, 7, 60, 999]) {
      const interval = 60_000 / limit
      let fullAt: number | undefined
      for (let index = 0; index < limit * 50; index++) {
        const { state, fullAtMs } = takeFrom(
          fullAt,
          { limit, periodMs: 60_000 },
          NOW + index * interval,
        )
        expect(state.allowed).toBe(true)
        fullAt = fullAtMs
      }
    }
  })
})
