import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { solvePipeline } from '../../lab/client.ts'
import { applyOperation, pipelineChallenge, stubChallenge } from '../../src/registry/challenge.ts'

describe('a pipeline challenge', () => {
  it('has a seed of 32 hex digits and 8 operations of the contract', () => {
    for (let index = 0; index < 200; index++) {
      const { type, data } = pipelineChallenge()
      expect(type).toBe('pipeline')
      if (!('seed' in data)) throw new Error('no seed')
      expect(data.seed).toMatch(/^[0-9a-f]{32}$/)
      expect(data.operations).toHaveLength(8)
      for (const { op } of data.operations) {
        expect(op).toMatch(
          /^(reverse|base64_(en|de)code|hex_encode|sha256|uppercase|lowercase|rot13|(pre|ap)pend:.+)$/,
        )
      }
    }
  })

  it('always has an answer: the one that a solver of the contract alone finds', () => {
    const seen = new Set<string>()
    for (let index = 0; index < 5_000; index++) {
      const { data, answer } = pipelineChallenge()
      // The solver throws where an operation has no answer.
      expect(solvePipeline(data)).toBe(answer)
      if ('operations' in data)
        for (const { op } of data.operations) seen.add(op.split(':')[0] as string)
    }
    expect(seen.size).toBe(10)
  })

  it('is not the same twice', () => {
    expect(
      new Set(Array.from({ length: 200 }, () => JSON.stringify(pipelineChallenge().data))).size,
    ).toBe(200)
  })
})

describe('operations', () => {
  it.each([
    ['reverse', 'a😀b', 'b😀a'],
    ['base64_encode', 'ü', 'w7w='],
    ['base64_decode', 'w7w=', 'ü'],
    ['hex_encode', 'üA', 'c3bc41'],
    ['sha256', '', 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'],
    ['uppercase', 'abC1', 'ABC1'],
    ['lowercase', 'aBC1', 'abc1'],
    ['rot13', 'Az nM ü1', 'Nm aZ ü1'],
    ['prepend:a:b', 'c', 'a:bc'],
    ['append:a:b', 'c', 'ca:b'],
    ['append:', 'c', 'c'],
  ])('%s of %j', (op, text, expected) => {
    expect(applyOperation(op, text)).toBe(expected)
  })

  it('undo each other', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        expect(applyOperation('base64_decode', applyOperation('base64_encode', text))).toBe(text)
        expect(applyOperation('rot13', applyOperation('rot13', text))).toBe(text)
        expect(applyOperation('reverse', applyOperation('reverse', text))).toBe(text)
      }),
    )
  })

  it.each(['', 'md5', 'constructor', 'toString', '__proto__', 'Reverse', 'prepend', 'append'])(
    'there is none called %j',
    (op) => {
      expect(() => applyOperation(op, 'x')).toThrow(RangeError)
    },
  )
})

it('a stub asks for nothing', () => {
  expect(stubChallenge()).toEqual({ type: 'stub', data: {}, answer: undefined })
})
