/**
 * What one process remembers for a time: the calendar may be set to what it will, nothing is kept
 * or refused for longer, or shorter.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { MemoryAdmission } from '../../src/access/memory-admission.ts'
import { newAddress, newToken } from '../../src/access/tokens.ts'
import { DEDUPLICATION_WINDOW_MS } from '../../src/events/event-log.ts'
import { createAppend, tidyEventIds } from '../../src/events/sqlite-append.ts'
import { steadyClock } from '../../src/platform/monotonic-clock.ts'
import { migrateSqlite, openSqlite } from '../../src/platform/sqlite.ts'
import { sent } from '../conformance/support.ts'

const HOUR_MS = 3_600_000
const jumps = fc.oneof(fc.constant(0), fc.integer({ min: -HOUR_MS, max: HOUR_MS }))

it('sessions end in their time, and revocations are remembered for theirs', async () => {
  const TTL_MS = 30_000
  const allowance = { limit: 1_000, periodMs: 60_000 }
  const allowances = {
    message: allowance,
    state_read: allowance,
    state_write: allowance,
    registry_read: allowance,
    operator_registration: allowance,
  }
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ passes: fc.integer({ min: 0, max: 20_000 }), jump: jumps }), {
        minLength: 1,
        maxLength: 6,
      }),
      async (steps) => {
        let elapsed = 1_000
        let time = Date.now()
        const admission = new MemoryAdmission({
          sessionTtlMs: TTL_MS,
          allowances,
          now: () => time,
          elapsed: () => elapsed,
        })
        const [token, revoked] = [newToken('agent'), newToken('agent')]
        const opened = elapsed
        await admission.open(token, { identity: newAddress() })
        await admission.revoke(revoked.lookup)
        for (const { passes, jump } of steps) {
          elapsed += passes
          time += passes + jump
          // The cache asks for the time once in a millisecond.
          await sleep(3)
          const age = elapsed - opened
          if (age !== TTL_MS)
            expect((await admission.admit(token)) !== undefined).toBe(age < TTL_MS)
          if (age < 60_000)
            expect(await admission.open(revoked, { identity: newAddress() })).toBeUndefined()
          if (age > 60_000)
            expect(await admission.open(revoked, { identity: newAddress() })).toBeDefined()
        }
      },
    ),
    { numRuns: 60 },
  )
})

describe('idempotency keys of embedded storage', () => {
  const sqlite = openSqlite(':memory:')
  beforeAll(() => migrateSqlite(sqlite))
  afterAll(() => sqlite.connection.close())
  afterEach(() => vi.restoreAllMocks())

  it('count for two minutes, whatever the calendar is set to, and are forgotten after that', async () => {
    const { sql } = sqlite
    await fc.assert(
      fc.property(
        fc.array(
          fc.record({
            passes: fc.integer({ min: 0, max: DEDUPLICATION_WINDOW_MS }),
            jump: jumps,
            id: fc.constantFrom('a', 'b', 'c'),
          }),
          { minLength: 1, maxLength: 10 },
        ),
        (steps) => {
          sql.run`delete from event_ids`
          let elapsed = Math.round(performance.now())
          let time = Date.now()
          vi.spyOn(performance, 'now').mockImplementation(() => elapsed)
          vi.spyOn(Date, 'now').mockImplementation(() => time)
          const now = steadyClock()
          const append = createAppend(sqlite, [], now)
          /** When each was appended first. */
          const appended = new Map<string, { at: number; seq: number }>()
          for (const { passes, jump, id } of steps) {
            elapsed += passes
            time += passes + jump
            const before = appended.get(id)
            const { seq, duplicate } = append(sent(newAddress(), 'x'), { id })
            const age = elapsed - (before?.at ?? Number.NEGATIVE_INFINITY)
            if (before === undefined) expect(duplicate).toBe(false)
            else expect(duplicate).toBe(age < DEDUPLICATION_WINDOW_MS)
            if (duplicate) expect(seq).toBe(before?.seq)
            else appended.set(id, { at: elapsed, seq })
            while (tidyEventIds(sqlite, now(), 1) > 0);
            // What counts yet is still there for the next start.
            const ids = sql.all`select id from event_ids`.map((row) => row.id)
            const counting = [...appended].filter(
              ([, { at }]) => elapsed - at < DEDUPLICATION_WINDOW_MS,
            )
            expect(ids.toSorted()).toEqual(counting.map(([each]) => each).toSorted())
          }
          vi.restoreAllMocks()
        },
      ),
      { numRuns: 100 },
    )
  })

  it('that are dated ahead, as the clock was set back before a start, count for two minutes from then at most', () => {
    const event = sent(newAddress(), 'x')
    const start = Date.now()
    createAppend(sqlite, [], () => start + HOUR_MS)(event, { id: 'ahead' })
    createAppend(sqlite, [], () => start + HOUR_MS)(event, { id: 'forgotten' })
    let time = start
    const append = createAppend(sqlite, [], () => time)
    expect(append(event, { id: 'ahead' }).duplicate).toBe(true)
    while (tidyEventIds(sqlite, time, 1) > 0);
    time += DEDUPLICATION_WINDOW_MS - 1
    expect(append(event, { id: 'ahead' }).duplicate).toBe(true)
    time += 2
    expect(append(event, { id: 'ahead' }).duplicate).toBe(false)
    expect(append(event, { id: 'forgotten' }).duplicate).toBe(false)
  })
})
