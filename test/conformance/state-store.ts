/** The conformance suite of the `StateStore` port. */
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { EventOf } from '../../src/events/event.ts'
import type { EventLog } from '../../src/events/event-log.ts'
import { type StateStore, StoreFull, UnknownKey } from '../../src/state/state-store.ts'
import { deleted, inParallel, inSequence, written } from './support.ts'

export interface StateStoreHarness extends AsyncDisposable {
  /** One store for each API node; where storage has room for one node only, one. */
  readonly nodes: readonly [StateStore, ...StateStore[]]
  readonly log: EventLog
}

/** What the harness is to be created with, as its adapter's setting STATE_CAPACITY_BYTES. */
const CAPACITY = 100_000
const WRITER = 'tab_wwwwwwwwwwwwwwwwwwww'
/** What random changes are made from: the same in every run, but for FUZZ_SEED=<integer>. */
const SEED = Number(process.env.FUZZ_SEED ?? 20_260_101)
const AT_ONCE = 50
/** Thousands of writes, on a busy machine, each appended and applied. */
const MANY_KEYS_TIMEOUT_MS = 600_000

export function describeStateStore(
  name: string,
  create: (options: { capacityBytes: number }) => Promise<StateStoreHarness>,
): void {
  describe(`state store: ${name}`, () => {
    let harness: StateStoreHarness
    let store: StateStore
    /** Of another node, where there is one. */
    let other: StateStore

    async function open(capacityBytes: number): Promise<void> {
      harness = await create({ capacityBytes })
      store = harness.nodes[0]
      other = harness.nodes[1] ?? store
    }

    const put = (key: string, value: string, on = store) =>
      on.write(written(key, value, WRITER) as EventOf<'state_written'>)
    const remove = (key: string, on = store) =>
      on.delete(deleted(key, WRITER) as EventOf<'state_deleted'>)

    /** Of a thousand deletes at once the last would take longer than one may. */
    async function aFewAtOnce(
      count: number,
      change: (index: number) => Promise<void>,
    ): Promise<void> {
      for (let from = 0; from < count; from += AT_ONCE)
        await inParallel(Math.min(AT_ONCE, count - from), (index) => change(from + index))
    }

    /** Deletes all there is. */
    async function clear(): Promise<void> {
      const { keys } = await store.page('', undefined, 100_000)
      await aFewAtOnce(keys.length, (index) => remove(String(keys[index])))
    }

    /** Of the changes of a key that are in the log. */
    async function eventsSince(seq: number): Promise<string[]> {
      const events = await harness.log.read(seq, 1_000)
      return events.map(({ type }) => type)
    }

    describe('entries, pages and counts', () => {
      beforeAll(() => open(4_000_000))
      afterAll(() => harness[Symbol.asyncDispose]())

      it('are as the last change left them, on every node', async () => {
        expect(await store.find('k')).toBeUndefined()
        const first = written('k', 'first', WRITER) as EventOf<'state_written'>
        await store.write(first)
        for (const node of harness.nodes) {
          expect(await node.find('k')).toEqual({
            key: 'k',
            value: 'first',
            modifiedBy: WRITER,
            modifiedAt: first.ts,
          })
        }
        await put('k', 'second', other)
        await put('empty', '')
        expect((await store.find('k'))?.value).toBe('second')
        expect((await store.find('empty'))?.value).toBe('')
        expect(await store.usage()).toEqual({ usedBytes: 1 + 6 + 5, keyCount: 2 })
        await remove('k', other)
        expect(await store.find('k')).toBeUndefined()
        await put('k', 'third')
        expect((await other.find('k'))?.value).toBe('third')
        await clear()
        expect(await store.usage()).toEqual({ usedBytes: 0, keyCount: 0 })
      })

      it('keep keys and values byte for byte', async () => {
        const texts = [
          '\0',
          'a\0b',
          '\ufeff',
          '\uffff',
          '😀\u{10ffff}',
          '%00',
          '\\x00',
          "'",
          '/a//b/',
          ' ',
          'e\u0301',
          '\u00e9',
        ]
        for (const text of texts) await put(text, `value of ${text}`)
        for (const text of texts) expect((await store.find(text))?.value).toBe(`value of ${text}`)
        const { keys } = await store.page('', undefined, 100)
        expect(keys.map(String)).toEqual(
          texts.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
        )
        await clear()
      })

      it('may be of the greatest size', async () => {
        const value = '\0'.repeat(1_048_576)
        const key = 'ü'.repeat(512)
        await put(key, value)
        expect((await store.find(key))?.value === value).toBe(true)
        expect(await store.usage()).toEqual({ usedBytes: 1_048_576 + 1_024, keyCount: 1 })
        await remove(key)
      })

      it('are paged in byte order, after a key that may be gone, at most the limit', async () => {
        const keys = ['b', 'a', 'a/1', 'a/10', 'a/2', 'B', 'ä', '\u{10000}', '\uffff', 'a\0', 'z']
        for (const key of keys) await put(key, '')
        const ordered = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
        for (const limit of [1, 2, 5, 100]) {
          const seen: string[] = []
          for (let after: Buffer | undefined; ; ) {
            const page = await store.page('', after, limit)
            expect(page.total).toBe(keys.length)
            seen.push(...page.keys.map(String))
            after = page.keys.at(-1)
            if (!after) break
            expect(page.keys.length).toBeLessThanOrEqual(limit)
          }
          expect(seen).toEqual(ordered)
        }
        await remove('a/2')
        expect((await store.page('', Buffer.from('a/2'), 1)).keys.map(String)).toEqual(['b'])
        await clear()
      })

      it('match a prefix byte for byte', async () => {
        const keys = [
          '%',
          '%a',
          '_',
          '_a',
          'a%b',
          'a_b',
          'aXb',
          'A',
          'ab',
          '\u{10ffff}',
          '\u{10ffff}x',
          '\u007f',
          '\u007f\u007f',
          '\u0080',
        ]
        for (const key of keys) await put(key, '')
        for (const prefix of [
          '',
          '%',
          '_',
          'a',
          'a%',
          'a_',
          'ab',
          'abc',
          '\u{10ffff}',
          '\u007f',
          '\u0080',
          'A',
          '\\',
        ]) {
          const expected = keys.filter((key) => key.startsWith(prefix))
          const { keys: found, total } = await store.page(prefix, undefined, 100)
          expect(found.map(String).toSorted()).toEqual(expected.toSorted())
          expect(total).toBe(expected.length)
        }
        await clear()
      })

      it(
        'are counted by prefix as counting them all does, as they come, go and come again',
        async () => {
          const keys = new Set<string>()
          const expectCounts = async () => {
            const some = [...keys].filter((_, index) => index % Math.ceil(keys.size / 12) === 0)
            const prefixes = new Set([
              '',
              'few/1',
              'nothing',
              ...some.flatMap((key) => [key, key.slice(0, -1)]),
            ])
            for (const prefix of prefixes) {
              const expected = [...keys].filter((key) => key.startsWith(prefix)).length
              expect((await store.page(prefix, undefined, 1)).total, prefix).toBe(expected)
            }
          }
          const add = async (count: number, keyOf: (index: number) => string) => {
            await aFewAtOnce(count, (index) => put(keyOf(index), ''))
            for (let index = 0; index < count; index++) keys.add(keyOf(index))
            await expectCounts()
          }
          const drop = async (some: readonly string[]) => {
            await aFewAtOnce(some.length, (index) => remove(some[index] as string))
            for (const key of some) keys.delete(key)
            await expectCounts()
          }
          await add(1_400, (index) => `few/${(index * 7_919) % 2_311}`)
          await drop([...keys].toSorted().slice(2))
          await add(1_100, (index) => `few/${index}x`)
          await drop([...keys])
          expect(await store.usage()).toEqual({ usedBytes: 0, keyCount: 0 })
        },
        MANY_KEYS_TIMEOUT_MS,
      )
    })

    describe('deletes', () => {
      beforeAll(() => open(1_000_000))
      afterAll(() => harness[Symbol.asyncDispose]())

      it('of a key that is not there leave no event', async () => {
        const before = await harness.log.lastSeq()
        await expect(remove('nothing')).rejects.toThrow(UnknownKey)
        expect(await eventsSince(before)).toEqual([])
      })

      it('find a key once, however many ask at once', async () => {
        await put('once', 'x')
        const before = await harness.log.lastSeq()
        const outcomes = await Promise.allSettled(
          Array.from({ length: 12 }, (_, index) => remove('once', index % 2 === 0 ? store : other)),
        )
        expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
        for (const outcome of outcomes) {
          if (outcome.status === 'rejected') expect(outcome.reason).toBeInstanceOf(UnknownKey)
        }
        expect(await eventsSince(before)).toEqual(['state_deleted'])
      })
    })

    describe('capacity', () => {
      beforeAll(() => open(CAPACITY))
      afterAll(() => harness[Symbol.asyncDispose]())

      it('is filled to the last byte of key and value, and not beyond; what is refused leaves no event', async () => {
        await put('a', 'x'.repeat(CAPACITY - 1))
        expect(await store.usage()).toEqual({ usedBytes: CAPACITY, keyCount: 1 })
        const before = await harness.log.lastSeq()
        await expect(put('b', '', other)).rejects.toThrow(StoreFull)
        await expect(put('a', 'x'.repeat(CAPACITY))).rejects.toThrow(StoreFull)
        expect(await eventsSince(before)).toEqual([])
        await put('a', 'y'.repeat(CAPACITY - 1))
        await put('a', '')
        await put('b', 'x'.repeat(CAPACITY - 2), other)
        await remove('b')
        await put('c', 'x'.repeat(CAPACITY - 2))
        await clear()
      })

      it('is not overrun by many who write at once, and used to the full', async () => {
        const value = 'x'.repeat(CAPACITY / 20 - 3)
        const outcomes = await Promise.allSettled(
          Array.from({ length: 60 }, (_, index) =>
            put(`${100 + index}`, value, index % 2 === 0 ? store : other),
          ),
        )
        expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(20)
        expect(await store.usage()).toEqual({ usedBytes: CAPACITY, keyCount: 20 })
        for (const outcome of outcomes) {
          if (outcome.status === 'rejected') expect(outcome.reason).toBeInstanceOf(StoreFull)
        }
        await clear()
      })
    })

    describe('whatever order changes come in', () => {
      beforeAll(() => open(1_000))
      afterAll(() => harness[Symbol.asyncDispose]())

      it('entries, sums and refusals are those of a plain map', {
        timeout: MANY_KEYS_TIMEOUT_MS,
      }, async () => {
        const model = new Map<string, string>()
        const used = () =>
          [...model].reduce((sum, [key, value]) => sum + key.length + value.length, 0)
        await fc.assert(
          fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 20 }), async (changes) => {
            for (const { key, length } of changes) {
              const value = length === undefined ? undefined : 'v'.repeat(length)
              const before = model.get(key)
              if (value === undefined) {
                if (before === undefined) await expect(remove(key)).rejects.toThrow(UnknownKey)
                else await remove(key)
                model.delete(key)
              } else {
                const grown =
                  used() + value.length - (before === undefined ? -key.length : before.length)
                if (grown > 1_000) await expect(put(key, value)).rejects.toThrow(StoreFull)
                else {
                  await put(key, value)
                  model.set(key, value)
                }
              }
              expect((await store.find(key))?.value).toBe(model.get(key))
              expect(await store.usage()).toEqual({ usedBytes: used(), keyCount: model.size })
            }
            const { keys, total } = await store.page('', undefined, 100)
            expect(keys.map(String)).toEqual([...model.keys()].toSorted())
            expect(total).toBe(model.size)
          }),
          { seed: SEED, numRuns: 25, endOnFailure: true },
        )
        await inSequence(model.size, (index) => remove([...model.keys()][index] as string))
      })
    })
  })
}

const change = fc.record({
  key: fc.constantFrom('a', 'ab', 'a/b', 'b', 'c'),
  length: fc.option(fc.integer({ min: 0, max: 600 }), { nil: undefined, freq: 3 }),
})
