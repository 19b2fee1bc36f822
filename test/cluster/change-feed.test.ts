/** Following the log on JetStream: who shares a consumer with whom, and what a follower holds. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { connect, type JetStreamManager, type NatsConnection } from 'nats'
import { afterAll, beforeAll, beforeEach, expect, it, vi } from 'vitest'
import { type NatsCluster, natsOptions, startNats } from '../../lab/servers.ts'
import { changesOf, type LoggedEvent } from '../../src/events/event.ts'
import { type FollowOptions, LogUnavailable } from '../../src/events/event-log.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { connectNats } from '../../src/platform/nats.ts'
import { inParallel, inSequence, read, sent, written } from '../conformance/support.ts'

const WAIT = { timeout: 45_000, interval: 20 }
const START_MS = 180_000
const TEST_MS = 300_000
const MIB = 1_048_576
/** How often is tried again what a busy machine may spoil: then it shows a defect. */
const TRIES = 5

let nats: NatsCluster
let connection: NatsConnection
let log: JetStreamEventLog
let manager: JetStreamManager
const stack = new AsyncDisposableStack()

beforeAll(async () => {
  nats = stack.use(await startNats())
  connection = await connectNats(nats.url.split(','), 'test', createLogger('warn', 'test'))
  log = await JetStreamEventLog.open(connection, 3)
  stack.defer(() => log.close())
  const admin = await connect(natsOptions(nats.adminUrl))
  stack.defer(() => admin.close())
  manager = await admin.jetstreamManager()
}, START_MS)

afterAll(() => stack.disposeAsync(), START_MS)

/** Those of a test before are gone. */
beforeEach(() => vi.waitFor(async () => expect(await consumers()).toHaveLength(0), WAIT))

async function consumers(): Promise<string[]> {
  return (await manager.consumers.list('EVENTS').next()).map(({ name }) => name)
}

/** Somebody who follows until disposed of, and keeps the places of what came, batch by batch. */
function follow(
  since: number,
  options?: FollowOptions,
  onBatch: (events: LoggedEvent[]) => unknown = () => {},
) {
  const stop = new AbortController()
  const batches: number[][] = []
  const run = async () => {
    for await (const events of log.follow(since, stop.signal, options)) {
      batches.push(events.map(({ seq }) => seq))
      await onBatch(events)
    }
  }
  /** Servers that are busy may be slow to begin with it. As a projector would, it starts over. */
  const ended = (async () => {
    for (let tries = 1; ; tries++) {
      try {
        return await run()
      } catch (error) {
        if (!(error instanceof LogUnavailable) || batches.length > 0 || tries === TRIES) throw error
      }
    }
  })()
  ended.catch(() => {})
  return {
    batches,
    seqs: () => batches.flat(),
    ended,
    async [Symbol.asyncDispose]() {
      stop.abort()
      await ended.catch(() => {})
    },
  }
}

async function append(count: number): Promise<number[]> {
  const appended = await inSequence(count, (index) => log.append(written(`feed/${index}`, 'x')))
  return appended.map(({ seq }) => seq)
}

it('two at one place share a consumer, and each gets what it wants once and in order', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  await using one = follow(since)
  await vi.waitFor(() => expect(one.batches).toEqual([[]]), WAIT)
  await using other = follow(since, { types: changesOf('message') })
  await vi.waitFor(() => expect(other.batches).toEqual([[]]), WAIT)
  const appended = await inSequence(40, (index) =>
    log.append(
      index % 4 === 0 ? sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x') : written('shared', String(index)),
    ),
  )
  const seqs = appended.map(({ seq }) => seq)
  await vi.waitFor(() => expect(one.seqs()).toEqual(seqs), WAIT)
  await vi.waitFor(
    () => expect(other.seqs()).toEqual(seqs.filter((_, index) => index % 4 === 0)),
    WAIT,
  )
  expect(await consumers()).toHaveLength(1)
})

it('one that comes from far behind catches up alone, and then shares', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  // More than a feed remembers.
  const before = (await inParallel(8, () => append(200))).flat().toSorted((a, b) => a - b)
  await using ahead = follow(before.at(-1) ?? 0)
  await vi.waitFor(() => expect(ahead.batches).toEqual([[]]), WAIT)
  await using behind = follow(since)
  await vi.waitFor(() => expect(behind.seqs()).toEqual(before), WAIT)
  const after = await append(5)
  await vi.waitFor(() => expect(behind.seqs()).toEqual([...before, ...after]), WAIT)
  await vi.waitFor(() => expect(ahead.seqs()).toEqual(after), WAIT)
  const last = await append(5)
  await vi.waitFor(() => expect(behind.seqs()).toEqual([...before, ...after, ...last]), WAIT)
  await vi.waitFor(() => expect(ahead.seqs()).toEqual([...after, ...last]), WAIT)
  await vi.waitFor(async () => expect(await consumers()).toHaveLength(1), WAIT)
})

it('one that stays goes on when the other, whose consumer it shares, leaves', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  const leaving = follow(since)
  await vi.waitFor(() => expect(leaving.batches).toEqual([[]]), WAIT)
  await using staying = follow(since)
  await vi.waitFor(() => expect(staying.batches).toEqual([[]]), WAIT)
  await leaving[Symbol.asyncDispose]()
  const seqs = await append(3)
  await vi.waitFor(() => expect(staying.seqs()).toEqual(seqs), WAIT)
})

it('one that is slow holds a bounded part of the log, misses nothing, and holds nobody up', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  const value = 'x'.repeat(MIB)
  const seqs = (
    await inParallel(4, (writer) =>
      inSequence(30, () => log.append(written(`slow/${writer}`, value))),
    )
  )
    .flat()
    .map(({ seq }) => seq)
    .toSorted((a, b) => a - b)
  const before = heapBytes()
  const resume = Promise.withResolvers<void>()
  await using slow = follow(since, {}, () => resume.promise)
  // It ends in any case, else a failure would be seen as a test that hangs.
  using _resumed = { [Symbol.dispose]: resume.resolve }
  await vi.waitFor(() => expect(slow.batches).toHaveLength(1), WAIT)
  await using quick = follow(since)
  await vi.waitFor(() => expect(quick.seqs()).toEqual(seqs), WAIT)
  // Of 120 MiB: what it works on (8), what waits (16), what the feed remembers (8), what is on its
  // way (16). What nobody needs any more may be gone a moment later.
  await vi.waitFor(() => expect(heapBytes() - before).toBeLessThan(64 * MIB), {
    ...WAIT,
    interval: 500,
  })
  resume.resolve()
  await vi.waitFor(() => expect(slow.seqs()).toEqual(seqs), WAIT)
})

it('what may wait comes in few batches, and at once where something comes that may not', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  await using patient = follow(since, { mayWait: ({ type }) => type === 'message_sent' })
  await vi.waitFor(() => expect(patient.batches).toEqual([[]]), WAIT)
  // One after the other, so that each is a message of the stream.
  const messages = await inSequence(30, () => log.append(sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x')))
  await vi.waitFor(() => expect(patient.seqs()).toHaveLength(messages.length), WAIT)
  const filled = patient.batches.filter(({ length }) => length > 0)
  expect(filled.length).toBeLessThan(messages.length / 2)
  // One after the other, so that who does not wait gets them apart. Now and then that takes longer
  // than the linger.
  await vi.waitFor(
    async () => {
      const { seq } = await log.append(sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x'))
      const urgent = await log.append(written('urgent', 'x'))
      await vi.waitFor(() => expect(patient.seqs().at(-1)).toBe(urgent.seq), WAIT)
      expect(patient.batches.findLast(({ length }) => length > 0)).toEqual([seq, urgent.seq])
    },
    { ...WAIT, interval: 500 },
  )
})

it('what may not wait does not wait for what comes after it', { timeout: TEST_MS }, async () => {
  const since = await log.lastSeq()
  const arrivals: number[] = []
  await using patient = follow(
    since,
    { mayWait: ({ type }) => type === 'message_sent' },
    (events) => {
      if (events.some(({ type }) => type === 'state_written')) arrivals.push(performance.now())
    },
  )
  await vi.waitFor(() => expect(patient.batches).toEqual([[]]), WAIT)
  const waits: number[] = []
  for (let round = 0; round < 10; round++) {
    await inParallel(2, (index) =>
      log.append(index === 0 ? written('urgent', 'x') : sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x')),
    )
    // How long the log took over them is its own affair.
    const confirmed = performance.now()
    await vi.waitFor(() => expect(arrivals).toHaveLength(round + 1), { ...WAIT, interval: 1 })
    waits.push((arrivals[round] ?? 0) - confirmed)
  }
  // The linger is 200 ms.
  expect(waits.toSorted((a, b) => a - b)[5]).toBeLessThan(100)
})

it('what may wait comes though reads, which are for nobody, come after it and are the end of the log', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  const { seq } = await log.append(sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x'))
  await inParallel(20, () => log.append(read('feed/read')))
  await using patient = follow(since, { types: changesOf('message'), mayWait: () => true })
  await vi.waitFor(() => expect(patient.batches).toEqual([[seq], []]), WAIT)
})

it('one for whom nothing comes is told how far it is, so that it need not begin where it began', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  const passed: number[] = []
  const hadThen: number[] = []
  const onPassed = (seq: number) => {
    passed.push(seq)
    hadThen.push(messages.seqs().length)
  }
  const before = (await inParallel(8, () => append(200))).flat()
  await using messages = follow(since, { types: changesOf('message'), onPassed })
  await vi.waitFor(() => expect(messages.batches).toEqual([[]]), WAIT)
  expect(passed).toEqual([Math.max(...before)])
  const [last = 0] = await append(1)
  await vi.waitFor(() => expect(passed.at(-1)).toBe(last), WAIT)
  const reads = await inSequence(3, () => log.append(read('feed/read')))
  await vi.waitFor(() => expect(passed.at(-1)).toBe(reads.at(-1)?.seq), WAIT)
  const { seq } = await log.append(sent('tab_bbbbbbbbbbbbbbbbbbbb', 'x'))
  const after = await append(1)
  await vi.waitFor(() => expect(passed.at(-1)).toBe(after[0]), WAIT)
  // Never ahead of what it has got.
  expect(messages.seqs()).toEqual([seq])
  for (const [index, place] of passed.entries()) expect(hadThen[index]).toBe(place < seq ? 0 : 1)
})

it('one at the end does not wait for another that is far behind', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  const before = (
    await inParallel(4, () => inSequence(20, () => log.append(written('far', 'x'.repeat(MIB)))))
  ).flat()
  const end = Math.max(...before.map(({ seq }) => seq))
  for (let race = 1; ; race++) {
    await using behind = follow(since)
    await vi.waitFor(() => expect(behind.seqs().length).toBeGreaterThan(0), {
      ...WAIT,
      interval: 1,
    })
    let seenBehind = -1
    await using ahead = follow(end, {}, () => {
      if (seenBehind < 0) seenBehind = behind.seqs().length
    })
    await vi.waitFor(() => expect(ahead.batches).toEqual([[]]), WAIT)
    // On a busy machine the other may be the first by chance, but not each time.
    if (seenBehind >= before.length && race < TRIES) continue
    expect(seenBehind).toBeLessThan(before.length)
    const { seq } = await log.append(written('now', 'x'))
    await vi.waitFor(() => expect(ahead.seqs()).toEqual([seq]), WAIT)
    await vi.waitFor(() => expect(behind.seqs()).toHaveLength(before.length + 1), WAIT)
    break
  }
})

it('one at the end is looked after without fetching the last change, which may be large', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  await using one = follow(since)
  await vi.waitFor(() => expect(one.batches).toEqual([[]]), WAIT)
  const { seq } = await log.append(written('feed/large', 'x'.repeat(4 * MIB)))
  await vi.waitFor(() => expect(one.seqs()).toEqual([seq]), WAIT)
  const before = connection.stats()
  // Each look at the consumer is a request or more.
  await vi.waitFor(
    () => expect(connection.stats().outMsgs - before.outMsgs).toBeGreaterThan(8),
    WAIT,
  )
  expect(connection.stats().inBytes - before.inBytes).toBeLessThan(MIB)
})

it('ends with LogUnavailable for all that share a consumer when it is gone', {
  timeout: TEST_MS,
}, async () => {
  const since = await log.lastSeq()
  await using one = follow(since)
  await vi.waitFor(() => expect(one.batches).toEqual([[]]), WAIT)
  await using other = follow(since)
  await vi.waitFor(() => expect(other.batches).toEqual([[]]), WAIT)
  for (const name of await consumers()) await manager.consumers.delete('EVENTS', name)
  await expect(one.ended).rejects.toThrow(LogUnavailable)
  await expect(other.ended).rejects.toThrow(LogUnavailable)
})

function heapBytes(): number {
  setFlagsFromString('--expose-gc')
  ;(runInNewContext('gc') as () => void)()
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}
