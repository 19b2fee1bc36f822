/**
 * Who watches gets each event once and in order, however slow it is and whatever fails; and what
 * that costs has bounds.
 */
import { afterEach, expect, it, vi } from 'vitest'
import { type Encoding, encodeEvent, WRITE_BYTES } from '../../src/observe/live/encoding.ts'
import {
  type Ending,
  LiveFeed,
  type LiveFeedOptions,
  TooManyWatchers,
} from '../../src/observe/live/live-feed.ts'
import { Ring } from '../../src/observe/live/ring.ts'
import { Unavailable } from '../../src/platform/unavailable.ts'
import { AGENT, MemoryEventSource, OTHER, REDACTED } from '../support/memory-event-source.ts'

const logger = { warn: () => {}, error: vi.fn() }
const feeds: LiveFeed[] = []
const open: { leave(): void }[] = []

afterEach(async () => {
  for (const watcher of open.splice(0)) watcher.leave()
  await Promise.all(feeds.splice(0).map((feed) => feed.close()))
  expect(logger.error.mock.calls).toEqual([])
  logger.error.mockClear()
})

function feedOf(options: Partial<LiveFeedOptions> = {}) {
  const source = new MemoryEventSource()
  const feed = new LiveFeed({ source, logger, maxWatchers: 100, flushMs: 5, ...options })
  feeds.push(feed)
  return { source, feed }
}

const WAIT = { timeout: 60_000, interval: 5 }

/** Counts how often events are put together for writing. */
function countingEncoding() {
  const encoding = {
    name: 'web_socket',
    composed: 0,
    compose(events: Parameters<Encoding['compose']>[0]) {
      encoding.composed++
      return events.map(({ json }) => json)
    },
  } satisfies Encoding & { composed: number }
  return encoding
}

/** Watches and keeps what it gets. A slow one takes a write only when it is told to. */
async function watch(
  feed: LiveFeed,
  {
    since,
    filter = {},
    slow = false,
    encoding = countingEncoding(),
  }: {
    since?: number
    filter?: Parameters<LiveFeed['join']>[0]['filter']
    slow?: boolean
    encoding?: Encoding
  } = {},
) {
  const watcher = await feed.join({ filter, since })
  const events: { seq: number; type: string; data: { content?: string } }[] = []
  const writes: number[] = []
  let waiting: (() => void) | undefined
  let ending: Ending | undefined
  watcher.start({
    encoding,
    write: (pieces, taken) => {
      expect(waiting).toBeUndefined()
      events.push(...pieces.map((piece) => JSON.parse(piece.toString())))
      writes.push(pieces.reduce((sum, { length }) => sum + length, 0))
      const take = () => {
        waiting = undefined
        taken()
      }
      waiting = take
      if (!slow) setImmediate(take)
    },
    end: (why) => {
      ending = why
      watcher.leave()
    },
  })
  open.push(watcher)
  return {
    watcher,
    events,
    writes,
    seqs: () => events.map(({ seq }) => seq),
    take: () => waiting?.(),
    isStuck: () => waiting !== undefined,
    ending: () => ending,
  }
}

it('a watcher begins at the end of the log, or after the place that it names', async () => {
  const { source, feed } = feedOf()
  const [first = 0, ...old] = source.send(5)
  const live = await watch(feed)
  const since = await watch(feed, { since: first })
  const all = await watch(feed, { since: 0 })
  const recent = source.send(3)
  await vi.waitFor(() => expect(live.seqs()).toEqual(recent), WAIT)
  await vi.waitFor(() => expect(since.seqs()).toEqual([...old, ...recent]), WAIT)
  await vi.waitFor(() => expect(all.seqs()).toEqual([first, ...old, ...recent]), WAIT)
})

it('gets what passes its filter, of the history and live', async () => {
  const { source, feed } = feedOf()
  const mine = () => source.send(2)
  const others = () => source.send(2, { from: OTHER })
  mine()
  const ofOther = others()
  const agent = await watch(feed, { since: 0, filter: { agent: OTHER } })
  const type = await watch(feed, { since: 0, filter: { types: new Set(['message_redacted']) } })
  const both = await watch(feed, {
    filter: { agent: AGENT, types: new Set(['message_sent', 'state_read']) },
  })
  const live = mine()
  ofOther.push(...others())
  const removals = [source.remove(live[0] ?? 0)]
  await vi.waitFor(() => expect(agent.seqs()).toEqual(ofOther), WAIT)
  await vi.waitFor(() => expect(type.seqs()).toEqual(removals), WAIT)
  await vi.waitFor(() => expect(both.seqs()).toEqual(live), WAIT)
})

it('one that is slow falls out of the ring, reads the history, and joins the ring again', async () => {
  const { source, feed } = feedOf({ ring: { maxEvents: 50, maxBytes: 1_000_000 } })
  const quick = await watch(feed)
  const slow = await watch(feed, { slow: true })
  const sent = source.send(1)
  await vi.waitFor(() => expect(slow.isStuck()).toBe(true), WAIT)
  for (let part = 0; part < 20; part++) sent.push(...source.send(100))
  await vi.waitFor(() => expect(quick.seqs()).toEqual(sent), WAIT)
  expect(slow.seqs()).toEqual(sent.slice(0, 1))
  const before = source.pages
  await vi.waitFor(() => {
    slow.take()
    expect(slow.seqs()).toEqual(sent)
  }, WAIT)
  expect(source.pages).toBeGreaterThan(before)
  slow.take()
  const pages = source.pages
  sent.push(...source.send(10))
  await vi.waitFor(() => expect(slow.seqs()).toEqual(sent), WAIT)
  expect(source.pages).toBe(pages)
})

it('exactly once and in order, for watchers of every speed and place, while following, asking and reading fail', async () => {
  const { source, feed } = feedOf({ ring: { maxEvents: 200, maxBytes: 100_000 } })
  const sent = source.send(500)
  const watchers = await Promise.all(
    Array.from({ length: 30 }, async (_, index) => {
      const since = index % 3 === 0 ? source.last : (sent[(index * 17) % 500] ?? 0)
      const agent = index % 5 === 0 ? OTHER : undefined
      const slow = index % 2 === 0
      return {
        ...(await watch(feed, { filter: agent ? { agent } : {}, slow, since })),
        since,
        agent,
      }
    }),
  )
  const agents = new Map<number, string>(sent.map((seq) => [seq, AGENT]))
  for (let round = 0; round < 60; round++) {
    const from = round % 2 === 0 ? AGENT : OTHER
    for (const seq of source.send(37, { from })) agents.set(seq, from)
    if (round % 11 === 3) source.breakOff()
    if (round % 13 === 5) source.failures = { follow: 1, read: 2, redact: 1, lastSeq: 0 }
    for (const [index, { take }] of watchers.entries()) if ((index + round) % 7 === 0) take()
    await new Promise((resolve) => setImmediate(resolve))
  }
  const seqs = [...agents.keys()]
  await vi.waitFor(() => {
    for (const { take } of watchers) take()
    for (const watcher of watchers) {
      const { since, agent } = watcher
      expect(watcher.seqs()).toEqual(
        seqs.filter((seq) => seq > since && (!agent || agents.get(seq) === agent)),
      )
    }
  }, WAIT)
  expect(source.followed).toBeGreaterThan(1)
})

it('the history may be behind the log: it is waited for', async () => {
  const { source, feed } = feedOf()
  const sent = source.send(3)
  const read = vi.spyOn(source, 'read').mockResolvedValueOnce({ events: [], through: 0 })
  const watcher = await watch(feed, { since: 0 })
  await vi.waitFor(() => expect(watcher.seqs()).toEqual(sent), WAIT)
  expect(read.mock.calls.length).toBeGreaterThan(1)
})

it('those at the same place share one encoding of each round, and one follower', async () => {
  const { source, feed } = feedOf()
  const encoding = countingEncoding()
  const watchers = await Promise.all(Array.from({ length: 50 }, () => watch(feed, { encoding })))
  const sent: number[] = []
  for (let round = 1; round <= 5; round++) {
    sent.push(...source.send(10))
    await vi.waitFor(() => {
      for (const { seqs } of watchers) expect(seqs()).toEqual(sent)
    }, WAIT)
  }
  // Far fewer than watchers, though a round may have only some of the events.
  expect(encoding.composed).toBeLessThan(50)
  expect(source.followed).toBe(1)
})

it('a write has so many bytes at most, past its first event; so have those of the history', async () => {
  const { source, feed } = feedOf()
  const content = 'x'.repeat(5_000)
  const history = source.send(100, { content })
  const old = await watch(feed, { since: 0 })
  const live = source.send(100, { content })
  await vi.waitFor(() => expect(old.seqs()).toEqual([...history, ...live]), WAIT)
  const [huge] = source.send(1, { content: 'x'.repeat(300_000) })
  await vi.waitFor(() => expect(old.seqs().at(-1)).toBe(huge), WAIT)
  expect(Math.max(...old.writes.slice(0, -1))).toBeLessThan(WRITE_BYTES + 6_000)
})

it('what comes while a question about removals is under way goes together in the next', async () => {
  const { source, feed } = feedOf()
  const watcher = await watch(feed)
  const gate = Promise.withResolvers<void>()
  source.gate = gate.promise
  const sent = source.send(1)
  await vi.waitFor(() => expect(source.asked).toEqual([1]), WAIT)
  for (let time = 0; time < 5; time++) sent.push(...source.send(2))
  expect(watcher.seqs()).toEqual([])
  gate.resolve()
  await vi.waitFor(() => expect(watcher.seqs()).toEqual(sent), WAIT)
  expect(source.asked.length).toBeLessThanOrEqual(3)
})

it('what was removed is not shown to those who have yet to get it from the ring', async () => {
  const { source, feed } = feedOf()
  const quick = await watch(feed)
  const slow = await watch(feed, { slow: true })
  const [first = 0] = source.send(1, { content: 'one' })
  await vi.waitFor(() => expect(slow.isStuck()).toBe(true), WAIT)
  const [second = 0, third = 0] = source.send(2, { content: 'two' })
  await vi.waitFor(() => expect(quick.seqs()).toEqual([first, second, third]), WAIT)
  const removal = source.remove(second)
  await vi.waitFor(() => expect(quick.seqs().at(-1)).toBe(removal), WAIT)
  await vi.waitFor(() => {
    slow.take()
    expect(slow.seqs()).toEqual([first, second, third, removal])
  }, WAIT)
  expect(quick.events.map(({ data }) => data.content)).toEqual(['one', 'two', 'two', undefined])
  expect(slow.events.map(({ data }) => data.content)).toEqual(['one', REDACTED, 'two', undefined])
  expect(source.pages).toBe(0)
})

it('nothing is shown as long as nobody knows whether it was removed', async () => {
  const { source, feed } = feedOf()
  const watcher = await watch(feed)
  source.failures.redact = 2
  const [seq = 0] = source.send(1)
  source.removed.add(String(seq))
  await vi.waitFor(() => expect(watcher.seqs()).toEqual([seq]), WAIT)
  expect(watcher.events[0]?.data.content).toBe(REDACTED)
})

it('the ring has bounds in events and in bytes', () => {
  const event = (seq: number, content = 'x') => ({
    seq,
    ts: '',
    type: 'message_sent' as const,
    agent: AGENT,
    data: { message_id: `${seq}`, from: AGENT, to: OTHER, content, content_length: 1 },
  })
  const ring = new Ring(5, { maxEvents: 3, maxBytes: 2_000 })
  ring.add([10, 11, 12, 13, 14].map((seq) => event(seq)))
  expect(ring).toMatchObject({ floor: 11, through: 14 })
  expect(ring.bytes).toBe(3 * encodeEvent(event(10)).json.length)
  ring.add([event(15, 'x'.repeat(1_800))])
  expect(ring).toMatchObject({ floor: 14, through: 15 })
  ring.add([event(16, 'x'.repeat(3_000))])
  expect(ring).toMatchObject({ floor: 16, through: 16, bytes: 0 })
})

it('as many may watch as the limit says; a place is free again when its watcher has left', async () => {
  const { source, feed } = feedOf({ maxWatchers: 2 })
  const [one] = await Promise.all([watch(feed), watch(feed)])
  await expect(watch(feed)).rejects.toBeInstanceOf(TooManyWatchers)
  one.watcher.leave()
  one.watcher.leave()
  source.failures.lastSeq = 1
  await expect(watch(feed)).rejects.toBeInstanceOf(Unavailable)
  await watch(feed)
  await expect(watch(feed)).rejects.toBeInstanceOf(TooManyWatchers)
})

it('the log is followed while somebody watches, and for a while after', async () => {
  const { source, feed } = feedOf({ lingerMs: 20 })
  expect(source.followers).toBe(0)
  const first = await watch(feed)
  await vi.waitFor(() => expect(source.followers).toBe(1), WAIT)
  first.watcher.leave()
  expect(source.followers).toBe(1)
  await vi.waitFor(() => expect(source.followers).toBe(0), WAIT)
  const missed = source.send(2)
  const [live, since] = [await watch(feed), await watch(feed, { since: 0 })]
  const sent = source.send(2)
  await vi.waitFor(() => expect(live.seqs()).toEqual(sent), WAIT)
  await vi.waitFor(() => expect(since.seqs()).toEqual([...missed, ...sent]), WAIT)
})

it('closing ends every stream, and nobody joins any more', async () => {
  const { feed } = feedOf()
  const watchers = [await watch(feed), await watch(feed, { since: 0 })]
  await feed.close()
  expect(watchers.map(({ ending }) => ending()?.code)).toEqual([1001, 1001])
  await expect(watch(feed)).rejects.toBeInstanceOf(Unavailable)
})
