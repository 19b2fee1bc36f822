import type { IncomingMessage } from 'node:http'
import type { HttpBindings } from '@hono/node-server'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { percentEncode } from '../../lab/client.ts'
import { ApiError } from '../../src/api/api-error.ts'
import { percentDecode, rawPath, readLimit, readQuery, readText } from '../../src/api/request.ts'

const target = (url: string | undefined) =>
  ({ incoming: { url } as IncomingMessage }) as HttpBindings
/** As Node gives what is sent unescaped: a character for each byte. */
const asBytes = (text: string) => Buffer.from(text).toString('latin1')
const wellFormed = fc.string({ unit: 'binary' }).map((text) => text.toWellFormed())

describe('rawPath', () => {
  it.each([
    ['/v1/health', '/v1/health'],
    ['/v1/state/a/../b/./c//d', '/v1/state/a/../b/./c//d'],
    ['/v1/state/%2e%2e/%2F?prefix=a/b', '/v1/state/%2e%2e/%2F'],
    ['/v1/state/a?b?c', '/v1/state/a'],
    ['http://host:80/v1/state/a/../b?x', '/v1/state/a/../b'],
    ['HTTPS://user@host/v1', '/v1'],
    ['http://host', '/'],
    ['http://host?x=/v1', '/'],
    ['/v1/state/http://host/x', '/v1/state/http://host/x'],
    ['//v1/health', '/v1/health'],
    ['///v1/state//a//?x=//', '/v1/state//a//'],
    ['http://host//v1/health', '/v1/health'],
    ['//', '/'],
    ['*', '*'],
    ['?x', '/'],
    ['', '/'],
    [undefined, '/'],
  ])('of %j is %j', (url, expected) => {
    expect(rawPath(target(url))).toBe(expected)
  })
})

describe('percentDecode', () => {
  it('decodes what was encoded, whatever it is, escaped or not', () => {
    fc.assert(
      fc.property(wellFormed, (text) => {
        expect(percentDecode(percentEncode(text), 'it')).toBe(text)
        if (!text.includes('%')) expect(percentDecode(asBytes(text), 'it')).toBe(text)
      }),
    )
  })

  it('decodes once', () => {
    expect(percentDecode('%2525', 'it')).toBe('%25')
    expect(percentDecode('a+b', 'it')).toBe('a+b')
    expect(percentDecode('%00%2f%2F', 'it')).toBe('\0//')
    expect(percentDecode('%EF%BB%BF', 'it')).toBe('\ufeff')
    expect(percentDecode(`%C3${asBytes('ü').slice(1)}`, 'it')).toBe('ü')
  })

  it.each([
    '%',
    '%2',
    '%zz',
    '%C3',
    '%FF',
    '%C0%80',
    '%ED%A0%80',
    '%F4%90%80%80',
    '\xff',
    '\xc3',
    'a%',
  ])('refuses %j', (text) => {
    expect(() => percentDecode(text, 'the key')).toThrow(
      new ApiError('bad_request', 'the key must be percent-encoded UTF-8'),
    )
  })

  it('of any bytes gives text or a bad_request', () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        try {
          expect(percentDecode(Buffer.from(bytes).toString('latin1'), 'it').isWellFormed()).toBe(
            true,
          )
        } catch (error) {
          expect(error).toBeInstanceOf(ApiError)
        }
      }),
    )
  })
})

describe('readQuery and readText', () => {
  const read = (query: string, name: string) => readText(readQuery(target(`/path${query}`)), name)

  it.each([
    ['', undefined],
    ['?', undefined],
    ['?b=1', undefined],
    ['?a', ''],
    ['?a=', ''],
    ['?a=1', '1'],
    ['?b=2&a=1&c', '1'],
    ['?a=1&a=2', '1'],
    ['?a=1=2', '1=2'],
    ['?a=b+c%2Bd', 'b c+d'],
    ['?a=%C3%BC', 'ü'],
    ['?&&a=1&&', '1'],
    ['?a=x?y', 'x?y'],
  ])('of %j', (query, expected) => {
    expect(read(query, 'a')).toBe(expected)
  })

  it('what is malformed is refused where it is read, and nowhere else', () => {
    expect(() => read('?a=%zz', 'a')).toThrow(ApiError)
    expect(read('?b=%zz&a=1', 'a')).toBe('1')
  })

  it('names of objects are names like others', () => {
    expect(read('?__proto__=1&constructor=2', '__proto__')).toBe('1')
    expect(read('', 'constructor')).toBeUndefined()
  })

  it('brings any text back', () => {
    fc.assert(
      fc.property(wellFormed, (text) => {
        expect(read(`?a=${percentEncode(text)}&b`, 'a')).toBe(text)
      }),
    )
  })
})

describe('readLimit', () => {
  const limitOf = (text: string) => readLimit(readQuery(target(`/path?limit=${text}`)), 50, 100)

  it.each(['1', '50', '99', '100'])('takes %s', (text) => {
    expect(limitOf(text)).toBe(Number(text))
  })

  it.each([
    '',
    '0',
    '101',
    '-1',
    '1.5',
    '1e1',
    '0x10',
    'x',
    '%31',
    '+5',
    '5+',
    '5,000',
    '99999999999999999999',
    'null',
  ])('%j means the default', (text) => {
    expect(limitOf(text)).toBe(50)
  })

  it('none means the default', () => {
    expect(readLimit(readQuery(target('/path')), 50, 100)).toBe(50)
  })
})
