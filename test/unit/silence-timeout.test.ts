import { randomBytes } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { SilenceTimeout } from '../../src/platform/silence-timeout.ts'
import { holdUp } from '../support/hold-up.ts'

const late = () => new Error('late')
const never = new Promise<never>(() => {})

function observed(work: Promise<unknown>): () => string {
  let state = 'waits'
  work.catch((error: Error) => {
    state = error.message
  })
  return () => state
}

afterEach(() => {
  vi.useRealTimers()
})

describe('a time-out by silence', () => {
  it('ends with what the work ends with', async () => {
    expect(await new SilenceTimeout().wait(Promise.resolve('answer'), 1_000, late)).toBe('answer')
    await expect(
      new SilenceTimeout().wait(Promise.reject(new Error('refused')), 1_000, late),
    ).rejects.toThrow('refused')
  })

  it('is over when the part has been silent for so long', async () => {
    vi.useFakeTimers()
    const outcome = observed(new SilenceTimeout().wait(never, 500, late))
    await vi.advanceTimersByTimeAsync(499)
    expect(outcome()).toBe('waits')
    await vi.advanceTimersByTimeAsync(2)
    expect(outcome()).toBe('late')
  })

  it('lasts while the part answers others, and ends when it stops', async () => {
    vi.useFakeTimers()
    const silence = new SilenceTimeout()
    const outcome = observed(silence.wait(never, 500, late))
    for (let turn = 0; turn < 3; turn++) {
      await vi.advanceTimersByTimeAsync(400)
      await silence.wait(Promise.resolve(), 500, late)
    }
    await vi.advanceTimersByTimeAsync(499)
    expect(outcome()).toBe('waits')
    await vi.advanceTimersByTimeAsync(2)
    expect(outcome()).toBe('late')
  })

  it('has a limit, however much the part answers others', () => {
    const silence = new SilenceTimeout()
    const start = performance.now() - 4_000
    silence.answered()
    expect(silence.deadline(start, 2_000)).toBe(start + 5_000)
    expect(silence.deadline(start, 10_000)).toBeCloseTo(start + 10_000)
  })

  it('takes an answer that came while the process itself was held up', async () => {
    const work = promisify(randomBytes)(8)
    const waiting = new SilenceTimeout().wait(work, 20, late)
    // Of the event loop's phases the next is that of timers, and then that of what has come in.
    await setImmediate()
    holdUp(2_000)
    expect(await waiting).toHaveLength(8)
  })
})
