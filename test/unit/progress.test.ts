import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { Progress, ProjectionBehind } from '../../src/events/progress.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

/** What became of a promise so far. */
function watch(promise: Promise<void>): { outcome: unknown } {
  const watched: { outcome: unknown } = { outcome: 'waiting' }
  promise.then(
    () => {
      watched.outcome = 'reached'
    },
    (error: unknown) => {
      watched.outcome = error
    },
  )
  return watched
}

/** Lets everything that is due happen, also what comes in last in a turn of the event loop. */
const settle = async () => {
  await vi.advanceTimersByTimeAsync(0)
  await new Promise(setImmediate)
}

describe('Progress', () => {
  it('starts at 0, hears, and goes forward only', () => {
    const progress = new Progress()
    expect(progress.applied).toBe(0)
    expect(progress.silenceMs()).toBe(Number.POSITIVE_INFINITY)
    progress.advance(5)
    expect(progress.applied).toBe(5)
    progress.advance(3)
    expect(progress.applied).toBe(5)
    vi.advanceTimersByTime(70)
    expect(progress.silenceMs()).toBe(70)
    progress.advance(5)
    expect(progress.silenceMs()).toBe(0)
  })

  it('does not wait for what has been applied', async () => {
    const progress = new Progress()
    progress.advance(5)
    await progress.reached(5)
    await progress.reached(0)
  })

  it('wakes those whose event was applied, in whatever order they wait, and only those', async () => {
    const progress = new Progress()
    const [ten, seven, nine] = [10, 7, 9].map((seq) => watch(progress.reached(seq)))
    progress.advance(6)
    await settle()
    expect([ten?.outcome, seven?.outcome, nine?.outcome]).toEqual(['waiting', 'waiting', 'waiting'])
    progress.advance(9)
    await settle()
    expect([ten?.outcome, seven?.outcome, nine?.outcome]).toEqual(['waiting', 'reached', 'reached'])
    progress.advance(12)
    await settle()
    expect(ten?.outcome).toBe('reached')
    expect(vi.getTimerCount()).toBe(0)
  })

  it('gives up when no projector is heard of, within the time that a client may wait', async () => {
    const progress = new Progress()
    const watched = watch(progress.reached(1))
    await vi.advanceTimersByTimeAsync(2_000)
    await settle()
    expect(watched.outcome).toBeInstanceOf(ProjectionBehind)
    expect(vi.getTimerCount()).toBe(0)
  })

  it('gives up after the time that was asked for', async () => {
    const progress = new Progress()
    const watched = watch(progress.reached(1, 100))
    await vi.advanceTimersByTimeAsync(99)
    expect(watched.outcome).toBe('waiting')
    await vi.advanceTimersByTimeAsync(1)
    await settle()
    expect(watched.outcome).toBeInstanceOf(ProjectionBehind)
  })

  it('waits longer for a projector that is heard of, but not for ever', async () => {
    const progress = new Progress()
    const watched = watch(progress.reached(1_000, 500))
    for (let seq = 1; seq <= 20; seq++) {
      await vi.advanceTimersByTimeAsync(400)
      progress.advance(seq)
    }
    expect(watched.outcome).toBe('waiting')
    for (let seq = 21; seq <= 60; seq++) {
      await vi.advanceTimersByTimeAsync(400)
      progress.advance(seq)
    }
    await settle()
    expect(watched.outcome).toBeInstanceOf(ProjectionBehind)
  })

  it('of a process that was held up is what came in meanwhile, not how long it was', async () => {
    const progress = new Progress()
    const watched = watch(progress.reached(1, 100))
    // The timer is first, what has come in over the network is read after it.
    vi.advanceTimersByTime(60_000)
    progress.advance(1)
    await settle()
    expect(watched.outcome).toBe('reached')
  })

  it('that comes late changes nothing for who gave up', async () => {
    const progress = new Progress()
    const watched = watch(progress.reached(1, 100))
    await vi.advanceTimersByTimeAsync(100)
    await settle()
    progress.advance(1)
    expect(watched.outcome).toBeInstanceOf(ProjectionBehind)
    await progress.reached(1)
  })
})
