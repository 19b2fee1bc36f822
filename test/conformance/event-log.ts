/** The conformance suite of the `EventLog` port. */
import { randomUUID } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  changesOf,
  type EventType,
  type LoggedEvent,
  type NewEvent,
} from '../../src/events/event.ts'
import { type EventLog, type FollowOptions, LogUnavailable } from '../../src/events/event-log.ts'
import { holdUp } from '../support/hold-up.ts'
import { deleted, inParallel, inSequence, read, registryRead, sent, written } from './support.ts'

export interface EventLogHarness extends AsyncDisposable {
  /** May hold events already; while the suite runs, nothing else appends to it. */
  readonly log: EventLog
}

/**
 * What a value of the greatest size takes as JSON at worst: six bytes for each of its 1,048,576.
 */
const LARGEST_VALUE = '\0'.repeat(1_048_576)
const LARGE_VALUE = 'x'.repeat(1_048_576)
const FOLLOW_TIMEOUT_MS = 60_000
/** Longer than any try and deadline of an append. */
const HELD_UP_MS = 3_000

export function describeEventLog(name: string, create: () => Promise<EventLogHarness>): void {
  describe(`event log: ${name}`, () => {
    let harness: EventLogHarness
    let log: EventLog
    beforeAll(async () => {
      harness = await create()
      log = harness.log
    })
    afterAll(() => harness[Symbol.asyncDispose]())

    /** The public part of what was read. */
    const bare = (events: readonly LoggedEvent[]) =>
      events.map(({ ts, type, agent, data }) => ({ ts, type, agent, data }))

    async function appendAll(events: readonly NewEvent[]): Promise<number[]> {
      return (
        await inSequence(events.length, (index) => log.append(events[index] as NewEvent))
      ).map(({ seq }) => seq)
    }

    /** Page by page until a page is empty. */
    async function readAll(since: number, limit: number): Promise<LoggedEvent[]> {
      const events: LoggedEvent[] = []
      for (;;) {
        const page = await log.read(events.at(-1)?.seq ?? since, limit)
        if (page.length === 0) return events
        expect(page.length).toBeLessThanOrEqual(limit)
        events.push(...page)
      }
    }

    describe('append', () => {
      it('gives every event a place above the one before, and stores it as it is', async () => {
        const since = await log.lastSeq()
        const from = 'tab_aaaaaaaaaaaaaaaaaaaa'
        const operator: NewEvent = {
          ts: '2026-01-01T00:00:00.000Z',
          type: 'operator_created',
          data: {
            operator_id: randomUUID(),
            contact_hash: 'someone "quoted" 😀',
            accepted_terms: true,
          },
        }
        const events = [
          operator,
          sent('tab_bbbbbbbbbbbbbbbbbbbb', 'a\nb\\', from),
          written('k/ü', '', from),
          read('k/ü', from),
        ]
        const seqs = await appendAll(events)
        expect(seqs[0]).toBeGreaterThan(since)
        for (const [index, seq] of seqs.entries()) expect(seq).toBeGreaterThan(seqs[index - 1] ?? 0)
        const stored = await log.read(since, 100)
        expect(stored.map(({ seq }) => seq)).toEqual(seqs)
        expect(bare(stored)).toEqual(bare(events.map((event) => ({ seq: 0, ...event }))))
        expect(stored[0]).not.toHaveProperty('agent')
      })

      it('is durable: the last place is the last append', async () => {
        const { seq } = await log.append(written('last', 'x'))
        expect(await log.lastSeq()).toBe(seq)
      })

      it('keeps how a message travels and what an event is about', async () => {
        const message = sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x')
        const { seq } = await log.append(message, { via: 'webhook' })
        const { message_id, to } = message.data
        const data = { message_id, to, delivery_method: 'push' } as const
        const delivery = await log.append(
          { ts: message.ts, type: 'message_delivered', agent: to, data },
          { about: seq },
        )
        const [first, second] = await log.get([seq, delivery.seq])
        expect(first?.via).toBe('webhook')
        expect(second).toMatchObject({ about: seq })
      })

      it('stores any UTF-8 byte for byte, U+0000 too, in keys and in contents', async () => {
        const text =
          '\0 a\0b \u0001\u001f\u007f\u0080\u2028\ufeff\uffff 😀 \u{10ffff} \\u0000 %00 "\'\r\n\t'
        const event = written(text, text)
        const { seq } = await log.append(event)
        expect((await log.get([seq]))[0]?.data).toEqual(event.data)
        expect((await log.read(seq - 1, 1))[0]?.data).toEqual(event.data)
      })

      it('is confirmed also where the process itself was held up for longer than the log may take', async () => {
        const appended = log.append(written('held up', 'x'))
        // It goes out at the end of a turn of the event loop.
        await setImmediate()
        holdUp(HELD_UP_MS)
        const { seq } = await appended
        expect((await log.read(seq - 1, 10)).map(({ data }) => data)).toMatchObject([
          { key: 'held up' },
        ])
      })

      it('stores a second one with the same id not again: it returns the place of the first', async () => {
        const id = `idempotency-${randomUUID()}`
        const event = written('once', 'first')
        const first = await log.append(event, { id })
        expect(first.duplicate).toBe(false)
        await log.append(written('between', ''))
        const again = await log.append(written('once', 'second'), { id })
        expect(again).toEqual({ seq: first.seq, duplicate: true })
        const other = await log.append(written('once', 'third'), { id: `${id}-other` })
        expect(other.duplicate).toBe(false)
        const values = (await log.read(first.seq - 1, 10)).flatMap(({ type, data }) =>
          type === 'state_written' ? [data.value] : [],
        )
        expect(values).toEqual(['first', '', 'third'])
      })

      it('stores one of many with the same id at the same time', async () => {
        const since = await log.lastSeq()
        const id = `race-${randomUUID()}`
        const results = await inParallel(30, (index) =>
          log.append(written('race', String(index)), { id }),
        )
        expect(results.filter(({ duplicate }) => !duplicate)).toHaveLength(1)
        expect(new Set(results.map(({ seq }) => seq)).size).toBe(1)
        expect(await log.read(since, 100)).toHaveLength(1)
      })

      it('stores two with no id although they are the same', async () => {
        const event = registryRead()
        const [first, second] = await appendAll([event, event])
        expect(second).toBeGreaterThan(first ?? 0)
      })

      it('refuses an event that was prepared too long ago, and stores nothing of it', async () => {
        const since = await log.lastSeq()
        const late = log.append(written('late', ''), { notAfter: performance.now() - 1 })
        await expect(late).rejects.toBeInstanceOf(LogUnavailable)
        await log.append(written('in time', ''), { notAfter: performance.now() + 60_000 })
        const events = await log.read(since, 10)
        expect(events.map(({ data }) => 'key' in data && data.key)).toEqual(['in time'])
      })

      it('gives concurrent appends distinct places in one order, all stored, and those of one caller in the order of its calls', async () => {
        const since = await log.lastSeq()
        const results = await inParallel(8, (writer) =>
          inSequence(25, (index) => log.append(written(`concurrent/${writer}`, String(index)))),
        )
        const seqs = results.flat().map(({ seq }) => seq)
        expect(new Set(seqs).size).toBe(200)
        const stored = await readAll(since, 64)
        expect(stored.map(({ seq }) => seq)).toEqual(seqs.toSorted((a, b) => a - b))
        for (const [writer, places] of results.entries()) {
          const mine = stored.filter(
            ({ data }) => 'key' in data && data.key === `concurrent/${writer}`,
          )
          expect(mine.map(({ seq }) => seq)).toEqual(places.map(({ seq }) => seq))
          expect(mine.map(({ data }) => 'value' in data && data.value)).toEqual(
            places.map((_, index) => String(index)),
          )
        }
      })
    })

    describe('read', () => {
      it('pages without gaps or overlaps, whatever the limit', async () => {
        const since = await log.lastSeq()
        const seqs = await appendAll(
          Array.from({ length: 23 }, (_, index) =>
            index % 3 === 0 ? registryRead() : written('page', ''),
          ),
        )
        for (const limit of [1, 5, 23, 24, 1_000]) {
          expect((await readAll(since, limit)).map(({ seq }) => seq)).toEqual(seqs)
        }
      })

      it('has the next page of many soon', async () => {
        const since = await log.lastSeq()
        await inParallel(600, (index) => log.append(written('soon', String(index))))
        // The fastest of a few, as the machine may be held up.
        let fastest = Number.POSITIVE_INFINITY
        for (let reading = 0; reading < 5 && fastest >= 3_000; reading++) {
          const start = performance.now()
          expect(await readAll(since, 1_000)).toHaveLength(600)
          fastest = Math.min(fastest, performance.now() - start)
        }
        expect(fastest).toBeLessThan(3_000)
      })

      it('begins after `since`, and is empty at the end of the log and beyond', async () => {
        const [first, second] = await appendAll([written('bounds', '1'), written('bounds', '2')])
        if (first === undefined || second === undefined) throw new Error('nothing was appended')
        expect((await log.read(first, 10)).map(({ seq }) => seq)).toEqual([second])
        expect(await log.read(second, 10)).toEqual([])
        expect(await log.read(second + 1_000, 10)).toEqual([])
      })
    })

    describe('get', () => {
      it('returns events in the order asked', async () => {
        const events = Array.from({ length: 6 }, (_, index) => written('get', String(index)))
        const seqs = await appendAll(events)
        const order = [4, 0, 5, 2]
        const found = await log.get(order.map((index) => seqs[index] as number))
        expect(found.map(({ data }) => 'value' in data && data.value)).toEqual(order.map(String))
        expect(found.map(({ seq }) => seq)).toEqual(order.map((index) => seqs[index]))
        expect(await log.get([])).toEqual([])
      })

      it('throws when one cannot be had', async () => {
        const { seq } = await log.append(written('get', ''))
        await expect(log.get([seq, seq + 1_000])).rejects.toBeInstanceOf(LogUnavailable)
      })
    })

    describe('large events', () => {
      it('of 6 MiB of JSON are appended, read, got and followed', async () => {
        const since = await log.lastSeq()
        const event = written('large', LARGEST_VALUE)
        expect(JSON.stringify(event).length).toBeGreaterThan(6 * 1_048_576)
        const { seq } = await log.append(event)
        for (const [found] of [await log.get([seq]), await log.read(seq - 1, 1)]) {
          expect(found?.seq).toBe(seq)
          // Compared by ===, as a difference of megabytes helps nobody.
          expect(found?.type === 'state_written' && found.data.value === LARGEST_VALUE).toBe(true)
        }
        const [followed] = await followUntil(log, since, (events) => events.length === 1)
        expect(followed?.type === 'state_written' && followed.data.value === LARGEST_VALUE).toBe(
          true,
        )
      })

      it('make pages shorter but never empty before the end, and none is passed over', async () => {
        const since = await log.lastSeq()
        const seqs = await appendAll([
          ...Array.from({ length: 40 }, () => written('pages', 'small')),
          ...Array.from({ length: 24 }, () => written('pages', LARGE_VALUE)),
          ...Array.from({ length: 40 }, () => written('pages', 'small')),
        ])
        expect((await readAll(since, 1_000)).map(({ seq }) => seq)).toEqual(seqs)
        for (const limit of [1_000, 50])
          expect(
            (await log.read(seqs[38] as number, limit)).filter(isLarge).length,
          ).toBeLessThanOrEqual(8)
        const followed = await followUntil(log, since, (events) => events.length === seqs.length)
        expect(followed.map(({ seq }) => seq)).toEqual(seqs)
      })

      const isLarge = ({ type, data }: LoggedEvent) =>
        type === 'state_written' && data.value === LARGE_VALUE
    })

    describe('follow', () => {
      it('catches up from a position with all that changes something, and nothing else, then says that there is no more', async () => {
        const since = await log.lastSeq()
        // At the same time, as a log may hold back those that nobody waits for.
        const appended = await inParallel(1_200, (index) =>
          log.append(index % 4 === 3 ? read('follow') : written('follow', String(index))),
        )
        const changes = appended
          .flatMap(({ seq }, index) => (index % 4 === 3 ? [] : seq))
          .toSorted((a, b) => a - b)
        const batches: LoggedEvent[][] = []
        await following(log, since, (batch) => batches.push(batch) > 0 && batch.length === 0)
        expect(batches.at(-1)).toEqual([])
        expect(batches.flat().map(({ seq }) => seq)).toEqual(changes)
        expect(batches.flat().every(({ type }) => changesOf().includes(type))).toBe(true)
      })

      it('from the middle begins right after it', async () => {
        const seqs = await appendAll([
          written('middle', '0'),
          written('middle', '1'),
          deleted('middle'),
        ])
        const events = await followUntil(log, seqs[0] as number, (found) => found.length === 2)
        expect(events.map(({ seq }) => seq)).toEqual(seqs.slice(1))
      })

      it('from the end says at once that there is nothing', async () => {
        await log.append(written('end', ''))
        const batches: LoggedEvent[][] = []
        await following(log, await log.lastSeq(), (batch) => batches.push(batch) > 0)
        expect(batches).toEqual([[]])
      })

      it('says that there is nothing more where only reads follow', async () => {
        const since = await log.lastSeq()
        await appendAll([read('only'), registryRead()])
        const batches: LoggedEvent[][] = []
        await following(log, since, (batch) => batches.push(batch) > 0)
        expect(batches).toEqual([[]])
      })

      it('says so only after all that was confirmed, however short a time ago', async () => {
        for (let round = 0; round < 30; round++) {
          const { seq } = await log.append(written('just', String(round)))
          const batches: LoggedEvent[][] = []
          await following(log, seq - 1, (batch) => batches.push(batch) > 0 && batch.length === 0)
          expect(batches.flat().map((event) => event.seq)).toEqual([seq])
        }
      })

      it('keeps to the types that are named, and says when of that there is nothing more', async () => {
        const since = await log.lastSeq()
        const [message] = await appendAll([
          sent('tab_bbbbbbbbbbbbbbbbbbbb', 'one'),
          written('capability', ''),
          registryRead(),
        ])
        const batches: LoggedEvent[][] = []
        await following(log, since, (batch) => batches.push(batch) > 0 && batch.length === 0, {
          types: changesOf('message'),
        })
        expect(batches.flat().map(({ seq }) => seq)).toEqual([message])
      })

      it('brings records of reading to those who name their types, beside others who do not', async () => {
        const since = await log.lastSeq()
        const types: EventType[] = [...changesOf(), 'state_read', 'registry_read']
        const changes: LoggedEvent[][] = []
        const all: LoggedEvent[][] = []
        const isLast = (batch: LoggedEvent[]) => batch.at(-1)?.type === 'state_written'
        const done = [
          following(log, since, (batch) => all.push(batch) > 0 && isLast(batch), { types }),
          following(log, since, (batch) => changes.push(batch) > 0 && isLast(batch)),
        ]
        const seqs = await appendAll([
          read('read'),
          deleted('read'),
          registryRead(),
          written('read', ''),
        ])
        await Promise.all(done)
        expect(all.flat().map(({ seq }) => seq)).toEqual(seqs)
        expect(changes.flat().map(({ seq }) => seq)).toEqual([seqs[1], seqs[3]])
      })

      it('brings each once and in order, where some may wait and the last may not', async () => {
        const since = await log.lastSeq()
        const seqs: number[] = []
        const batches: LoggedEvent[][] = []
        const done = following(
          log,
          since,
          (batch) => batches.push(batch) > 0 && batch.at(-1)?.type === 'state_written',
          {
            mayWait: ({ type }) => type === 'message_sent',
          },
        )
        for (let index = 0; index < 50; index++)
          seqs.push((await log.append(sent('tab_bbbbbbbbbbbbbbbbbbbb', String(index)))).seq)
        seqs.push((await log.append(written('urgent', ''))).seq)
        await done
        expect(batches.flat().map(({ seq }) => seq)).toEqual(seqs)
      })

      it('brings what is appended while it waits, in order and each once, with an empty batch after it', async () => {
        const since = await log.lastSeq()
        const caughtUp = Promise.withResolvers<void>()
        const events: LoggedEvent[] = []
        let emptyAfter = 0
        const done = following(log, since, (batch) => {
          if (batch.length === 0 && events.length === 0) caughtUp.resolve()
          if (batch.length === 0 && events.length > 0) emptyAfter = events.length
          events.push(...batch)
          return emptyAfter === 60
        })
        await caughtUp.promise
        const results = await inParallel(4, (writer) =>
          inSequence(20, (index) =>
            log.append(index % 4 === 0 ? read('live') : written(`live/${writer}`, String(index))),
          ),
        )
        const seqs = results.flatMap((places) =>
          places.flatMap(({ seq }, index) => (index % 4 === 0 ? [] : [seq])),
        )
        await done
        expect(events.map(({ seq }) => seq)).toEqual(seqs.toSorted((a, b) => a - b))
      })

      it('serves several at once, each from its own position', async () => {
        const since = await log.lastSeq()
        const seqs = await appendAll(
          Array.from({ length: 10 }, (_, index) => written('several', String(index))),
        )
        const all = await inParallel(3, (index) =>
          followUntil(
            log,
            index === 0 ? since : (seqs[index - 1] as number),
            (events) => events.at(-1)?.seq === seqs.at(-1),
          ),
        )
        for (const [index, events] of all.entries())
          expect(events.map(({ seq }) => seq)).toEqual(seqs.slice(index))
      })

      it('ends when its signal aborts, while it waits too', async () => {
        const caughtUp = Promise.withResolvers<void>()
        const stop = new AbortController()
        const done = (async () => {
          for await (const batch of log.follow(await log.lastSeq(), stop.signal)) {
            if (batch.length === 0) caughtUp.resolve()
          }
          return 'ended'
        })()
        await caughtUp.promise
        stop.abort()
        expect(await done).toBe('ended')
      })
    })
  })
}

/** Follows until `onBatch` returns true. Throws when that takes too long. */
async function following(
  log: EventLog,
  since: number,
  onBatch: (batch: LoggedEvent[]) => boolean,
  options?: FollowOptions,
): Promise<void> {
  const stop = new AbortController()
  const tooLong = setTimeout(() => stop.abort(), FOLLOW_TIMEOUT_MS)
  try {
    for await (const batch of log.follow(since, stop.signal, options)) {
      if (onBatch(batch)) return
    }
    throw new Error(`what was waited for did not come within ${FOLLOW_TIMEOUT_MS} ms`)
  } finally {
    clearTimeout(tooLong)
    stop.abort()
  }
}

async function followUntil(
  log: EventLog,
  since: number,
  enough: (events: LoggedEvent[]) => boolean,
): Promise<LoggedEvent[]> {
  const events: LoggedEvent[] = []
  await following(log, since, (batch) => {
    events.push(...batch)
    return enough(events)
  })
  return events
}
