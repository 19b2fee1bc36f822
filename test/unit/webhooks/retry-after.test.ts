import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { parseRetryAfter } from '../../../src/webhooks/retry-after.ts'

const NOW = Date.UTC(2026, 0, 1, 12, 0, 0)

describe('Retry-After', () => {
  it.each([
    ['0', 0],
    ['120', 120_000],
    ['Thu, 01 Jan 2026 12:00:30 GMT', 30_000],
    ['Thu, 01 Jan 2026 11:00:00 GMT', 0],
  ])('%s is so many milliseconds: %d', (text, expected) => {
    expect(parseRetryAfter(text, NOW)).toBe(expected)
  })

  it.each([
    undefined,
    '',
    'soon',
    '-1',
    '1.5',
    '1e9',
    ' 5',
    '9'.repeat(16),
    '2026-01-01',
    'Thu, 99 Foo 2026 12:00:30 GMT',
    'Thu, 01 Jan 2026 12:00:30 GMT, 5',
  ])('%s means nothing', (text) => {
    expect(parseRetryAfter(text, NOW)).toBeUndefined()
  })

  it('is a date as HTTP writes it, whichever', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 4_102_444_800 }), (seconds) => {
        const date = new Date(seconds * 1_000)
        expect(parseRetryAfter(date.toUTCString(), NOW)).toBe(Math.max(0, date.getTime() - NOW))
      }),
    )
  })

  it('is never a negative or unsafe number, whatever a receiver writes', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.stringMatching(/^\d+$/)), (text) => {
        const ms = parseRetryAfter(text, NOW) ?? 0
        expect(ms).toBeGreaterThanOrEqual(0)
        expect(Number.isFinite(ms)).toBe(true)
      }),
    )
  })
})
