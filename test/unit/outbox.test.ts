/**
 * Which events go together, when, and what becomes of those that do not fit or whose batch fails.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { MAX_BATCH_EVENTS } from '../../src/events/batch.ts'
import { LogUnavailable } from '../../src/events/event-log.ts'
import {
  BATCH_CHARACTERS,
  type Entry,
  Outbox,
  type OutboxOptions,
} from '../../src/events/outbox.ts'

/** Time stands still: a machine that is held up is no log that is slow. */
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }))
afterEach(() => void vi.useRealTimers())

/** An outbox whose batches are under way until they are told how it ends. */
function outboxOf(options: Partial<OutboxOptions> = {}) {
  const batches: {
    lines: string[]
    stored: (first: number) => void
    failed: (error: Error) => void
  }[] = []
  const outbox = new Outbox({
    isLate: () => false,
    ...options,
    send: (entries) => {
      const { promise, resolve, reject } = Promise.withResolvers<number>()
      batches.push({ lines: entries.map(({ line }) => line), stored: resolve, failed: reject })
      return promise
    },
  })
  const add = (line: string) => outbox.add(entry(line))
  return { outbox, batches, add, lines: () => batches.map(({ lines }) => lines) }
}

const entry = (line: string): Entry => ({
  line,
  start: performance.now(),
  notAfter: Number.POSITIVE_INFINITY,
})
const names = (count: number, from = 0) =>
  Array.from({ length: count }, (_, index) => `${from + index}`)

it('with nothing under way an event goes at the end of its turn, with what came in the same turn', async () => {
  const { batches, add, lines } = outboxOf()
  const added = [add('a'), add('b')]
  expect(lines()).toEqual([])
  await turn()
  expect(lines()).toEqual([['a', 'b']])
  batches[0]?.stored(5_000)
  expect(await Promise.all(added)).toEqual([5_000, 5_001])
})

it('what comes while one is under way goes together in the next, as soon as that is confirmed', async () => {
  const { batches, add, lines } = outboxOf()
  const first = add('a')
  await turn()
  const others = names(10).map(add)
  await turn()
  expect(lines()).toEqual([['a']])
  batches[0]?.stored(1_000)
  await first
  // It goes at the end of the turn in which it is confirmed, which this one's beginning may be
  // before.
  await turn()
  await turn()
  expect(lines()).toEqual([['a'], names(10)])
  batches[1]?.stored(2_000)
  expect(await Promise.all(others)).toEqual(names(10).map((name) => 2_000 + Number(name)))
})

it('a second one goes beside the first where much waits, or where that is slow; four at most', async () => {
  const { batches, add, lines } = outboxOf()
  const added = [add('slow')]
  await turn()
  added.push(add('waits'))
  await turn()
  expect(lines()).toEqual([['slow']])
  vi.advanceTimersByTime(100)
  expect(lines()).toEqual([['slow'], ['waits']])
  for (let batch = 0; batch < 4; batch++) {
    added.push(...names(64).map(add))
    await turn()
  }
  expect(lines().map(({ length }) => length)).toEqual([1, 1, 64, 64])
  batches[0]?.stored(1_000)
  await turn()
  await turn()
  expect(lines().map(({ length }) => length)).toEqual([1, 1, 64, 64, 128])
  for (const [index, { stored }] of batches.entries()) stored(index * 1_000)
  await Promise.all(added)
})

it('a batch has so many events, and so many characters, at most', async () => {
  const { batches, add, lines } = outboxOf()
  const many = names(MAX_BATCH_EVENTS + 5).map(add)
  const long = ['x'.repeat(BATCH_CHARACTERS - 10), 'y'.repeat(10)].map(add)
  await turn()
  expect(lines().map(({ length }) => length)).toEqual([MAX_BATCH_EVENTS, 5, 2])
  expect(lines().flat().slice(0, -2)).toEqual(names(MAX_BATCH_EVENTS + 5))
  for (const { stored } of batches) stored(1)
  await Promise.all([...many, ...long])
})

it('a batch that fails fails exactly what is in it', async () => {
  const { batches, add } = outboxOf()
  const [first, second] = [add('a'), add('b')]
  await turn()
  const third = add('c')
  batches[0]?.failed(new LogUnavailable('refused'))
  await expect(first).rejects.toThrow('refused')
  await expect(second).rejects.toThrow('refused')
  await turn()
  await turn()
  expect(batches).toHaveLength(2)
  batches[1]?.stored(3_000)
  expect(await third).toBe(3_000)
})

it('what it is too late for is not sent; it fails, and the others keep their places', async () => {
  const { batches, add, lines } = outboxOf({ isLate: ({ line }) => line === 'late' })
  const added = ['a', 'late', 'b'].map(add)
  await expect(added[1]).rejects.toBeInstanceOf(LogUnavailable)
  expect(lines()).toEqual([['a', 'b']])
  batches[0]?.stored(7_000)
  expect(await Promise.all([added[0], added[2]])).toEqual([7_000, 7_001])
})

it('no more than so many events, and so many characters, wait: what does not fit is refused at once', async () => {
  for (const line of ['x', 'x'.repeat(BATCH_CHARACTERS)]) {
    const { outbox, batches, add } = outboxOf()
    const under = names(4).map(() => add('x'.repeat(BATCH_CHARACTERS)))
    await turn()
    expect(batches).toHaveLength(4)
    const waiting: Promise<number>[] = []
    let refused: unknown
    while (refused === undefined) {
      expect(waiting.length).toBeLessThanOrEqual(10_000)
      const adding = add(line)
      refused = await Promise.race([adding.catch((error: unknown) => error), turn(undefined)])
      if (refused === undefined) waiting.push(adding)
    }
    expect(refused).toBeInstanceOf(LogUnavailable)
    expect(outbox.waiting).toBe(waiting.length)
    for (let batch = 0; outbox.waiting > 0 || batch < batches.length; batch++) {
      batches[batch]?.stored(batch)
      await turn()
    }
    await Promise.all([...under, ...waiting])
  }
})

it('what nobody waits for is collected for a while, or until it is much; flush sends it at once', async () => {
  const { outbox, batches, add, lines } = outboxOf({ lingerMs: 50 })
  const added = [add('a')]
  await turn()
  added.push(add('b'))
  expect(lines()).toEqual([])
  vi.advanceTimersByTime(50)
  expect(lines()).toEqual([['a', 'b']])
  batches[0]?.stored(0)
  await added[0]
  added.push(...names(500).map(add))
  expect(lines()).toHaveLength(2)
  added.push(add('last'))
  await turn()
  expect(lines()).toHaveLength(2)
  const flushed = outbox.flush()
  for (let batch = 0; batch < 3; batch++) {
    batches[batch]?.stored(batch)
    await turn()
  }
  await flushed
  expect(lines().map(({ length }) => length)).toEqual([2, 500, 1])
  await Promise.all(added)
})
