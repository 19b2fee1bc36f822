import { availableParallelism } from 'node:os'
import { queueOptionsSymbol } from 'piscina'
import { afterEach, describe, expect, it } from 'vitest'
import { Credentials } from '../../src/access/credentials.ts'
import { FairQueue, type Owned } from '../../src/access/fair-queue.ts'
import { VerifierBusy } from '../../src/access/verifier-busy.ts'

const THREADS = availableParallelism()
const MAX_WAIT_MS = 1_000
/** Longer than any of them waits on a machine that is busy with other tests. */
const PATIENT_MS = 300_000
/** More than are checked in that time on dozens of processors, and fewer than may wait. */
const MANY = 900
/**
 * A machine that stands still for a while may refuse all, or take long over it; not so often in a
 * row.
 */
const TRIES = 5

let credentials: Credentials
afterEach(() => credentials.close())

function start(bcryptCost: number, maxWaitMs?: number): Credentials {
  credentials = new Credentials({ verifier: 'bcrypt', hmacKey: undefined, bcryptCost, maxWaitMs })
  return credentials
}

describe('many tokens at once', () => {
  it('costly ones: those that wait too long are refused, the others are checked, and nobody waits for long', async () => {
    const costly = start(11, MAX_WAIT_MS)
    await warmUp(costly)
    const { longestMs: oneMs } = await hashAtOnce(costly, THREADS)
    // After its wait comes its check, on a machine that may be busy.
    const answerMs = MAX_WAIT_MS + Math.max(3_000, 20 * oneMs)
    let tries = 0
    let burst: Burst
    do {
      burst = await hashAtOnce(costly, MANY)
      expect(burst.refused).toBeGreaterThan(0)
      tries++
    } while (tries < TRIES && (burst.refused === MANY || burst.longestMs >= answerMs))
    expect(burst.refused).toBeLessThan(MANY)
    expect(burst.longestMs).toBeLessThan(answerMs)
  })

  it('cheap ones: all are checked', async () => {
    const cheap = start(4)
    const hashes = Array.from({ length: 200 }, (_, index) => hash(cheap, `operator ${index % 2}`))
    expect(new Set(await Promise.all(hashes)).size).toBe(200)
  })

  it('those who log in come before what has yet to be hashed, whoever came first', async () => {
    const costly = start(7, PATIENT_MS)
    await warmUp(costly)
    const stored = await hash(costly, 'other')
    const ended: string[] = []
    const hashes = Array.from({ length: 90 }, () =>
      hash(costly, 'greedy').then(() => ended.push('hash')),
    )
    const checks = Array.from({ length: 20 + THREADS }, async () => {
      expect(await costly.verify('secret', stored, 'other')).toBe(true)
      ended.push('check')
    })
    await Promise.all([...hashes, ...checks])
    // Until then checks were waiting, so that those hashes have ended that were at work already,
    // and some that had their turn after eight checks. The last checks may be held up on their
    // threads, while others go on to hashes.
    const twentieth = ended.flatMap((what, index) => (what === 'check' ? [index] : []))[19]
    expect(ended.slice(0, twentieth).filter((what) => what === 'hash').length).toBeLessThan(
      3 * (THREADS + 1),
    )
  })

  it('of one operator so many are under way and no more, and others go on', async () => {
    const cheap = start(4)
    const outcomes = await Promise.allSettled(
      Array.from({ length: 1_000 }, () => hash(cheap, 'greedy')),
    )
    const refused = outcomes.filter(({ status }) => status === 'rejected')
    expect(refused).toHaveLength(900)
    expect(
      refused.every((outcome) => 'reason' in outcome && outcome.reason instanceof VerifierBusy),
    ).toBe(true)
    // All have ended, so there is room again.
    const turns = Array.from({ length: 100 }, () => cheap.hashing('greedy'))
    expect(() => cheap.hashing('greedy')).toThrow(VerifierBusy)
    await hash(cheap, 'other')
    for (const turn of turns) turn[Symbol.dispose]()
    await hash(cheap, 'greedy')
  })
})

describe('the queue of the threads', () => {
  it('gives checks before hashes, and of each kind one operator after the other', () => {
    const queue = new FairQueue()
    const push = (kind: Owned['kind'], owner: string, name: string) => {
      const task = { name, [queueOptionsSymbol]: { kind, owner } }
      queue.push(task)
      return task
    }
    for (const name of ['a1', 'a2', 'a3']) push('hash', 'a', name)
    for (const name of ['b1', 'b2']) push('hash', 'b', name)
    const gone = push('hash', 'c', 'c1')
    for (const name of ['A1', 'A2']) push('compare', 'a', name)
    push('compare', 'b', 'B1')
    queue.remove(gone)
    queue.remove(gone)
    expect(queue.size).toBe(8)
    const order: unknown[] = []
    for (let task = queue.shift(); task !== null; task = queue.shift())
      order.push('name' in task && task.name)
    expect(order).toEqual(['A1', 'B1', 'A2', 'a1', 'b1', 'a2', 'b2', 'a3'])
    expect(queue.size).toBe(0)
  })
})

it('those who log in all the time do not keep others from registering', () => {
  const queue = new FairQueue()
  const push = (kind: Owned['kind'], owner: string) =>
    queue.push({ kind, [queueOptionsSymbol]: { kind, owner } } as never)
  for (let count = 0; count < 3; count++) push('hash', 'new')
  const order: unknown[] = []
  for (let count = 0; count < 27; count++) {
    push('compare', `operator ${count}`)
    push('compare', `operator ${count}`)
    order.push(Object(queue.shift()).kind)
  }
  expect(order.flatMap((kind, index) => (kind === 'hash' ? index : []))).toEqual([8, 17, 26])
})

async function hash(credentials: Credentials, owner: string): Promise<string> {
  using turn = credentials.hashing(owner)
  return await turn.hash('secret')
}

interface Burst {
  refused: number
  longestMs: number
}

/** Each for an operator of its own. */
async function hashAtOnce(hashing: Credentials, count: number): Promise<Burst> {
  const begin = performance.now()
  let refused = 0
  let longestMs = 0
  const one = async (_: unknown, index: number) => {
    try {
      await hash(hashing, String(index))
    } catch (error) {
      expect(error).toBeInstanceOf(VerifierBusy)
      refused++
    }
    longestMs = performance.now() - begin
  }
  await Promise.all(Array.from({ length: count }, one))
  return { refused, longestMs }
}

/** Until all threads have loaded their code, and none is refused for it. */
async function warmUp(hashing: Credentials): Promise<void> {
  while ((await hashAtOnce(hashing, THREADS)).refused > 0);
}
