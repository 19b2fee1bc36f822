import fc from 'fast-check'
import { expect, test } from 'vitest'
import { RETRY_POLICY, type RetryPolicy, retryDelay } from '../../../src/webhooks/back-off.ts'

const none = () => 0
const most = () => 1 - Number.EPSILON

test('there are 3 retries, after 1 s, 2 s and 4 s', () => {
  expect([1, 2, 3, 4, 5].map((attempts) => retryDelay(attempts, none))).toEqual([
    1_000,
    2_000,
    4_000,
    undefined,
    undefined,
  ])
})

test('each is put off by up to half its delay, at random', () => {
  expect([1, 2, 3].map((attempts) => retryDelay(attempts, most))).toEqual([1_500, 3_000, 6_000])
  expect(retryDelay(1, () => 0.5)).toBe(1_250)
})

test('a receiver that says when to come again can put it off, up to the longest delay, and never bring it forward', () => {
  const asked = (retryAfterMs: number) =>
    retryDelay(2, none, RETRY_POLICY, { status: 503, retryAfterMs })
  expect([0, 1_999, 2_001, 59_999, 60_001, 1e15].map(asked)).toEqual([
    2_000, 2_000, 2_001, 59_999, 60_000, 60_000,
  ])
  expect(retryDelay(4, none, RETRY_POLICY, { status: 503, retryAfterMs: 1 })).toBeUndefined()
})

test('one that is gone is not asked again', () => {
  expect(retryDelay(1, none, RETRY_POLICY, { status: 410 })).toBeUndefined()
  expect(retryDelay(1, none, RETRY_POLICY, { status: 404 })).toBe(1_000)
})

test('there may be none', () => {
  expect(retryDelay(1, none, { ...RETRY_POLICY, maxAttempts: 1 })).toBeUndefined()
})

test('delays never shrink, never fall below the first, and never pass the last but for the jitter', () => {
  const policies: fc.Arbitrary<RetryPolicy> = fc.record({
    maxAttempts: fc.integer({ min: 2, max: 2_000 }),
    minDelay: fc.integer({ min: 1, max: 10_000 }),
    maxDelay: fc.integer({ min: 10_000, max: 3_600_000 }),
    multiplier: fc.integer({ min: 1, max: 10 }),
    jitter: fc.double({ min: 0, max: 1, noNaN: true }),
  })
  fc.assert(
    fc.property(
      policies,
      fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
      (policy, random) => {
        const delays = Array.from(
          { length: policy.maxAttempts - 1 },
          (_, i) => retryDelay(i + 1, () => random, policy) ?? Number.NaN,
        )
        expect(delays).toEqual(delays.toSorted((a, b) => a - b))
        expect(delays[0]).toBeGreaterThanOrEqual(policy.minDelay)
        expect(delays.at(-1)).toBeLessThanOrEqual(Math.ceil(policy.maxDelay * (1 + policy.jitter)))
        expect(retryDelay(policy.maxAttempts, () => random, policy)).toBeUndefined()
      },
    ),
  )
})
