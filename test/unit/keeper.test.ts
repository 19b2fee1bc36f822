/**
 * The keeper of maintenance: on one process at a time, whatever fails and whatever the clock does.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import type { Job } from '../../src/maintenance/job.ts'
import { startKeeper } from '../../src/maintenance/keeper.ts'
import { DatabaseUnavailable } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { allowNoUnheardRejection, metric } from '../support/job-test.ts'

/** Waited out where a lease ends. */
const LEASE_MS = 800
const logger = createLogger('silent', 'test')
const WAIT = { timeout: 60_000, interval: 20 }
const HOUR_MS = 3_600_000

const jobOf = (name: string, run: Job['run'], schedule = '* * * * * *'): Job => ({
  name,
  schedule,
  run,
})

allowNoUnheardRejection()

/** A lease that keepers share in this process. `isOut`: the database does not answer. */
function sharedLease() {
  const state = { holder: undefined as string | undefined, isOut: false, asked: 0 }
  const of = (holder: string) => ({
    async take() {
      state.asked++
      if (state.isOut) throw new DatabaseUnavailable('out')
      state.holder ??= holder
      return state.holder === holder
    },
    async release() {
      if (state.holder === holder) state.holder = undefined
    },
  })
  return { state, of }
}

describe('the keeper', () => {
  const start = (options: Omit<Parameters<typeof startKeeper>[0], 'logger'>) => {
    const keeper = startKeeper({ ...options, logger })
    onTestFinished(() => keeper.stop())
    return keeper
  }

  // Together: a job is due once in a second, and these wait for several.
  it.concurrent('is one of those that start at once; when it stops another takes over', async () => {
    const { state, of } = sharedLease()
    const runs: Record<string, number> = { a: 0, b: 0 }
    const started = Object.keys(runs).map((name) => {
      const job = jobOf('shared', async function* () {
        runs[name] = (runs[name] ?? 0) + 1
        yield 0
      })
      return [name, start({ jobs: [job], lease: of(name), leaseMs: LEASE_MS })] as const
    })
    await vi.waitFor(() => expect(Math.max(...Object.values(runs))).toBeGreaterThanOrEqual(2), WAIT)
    const [first] = Object.keys(runs).filter((name) => (runs[name] ?? 0) > 0)
    expect(first).toBe(state.holder)
    const other = first === 'a' ? 'b' : 'a'
    expect(runs[other]).toBe(0)
    await started.find(([name]) => name === first)?.[1].stop()
    await vi.waitFor(() => expect(runs[other]).toBeGreaterThan(0), WAIT)
    expect(state.holder).toBe(other)
  })

  it.concurrent('runs a job again that throws, and others meanwhile, also one that hangs', async () => {
    let failures = 0
    let others = 0
    const jobs = [
      jobOf('fails', async function* () {
        failures++
        yield 0
        throw new Error('again')
      }),
      jobOf('hangs', async function* () {
        await new Promise(() => {})
        yield 0
      }),
      jobOf('others', async function* () {
        others++
        yield 0
      }),
    ]
    const keeper = start({ jobs })
    await vi.waitFor(() => expect(Math.min(failures, others)).toBeGreaterThanOrEqual(3), WAIT)
    const begun = performance.now()
    await keeper.stop()
    // What hangs is not waited for: a process that is to end has other things to do.
    expect(performance.now() - begun).toBeLessThan(20_000)
  })

  it.concurrent('never runs a job beside itself', async () => {
    let atOnce = 0
    let most = 0
    let runs = 0
    const job = jobOf('slow', async function* () {
      most = Math.max(most, ++atOnce)
      // It is due again meanwhile.
      await sleep(1_500)
      atOnce--
      runs++
      yield 0
    })
    start({ jobs: [job] })
    await vi.waitFor(() => expect(runs).toBeGreaterThanOrEqual(2), WAIT)
    expect(most).toBe(1)
  })

  it('that has lost its lease begins no other batch', async () => {
    const { state, of } = sharedLease()
    let batches = 0
    let isOver = false
    const job = jobOf('lost', async function* () {
      try {
        for (;;) {
          batches++
          yield 1
          await sleep(5)
        }
      } finally {
        isOver = true
      }
    })
    start({ jobs: [job], lease: of('mine'), leaseMs: LEASE_MS })
    await vi.waitFor(() => expect(batches).toBeGreaterThan(0), WAIT)
    state.holder = 'another'
    await vi.waitFor(() => expect(isOver).toBe(true), WAIT)
    const { asked } = state
    const soFar = batches
    await vi.waitFor(() => expect(state.asked).toBeGreaterThan(asked), WAIT)
    expect(batches).toBe(soFar)
    expect(await metric('tabulum_maintenance_keeping')).toBe(0)
  })

  it('whose database is out stops when its lease may be another’s, and goes on when it is back', async () => {
    const { state, of } = sharedLease()
    const keeping = () => metric('tabulum_maintenance_keeping')
    let runs = 0
    const job = jobOf('out', async function* () {
      runs++
      yield 0
    })
    start({ jobs: [job], lease: of('mine'), leaseMs: LEASE_MS })
    await vi.waitFor(() => expect(runs).toBeGreaterThan(0), WAIT)
    state.isOut = true
    await vi.waitFor(async () => expect(await keeping()).toBe(0), WAIT)
    const [soFar, { asked }] = [runs, { ...state }]
    await vi.waitFor(() => expect(state.asked).toBeGreaterThan(asked + 2), WAIT)
    expect(runs).toBe(soFar)
    state.isOut = false
    await vi.waitFor(() => expect(runs).toBeGreaterThan(soFar), WAIT)
    expect(await keeping()).toBe(1)
  })

  it.each([
    ['back by an hour', -HOUR_MS],
    ['forward by an hour', HOUR_MS],
    ['forward by ten years', 10 * 365 * 24 * HOUR_MS],
  ])('runs a job in its time where the clock is set %s', async (_, jumpMs) => {
    let runs = 0
    const job = jobOf('clock', async function* () {
      runs++
      yield 0
    })
    using clock = settableClock()
    start({ jobs: [job] })
    await vi.waitFor(() => expect(runs).toBeGreaterThan(0), WAIT)
    clock.set(jumpMs)
    const soFar = runs
    await vi.waitFor(() => expect(runs).toBeGreaterThan(soFar + 1), WAIT)
  })
})

/** The calendar of this process, until it is disposed of. */
function settableClock() {
  const RealDate = Date
  let shiftMs = 0
  const now = () => RealDate.now() + shiftMs
  globalThis.Date = new Proxy(RealDate, {
    construct: (target, values, newTarget) =>
      Reflect.construct(target, values.length === 0 ? [now()] : values, newTarget),
    get: (target, name, receiver) => (name === 'now' ? now : Reflect.get(target, name, receiver)),
  })
  return {
    set: (ms: number) => {
      shiftMs = ms
    },
    [Symbol.dispose]: () => {
      globalThis.Date = RealDate
    },
  }
}
