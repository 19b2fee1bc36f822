/**
 * Messages that were erased from the stream: what is left of them is read in their place, and the
 * log stays whole.
 */
import { connect, type JetStreamManager } from 'nats'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { natsOptions, sharedNats } from '../../lab/servers.ts'
import { messageOf, seqOf, toLine } from '../../src/events/batch.ts'
import type { LoggedEvent } from '../../src/events/event.ts'
import { EventLost, LogUnavailable, readEvents } from '../../src/events/event-log.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { PostgresErasures } from '../../src/events/postgres-erasures.ts'
import type { Database } from '../../src/platform/database.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { connectNats } from '../../src/platform/nats.ts'
import { LogEraser, withoutContents } from '../../src/removal/log-eraser.ts'
import { REDACTED } from '../../src/removal/redaction.ts'
import { inParallel, inSequence, written } from '../conformance/support.ts'
import { openFreshPostgres } from './support.ts'

const START_MS = 180_000
const TEST_MS = 120_000
/** More than are read one by one. */
const MESSAGES = 80

const stack = new AsyncDisposableStack()
let database: Database
let manager: JetStreamManager
let adminUrl: string
let log: JetStreamEventLog
/** The log as it was written. */
const all: LoggedEvent[] = []

beforeAll(async () => {
  const fresh = stack.use(await openFreshPostgres())
  database = fresh.database
  const nats = stack.use(await sharedNats())
  const connection = await connectNats(nats.url.split(','), 'test', createLogger('silent', 'test'))
  log = await JetStreamEventLog.open(connection, 3, {
    erasures: new PostgresErasures(async () => database),
  })
  stack.defer(() => log.close())
  adminUrl = nats.adminUrl
  const admin = await connect(natsOptions(adminUrl))
  stack.defer(() => admin.close())
  manager = await admin.jetstreamManager()
  await inSequence(MESSAGES, (message) =>
    inParallel(3, async (index) => {
      const event = written(`${message}/${index}`, 'illegal')
      all.push({ ...event, seq: (await log.append(event)).seq })
    }),
  )
  all.sort((one, other) => one.seq - other.seq)
}, START_MS)
afterAll(() => stack.disposeAsync(), START_MS)

/** Removes a message from the stream, as an administrator does, and keeps what is left of it. */
async function erase(message: number): Promise<void> {
  for (const event of all.filter(({ seq }) => messageOf(seq) === message))
    if (event.type === 'state_written') event.data.value = '[REDACTED]'
  const lines = all
    .filter(({ seq }) => messageOf(seq) === message)
    .map((event) => toLine(event, {}))
  const row = { message, lines: lines.join('\n'), reason: 'illegal' }
  await database.insertInto('erasures').values(row).execute()
  await manager.streams.deleteMessage('EVENTS', message, true)
}

/** What somebody gets who follows from there to the end. */
async function followed(since: number): Promise<object[]> {
  const stop = new AbortController()
  const events: LoggedEvent[] = []
  for await (const batch of log.follow(since, stop.signal)) {
    events.push(...batch)
    if (batch.length === 0) stop.abort()
  }
  return events.map(bare)
}

const bare = ({ seq, data }: LoggedEvent) => ({ seq, data })

it('one in the middle, two in a row, the first and the last are read as what is left of them', {
  timeout: TEST_MS,
}, async () => {
  const last = messageOf(all.at(-1)?.seq ?? 0)
  for (const message of [1, 4, 7, 8, last]) await erase(message)
  const expected = all.map(bare)
  expect(
    expected.filter(({ data }) => 'value' in data && data.value === '[REDACTED]').length,
  ).toBeGreaterThan(4)
  expect(await followed(0)).toEqual(expected)
  const middle = seqOf(7, 0)
  expect(await followed(middle)).toEqual(expected.filter(({ seq }) => seq > middle))
  const read: object[] = []
  for await (const event of readEvents(log, 0)) read.push(bare(event))
  expect(read).toEqual(expected)
  for (const limit of [1, 5]) {
    const page = await log.read(middle, limit)
    expect(page.map(bare)).toEqual(expected.filter(({ seq }) => seq > middle).slice(0, limit))
  }
  // Behind the last event of an erased message comes the next; an empty page would be the end.
  for (const message of [1, 4, 7, 8]) {
    const since = seqOf(message, 2)
    const behind: object[] = []
    for await (const event of readEvents(log, since)) behind.push(bare(event))
    expect(behind).toEqual(expected.filter(({ seq }) => seq > since))
  }
  expect((await log.get(all.map(({ seq }) => seq))).map(bare)).toEqual(expected)
  expect(await log.lastSeq()).toBe(all.at(-1)?.seq)
})

it('are made by the eraser, event by event, and what was begun is ended', {
  timeout: TEST_MS,
}, async () => {
  const connection = await connectNats(adminUrl.split(','), 'test', createLogger('silent', 'test'))
  const eraser = await LogEraser.open(connection, database)
  try {
    const read = async () => (await log.read(seqOf(11, 0) - 1, 3)).map(({ data }) => data)
    const before = await read()
    expect(before).toHaveLength(3)
    // As far as a process came that ended there.
    const kept = {
      message: 11,
      lines: all.filter(({ seq }) => messageOf(seq) === 11).map((event) => toLine(event, {})),
    }
    const row = {
      ...kept,
      lines: withoutContents(11, kept.lines.join('\n'), [seqOf(11, 1)], 'law'),
      reason: 'law',
    }
    await database.insertInto('erasures').values(row).execute()
    expect(await read()).toEqual(before)
    const redacted = (data: object | undefined) => ({
      ...data,
      value: REDACTED,
      redacted: true,
      redacted_reason: 'law',
    })
    for (const repeat of [1, 2]) {
      await eraser.erase(11, [seqOf(11, 1)], 'law')
      expect(await read(), `${repeat}`).toEqual([before[0], redacted(before[1]), before[2]])
    }
    await expect(manager.streams.getMessage('EVENTS', { seq: 11 })).rejects.toThrow(
      'no message found',
    )
    // Another of the same message, later.
    await eraser.erase(11, [seqOf(11, 2)], 'law')
    expect(await read()).toEqual([before[0], redacted(before[1]), redacted(before[2])])
    await expect(eraser.erase(9_999, [seqOf(9_999, 0)], 'law')).rejects.toBeInstanceOf(
      LogUnavailable,
    )
  } finally {
    await eraser.close()
  }
})

it('one that is missing and not among the erasures is lost, and nothing behind it is read', {
  timeout: TEST_MS,
}, async () => {
  await manager.streams.deleteMessage('EVENTS', 5, true)
  await expect(followed(0)).rejects.toBeInstanceOf(EventLost)
  await expect(log.read(seqOf(4, 999), 10)).rejects.toBeInstanceOf(EventLost)
})
