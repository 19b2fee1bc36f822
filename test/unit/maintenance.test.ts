/**
 * What runs maintenance: its jobs are bounded and counted, and run on one process at a time,
 * whatever fails and whatever the clock does.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { validate } from 'node-cron'
import { describe, expect, it, vi } from 'vitest'
import { ABANDONED_MS, CutOff, NotCaughtUp } from '../../src/maintenance/cut-off.ts'
import { BATCH_ROWS, type Job, runJob } from '../../src/maintenance/job.ts'
import {
  CLUSTER_JOBS,
  clusterJobs,
  EMBEDDED_JOBS,
  embeddedJobs,
} from '../../src/maintenance/jobs.ts'
import { DatabaseUnavailable } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { allowNoUnheardRejection, metric } from '../support/job-test.ts'

const logger = createLogger('silent', 'test')
const WAIT = { timeout: 60_000, interval: 20 }
const HOUR_MS = 3_600_000
const never = new AbortController().signal

const jobOf = (name: string, run: Job['run'], schedule = '* * * * * *'): Job => ({
  name,
  schedule,
  run,
})

const runsOf = async (task: string, outcome: string) =>
  (await metric('tabulum_maintenance_runs_total', { task, outcome })) ?? 0

allowNoUnheardRejection()

describe('a run of a job', () => {
  it('is counted, with its rows and the time of its success', async () => {
    const job = jobOf('counted', async function* () {
      yield 3
      yield 4
    })
    const before = Date.now() / 1_000
    expect(await runJob(job, { signal: never, logger })).toMatchObject({ outcome: 'done', rows: 7 })
    expect(await runsOf('counted', 'done')).toBe(1)
    expect(await metric('tabulum_maintenance_rows_total', { task: 'counted' })).toBe(7)
    const success = await metric('tabulum_maintenance_last_success_timestamp_seconds', {
      task: 'counted',
    })
    expect(success).toBeGreaterThanOrEqual(before)
  })

  it('that throws fails, is counted, and throws nothing; what it threw counts as a defect unless a part was out', async () => {
    for (const [name, error, reason] of [
      ['throws', new TypeError('a defect'), 'defect'],
      ['outage', new DatabaseUnavailable('out'), 'outage'],
    ] as const) {
      const job = jobOf(name, async function* () {
        yield 1
        throw error
      })
      expect(await runJob(job, { signal: never, logger })).toMatchObject({
        outcome: 'failed',
        rows: 1,
        reason: error.message,
      })
      expect(await runsOf(name, 'failed')).toBe(1)
      expect(
        await metric('tabulum_background_failures_total', { task: `maintain_${name}`, reason }),
      ).toBe(1)
      expect(
        await metric('tabulum_maintenance_last_success_timestamp_seconds', { task: name }),
      ).toBeUndefined()
    }
    const atOnce: Job = { ...jobOf('at once', () => expect.fail('at once')) }
    expect(await runJob(atOnce, { signal: never, logger })).toMatchObject({ outcome: 'failed' })
  })

  it('begins no batch after its time, or when it was told to stop, and ends what it has begun', async () => {
    let batches = 0
    let isClosed = false
    const endless = jobOf('endless', async function* () {
      try {
        for (;;) {
          batches++
          yield 1
          await sleep(1)
        }
      } finally {
        isClosed = true
      }
    })
    expect(await runJob(endless, { signal: never, logger, runMs: 0 })).toMatchObject({
      outcome: 'unfinished',
    })
    expect(isClosed).toBe(true)
    const stop = new AbortController()
    const running = runJob(endless, { signal: stop.signal, logger })
    await vi.waitFor(() => expect(batches).toBeGreaterThan(3), WAIT)
    stop.abort()
    const soFar = batches
    expect(await running).toMatchObject({ outcome: 'unfinished' })
    expect(batches).toBeLessThanOrEqual(soFar + 1)
  })

  it('that is told to stop while it waits has not failed', async () => {
    const stop = new AbortController()
    const waiting = jobOf('waiting', async function* (signal) {
      await sleep(600_000, undefined, { signal })
      yield 1
    })
    const running = runJob(waiting, { signal: stop.signal, logger })
    stop.abort()
    expect(await running).toMatchObject({ outcome: 'unfinished' })
  })
})

describe('the jobs', () => {
  const kinds = {
    cluster: {
      names: CLUSTER_JOBS,
      jobs: (rows: () => Promise<number>) =>
        clusterJobs(
          {
            challenges: rows,
            registrations: rows,
            reservations: rows,
            allotments: rows,
            generations: async function* () {
              yield await rows()
            },
          },
          { find: async () => new Date() },
        ),
    },
    embedded: {
      names: EMBEDDED_JOBS,
      jobs: (rows: () => Promise<number>) => embeddedJobs({ challenges: rows, idempotency: rows }),
    },
  }

  it.each(['cluster', 'embedded'] as const)(
    'of %s are due by a schedule that there is, and go on until a batch is not full',
    async (kind) => {
      const { names, jobs } = kinds[kind]
      const all = jobs(async () => 0)
      expect(all.map(({ name }) => name)).toEqual(names)
      for (const { name, schedule } of all) {
        expect(validate(schedule), name).toBe(true)
        const batches = [BATCH_ROWS, BATCH_ROWS, 1]
        const job = jobs(async () => batches.shift() ?? expect.fail('one too many')).find(
          (one) => one.name === name,
        )
        const rows = name === 'generations' ? BATCH_ROWS : 2 * BATCH_ROWS + 1
        expect(await runJob(job as Job, { signal: never, logger }), name).toMatchObject({
          outcome: 'done',
          rows,
        })
      }
    },
  )
})

describe('what may be given up', () => {
  const T0 = Date.parse('2026-01-02T03:04:05Z')

  it('is what is a minute old by the clock of the database, once the log until after that has been applied', async () => {
    let appliedSeq = 3
    const asked: string[] = []
    const cutOff = new CutOff({
      standing: async () => {
        asked.push('standing')
        return { appliedSeq: appliedSeq++, now: new Date(T0) }
      },
      lastSeq: async () => {
        asked.push('log')
        return 6
      },
    })
    expect(await cutOff.find(never)).toEqual(new Date(T0 - ABANDONED_MS))
    expect(asked.slice(0, 2)).toEqual(['standing', 'log'])
    expect(asked).toHaveLength(5)
  })

  it('is not known where the projection does not get there, or a part is out', async () => {
    const standing = async () => ({ appliedSeq: 5, now: new Date(T0) })
    const behind = new CutOff({ standing, lastSeq: async () => 6 }, { waitMs: 200 })
    await expect(behind.find(never)).rejects.toThrow(NotCaughtUp)
    await expect(behind.find(never)).rejects.toThrow('the log goes to 6 and the projection is at 5')
    const out = new CutOff({
      standing,
      lastSeq: () => Promise.reject(new DatabaseUnavailable('out')),
    })
    await expect(out.find(never)).rejects.toThrow('out')
    const stop = new AbortController()
    const waiting = new CutOff({ standing, lastSeq: async () => 6 }).find(stop.signal)
    stop.abort()
    await expect(waiting).rejects.toThrow()
  })

  it('is never what was begun in the last minute, wherever the clock of the database is set', async () => {
    const clock = vi.spyOn(performance, 'now')
    try {
      await fc.assert(
        fc.asyncProperty(
          fc.array(
            fc.record({
              passes: fc.integer({ min: 1, max: 90_000 }),
              jump: fc.oneof(fc.constant(0), fc.integer({ min: -HOUR_MS, max: HOUR_MS })),
            }),
            { minLength: 1, maxLength: 40 },
          ),
          async (steps) => {
            let elapsed = 0
            let time = T0
            clock.mockImplementation(() => elapsed)
            const standing = async () => ({ appliedSeq: 0, now: new Date(time) })
            const cutOff = new CutOff({ standing, lastSeq: async () => 0 })
            /** When things were begun, by the clock that was set, and by the one that was not. */
            const begun: { dated: number; at: number }[] = []
            await cutOff.find(never)
            for (const { passes, jump } of steps) {
              elapsed += passes
              time += passes
              begun.push({ dated: time, at: elapsed })
              time += jump
              begun.push({ dated: time, at: elapsed })
              const before = (await cutOff.find(never)).getTime()
              for (const { dated, at } of begun)
                if (dated < before) expect(elapsed - at).toBeGreaterThanOrEqual(ABANDONED_MS)
            }
            // Where the clock was left alone for two minutes all that is older goes, but for what
            // it is dated ahead of.
            await cutOff.find(never)
            elapsed += 2 * ABANDONED_MS
            time += 2 * ABANDONED_MS
            await cutOff.find(never)
            elapsed += ABANDONED_MS
            time += ABANDONED_MS
            expect((await cutOff.find(never)).getTime()).toBe(time - ABANDONED_MS)
          },
        ),
        { numRuns: 300 },
      )
    } finally {
      clock.mockRestore()
    }
  })
})
