import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BatchQueueFull, batched } from '../../src/platform/batch.ts'

/** A `run` that notes its batches and finishes each when told. */
function controlled<Item>() {
  const batches: {
    items: Item[]
    finish: (results?: unknown[]) => void
    fail: (error: Error) => void
  }[] = []
  let arrived = Promise.withResolvers<void>()
  const run = (items: Item[]) => {
    const { promise, resolve, reject } = Promise.withResolvers<unknown[]>()
    batches.push({ items, finish: (results = items) => resolve(results), fail: reject })
    arrived.resolve()
    return promise
  }
  return {
    run,
    batches,
    /** The batch with this index, when it has come. */
    async batch(index: number) {
      for (;;) {
        const found = batches[index]
        if (found) return found
        await arrived.promise
        arrived = Promise.withResolvers()
      }
    },
  }
}

describe('batched', () => {
  it('hands what arrives in one turn on together, and what arrives meanwhile in the next call', async () => {
    const { run, batch, batches } = controlled<number>()
    const call = batched(run, { maxItems: 10, maxWaiting: 100 })
    const first = [call(1), call(2)]
    const one = await batch(0)
    const second = [call(3), call(4), call(5)]
    await Promise.resolve()
    expect(batches).toHaveLength(1)
    one.finish()
    expect(await Promise.all(first)).toEqual([1, 2])
    ;(await batch(1)).finish()
    expect(await Promise.all(second)).toEqual([3, 4, 5])
    expect(batches.map(({ items }) => items)).toEqual([
      [1, 2],
      [3, 4, 5],
    ])
  })

  it('gives each call the result of its place', async () => {
    const call = batched(async (items: number[]) => items.map((item) => item * 10), {
      maxItems: 3,
      maxWaiting: 100,
    })
    expect(await Promise.all(Array.from({ length: 10 }, (_, index) => call(index)))).toEqual(
      Array.from({ length: 10 }, (_, index) => index * 10),
    )
  })

  it('throws to all calls of a batch that fails, and to no other', async () => {
    const { run, batch } = controlled<string>()
    const call = batched(run, { maxItems: 2, maxWaiting: 100 })
    const calls = Promise.allSettled(['a', 'b', 'c'].map((item) => call(item)))
    ;(await batch(0)).fail(new Error('out'))
    ;(await batch(1)).finish()
    const [a, b, c] = await calls
    expect([a?.status, b?.status, c]).toEqual([
      'rejected',
      'rejected',
      { status: 'fulfilled', value: 'c' },
    ])
  })

  it('works on after a failure', async () => {
    let isOut = true
    const call = batched(
      async (items: number[]) => {
        if (isOut) throw new Error('out')
        return items
      },
      { maxItems: 5, maxWaiting: 100 },
    )
    await expect(call(1)).rejects.toThrow('out')
    isOut = false
    expect(await call(2)).toBe(2)
  })

  it('refuses what would wait beyond the bound, and takes more when there is room', async () => {
    const { run, batch } = controlled<number>()
    const call = batched(run, { maxItems: 2, maxWaiting: 3 })
    const under = [call(1), call(2), call(3)]
    await expect(call(4)).rejects.toBeInstanceOf(BatchQueueFull)
    const one = await batch(0)
    const later = [call(5), call(6)]
    await expect(call(7)).rejects.toBeInstanceOf(BatchQueueFull)
    one.finish()
    ;(await batch(1)).finish()
    ;(await batch(2)).finish()
    expect(await Promise.all([...under, ...later])).toEqual([1, 2, 3, 5, 6])
  })

  it('lets a single item that is too large go alone', async () => {
    const sizes: number[][] = []
    const call = batched(
      async (items: number[]) => {
        sizes.push(items)
        return items
      },
      { maxItems: 10, maxSize: 100, size: (item) => item, maxWaiting: 100 },
    )
    await Promise.all([60, 30, 500, 20, 80, 1].map((item) => call(item)))
    expect(sizes).toEqual([[60, 30], [500], [20, 80], [1]])
  })

  describe('of items that nobody waits for', () => {
    const isRead = (item: string) => item.startsWith('read')
    const options = { maxItems: 4, maxWaiting: 100, mayWait: { is: isRead, ms: 50 } }

    it('takes them along, in their order, with the next that somebody waits for', async () => {
      const { run, batch, batches } = controlled<string>()
      const call = batched(run, { ...options, mayWait: { is: isRead, ms: 3_600_000 } })
      const reads = [call('read 1'), call('read 2')]
      await sleep(5)
      expect(batches).toEqual([])
      const write = call('write')
      ;(await batch(0)).finish()
      expect(await Promise.all([...reads, write])).toEqual(['read 1', 'read 2', 'write'])
      const last = call('read 3')
      await sleep(5)
      expect(batches).toHaveLength(1)
      for (const each of ['read 4', 'read 5', 'read 6']) void call(each)
      const full = await batch(1)
      expect(full.items).toEqual(['read 3', 'read 4', 'read 5', 'read 6'])
      full.finish()
      expect(await last).toBe('read 3')
    })

    it('lets those that come behind wait for their own', async () => {
      const { run, batch, batches } = controlled<string>()
      const call = batched(run, { ...options, mayWait: { is: isRead, ms: 3_600_000 } })
      void call('write 1')
      const one = await batch(0)
      void call('read 1')
      void call('write 2')
      void call('read 2')
      one.finish()
      const two = await batch(1)
      expect(two.items).toEqual(['read 1', 'write 2', 'read 2'])
      void call('read 3')
      two.finish()
      await sleep(5)
      expect(batches).toHaveLength(2)
    })

    it('lets none wait for longer than it may', async () => {
      const call = batched(async (items: string[]) => items, options)
      const start = performance.now()
      expect(await call('read')).toBe('read')
      expect(performance.now() - start).toBeGreaterThanOrEqual(45)
      expect(await call('read again')).toBe('read again')
    })
  })

  it('may let in what comes in the whole turn of the event loop', async () => {
    const batches: number[][] = []
    const run = async (items: number[]) => {
      batches.push(items)
      return items
    }
    const call = batched(run, { maxItems: 10, maxWaiting: 10, wholeTurn: true })
    const first = call(1)
    await new Promise(process.nextTick)
    await Promise.all([first, call(2)])
    expect(batches).toEqual([[1, 2]])
  })

  it('keeps order and bounds, whatever comes', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 50 }), { maxLength: 60 }),
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 100 }),
        async (items, maxItems, maxSize) => {
          const batches: number[][] = []
          let underWay = 0
          const call = batched(
            async (batch: number[]) => {
              expect(++underWay).toBe(1)
              batches.push(batch)
              await Promise.resolve()
              underWay--
              return batch
            },
            {
              maxItems,
              maxSize,
              size: (item) => item,
              maxWaiting: 1_000,
              mayWait: { is: (item) => item % 2 === 1, ms: 1 },
            },
          )
          expect(await Promise.all(items.map((item) => call(item)))).toEqual(items)
          expect(batches.flat()).toEqual(items)
          for (const batch of batches) {
            expect(batch.length).toBeLessThanOrEqual(maxItems)
            if (batch.length > 1)
              expect(batch.reduce((sum, item) => sum + item, 0)).toBeLessThanOrEqual(maxSize)
          }
        },
      ),
    )
  })
})
