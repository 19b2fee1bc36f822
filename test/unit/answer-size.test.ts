import fc from 'fast-check'
import { expect, it } from 'vitest'
import { jsonBytes } from '../../src/api/answer-size.ts'

it('a long text is counted as its JSON is long', () => {
  const unit = fc.constantFrom(
    '\0',
    '\u001f',
    '\b',
    '\f',
    '\n',
    '\r',
    '\t',
    '"',
    '\\',
    'x',
    'ü',
    '€',
    '😀',
    '\u2028',
    '\x7f',
  )
  fc.assert(
    fc.property(fc.array(unit, { minLength: 1, maxLength: 50 }), (parts) => {
      const text = parts.join('').repeat(2_000)
      expect(jsonBytes(text)).toBe(Buffer.byteLength(JSON.stringify(text)) - 2)
    }),
    { numRuns: 50 },
  )
})

it('a short one is counted as long as it can be', () => {
  expect(jsonBytes('abc')).toBe(18)
  expect(jsonBytes('')).toBe(0)
})
