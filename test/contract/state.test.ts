import { setTimeout as sleep } from 'node:timers/promises'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import {
  type Agent,
  type Answer,
  Client,
  keyPath,
  percentEncode,
  stateDeleted,
  stateValue,
  stateWritten,
} from '../../lab/client.ts'
import { seededRandom } from '../../lab/random.ts'
import { ownTarget, sharedTarget } from '../support/target.ts'
import { byteLength, countStatuses, expectRefusal, inParallel, lastSeq, ofType } from './support.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)
const agent = await client.registerAgent()
const other = await client.registerAgent()

/** The capacity of a store that a test can fill. */
const TOTAL = 100_000
const small = await ownTarget({ STATE_CAPACITY_BYTES: String(TOTAL) })
const writer = await new Client(small.baseUrl).registerAgent()

const MAX_VALUE_BYTES = 1_048_576
const MAX_KEY_BYTES = 1_024

/** A key that no other test uses. */
const freshKey = (name = 'key') => `${name}/${crypto.randomUUID()}`

const bytewise = (one: string, two: string) => Buffer.compare(Buffer.from(one), Buffer.from(two))

/**
 * Expects what a change is answered that has waited for its turn for too long: it may have taken
 * effect, or not.
 */
function expectUnavailable(answer: Answer): void {
  expectRefusal(answer, 503)
  expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/)
}

/**
 * Deletes a key, again for as long as it is told to wait, and returns all answers: one in the end
 * that is no 503.
 */
async function removeInTurn(who: Agent, key: string): Promise<[Answer, ...Answer[]]> {
  const answers: [Answer, ...Answer[]] = [await who.tryRemove(key)]
  for (; answers[0].status === 503; answers.unshift(await who.tryRemove(key))) {
    expectUnavailable(answers[0])
    await sleep(Number(answers[0].headers['retry-after']) * 1_000)
  }
  return answers
}

/**
 * Spellings of keys in a path, and the key that each means. Those that a client or a server is apt
 * to tidy up come first. None of the keys is another's, unless the key is the same.
 */
const SPELLINGS: [string, string][] = [
  ['..', '..'],
  ['.', '.'],
  ['%2e%2e', '..'],
  ['%2E%2e', '..'],
  ['%2e', '.'],
  ['../x', '../x'],
  ['../../v1/health', '../../v1/health'],
  ['..%2Fx', '../x'],
  ['a/../b', 'a/../b'],
  ['a/%2e%2e/b', 'a/../b'],
  ['a/./b', 'a/./b'],
  ['a/..', 'a/..'],
  ['/', '/'],
  ['//', '//'],
  ['/a', '/a'],
  ['a/', 'a/'],
  ['a//b', 'a//b'],
  ['a///b', 'a///b'],
  ['%2F', '/'],
  ['%2f%2F', '//'],
  ['a/b', 'a/b'],
  ['a%2Fb', 'a/b'],
  ['a%2fb', 'a/b'],
  ['a%252Fb', 'a%2Fb'],
  ['a%25252Fb', 'a%252Fb'],
  ['a+b', 'a+b'],
  ['a%2Bb', 'a+b'],
  ['a%20b', 'a b'],
  ['%20', ' '],
  ['a%20', 'a '],
  ['a%3Fb', 'a?b'],
  ['a%3Fb%3Dc', 'a?b=c'],
  ['a%23b', 'a#b'],
  ['a%25b', 'a%b'],
  ['%25', '%'],
  ['%2541', '%41'],
  ['%41', 'A'],
  ['a;b=c', 'a;b=c'],
  ['a%5Cb', 'a\\b'],
  ["!$&'()*,:@", "!$&'()*,:@"],
  ['a"<>[]^`{|}', 'a"<>[]^`{|}'],
  ['%00', '\u0000'],
  ['a%00b', 'a\u0000b'],
  ['a%00', 'a\u0000'],
  ['a%0D%0Ab', 'a\r\nb'],
  ['%7F', '\u007f'],
  ['%C3%A9', '\u00e9'],
  ['%c3%a9', '\u00e9'],
  ['e%CC%81', 'e\u0301'],
  ['%F0%9F%98%80', '😀'],
  ['%EF%BB%BFa', '\ufeffa'],
  ['%EF%BF%BD', '\ufffd'],
  ['%EF%BF%BF', '\uffff'],
  ['%F4%8F%BF%BF', '\u{10ffff}'],
  ['_capacity/', '_capacity/'],
  ['_capacityX', '_capacityX'],
  ['x/_capacity', 'x/_capacity'],
  ['_Capacity', '_Capacity'],
  ['__proto__', '__proto__'],
  ['constructor', 'constructor'],
  ['null', 'null'],
  ['0', '0'],
  ['-0', '-0'],
]

describe('the key is the rest of the path, percent-decoded once', () => {
  it.each(SPELLINGS)('%s', async (spelling, key) => {
    const value = crypto.randomUUID()
    const path = `/v1/state/${spelling}`
    const written = (await agent.request('PUT', path, { json: { value } })).as(200, stateWritten)
    expect(written.key).toBe(key)
    expect((await other.request('GET', path)).as(200, stateValue)).toMatchObject({ key, value })
    expect(await other.read(key)).toMatchObject({ key, value })
    expect(await agent.keys(key)).toContain(key)
  })

  it('so keys that differ in a byte are different keys', async () => {
    const keys = [...new Set(SPELLINGS.map(([, key]) => key))]
    await Promise.all(keys.map((key) => agent.write(key, `value of ${key}`)))
    const read = await Promise.all(keys.map((key) => other.read(key)))
    expect(read.map(({ key, value }) => [key, value])).toEqual(
      keys.map((key) => [key, `value of ${key}`]),
    )
    const listed = await agent.keys()
    expect(keys.filter((key) => !listed.includes(key))).toEqual([])
  })

  it.each(SPELLINGS)('also for DELETE: %s', async (spelling, key) => {
    await agent.write(key, 'x')
    const removed = (await other.request('DELETE', `/v1/state/${spelling}`)).as(200, stateDeleted)
    expect(removed.key).toBe(key)
    expectRefusal(await agent.tryRead(key), 404)
  })

  it('and ends where the query begins', async () => {
    const key = freshKey()
    await agent.request('PUT', `${keyPath(key)}?a=b`, { json: { value: 'x' } })
    expect((await agent.read(key)).value).toBe('x')
    expect((await agent.request('GET', `${keyPath(key)}?a=b?c`)).status).toBe(200)
    expect((await agent.request('GET', `${keyPath(key)}?`)).status).toBe(200)
  })

  it('is never empty: the path is then that of the listing, and no other method is for it', async () => {
    for (const method of ['PUT', 'DELETE']) {
      const answer = await agent.request(method, '/v1/state/', { json: { value: 'x' } })
      expect([400, 405]).toContain(answer.status)
      expectRefusal(answer, answer.status)
    }
    expect(await agent.keys()).not.toContain('')
  })

  it('does not take a backslash, which no URI may hold unencoded, for a slash', async () => {
    await agent.tryRemove('back/slash')
    const answer = await agent.request('PUT', '/v1/state/back\\slash', { json: { value: 'x' } })
    if (answer.status !== 200) expectRefusal(answer, 400)
    expectRefusal(await agent.tryRead('back/slash'), 404)
  })

  it.each(['%', '%2', '%zz', 'a%', 'a%2', 'a%gb', '%%41', '%u0041', 'a%2/b', '%+41'])(
    'is 400 when the percent-encoding is malformed: %s',
    async (spelling) => {
      const path = `/v1/state/${spelling}`
      expectRefusal(await agent.request('GET', path), 400)
      expectRefusal(await agent.request('PUT', path, { json: { value: 'x' } }), 400)
      expectRefusal(await agent.request('DELETE', path), 400)
    },
  )

  it.each([
    '%FF',
    '%80',
    '%C3',
    'a%C3',
    '%C3a',
    '%C0%80',
    '%C0%AF',
    '%ED%A0%80',
    '%ED%A0%BD%ED%B8%80',
    '%F4%90%80%80',
    '%E2%82',
  ])('is 400 when it is not UTF-8: %s', async (spelling) => {
    const path = `/v1/state/${spelling}`
    expectRefusal(await agent.request('GET', path), 400)
    expectRefusal(await agent.request('PUT', path, { json: { value: 'x' } }), 400)
    expectRefusal(await agent.request('DELETE', path), 400)
  })
})

describe('a key has 1 to 1,024 bytes', () => {
  it.each([
    ['1 byte', 'k'],
    ['1,024 bytes', 'k'.repeat(MAX_KEY_BYTES)],
    ['1,024 bytes in characters of 2', 'é'.repeat(MAX_KEY_BYTES / 2)],
    ['1,024 bytes in characters of 4', '😀'.repeat(MAX_KEY_BYTES / 4)],
    ['1,024 times U+0000', '\u0000'.repeat(MAX_KEY_BYTES)],
    ['1,024 slashes', '/'.repeat(MAX_KEY_BYTES)],
  ])('%s', async (_, key) => {
    await agent.write(key, 'x')
    expect((await other.read(key)).key).toBe(key)
    expect(await agent.keys(key.slice(0, 2))).toContain(key)
    await agent.remove(key)
  })

  it.each([
    ['1,025 bytes', 'k'.repeat(MAX_KEY_BYTES + 1)],
    ['1,025 bytes in 513 characters', `${'é'.repeat(MAX_KEY_BYTES / 2)}x`],
    ['1,028 bytes in 257 characters', '😀'.repeat(MAX_KEY_BYTES / 4 + 1)],
    ['1,025 times U+0000', '\u0000'.repeat(MAX_KEY_BYTES + 1)],
    ['4,000 bytes', 'k'.repeat(4_000)],
  ])('longer is 400: %s', async (_, key) => {
    expectRefusal(await agent.tryRead(key), 400)
    expectRefusal(await agent.tryWrite(key, 'x'), 400)
    expectRefusal(await agent.tryRemove(key), 400)
  })
})

describe('GET /v1/state/{key}', () => {
  it('answers 200 {"key","value","last_modified_by","last_modified_at"}', async () => {
    const key = freshKey()
    const { written_at } = await agent.write(key, 'a value')
    const answer = (await other.tryRead(key)).as(200, stateValue)
    expect(answer).toMatchObject({
      key,
      value: 'a value',
      last_modified_by: agent.address,
      last_modified_at: written_at,
    })
  })

  it('is 404 if the key is absent', async () => {
    expectRefusal(await agent.tryRead(freshKey()), 404)
  })

  it('does not find a key by its prefix, nor by its extension', async () => {
    const key = freshKey()
    await agent.write(key, 'x')
    expectRefusal(await agent.tryRead(key.slice(0, -1)), 404)
    expectRefusal(await agent.tryRead(`${key}0`), 404)
    expectRefusal(await agent.tryRead(`${key}\u0000`), 404)
    expectRefusal(await agent.tryRead(key.toUpperCase()), 404)
  })
})

describe('PUT /v1/state/{key}', () => {
  it('answers 200 {"key","written_by","written_at"}', async () => {
    const key = freshKey()
    const before = Date.now()
    const written = (await agent.tryWrite(key, 'x')).as(200, stateWritten)
    expect(written).toMatchObject({ key, written_by: agent.address })
    expect(Date.parse(written.written_at)).toBeGreaterThan(before - 2_000)
    expect(Date.parse(written.written_at)).toBeLessThan(Date.now() + 2_000)
  })

  it('creates or overwrites; any agent, any key; the last write wins', async () => {
    const key = freshKey()
    await agent.write(key, 'first')
    expect(await other.read(key)).toMatchObject({ value: 'first', last_modified_by: agent.address })
    await other.write(key, 'second')
    expect(await agent.read(key)).toMatchObject({
      value: 'second',
      last_modified_by: other.address,
    })
    await agent.write(key, 'third')
    expect(await agent.read(key)).toMatchObject({ value: 'third', last_modified_by: agent.address })
  })

  it('written at the same time, the last write in the log wins', async () => {
    const key = freshKey()
    const since = await lastSeq(target)
    await inParallel(40, (index) => (index % 2 === 0 ? agent : other).write(key, String(index)))
    const last = ofType(await target.events(since), 'state_written').at(-1)
    const read = await agent.read(key)
    expect(read).toMatchObject({ value: last?.data.value, last_modified_by: last?.data.written_by })
  })

  it('what was written can be read at once, by any agent', async () => {
    const key = freshKey()
    for (let round = 0; round < 50; round++) {
      const [writer, reader] = round % 2 === 0 ? [agent, other] : [other, agent]
      await writer.write(key, String(round))
      expect((await reader.read(key)).value).toBe(String(round))
    }
  })

  it('takes no other name or author from the body', async () => {
    const key = freshKey()
    const json = {
      value: 'x',
      key: 'another',
      written_by: other.address,
      written_at: '2000-01-01T00:00:00Z',
    }
    const written = (await agent.request('PUT', keyPath(key), { json })).as(200, stateWritten)
    expect(written).toMatchObject({ key, written_by: agent.address })
  })
})

describe('value', () => {
  it.each([
    ['0 bytes', ''],
    ['1,048,576 bytes', 'x'.repeat(MAX_VALUE_BYTES)],
    ['1,048,576 bytes in characters of 2', 'é'.repeat(MAX_VALUE_BYTES / 2)],
    ['1,048,576 bytes in characters of 4', '😀'.repeat(MAX_VALUE_BYTES / 4)],
    ['1,048,576 bytes that JSON escapes to 6 each', '\u0001'.repeat(MAX_VALUE_BYTES)],
    ['1,048,576 times U+0000', '\u0000'.repeat(MAX_VALUE_BYTES)],
  ])('may have 0 to 1,048,576 bytes: %s', async (_, value) => {
    const key = freshKey()
    await agent.write(key, value)
    expect((await other.read(key)).value === value).toBe(true)
    await agent.remove(key)
  })

  it.each([
    ['1,048,577 bytes', 'x'.repeat(MAX_VALUE_BYTES + 1)],
    ['1,048,577 bytes in characters of 2 and 1', `${'é'.repeat(MAX_VALUE_BYTES / 2)}x`],
    ['1,048,580 bytes in 262,145 characters', '😀'.repeat(MAX_VALUE_BYTES / 4 + 1)],
    ['1,048,577 bytes that JSON escapes to 6 each', '\u0001'.repeat(MAX_VALUE_BYTES + 1)],
    ['2 MiB', 'x'.repeat(2 * MAX_VALUE_BYTES)],
  ])('over the limit is 413: %s', async (_, value) => {
    const key = freshKey()
    await agent.write(key, 'as before')
    expectRefusal(await agent.tryWrite(key, value), 413)
    expect((await agent.read(key)).value).toBe('as before')
  })

  it.each([
    ['U+0000', '\u0000'],
    ['U+0000 inside', 'a\u0000b\u0000'],
    ['all of U+0000 to U+02FF', String.fromCodePoint(...Array(0x300).keys())],
    ['astral characters', '😀𝔘\u{10000}\u{10ffff}'],
    ['a byte order mark first', '\ufeffx'],
    ['noncharacters', '\uffff\ufffe\ufdd0\u{1ffff}'],
    ['line separators', 'a\u2028b\u2029c\r\nd\n'],
    ['composed and decomposed letters', 'é e\u0301 ﬁ ᄀ\u1161'],
    ['what looks like JSON', '{"a":"\\u0000"}'],
    ['what looks like an escape', '\\u0000 \\x00 %00 \\\\'],
    ['what looks like a number', '1e3'],
    ['null', 'null'],
  ])('is opaque and arrives byte for byte: %s', async (_, value) => {
    const key = freshKey(value.slice(0, 20))
    const since = await lastSeq(target)
    await agent.write(key, value)
    expect([...(await other.read(key)).value]).toEqual([...value])
    const [written] = ofType(await target.events(since), 'state_written')
    expect(written?.data).toEqual({
      key,
      value,
      value_length: byteLength(value),
      written_by: agent.address,
    })
  })
})

describe('DELETE /v1/state/{key}', () => {
  it('answers 200 {"key","deleted_by","deleted_at"}; any agent, any key', async () => {
    const key = freshKey()
    await agent.write(key, 'x')
    const removed = (await other.tryRemove(key)).as(200, stateDeleted)
    expect(removed).toMatchObject({ key, deleted_by: other.address })
    expectRefusal(await agent.tryRead(key), 404)
    expect(await agent.keys(key)).toEqual([])
  })

  it('is 404 if the key is absent, or no longer there', async () => {
    const key = freshKey()
    expectRefusal(await agent.tryRemove(key), 404)
    await agent.write(key, 'x')
    await agent.remove(key)
    expectRefusal(await agent.tryRemove(key), 404)
  })

  it('of a key removed, a write creates it again', async () => {
    const key = freshKey()
    for (const value of ['one', 'two', 'three']) {
      await agent.write(key, value)
      expect((await other.read(key)).value).toBe(value)
      await other.remove(key)
    }
  })

  it('of 20 at the same time, one is 200 and 19 are 404', async () => {
    for (let round = 0; round < 5; round++) {
      const key = freshKey()
      await agent.write(key, 'x')
      const since = await lastSeq(target)
      const tries = await inParallel(20, (index) =>
        removeInTurn(index % 2 === 0 ? agent : other, key),
      )
      const answers = tries.map(([last]) => last)
      const refused = tries.flat().length - answers.length
      // The one that deletes may be told 503 although it did, where that took too long: then none
      // is 200.
      const { 200: removed = 0, 404: absent = 0 } = countStatuses(answers)
      expect(removed + absent).toBe(20)
      expect(removed).toBeLessThanOrEqual(1)
      if (refused === 0) expect(removed).toBe(1)
      for (const answer of answers.filter(({ status }) => status === 404))
        expectRefusal(answer, 404)
      expect(ofType(await target.events(since), 'state_deleted')).toHaveLength(1)
    }
  })

  it('and writes of one key at the same time agree with the log', async () => {
    const key = freshKey()
    const since = await lastSeq(target)
    const tries = await inParallel(60, async (index) =>
      index % 3 === 0
        ? removeInTurn(agent, key)
        : ([await other.tryWrite(key, String(index))] as const),
    )
    const answers = tries.map(([last]) => last)
    const refused = tries.flat().length - answers.length
    expect(answers.filter(({ status }) => status !== 200 && status !== 404)).toEqual([])
    const changes = ofType(await target.events(since), 'state_written', 'state_deleted')
    const acknowledged = answers.filter(({ status }) => status === 200).length
    expect(changes.length).toBeGreaterThanOrEqual(acknowledged)
    expect(changes.length).toBeLessThanOrEqual(acknowledged + refused)
    for (const [index, change] of changes.entries()) {
      if (change.type === 'state_deleted') expect(changes[index - 1]?.type).toBe('state_written')
    }
    const last = changes.at(-1)
    const now = await agent.tryRead(key)
    if (last?.type === 'state_deleted') expectRefusal(now, 404)
    else expect(now.as(200, stateValue).value).toBe(last?.data.value)
  })
})

describe('GET /v1/state', () => {
  const ORDERED = [
    '\u0000',
    '\u0000\u0000',
    '\u0001',
    ' ',
    '!',
    '/',
    '0',
    '10',
    '9',
    'A',
    'Z',
    '_',
    'a',
    'a\u0000',
    'a ',
    'a/',
    'a/b',
    'aa',
    'b',
    '~',
    '\u007f',
    '\u0080',
    'é',
    'ÿ',
    'Ā',
    '߿',
    'ࠀ',
    '€',
    '\ud7ff',
    '\ue000',
    '\uf8ff',
    '\ufeff',
    '\ufffd',
    '\uffff',
    '\u{10000}',
    '😀',
    '\u{10ffff}',
    '\u{10ffff}a',
  ].toSorted(bytewise)

  it('answers 200 {"keys", "next_cursor", "total"}, in byte order of the keys', async () => {
    const prefix = freshKey('order')
    await Promise.all(ORDERED.toReversed().map((suffix) => agent.write(prefix + suffix, 'x')))
    const expected = ORDERED.map((suffix) => prefix + suffix)
    const { keys, next_cursor, total } = await agent.list(`?prefix=${percentEncode(prefix)}`)
    expect(keys).toEqual(expected)
    expect(next_cursor).toBeNull()
    expect(total).toBe(ORDERED.length)
    // The order of UTF-16 code units is another, so that this test can tell.
    expect(expected.toSorted()).not.toEqual(expected)
  })

  it.each([1, 2, 5, 1_000])('pages of %s hold each key once, in the same order', async (limit) => {
    const prefix = freshKey('pages')
    await Promise.all(ORDERED.map((suffix) => agent.write(prefix + suffix, 'x')))
    expect(await agent.keys(prefix, limit)).toEqual(ORDERED.map((suffix) => prefix + suffix))
  })

  it('/v1/state/ means the same', async () => {
    const prefix = freshKey('slash')
    await Promise.all(ORDERED.map((suffix) => agent.write(prefix + suffix, 'x')))
    for (const query of [
      '',
      `?prefix=${percentEncode(prefix)}`,
      `?prefix=${percentEncode(prefix)}&limit=3`,
    ]) {
      const [one, two] = [
        await agent.request('GET', `/v1/state${query}`),
        await agent.request('GET', `/v1/state/${query}`),
      ]
      expect(two.json).toEqual(one.json)
      expect(two.status).toBe(200)
    }
  })

  it('without a prefix, or with an empty one, lists all keys', async () => {
    const key = freshKey()
    await agent.write(key, 'x')
    const all = await agent.keys()
    expect(all).toContain(key)
    expect(all).toEqual(all.toSorted(bytewise))
    expect((await agent.list()).total).toBe(all.length)
    expect((await agent.list('?prefix=')).total).toBe(all.length)
    expect((await agent.capacity()).key_count).toBe(all.length)
  })

  it('shows a key as soon as it is written and no longer once it is removed', async () => {
    const prefix = freshKey('fresh')
    for (let round = 0; round < 20; round++) {
      await agent.write(prefix, 'x')
      expect(await other.list(`?prefix=${percentEncode(prefix)}`)).toMatchObject({
        keys: [prefix],
        total: 1,
      })
      await other.remove(prefix)
      expect(await agent.list(`?prefix=${percentEncode(prefix)}`)).toMatchObject({
        keys: [],
        total: 0,
      })
    }
  })

  it('counts a key once, however often it is written', async () => {
    const prefix = freshKey('once')
    await inParallel(20, (index) => agent.write(prefix, String(index)))
    expect((await agent.list(`?prefix=${percentEncode(prefix)}`)).total).toBe(1)
  })

  it('total is the number of keys with that prefix, whatever the page', async () => {
    const prefix = freshKey('total')
    await inParallel(25, (index) => agent.write(`${prefix}/${index % 5}/${index}`, 'x'))
    let page = await agent.list(`?limit=10&prefix=${percentEncode(prefix)}`)
    expect(page.total).toBe(25)
    page = await agent.list(
      `?limit=10&prefix=${percentEncode(prefix)}&cursor=${percentEncode(page.next_cursor ?? '')}`,
    )
    expect(page.total).toBe(25)
    expect((await agent.list(`?limit=2&prefix=${percentEncode(`${prefix}/3/`)}`)).total).toBe(5)
    await agent.remove(`${prefix}/3/3`)
    expect((await agent.list(`?limit=2&prefix=${percentEncode(`${prefix}/3/`)}`)).total).toBe(4)
  })
})

describe('a prefix is matched byte for byte', () => {
  const base = freshKey('prefix')
  const suffixes = [
    '%',
    '%x',
    '_',
    '_x',
    '\\',
    '\\x',
    '*',
    '.',
    'a',
    'ab',
    'A',
    'é',
    'e\u0301',
    'e',
    '\u0000',
    '\u0000x',
    '😀',
    '\u{10ffff}',
    '\u{10ffff}x',
    ' ',
    '+',
    '/',
  ]

  it.each(suffixes)('%j', async (suffix) => {
    await Promise.all(suffixes.map((each) => agent.write(base + each, 'x')))
    const expected = suffixes.filter((each) => each.startsWith(suffix)).map((each) => base + each)
    expect(await agent.keys(base + suffix)).toEqual(expected.toSorted(bytewise))
    expect((await agent.list(`?prefix=${percentEncode(base + suffix)}`)).total).toBe(
      expected.length,
    )
  })

  it('also when it is the whole key, or longer', async () => {
    const key = freshKey('whole')
    await agent.write(key, 'x')
    expect(await agent.keys(key)).toEqual([key])
    expect(await agent.keys(`${key}x`)).toEqual([])
  })
})

describe('limit', () => {
  const prefix = `${crypto.randomUUID()}/`
  const list = (limit: string) => agent.list(`?prefix=${prefix}&limit=${limit}`)

  it.each([
    ['1', 1],
    ['99', 99],
    ['101', 101],
    ['1000', 105],
  ])('is how many keys a page holds, from 1 to 1000: %s', async (limit, expected) => {
    await inParallel(105, (index) => agent.write(`${prefix}${index}`, 'x'))
    expect((await list(limit)).keys).toHaveLength(expected)
  })

  it('is 100 by default', async () => {
    await inParallel(105, (index) => agent.write(`${prefix}${index}`, 'x'))
    expect((await agent.list(`?prefix=${prefix}`)).keys).toHaveLength(100)
  })

  it('that is anything else means the default', async () => {
    await inParallel(105, (index) => agent.write(`${prefix}${index}`, 'x'))
    const invalid = [
      '',
      '0',
      '-1',
      '1001',
      '99999999999999999999',
      'abc',
      '5.5',
      '5x',
      '0x5',
      'NaN',
      '%35%00',
    ]
    const lengths = await Promise.all(
      invalid.map(async (limit) => [limit, (await list(limit)).keys.length]),
    )
    expect(lengths).toEqual(invalid.map((limit) => [limit, 100]))
  })
})

describe('cursor', () => {
  it('may be used again, by another agent, with another limit', async () => {
    const prefix = freshKey('cursor')
    const keys = (await inParallel(10, (index) => agent.write(`${prefix}/${index}`, 'x'))).map(
      ({ key }) => key,
    )
    const { next_cursor } = await agent.list(`?prefix=${percentEncode(prefix)}&limit=3`)
    const query = `?prefix=${percentEncode(prefix)}&cursor=${percentEncode(next_cursor ?? '')}`
    expect((await agent.list(`${query}&limit=3`)).keys).toEqual(keys.slice(3, 6))
    expect((await other.list(`${query}&limit=5`)).keys).toEqual(keys.slice(3, 8))
  })

  it('neither repeats nor skips keys that stay, while others come and go', async () => {
    const prefix = freshKey('changing')
    const staying = Array.from(
      { length: 60 },
      (_, index) => `${prefix}/${String(index).padStart(3, '0')}`,
    )
    await Promise.all(staying.map((key) => agent.write(key, 'x')))
    const paging = { isDone: false }
    const changing = Array.from({ length: 3 }, async (_, writer) => {
      for (let round = 0; !paging.isDone; round++) {
        const key = `${staying[(round * 7 + writer) % staying.length]}-${writer}`
        await other.write(key, 'x')
        await other.remove(key)
      }
    })
    const listed = await agent.keys(prefix, 3)
    paging.isDone = true
    await Promise.all(changing)
    expect(listed).toEqual(listed.toSorted(bytewise))
    expect(new Set(listed).size).toBe(listed.length)
    expect(listed.filter((key) => staying.includes(key))).toEqual(staying)
  })

  it('leads on although the key it stands at was removed', async () => {
    const prefix = freshKey('removed')
    const keys = (await inParallel(6, (index) => agent.write(`${prefix}/${index}`, 'x'))).map(
      ({ key }) => key,
    )
    const { next_cursor } = await agent.list(`?prefix=${percentEncode(prefix)}&limit=3`)
    await Promise.all(keys.slice(1, 4).map((key) => agent.remove(key)))
    const page = await agent.list(
      `?prefix=${percentEncode(prefix)}&cursor=${percentEncode(next_cursor ?? '')}`,
    )
    expect(page.keys).toEqual(keys.slice(4))
  })

  it.each(['garbage', '0', 'null', 'AAAA', '%00', '%F0%9F%98%80', 'a'.repeat(5_000), '%25'])(
    'that was never issued is 400: %s',
    async (cursor) => {
      expectRefusal(await agent.request('GET', `/v1/state?cursor=${cursor}`), 400)
    },
  )

  it('with one character changed, left out or added was never issued: 400', async () => {
    const prefix = freshKey('spoiled')
    await inParallel(3, (index) => agent.write(`${prefix}/${index}`, 'x'))
    const cursor = (await agent.list(`?prefix=${percentEncode(prefix)}&limit=1`)).next_cursor ?? ''
    const spoiled = [`${cursor}A`, `A${cursor}`, `${cursor}=`, cursor.slice(1), cursor.slice(0, -1)]
    for (const [index, character] of [...cursor].entries()) {
      for (const instead of 'AaBb01_-') {
        if (instead !== character)
          spoiled.push(cursor.slice(0, index) + instead + cursor.slice(index + 1))
      }
    }
    const answers = await Promise.all(
      spoiled.map(async (text) => {
        const query = `?prefix=${percentEncode(prefix)}&cursor=${percentEncode(text)}`
        return [text, await agent.request('GET', `/v1/state${query}`)] as const
      }),
    )
    expect(answers.filter(([, { status }]) => status !== 400).map(([text]) => text)).toEqual([])
  })
})

describe('GET /v1/state/_capacity', () => {
  it('answers 200 {"used_bytes","total_bytes","key_count"}; total_bytes defaults to 1 GiB', async () => {
    expect((await agent.capacity()).total_bytes).toBe(1_073_741_824)
  })

  it('used_bytes are those of keys and values, key_count is the number of keys', async () => {
    const key = freshKey('😀')
    const before = await agent.capacity()
    const grown = (bytes: number, keys: number) => ({
      total_bytes: before.total_bytes,
      used_bytes: before.used_bytes + bytes,
      key_count: before.key_count + keys,
    })
    await agent.write(key, 'é\u0000😀')
    expect(await agent.capacity()).toEqual(grown(byteLength(key) + 7, 1))
    await other.write(key, 'x'.repeat(100))
    expect(await other.capacity()).toEqual(grown(byteLength(key) + 100, 1))
    await agent.write(key, '')
    expect(await agent.capacity()).toEqual(grown(byteLength(key), 1))
    await agent.remove(key)
    expect(await agent.capacity()).toEqual(before)
  })

  it('a refused write or delete leaves it as it was', async () => {
    const before = await agent.capacity()
    expectRefusal(await agent.tryRemove(freshKey()), 404)
    expectRefusal(await agent.tryWrite(freshKey(), 7), 400)
    expectRefusal(await agent.tryWrite(freshKey(), 'x'.repeat(MAX_VALUE_BYTES + 1)), 413)
    expect(await agent.capacity()).toEqual(before)
  })

  it.each(['_capacity', '%5Fcapacity', '%5fcapacit%79'])(
    'is reserved: it cannot be written as a key: %s',
    async (spelling) => {
      const answer = await agent.request('PUT', `/v1/state/${spelling}`, { json: { value: 'x' } })
      expect([400, 405]).toContain(answer.status)
      expectRefusal(answer, answer.status)
      expect(await agent.keys('_capacity')).not.toContain('_capacity')
      await agent.capacity()
    },
  )
})

describe('507 store_full', () => {
  /** Every test begins with an empty store. */
  beforeEach(async () => {
    await Promise.all((await writer.keys()).map((key) => writer.remove(key)))
    expect(await writer.capacity()).toEqual({ used_bytes: 0, total_bytes: TOTAL, key_count: 0 })
  })

  /** The bytes that the log says are in use. */
  const loggedBytes = async () => {
    const state = new Map<string, number>()
    for (const { type, data } of await small.events()) {
      if (type === 'state_written')
        state.set(String(data.key), byteLength(`${data.key}${data.value}`))
      if (type === 'state_deleted') state.delete(String(data.key))
    }
    return state.values().reduce((sum, bytes) => sum + bytes, 0)
  }

  it('is for the write that would take shared state over its capacity', async () => {
    await writer.write('a', 'x'.repeat(TOTAL - 11))
    expect((await writer.capacity()).used_bytes).toBe(TOTAL - 10)
    expectRefusal(await writer.tryWrite('key', 'x'.repeat(8)), 507)
    expectRefusal(await writer.tryRead('key'), 404)
    await writer.write('key', 'x'.repeat(7))
    expect(await writer.capacity()).toEqual({ used_bytes: TOTAL, total_bytes: TOTAL, key_count: 2 })

    // Full to the last byte.
    expectRefusal(await writer.tryWrite('b', ''), 507)
    expectRefusal(await writer.tryWrite('key', 'x'.repeat(8)), 507)
    expect((await writer.read('key')).value).toBe('xxxxxxx')
    for (let round = 0; round < 5; round++) await writer.write('key', String(round).repeat(7))
    expect((await writer.read('key')).value).toBe('4444444')
    await writer.write('key', 'less')
    await writer.write('key', 'more...')
    expectRefusal(await writer.tryWrite('key', 'x'.repeat(8)), 507)

    await writer.remove('a')
    await writer.write('b', 'x'.repeat(1_000))
    expect((await writer.capacity()).used_bytes).toBe(10 + 1_001)
    expect(await loggedBytes()).toBe(10 + 1_001)
  })

  it('a write that fits no store of this capacity is refused while the store is empty', async () => {
    expectRefusal(await writer.tryWrite('a', 'x'.repeat(TOTAL)), 507)
    expect((await writer.capacity()).used_bytes).toBe(0)
    await writer.write('a', 'x'.repeat(TOTAL - 1))
  })

  it('used_bytes never exceeds total_bytes, whatever runs at the same time, and a 507 leaves no event', async () => {
    const since = await lastSeq(small)
    const writing = { isDone: false }
    const seen: number[] = []
    const watch = (async () => {
      while (!writing.isDone) seen.push((await writer.capacity()).used_bytes)
    })()

    // New keys: as many fit as would one after the other.
    const size = 5_000
    const created = await inParallel(60, (index) =>
      writer.tryWrite(String(index).padStart(4, '0'), 'x'.repeat(size - 4)),
    )
    expect(countStatuses(created)).toEqual({ 200: TOTAL / size, 507: 60 - TOTAL / size })
    for (const answer of created.filter(({ status }) => status === 507)) expectRefusal(answer, 507)
    expect((await writer.capacity()).used_bytes).toBe(TOTAL)

    // Overwrites, growth and removal of those and others, at random.
    const random = seededRandom(7)
    const mixed: Answer[] = []
    for (let round = 0; round < 10; round++) {
      const answers = await inParallel(40, () => {
        const key = String(Math.floor(random() * 30)).padStart(4, '0')
        return random() < 0.25
          ? writer.tryRemove(key)
          : writer.tryWrite(key, 'y'.repeat(Math.floor(random() * 12_000)))
      })
      mixed.push(...answers)
    }
    writing.isDone = true
    await watch

    const unavailable = mixed.filter(({ status }) => status === 503)
    for (const answer of unavailable) expectUnavailable(answer)
    // What was told 503 may take effect after its answer.
    if (unavailable.length > 0) {
      await vi.waitFor(
        async () => expect((await writer.capacity()).used_bytes).toBe(await loggedBytes()),
        25_000,
      )
    }
    expect(mixed.filter(({ status }) => ![200, 404, 503, 507].includes(status))).toEqual([])
    expect(countStatuses(mixed)[507]).toBeGreaterThan(0)
    expect(Math.max(...seen)).toBeLessThanOrEqual(TOTAL)
    const changes = ofType(await small.events(since), 'state_written', 'state_deleted')
    const acknowledged = [...created, ...mixed].filter(({ status }) => status === 200).length
    expect(changes.length).toBeGreaterThanOrEqual(acknowledged)
    expect(changes.length).toBeLessThanOrEqual(acknowledged + unavailable.length)

    // The log never goes over either, at any place in it.
    const state = new Map<string, number>()
    let used = 0
    for (const { type, data } of changes) {
      const key = String(data.key)
      used -= state.get(key) ?? 0
      state.delete(key)
      if (type === 'state_written') state.set(key, byteLength(`${key}${data.value}`))
      used += state.get(key) ?? 0
      expect(used).toBeLessThanOrEqual(TOTAL)
    }
    expect(await writer.capacity()).toEqual({
      used_bytes: used,
      total_bytes: TOTAL,
      key_count: state.size,
    })
  })

  it('capacity freed by concurrent deletes can be written again, and none is lost on the way', async () => {
    for (let round = 0; round < 5; round++) {
      await inParallel(10, (index) => writer.write(`k${index}`, 'x'.repeat(TOTAL / 10 - 2)))
      expect((await writer.capacity()).used_bytes).toBe(TOTAL)
      expectRefusal(await writer.tryWrite('one too many', 'x'), 507)
      await inParallel(10, (index) => writer.remove(`k${index}`))
      expect(await writer.capacity()).toEqual({ used_bytes: 0, total_bytes: TOTAL, key_count: 0 })
    }
  })
})
