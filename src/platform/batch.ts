/**
 * Turns many single calls into few calls with many items: what arrives while one is under way goes
 * together in the next.
 */

import { setImmediate as endOfTurn } from 'node:timers/promises'
import { inBackground } from './background.ts'

export interface BatchOptions<Item> {
  /** Items in one call at most. */
  maxItems: number
  /** Sum of `size` in one call at most; a single larger item goes alone. */
  maxSize?: number
  size?: (item: Item) => number
  /** Items waiting at most; past that a call is refused with `BatchQueueFull`. */
  maxWaiting: number
  /**
   * Items that nobody waits for go with the next that somebody does, or when they are a whole call,
   * and after so many ms at the latest.
   */
  mayWait?: { is: (item: Item) => boolean; ms: number }
  /**
   * Let in what comes in the whole turn of the event loop, from all connections, where each call of
   * `run` costs much by itself.
   */
  wholeTurn?: boolean
}

export class BatchQueueFull extends Error {
  override name = 'BatchQueueFull'
}

/**
 * Returns a function that hands its item to `run` together with others, one call of `run` at a
 * time, in the order of arrival. `run` takes the items and returns a result for each, in their
 * order; when it throws, each of its items' calls throws the same. Nothing that somebody waits for
 * waits for a timer: an item that comes while nothing is under way goes at once.
 */
export function batched<Item, Result>(
  run: (items: Item[]) => Promise<Result[]>,
  {
    maxItems,
    maxSize = Number.POSITIVE_INFINITY,
    size = () => 0,
    maxWaiting,
    ...when
  }: BatchOptions<Item>,
): (item: Item) => Promise<Result> {
  interface Waiting extends PromiseWithResolvers<Result> {
    item: Item
  }
  const { mayWait, wholeTurn = false } = when
  let waiting: Waiting[] = []
  /** Of those that wait, up to the last that may wait no longer. */
  let due = 0
  let timer: NodeJS.Timeout | undefined
  let running = false

  function isDue(item: Item): boolean {
    return !mayWait?.is(item) || waiting.length >= maxItems
  }

  function goOn(): void {
    due = waiting.length
    clearTimeout(timer)
    timer = undefined
    if (!running) inBackground('batch', drain())
  }

  function takeBatch(): Waiting[] {
    let count = 0
    let total = 0
    for (const { item } of waiting) {
      total += size(item)
      if (count > 0 && (count >= maxItems || total > maxSize)) break
      count++
    }
    const batch = waiting.slice(0, count)
    waiting = waiting.slice(count)
    due = Math.max(0, due - count)
    return batch
  }

  async function drain(): Promise<void> {
    running = true
    // Lets the rest of this turn's arrivals in.
    await (wholeTurn ? endOfTurn() : Promise.resolve())
    while (due > 0) {
      const batch = takeBatch()
      try {
        const results = await run(batch.map(({ item }) => item))
        for (const [index, { resolve }] of batch.entries()) resolve(results[index] as Result)
      } catch (error) {
        for (const { reject } of batch) reject(error)
      }
    }
    running = false
  }

  return (item) => {
    if (waiting.length >= maxWaiting)
      return Promise.reject(new BatchQueueFull(`over ${maxWaiting} calls are waiting`))
    const deferred = { item, ...Promise.withResolvers<Result>() }
    waiting.push(deferred)
    if (isDue(item)) goOn()
    else timer ??= setTimeout(goOn, mayWait?.ms)
    return deferred.promise
  }
}

/** Calls that share one answer at most. */
const MAX_SHARING = 20_000

/**
 * Returns a function that shares the answers of `run`: calls that come while one is under way have
 * the next one in common.
 */
export function shared<Result>(run: () => Promise<Result>): () => Promise<Result> {
  const call = batched<undefined, Result>(
    async (calls) => {
      const result = await run()
      return calls.map(() => result)
    },
    { maxItems: MAX_SHARING, maxWaiting: MAX_SHARING },
  )
  return () => call(undefined)
}
