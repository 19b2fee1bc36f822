/**
 * The state's tables in Postgres: what they hold, what they count, and that they never hold too
 * much.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { sql } from 'kysely'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { LoggedEvent, NewEvent } from '../../src/events/event.ts'
import type { Database } from '../../src/platform/database.ts'
import { CapacityAllotment, type WriteCapacity } from '../../src/state/capacity-allotment.ts'
import {
  type AllotmentRenewal,
  type DeleteOutcome,
  type Reservation,
  type ReservationOutcome,
  StateTables,
} from '../../src/state/postgres-state-tables.ts'
import { deleted, inParallel, inSequence, written } from '../conformance/support.ts'
import { applyEvents, type FreshPostgres, openFreshPostgres } from './support.ts'

const CAPACITY = 1_000
const HOUR_MS = 3_600_000
/** Of a machine that is busy. */
const SLACK_MS = 30_000
const WRITER = 'tab_wwwwwwwwwwwwwwwwwwww'
/** Long enough for tens of thousands of keys on a busy machine. */
const MANY_KEYS_TIMEOUT_MS = 600_000
/** What random changes are made from: the same in every run, but for FUZZ_SEED=<integer>. */
const SEED = Number(process.env.FUZZ_SEED ?? 20_260_101)

describe('state tables', () => {
  let harness: FreshPostgres
  let database: Database
  let store: StateTables
  let seq = 0
  beforeAll(async () => {
    harness = await openFreshPostgres()
    database = harness.database
    store = new StateTables(database, CAPACITY)
  })
  afterAll(() => harness[Symbol.asyncDispose]())
  beforeEach(() => clear())

  async function clear(): Promise<void> {
    await sql`truncate state, state_reservations, state_allotments, state_blocks`.execute(database)
    await sql`update state_usage set used_bytes = 0, reserved_bytes = 0, allotted_bytes = 0, key_count = 0`.execute(
      database,
    )
    reservations = []
    await sql`insert into state_blocks values (1, '', 0), (2, '', 0)`.execute(database)
  }

  /** Made, and not used yet. */
  let reservations: Reservation[] = []
  const place = (event: NewEvent, reservation?: string): LoggedEvent => ({
    seq: ++seq,
    ...event,
    ...(reservation && { reservation }),
  })
  const project = (events: readonly LoggedEvent[]) => applyEvents(database, events)
  /** On the reservation that was made for it, where there was one. */
  const put = (key: string, value: string) => {
    const size = Buffer.byteLength(key) + Buffer.byteLength(value)
    const made = reservations.findIndex((one) => one.key === key && one.size === size)
    const [reservation] = made < 0 ? [] : reservations.splice(made, 1)
    return place(written(key, value, WRITER), reservation?.id)
  }
  const remove = (key: string) => place(deleted(key, WRITER))

  /** As maintenance does. */
  const releaseAbandoned = async (of: StateTables, before: Date) =>
    (await of.tidyReservations(before, 1_000)) + (await of.tidyAllotments(before, 1_000))

  async function reserveWrite(key: string, size: number): Promise<ReservationOutcome> {
    const reservation = { id: randomUUID(), key, size }
    const outcome = await store.reserve(reservation)
    if (outcome === 'reserved') reservations.push(reservation)
    return outcome
  }

  /** Adds up what is there, row by row. */
  async function sums(): Promise<{ usedBytes: number; keyCount: number }> {
    const { rows } = await sql<{ used: number; keys: number }>`
        select coalesce(sum(octet_length(key) + octet_length(value)), 0)::bigint as used, count(*) as keys from state`.execute(
      database,
    )
    return { usedBytes: Number(rows[0]?.used), keyCount: Number(rows[0]?.keys) }
  }

  async function occupied(): Promise<number> {
    const row = await database
      .selectFrom('state_usage')
      .select(['used_bytes', 'reserved_bytes'])
      .executeTakeFirstOrThrow()
    return Number(row.used_bytes) + Number(row.reserved_bytes)
  }

  describe('entries', () => {
    it('are found as the last event of the key left them', async () => {
      expect(await store.find('k')).toBeUndefined()
      const first = put('k', 'first')
      await project([first])
      expect(await store.find('k')).toEqual({
        key: 'k',
        value: 'first',
        modifiedBy: WRITER,
        modifiedAt: first.ts,
      })
      await project([put('k', 'second'), put('other', ''), remove('k'), put('k', 'third')])
      expect((await store.find('k'))?.value).toBe('third')
      expect((await store.find('other'))?.value).toBe('')
      await project([put('k', 'fourth'), remove('k')])
      expect(await store.find('k')).toBeUndefined()
      expect(await store.usage()).toEqual({ usedBytes: 5, keyCount: 1 })
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
      await project(texts.map((text) => put(text, `value of ${text}`)))
      for (const text of texts) expect((await store.find(text))?.value).toBe(`value of ${text}`)
      const { keys } = await store.page('', undefined, 100)
      expect(keys.map(String)).toEqual(
        texts.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
      )
    })

    it('may be of the greatest size', async () => {
      const value = '\0'.repeat(1_048_576)
      const key = 'ü'.repeat(512)
      await project([put(key, value)])
      expect((await store.find(key))?.value === value).toBe(true)
      expect(await store.usage()).toEqual({ usedBytes: 1_048_576 + 1_024, keyCount: 1 })
    })
  })

  describe('pages', () => {
    it('are in byte order, begin after a key and hold at most the limit', async () => {
      const keys = ['b', 'a', 'a/1', 'a/10', 'a/2', 'B', 'ä', '\u{10000}', '\uffff', 'a\0', 'z']
      await project(keys.map((key) => put(key, '')))
      const ordered = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
      expect((await store.page('', undefined, 100)).keys.map(String)).toEqual(ordered)
      for (const limit of [1, 2, 5]) {
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
    })

    it('begin after a key that has been deleted meanwhile', async () => {
      await project(['a', 'b', 'c'].map((key) => put(key, '')))
      await project([remove('b')])
      expect((await store.page('', Buffer.from('b'), 10)).keys.map(String)).toEqual(['c'])
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
      await project(keys.map((key) => put(key, '')))
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
    })
  })

  describe('capacity', () => {
    it('is reserved before the write, by key and value, to the last byte', async () => {
      expect(await reserveWrite('a', CAPACITY + 1)).toBe('full')
      expect(await reserveWrite('a', CAPACITY)).toBe('reserved')
      expect(await reserveWrite('b', 1)).toBe('full')
      await project([put('a', 'x'.repeat(CAPACITY - 1))])
      expect(await store.usage()).toEqual({ usedBytes: CAPACITY, keyCount: 1 })
      expect(await occupied()).toBe(CAPACITY)
      expect(await reserveWrite('b', 1)).toBe('full')
      expect(await reserveWrite('a', CAPACITY)).toBe('reserved')
      expect(await reserveWrite('a', CAPACITY + 1)).toBe('full')
    })

    it('is free again for others when a delete or a smaller write has been applied, not before', async () => {
      expect(await reserveWrite('a', 900)).toBe('reserved')
      await project([put('a', 'x'.repeat(899))])
      expect(await store.beginDelete('a')).toBe('begun')
      expect(await reserveWrite('b', 200)).toBe('full')
      await project([remove('a')])
      expect(await reserveWrite('b', 200)).toBe('reserved')
      await project([put('b', 'x'.repeat(199))])
      expect(await reserveWrite('b', 10)).toBe('reserved')
      expect(await reserveWrite('c', 900)).toBe('full')
      await project([put('b', 'x'.repeat(9))])
      expect(await reserveWrite('c', 900)).toBe('reserved')
    })

    it('counts a key once, at the largest of the writes to it in flight', async () => {
      for (const size of [600, 300, 600, 900])
        expect(await reserveWrite('a', size)).toBe('reserved')
      expect(await occupied()).toBe(900)
      await project([put('a', 'x'.repeat(599)), put('a', 'x'.repeat(899))])
      expect(await occupied()).toBe(900)
      await project([put('a', 'x'.repeat(299)), put('a', 'x'.repeat(599))])
      expect(await occupied()).toBe(600)
      expect(await store.usage()).toEqual({ usedBytes: 600, keyCount: 1 })
    })

    it('that was reserved and never used is given back', async () => {
      expect(await reserveWrite('a', 700)).toBe('reserved')
      expect(await store.beginDelete('a')).toBe('absent')
      expect(await releaseAbandoned(store, new Date(Date.now() - 600_000))).toBe(0)
      expect(await reserveWrite('b', 700)).toBe('full')
      expect(await releaseAbandoned(store, new Date(Date.now() + 600_000))).toBe(1)
      expect(await occupied()).toBe(0)
      expect(await reserveWrite('b', 700)).toBe('reserved')
    })

    it('is not overrun by many who ask at once, and used to the full', async () => {
      const outcomes = await inParallel(60, (index) =>
        reserveWrite(`k${String(index).padStart(2, '0')}`, 30),
      )
      const reserved = outcomes.flatMap((outcome, index) => (outcome === 'reserved' ? [index] : []))
      expect(reserved).toHaveLength(Math.floor(CAPACITY / 30))
      expect(outcomes.every((outcome) => outcome === 'reserved' || outcome === 'full')).toBe(true)
      await project(
        reserved.map((index) => put(`k${String(index).padStart(2, '0')}`, 'x'.repeat(27))),
      )
      expect(await store.usage()).toEqual({ usedBytes: 30 * 33, keyCount: 33 })
      expect(await occupied()).toBe(30 * 33)
    })

    it('is the same for two processes that ask at once', async () => {
      const another = new StateTables(database, CAPACITY)
      const outcomes = await inParallel(80, (index) =>
        (index % 2 === 0 ? store : another).reserve({
          id: randomUUID(),
          key: `p${index}`,
          size: 100,
        }),
      )
      expect(outcomes.filter((outcome) => outcome === 'reserved')).toHaveLength(10)
    })
  })

  describe('an allotment', () => {
    /** Enough that a 256th of it is worth holding. */
    const ROOMY = 32 * 1_048_576
    const SHARE = ROOMY / 256
    let roomy: StateTables
    beforeAll(() => {
      roomy = new StateTables(database, ROOMY)
    })
    const hold = (id: string, renewal: Partial<AllotmentRenewal> = {}) =>
      roomy.renewAllotment({
        id,
        opening: false,
        settled: 0,
        lost: 0,
        kept: 0,
        wanted: 0,
        ...renewal,
      })
    const open = (id: string, wanted: number) => hold(id, { opening: true, wanted })

    it('is what is wanted, or a 256th of what is free, and nothing where that is little', async () => {
      const id = randomUUID()
      expect(await open(id, 1_000)).toBe(1_000)
      expect(await hold(id, { kept: 1_000, wanted: ROOMY })).toBe(SHARE)
      expect(await occupied()).toBe(SHARE)
      expect(await hold(id)).toBe(0)
      expect(await occupied()).toBe(0)
      expect(
        await store.renewAllotment({ id, opening: true, settled: 0, lost: 0, kept: 0, wanted: 1 }),
      ).toBe(0)
      expect(await occupied()).toBe(0)
    })

    it('is counted until what was written in it is known to be applied', async () => {
      const id = randomUUID()
      await open(id, 1_000)
      await project([put('a', 'x'.repeat(99))])
      expect(await occupied()).toBe(1_100)
      expect(await hold(id, { settled: 100, kept: 900, wanted: 0 })).toBe(900)
      expect(await occupied()).toBe(1_000)
      expect(await hold(id, { kept: 300 })).toBe(300)
      expect(await occupied()).toBe(400)
    })

    it('stays counted where nobody knows what became of a write, until maintenance comes', async () => {
      const id = randomUUID()
      await open(id, 1_000)
      expect(await hold(id, { lost: 100 })).toBe(0)
      expect(await occupied()).toBe(100)
      expect(await releaseAbandoned(store, new Date(Date.now() - 600_000))).toBe(0)
      expect(await releaseAbandoned(store, new Date(Date.now() + 600_000))).toBe(1)
      expect(await occupied()).toBe(0)
    })

    it('that was reserved or held by a clock that was set back since is given back in its time', async () => {
      await open(randomUUID(), 1_000)
      expect(await roomy.reserve({ id: randomUUID(), key: 'a', size: 100 })).toBe('reserved')
      await sql`update state_reservations set reserved_at = reserved_at + interval '1 hour'`.execute(
        database,
      )
      await sql`update state_allotments set renewed_at = renewed_at + interval '1 hour'`.execute(
        database,
      )
      // What is under way now is not given back for that, but put right.
      expect(await releaseAbandoned(store, new Date(Date.now() - 60_000))).toBe(2)
      expect(await releaseAbandoned(store, new Date(Date.now() - 60_000))).toBe(0)
      expect(await occupied()).toBe(1_100)
      expect(await releaseAbandoned(store, new Date(Date.now() + 60_000))).toBe(2)
      expect(await occupied()).toBe(0)
    })

    it('is given back in batches', async () => {
      const past = new Date(Date.now() + 600_000)
      for (let index = 0; index < 5; index++) {
        await open(randomUUID(), 1_000)
        expect(await roomy.reserve({ id: randomUUID(), key: `a${index}`, size: 100 })).toBe(
          'reserved',
        )
      }
      const released: number[] = []
      for (let batch = 0; batch < 4; batch++)
        released.push(await roomy.tidyReservations(past, 2), await roomy.tidyAllotments(past, 2))
      expect(released).toEqual([2, 2, 2, 2, 1, 1, 0, 0])
      expect(await occupied()).toBe(0)
    })

    it('is kept for its time from now at most, whatever time it is dated by', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.integer({ min: -2 * HOUR_MS, max: 1_000 * HOUR_MS }),
          async (aheadMs) => {
            await clear()
            await open(randomUUID(), 1_000)
            expect(await roomy.reserve({ id: randomUUID(), key: 'a', size: 100 })).toBe('reserved')
            const moved = sql`${aheadMs}::float8 * interval '1 millisecond'`
            await sql`update state_reservations set reserved_at = reserved_at + ${moved}`.execute(
              database,
            )
            await sql`update state_allotments set renewed_at = renewed_at + ${moved}`.execute(
              database,
            )
            // Half an hour is their time here.
            await releaseAbandoned(store, new Date(Date.now() - HOUR_MS / 2))
            const { rows } = await sql<{ latest: Date | null; kinds: number }>`
              select max(begun) as latest, count(*) as kinds from (
                select reserved_at as begun from state_reservations union all select renewed_at from state_allotments
              ) as kept`.execute(database)
            if (Math.abs(aheadMs + HOUR_MS / 2) > SLACK_MS)
              expect(rows[0]?.kinds).toBe(aheadMs < -HOUR_MS / 2 ? 0 : 2)
            expect(rows[0]?.latest?.getTime() ?? 0).toBeLessThanOrEqual(Date.now() + SLACK_MS)
          },
        ),
        { seed: SEED, numRuns: 40, endOnFailure: true },
      )
    })

    it('is not renewed when maintenance has cleared it away', async () => {
      const id = randomUUID()
      await open(id, 1_000)
      await releaseAbandoned(store, new Date(Date.now() + 600_000))
      expect(await hold(id, { kept: 1_000 })).toBeUndefined()
      expect(await occupied()).toBe(0)
    })

    it('is no reason to say that the store is full: who needs it asks again', async () => {
      await open(randomUUID(), SHARE)
      const reserve = (size: number) => roomy.reserve({ id: randomUUID(), key: 'a', size })
      expect(await reserve(ROOMY + 1)).toBe('full')
      expect(await reserve(ROOMY)).toBe('busy')
      expect(await reserve(ROOMY - SHARE)).toBe('reserved')
      expect(await open(randomUUID(), 1)).toBe(0)
    })

    it('never lets the store have more than its capacity, whatever nodes write, lose and give back', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(allotmentAction, { minLength: 5, maxLength: 60 }),
          async (actions) => {
            await clear()
            // So much that allotments are granted at first, and after a few writes no more.
            const capacity = 17 * 1_048_576
            const shared = new StateTables(database, capacity)
            const nodes = [new CapacityAllotment(shared), new CapacityAllotment(shared)]
            const underWay: { capacity: WriteCapacity; event: LoggedEvent }[] = []
            const within = async () => {
              // In one statement, as a node may be renewing its allotment.
              const { rows } = await sql<{
                occupied: number
                used: number
                allotted: number
                allotments: number
              }>`
                select used_bytes + reserved_bytes as occupied, used_bytes as used, allotted_bytes as allotted,
                  (select coalesce(sum(bytes), 0) from state_allotments)::bigint as allotments
                from state_usage`.execute(database)
              const [usage] = rows
              expect(usage?.allotted).toBe(usage?.allotments)
              expect(usage?.occupied).toBeLessThanOrEqual(capacity)
              expect(usage?.used).toBe((await sums()).usedBytes)
            }
            for (const { kind, key, size, node } of actions) {
              const held = nodes[node] as CapacityAllotment
              if (kind === 'write') {
                const capacity = held.take(1 + size)
                if (capacity)
                  underWay.push({ capacity, event: place(written(key, 'x'.repeat(size), WRITER)) })
                // The renewal that it may have begun.
                else await sleep(2)
              } else if (kind === 'apply') {
                const batch = underWay.splice(0, 5)
                await project(batch.map(({ event }) => event))
                for (const { capacity } of batch) capacity.settle()
              } else if (kind === 'lose') underWay.shift()?.capacity.lose()
              else await held.giveBack()
              await within()
            }
            for (const { capacity } of underWay) capacity.lose()
            for (const held of nodes) await held.giveBack()
            await within()
            await releaseAbandoned(shared, new Date(Date.now() + 600_000))
            expect(await occupied()).toBe((await store.usage()).usedBytes)
          },
        ),
        { seed: SEED, numRuns: 40, endOnFailure: true },
      )
    }, 300_000)
  })

  describe('deletes', () => {
    /** A time that a query gives as `at`, in ms since 1970. */
    async function inMilliseconds(query: ReturnType<typeof sql>): Promise<number> {
      const { rows } = await sql<{ ms: string }>`
          select (extract(epoch from at) * 1000)::text as ms from (${query}) as found`.execute(
        database,
      )
      return Number(rows[0]?.ms)
    }

    /** Until when the deletes that are under way keep others waiting, from now. */
    const setDeleteUntil = (ms: number) =>
      sql`
          update state set delete_until = clock_timestamp() + ${ms} * interval '1 millisecond'
          where delete_until is not null`.execute(database)

    it('find a key or do not', async () => {
      expect(await store.beginDelete('a')).toBe('absent')
      expect(await reserveWrite('a', 10)).toBe('reserved')
      expect(await store.beginDelete('a')).toBe('absent')
      await project([put('a', 'x'.repeat(9))])
      expect(await store.beginDelete('a')).toBe('begun')
    })

    it('of one key follow each other: one of many at once gets its turn', async () => {
      await project([put('a', 'x')])
      const outcomes = await inParallel(10, () => store.beginDelete('a'))
      expect(outcomes.toSorted()).toEqual(['begun', ...Array(9).fill('busy')])
      await project([remove('a')])
      expect(await store.beginDelete('a')).toBe('absent')
      await project([put('a', 'y')])
      expect(await store.beginDelete('a')).toBe('begun')
    })

    it('wait for 3 s at most for one whose node died', async () => {
      await project([put('a', 'x')])
      const clock = () => inMilliseconds(sql`select clock_timestamp() as at`)
      const before = await clock()
      expect(await store.beginDelete('a')).toBe('begun')
      const after = await clock()
      const until = await inMilliseconds(sql`select delete_until as at from state`)
      expect(until).toBeGreaterThanOrEqual(before + 3_000)
      expect(until).toBeLessThanOrEqual(after + 3_000)
      // Also where the clock was set back since.
      await setDeleteUntil(3_600_000)
      expect(await store.beginDelete('a')).toBe('busy')
      expect(await inMilliseconds(sql`select delete_until as at from state`)).toBeLessThanOrEqual(
        (await clock()) + 3_000,
      )
      await setDeleteUntil(-1)
      expect(await store.beginDelete('a')).toBe('begun')
      await project([remove('a'), put('a', 'y')])
      expect(await store.beginDelete('a')).toBe('begun')
    })

    it('are still under way when the key is written meanwhile', async () => {
      await project([put('a', 'x')])
      expect(await store.beginDelete('a')).toBe('begun')
      // However slow the machine is.
      await setDeleteUntil(60_000)
      await project([put('a', 'y')])
      expect(await store.beginDelete('a')).toBe('busy')
      await project([remove('a'), put('a', 'z')])
      expect(await store.beginDelete('a')).toBe('begun')
    })

    it('wait neither for each other nor for a change that is being applied', async () => {
      const keys = Array.from({ length: 200 }, (_, index) => `d${index}`)
      await project(keys.map((key) => put(key, 'x')))
      const another = new StateTables(database, CAPACITY)
      const applying = project(keys.toReversed().map((key) => put(key, 'y')))
      const outcomes = await Promise.all(
        [store, another].flatMap((one, index) =>
          (index === 0 ? keys : keys.toReversed()).map((key) => one.beginDelete(key)),
        ),
      )
      await applying
      expect(new Set(outcomes)).not.toContain('absent')
      expect(outcomes.filter((outcome) => outcome === 'begun').length).toBeLessThanOrEqual(
        keys.length,
      )
    })
  })

  describe('whatever order writes, deletes and abandoned ones come in', () => {
    it(
      'capacity is never overrun, refusals are right, and used_bytes, key_count and totals are exact',
      async () => {
        await fc.assert(
          fc.asyncProperty(fc.array(action, { minLength: 1, maxLength: 40 }), async (actions) => {
            await clear()
            await new Interleaving().run(actions)
          }),
          { seed: SEED, numRuns: 120, endOnFailure: true },
        )
      },
      MANY_KEYS_TIMEOUT_MS,
    )

    type Change = { key: string; reservation?: Reservation }

    /**
     * Goes through a list of actions with the store and with a model of it, and compares them after
     * each.
     */
    class Interleaving {
      /** Present size of each key. */
      readonly present = new Map<string, number>()
      /** Keys that are there, and that a delete has found. */
      readonly found = new Set<string>()
      /** Reserved writes and begun deletes, event not appended yet. */
      begun: Change[] = []
      /** In the log, not applied yet. */
      readonly appended: { change: Change; event: LoggedEvent }[] = []

      async run(actions: readonly Action[]): Promise<void> {
        for (const step of actions) {
          await this.#act(step)
          await this.#compare(step)
        }
        await this.#apply(this.appended.length)
        await this.#releaseReserved()
        await this.#compare({ kind: 'release' })
        expect(await occupied()).toBe((await store.usage()).usedBytes)
      }

      async #act(step: Action): Promise<void> {
        if (step.kind === 'begin') {
          const asked = step.requests.map(({ key, size }) =>
            size === undefined
              ? { expected: this.#expectedOfDelete(key), outcome: store.beginDelete(key) }
              : this.#reserve({ id: randomUUID(), key, size: Buffer.byteLength(key) + size }),
          )
          const outcomes = await Promise.all(asked.map(({ outcome }) => outcome))
          expect(outcomes).toEqual(asked.map(({ expected }) => expected))
          // However slow the machine is.
          await sql`update state set delete_until = 'infinity' where delete_until is not null`.execute(
            database,
          )
        } else if (step.kind === 'append') {
          for (const index of step.which) {
            const [change] = this.begun.splice(index % Math.max(1, this.begun.length), 1)
            if (change) this.#append(change)
          }
        } else if (step.kind === 'apply') {
          await this.#apply(step.count)
        } else {
          // As maintenance does: when the log has been applied to its end.
          await this.#apply(this.appended.length)
          await this.#releaseReserved()
        }
      }

      #reserve(reservation: Reservation) {
        return { expected: this.#expectedOfWrite(reservation), outcome: store.reserve(reservation) }
      }

      #reservations(): Reservation[] {
        return [...this.begun, ...this.appended.map(({ change }) => change)].flatMap(
          ({ reservation }) => reservation ?? [],
        )
      }

      #peak(key: string): number {
        const sizes = this.#reservations().flatMap((one) => (one.key === key ? one.size : []))
        return Math.max(this.present.get(key) ?? 0, ...sizes)
      }

      #occupied(): number {
        const keys = new Set([
          ...this.present.keys(),
          ...this.#reservations().map(({ key }) => key),
        ])
        return [...keys].reduce((sum, key) => sum + this.#peak(key), 0)
      }

      /** And notes the reservation. */
      #expectedOfWrite(reservation: Reservation): ReservationOutcome {
        const { key, size } = reservation
        if (this.#occupied() + Math.max(0, size - this.#peak(key)) > CAPACITY) return 'full'
        this.begun.push({ key, reservation })
        return 'reserved'
      }

      /** And notes that it is under way. */
      #expectedOfDelete(key: string): DeleteOutcome {
        if (!this.present.has(key)) return 'absent'
        if (this.found.has(key)) return 'busy'
        this.found.add(key)
        this.begun.push({ key })
        return 'begun'
      }

      #append(change: Change): void {
        const { key, reservation } = change
        const event = reservation
          ? place(
              written(key, 'v'.repeat(reservation.size - Buffer.byteLength(key)), WRITER),
              reservation.id,
            )
          : remove(key)
        this.appended.push({ change, event })
      }

      async #apply(count: number): Promise<void> {
        const batch = this.appended.splice(0, count)
        for (const { change } of batch) {
          const { key, reservation } = change
          if (reservation) this.present.set(key, reservation.size)
          else {
            this.present.delete(key)
            this.found.delete(key)
          }
        }
        await project(batch.map(({ event }) => event))
      }

      async #releaseReserved(): Promise<void> {
        const writes = this.begun.filter(({ reservation }) => reservation !== undefined)
        expect(await releaseAbandoned(store, new Date(Date.now() + 600_000))).toBe(writes.length)
        this.begun = []
      }

      async #compare(step: Action): Promise<void> {
        const usage = await store.usage()
        const context = JSON.stringify(step)
        expect(usage, context).toEqual(await sums())
        expect(usage.usedBytes, context).toBeLessThanOrEqual(CAPACITY)
        expect(usage.keyCount, context).toBe(this.present.size)
        expect(usage.usedBytes, context).toBe(
          [...this.present.values()].reduce((sum, size) => sum + size, 0),
        )
        expect(await occupied(), context).toBe(this.#occupied())
        const { keys, total } = await store.page('a', undefined, 100)
        expect(keys.map(String), context).toEqual(
          [...this.present.keys()].filter((key) => key.startsWith('a')).toSorted(),
        )
        expect(total, context).toBe(keys.length)
      }
    }
  })

  describe('count_state_keys', () => {
    it(
      'counts as counting them all does, for random keys and prefixes, as blocks split and empty',
      async () => {
        await fc.assert(
          fc.asyncProperty(
            fc.array(bulkChange, { minLength: 2, maxLength: 5 }),
            async (changes) => {
              await clear()
              const keys = new Set<string>()
              for (const bulk of changes) {
                await applyBulk(keys, bulk)
                await expectCounts(keys)
              }
              await checkBlocks()
            },
          ),
          { seed: SEED, numRuns: 8, endOnFailure: true },
        )
      },
      MANY_KEYS_TIMEOUT_MS,
    )

    it(
      'stays right when keys come a few at a time, go a few at a time, and come again',
      async () => {
        const keys = new Set<string>()
        const inSteps = async (wanted: string[], apply: (some: string[]) => Promise<void>) => {
          for (let from = 0; from < wanted.length; from += 1 + (from % 7))
            await apply(wanted.slice(from, from + 1 + (from % 7)))
          await expectCounts(keys)
          await checkBlocks()
        }
        const add = (some: string[]) => {
          for (const key of some) keys.add(key)
          return change(some, [])
        }
        const drop = (some: string[]) => {
          for (const key of some) keys.delete(key)
          return change([], some)
        }
        await inSteps(
          Array.from({ length: 1_400 }, (_, index) => `few/${(index * 7_919) % 2_311}`),
          add,
        )
        await inSteps([...keys].toSorted().slice(2), drop)
        await inSteps(
          Array.from({ length: 1_100 }, (_, index) => `few/${index}x`),
          add,
        )
        await inSteps([...keys], drop)
      },
      MANY_KEYS_TIMEOUT_MS,
    )

    it(
      'looks at a few blocks, not at all keys',
      async () => {
        await insertNumbered(50_000, '')
        const { rows } = await sql<{ line: string }>`
            select max(keys)::text as line from state_blocks where level = 1`.execute(database)
        expect(Number(rows[0]?.line)).toBeLessThanOrEqual(256)
        // The fastest of each, as the machine may be held up.
        const fastest = async (count: () => Promise<unknown>) => {
          const times = await inSequence(10, async () => {
            const start = performance.now()
            await count()
            return performance.now() - start
          })
          return Math.min(...times)
        }
        const byBlocks = await fastest(() => countKeys('', null))
        const byKeys = await fastest(() => sql`select count(*) from state`.execute(database))
        expect(byBlocks).toBeLessThan(byKeys)
      },
      MANY_KEYS_TIMEOUT_MS,
    )

    it('cuts blocks as large as they were in an earlier version when a key of theirs comes or goes', async () => {
      await sql`
          insert into state (key, value, size, seq, modified_by, modified_at)
          select convert_to('old/' || n, 'UTF8'), '', 8, 1, ${WRITER}, now() from generate_series(1, 1000) n`.execute(
        database,
      )
      await sql`update state_blocks set keys = 1000`.execute(database)
      expect(await countKeys('old/', 'old0')).toBe(1_000)
      await change(['old/0'], ['old/7'])
      await checkBlocks()
    })

    it(
      'stays right with many keys, where the blocks of blocks split and empty',
      async () => {
        // 127 blocks of level 1: the next splits make the first of level 2 split.
        await insertNumbered(16_250, '')
        await checkBlocks()
        for (const tag of ['x', 'y', 'z']) {
          // One batch in which an early block splits, and with it the block of blocks that later
          // changes are in as well.
          await insertWhere(
            sql`select '00000001' || ${tag} || n from generate_series(1, 1500) n union all
                  select '00016249' || ${tag} || n from generate_series(1, 5) n`,
          )
          await checkBlocks()
        }
        const middle = await sql<{ first: string; next: string | null }>`
            select convert_from(first_key, 'UTF8') as first, convert_from(lead(first_key) over (order by first_key), 'UTF8') as next
            from state_blocks where level = 2 order by first_key`.execute(database)
        const { first, next } =
          middle.rows.find((block) => block.first !== '' && block.next !== null) ?? {}
        if (first === undefined || next == null)
          throw new Error('the blocks of level 2 have not split')
        // A block of blocks loses all its keys in the batch in which it gains others.
        const keep = `${first}~`
        await deleteBetween(`${first}a`, next)
        await checkBlocks()
        await change([`${next.slice(0, -1)}/`, keep], [first])
        await checkBlocks()
        await deleteBetween('', '00012500')
        await checkBlocks()
        await deleteBetween('', null)
        await checkBlocks()
        expect(await countKeys('', null)).toBe(0)
        await change(['again'], [])
        await checkBlocks()
        expect(await countKeys('again', null)).toBe(1)
      },
      MANY_KEYS_TIMEOUT_MS,
    )

    async function countKeys(low: string, high: string | null): Promise<number> {
      const { rows } = await sql<{ count: number }>`
          select count_state_keys(${Buffer.from(low)}, ${high === null ? null : Buffer.from(high)}) as count`.execute(
        database,
      )
      return Number(rows[0]?.count)
    }

    /** Adds and removes keys and has them counted, as the projector does for one batch. */
    async function change(added: readonly string[], removed: readonly string[]): Promise<void> {
      const array = (keys: readonly string[]) => {
        const encoded = JSON.stringify(keys.map((key) => Buffer.from(key).toString('base64')))
        return sql`array(select decode(item, 'base64') from json_array_elements_text(${encoded}::json) as items (item))`
      }
      await database.transaction().execute(async (transaction) => {
        await sql`insert into state (key, value, size, seq, modified_by, modified_at)
                    select key, '', octet_length(key), 1, ${WRITER}, now() from unnest(${array(added)}) as key`.execute(
          transaction,
        )
        await sql`delete from state where key = any (${array(removed)})`.execute(transaction)
        await sql`select count_state_changes(${array(added)}, ${array(removed)})`.execute(
          transaction,
        )
      })
    }

    /** Adds the keys that a query gives as text, in one batch. */
    async function insertWhere(keys: ReturnType<typeof sql>): Promise<void> {
      await sql`
          with added as (
            insert into state (key, value, size, seq, modified_by, modified_at)
            select convert_to(key, 'UTF8'), '', octet_length(key), 1, ${WRITER}, now() from (${keys}) as wanted (key)
            on conflict do nothing returning key
          )
          select count(*) from added`.execute(database)
      await sql`select count_state_changes(array(
            select state.key from state join (${keys}) as wanted (key) on state.key = convert_to(wanted.key, 'UTF8')
          ), '{}')`.execute(database)
    }

    async function insertNumbered(count: number, prefix: string): Promise<void> {
      await insertWhere(
        sql`select ${prefix} || lpad(n::text, 8, '0') from generate_series(1, ${count}::integer) n`,
      )
    }

    /** Removes the keys from `low` on and below `high`, in one batch. */
    async function deleteBetween(low: string, high: string | null): Promise<void> {
      const within = sql`key >= ${Buffer.from(low)} and (${high}::text is null or key < convert_to(${high}::text, 'UTF8'))`
      await sql`create temporary table doomed as select key from state where ${within}`.execute(
        database,
      )
      await sql`delete from state where ${within}`.execute(database)
      await sql`select count_state_changes('{}', array(select key from doomed))`.execute(database)
      await sql`drop table doomed`.execute(database)
    }

    async function applyBulk(keys: Set<string>, bulk: BulkChange): Promise<void> {
      const removed = [...keys].filter(
        (key, index) => key.startsWith(bulk.removedPrefix) && index % 100 < bulk.removedPercent,
      )
      const added = bulk.numbers
        .map((number) => `${bulk.prefix}${number}`)
        .filter((key) => !keys.has(key))
      for (const key of added) keys.add(key)
      for (const key of removed) keys.delete(key)
      await change(
        [...new Set(added)],
        removed.filter((key) => !added.includes(key)),
      )
    }

    /** Compares counts with those of the set, for prefixes of keys in it and others. */
    async function expectCounts(keys: ReadonlySet<string>): Promise<void> {
      const some = [...keys].filter((_, index) => index % Math.ceil(keys.size / 12) === 0)
      const prefixes = new Set([
        '',
        'nothing',
        'a',
        '\0',
        'é',
        ...some.flatMap((key) => [key, key.slice(0, -1), key.slice(0, 3)]),
      ])
      for (const prefix of prefixes) {
        const expected = [...keys].filter((key) => key.startsWith(prefix)).length
        expect((await store.page(prefix, undefined, 1)).total, JSON.stringify(prefix)).toBe(
          expected,
        )
      }
    }

    /**
     * Every block of both levels says how many keys there are from its first key to the next
     * block's; none is too large.
     */
    async function checkBlocks(): Promise<void> {
      const { rows } = await sql`
          select level, encode(first_key, 'escape') as first_key, keys, actual from (
            select level, first_key, keys,
              (select count(*) from state where key >= first_key and key < next_key) as actual
            from (select *, lead(first_key, 1, '\\xff') over (partition by level order by first_key) as next_key from state_blocks) as blocks
          ) as counted where keys <> actual or (level = 1 and keys > 256) limit 5`.execute(database)
      expect(rows).toEqual([])
      const {
        rows: [present],
      } = await sql<{ keys: number }>`select count(*) as keys from state`.execute(database)
      expect(await countKeys('', null)).toBe(Number(present?.keys))
    }
  })
})

type Action =
  /** Asked for at the same time; without a size, a delete. */
  | { kind: 'begin'; requests: { key: string; size: number | undefined }[] }
  /** The events of some reservations enter the log, in this order. */
  | { kind: 'append'; which: number[] }
  /** The projector applies so many events. */
  | { kind: 'apply'; count: number }
  /** The processes behind all reservations without an event have died, and maintenance comes. */
  | { kind: 'release' }

const request = fc.record({
  key: fc.constantFrom('a', 'ab', 'a\0', 'b', 'ü'),
  size: fc.option(fc.oneof(fc.integer({ min: 0, max: 400 }), fc.constantFrom(0, 100, 999)), {
    nil: undefined,
    freq: 4,
  }),
})
const action: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('begin'),
      requests: fc.array(request, { minLength: 1, maxLength: 4 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('append'),
      which: fc.array(fc.nat(10), { minLength: 1, maxLength: 4 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant('apply'), count: fc.integer({ min: 1, max: 6 }) }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('release') }) },
)

const allotmentAction = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'write', 'apply', 'lose', 'give back'),
  key: fc.constantFrom('a', 'b', 'c'),
  size: fc.oneof(fc.integer({ min: 0, max: 2_000 }), fc.integer({ min: 0, max: 60_000 })),
  node: fc.constantFrom(0, 1),
})

interface BulkChange {
  prefix: string
  numbers: number[]
  removedPrefix: string
  removedPercent: number
}

const bulkPrefix = fc.constantFrom('', 'a', 'a/', 'a/b/', 'é', '\0', 'zz')
const bulkChange: fc.Arbitrary<BulkChange> = fc.record({
  prefix: bulkPrefix,
  numbers: fc
    .record({
      count: fc.integer({ min: 1, max: 4_000 }),
      step: fc.constantFrom(1, 3, 7_919),
      start: fc.nat(1_000),
    })
    .map(({ count, step, start }) =>
      Array.from({ length: count }, (_, index) => start + ((index * step) % 10_007)),
    ),
  removedPrefix: bulkPrefix,
  removedPercent: fc.constantFrom(0, 30, 99, 100),
})
