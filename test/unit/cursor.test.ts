import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { CursorSeal, UnknownCursor } from '../../src/platform/cursor.ts'

const BASE64URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
const seal = new CursorSeal(randomBytes(32))
const position = fc.uint8Array({ maxLength: 1_024 }).map((bytes) => Buffer.from(bytes))

/** Whether it is taken for a cursor of this list. Throws what is no refusal. */
function opens(cursor: string): boolean {
  try {
    seal.open('list', cursor)
    return true
  } catch (error) {
    if (error instanceof UnknownCursor) return false
    throw error
  }
}

describe('a cursor', () => {
  it('opens to the position that was sealed, for the same list', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), position, (list, bytes) => {
        expect(seal.open(list, seal.seal(list, bytes))).toEqual(bytes)
      }),
    )
  })

  it('needs no escaping in a URL', () => {
    fc.assert(
      fc.property(position, (bytes) => {
        expect(seal.seal('list', bytes)).toMatch(/^[A-Za-z0-9_-]+$/)
      }),
    )
  })

  it('with any character changed, dropped or added is refused', () => {
    for (const bytes of [Buffer.alloc(0), Buffer.from('1234'), Buffer.from('key/ü\0')]) {
      const cursor = seal.seal('list', bytes)
      const accepted: string[] = []
      expect(opens(cursor)).toBe(true)
      for (let index = 0; index <= cursor.length; index++) {
        const [before, after] = [cursor.slice(0, index), cursor.slice(index)]
        for (const character of `${BASE64URL}=+/ .\0é`) {
          const changed = [
            before + character + after.slice(1),
            before + character + after,
            before + after.slice(1),
          ]
          for (const text of changed) {
            if (text !== cursor && opens(text)) accepted.push(text)
          }
        }
      }
      expect(accepted).toEqual([])
    }
  })

  it('of another list is refused', () => {
    const cursor = seal.seal('state a', Buffer.from('a/1'))
    for (const list of [
      'state ',
      'state ab',
      'state A',
      'registry',
      '',
      'state a\0',
      'state a\0a',
    ]) {
      expect(() => seal.open(list, cursor), list).toThrow(UnknownCursor)
    }
  })

  it('of a list whose name runs into the position is refused', () => {
    const cursor = seal.seal('state a', Buffer.from('b'))
    expect(() => seal.open('state ', cursor)).toThrow(UnknownCursor)
    expect(() => seal.open('state a\0b', seal.seal('state a', Buffer.alloc(0)))).toThrow(
      UnknownCursor,
    )
  })

  it('of another key is refused', () => {
    expect(() =>
      new CursorSeal(randomBytes(32)).open('list', seal.seal('list', Buffer.from('1'))),
    ).toThrow(UnknownCursor)
  })

  it('that is any text is refused', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.base64String()), (text) => {
        expect(() => seal.open('list', text)).toThrow(UnknownCursor)
      }),
      { numRuns: 1_000 },
    )
  })
})
