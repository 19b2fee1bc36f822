/** Replicas of the log that lack an event: it is had from another, or nothing is read behind it. */
import { connect, type JetStreamManager, type NatsConnection } from 'nats'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { type NatsCluster, type NatsServer, natsOptions, startNats } from '../../lab/servers.ts'
import { messageOf } from '../../src/events/batch.ts'
import { changesOf } from '../../src/events/event.ts'
import { EventLost, LogUnavailable, readEvents } from '../../src/events/event-log.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { connectNats } from '../../src/platform/nats.ts'
import { inParallel, sent, written } from '../conformance/support.ts'

const START_MS = 180_000
const TEST_MS = 300_000
/** For a busy machine. */
const WAIT = { timeout: 60_000, interval: 50 }
const EVENTS = 300
const DAMAGED = 'damaged-value'
/**
 * Each has a consumer on a replica that the servers choose by chance: that none is on the damaged
 * one has a chance of 1 in 130.
 */
const FOLLOWERS = 12

let nats: NatsCluster
let connection: NatsConnection
let log: JetStreamEventLog
let manager: JetStreamManager
/**
 * All events of the log, in order, and the one in the middle that is to be damaged, in a message of
 * its own.
 */
let all: number[]
let damaged: number
const stack = new AsyncDisposableStack()

beforeAll(async () => {
  nats = stack.use(await startNats())
  connection = await connectNats(nats.url.split(','), 'test', createLogger('warn', 'test'))
  log = await JetStreamEventLog.open(connection, 3)
  stack.defer(() => log.close())
  const admin = await connect({
    ...natsOptions(nats.adminUrl),
    reconnect: true,
    maxReconnectAttempts: -1,
  })
  stack.defer(() => admin.close())
  manager = await admin.jetstreamManager()
  const fill = (key: string) =>
    inParallel(EVENTS / 2, (index) => log.append(written(`${key}/${index}`, 'x'.repeat(2_000))))
  const before = await fill('before')
  damaged = (await log.append(written('damaged', DAMAGED))).seq
  const after = await fill('after')
  all = [...before.map(({ seq }) => seq), damaged, ...after.map(({ seq }) => seq)].toSorted(
    (a, b) => a - b,
  )
}, START_MS)

afterAll(() => stack.disposeAsync(), START_MS)

async function damage(server: NatsServer): Promise<void> {
  await vi.waitFor(async () => {
    const { cluster, state } = await manager.streams.info('EVENTS')
    expect(cluster?.replicas?.every(({ current, lag }) => current && !lag)).toBe(true)
    expect(state.last_seq).toBe(messageOf(all.at(-1) ?? 0))
  }, WAIT)
  await server.stop()
  server.damage(DAMAGED)
  await server.restart()
}

/** Follows from the beginning until the end, or until it cannot go on. */
async function followed(): Promise<{ seqs: number[]; error?: unknown }> {
  const seqs: number[] = []
  const stop = new AbortController()
  try {
    for await (const events of log.follow(0, stop.signal)) {
      seqs.push(...events.map(({ seq }) => seq))
      if (events.length === 0) stop.abort()
    }
    return { seqs }
  } catch (error) {
    return { seqs, error }
  }
}

/** Servers that have just started may take a while to answer at all. */
async function answered<T>(ask: () => Promise<T>): Promise<T> {
  return vi.waitFor(ask, WAIT)
}

it('an event that one replica lacks is had from another, by those who follow and by those who read', {
  timeout: TEST_MS,
}, async () => {
  await damage(nats.servers[0] as NatsServer)
  for (let follower = 0; follower < FOLLOWERS; follower++) {
    const { seqs, error } = await answered(async () => {
      const result = await followed()
      // Only what is said of a server that is not back yet may be tried again.
      if (result.error instanceof LogUnavailable && result.seqs.length === 0) throw result.error
      return result
    })
    expect(error).toBeUndefined()
    expect(seqs).toEqual(all)
  }
  for (let reader = 0; reader < FOLLOWERS; reader++) {
    const seqs: number[] = []
    for await (const { seq } of readEvents(log, 0)) seqs.push(seq)
    expect(seqs).toEqual(all)
    const at = all.indexOf(damaged)
    expect((await log.read(all[at - 2] ?? 0, 10)).map(({ seq }) => seq)).toEqual(
      all.slice(at - 1, at + 9),
    )
    expect(await log.get([damaged])).toMatchObject([
      { seq: damaged, data: { key: 'damaged', value: DAMAGED } },
    ])
  }
})

it('an event that every replica lacks stops all who follow or read right before it, and they say where', {
  timeout: TEST_MS,
}, async () => {
  await damage(nats.servers[1] as NatsServer)
  await damage(nats.servers[2] as NatsServer)
  const before = all.slice(0, all.indexOf(damaged))
  const { seqs, error } = await answered(async () => {
    const result = await followed()
    expect(result.error).toBeInstanceOf(EventLost)
    return result
  })
  expect(seqs).toEqual(before)
  expect(String(error)).toContain(`event ${damaged} is lost`)
  expect(log.lost).toBe(damaged)
  const read: number[] = []
  await expect(
    (async () => {
      for await (const { seq } of readEvents(log, 0)) read.push(seq)
    })(),
  ).rejects.toThrow(`event ${damaged} is lost`)
  expect(read).toEqual(before)
  await expect(log.get([damaged])).rejects.toThrow(`event ${damaged} is lost`)
  // What comes behind it can be asked for by its sequence number.
  const next = all[all.indexOf(damaged) + 1] as number
  expect(await log.get([next])).toMatchObject([{ seq: next }])
})

it('a follower that begins in a message behind the one that is lost is not concerned', {
  timeout: TEST_MS,
}, async () => {
  const next = all[all.indexOf(damaged) + 1] as number
  const stop = new AbortController()
  const seqs: number[] = []
  for await (const events of log.follow(next, stop.signal)) {
    seqs.push(...events.map(({ seq }) => seq))
    if (events.length === 0) stop.abort()
  }
  expect(seqs).toEqual(all.slice(all.indexOf(next) + 1))
})

describe('a server that lacks an event is filled anew, as docs/deploying.md says', {
  timeout: TEST_MS,
}, () => {
  it('from those that have it', async () => {
    await using stack = new AsyncDisposableStack()
    const { servers, whatLeaderHas, fillAnew, lead } = await damagedCluster(stack)
    await lead(servers[0])
    expect(await whatLeaderHas()).toBeUndefined()
    await fillAnew(servers[0])
    await lead(servers[0])
    expect(await whatLeaderHas()).toContain(DAMAGED)
  })

  it('after another has been made the leader, where the one that leads lacks it too', async () => {
    await using stack = new AsyncDisposableStack()
    const { servers, whatLeaderHas, fillAnew, lead } = await damagedCluster(stack)
    await lead(servers[0])
    // From the leader it does not get past the place, or passes over it (2.9).
    await fillAnew(servers[1])
    await lead(servers[2])
    await fillAnew(servers[1])
    await lead(servers[1])
    expect(await whatLeaderHas()).toContain(DAMAGED)
  })
})

it('who follows one capability has what the leader lacks of it, which counts it as long as it has not missed it', {
  timeout: TEST_MS,
}, async () => {
  await using stack = new AsyncDisposableStack()
  const { log, seq, servers, lead } = await damagedCluster(stack)
  await lead(servers[0])
  const stop = new AbortController()
  const batches: number[][] = []
  const run = async () => {
    for await (const events of log.follow(seq - 1, stop.signal, { types: changesOf('message') })) {
      batches.push(events.map((event) => event.seq))
      if (events.length === 0) stop.abort()
    }
  }
  await answered(() =>
    run().catch((error: unknown) => batches.length === 0 && Promise.reject(error)),
  )
  expect(batches).toEqual([[seq], []])
})

it('a leader that has lost the end is not believed: who has heard of more waits for another', {
  timeout: TEST_MS,
}, async () => {
  await using stack = new AsyncDisposableStack()
  const servers = nats.url.split(',')
  const other = await JetStreamEventLog.open(
    await connectNats(servers, 'test', createLogger('silent', 'test')),
    3,
  )
  stack.defer(() => other.close())
  const end = await answered(() => other.lastSeq())
  expect(end).toBe(all.at(-1))
  // As a projector tells that has applied what this leader does not have.
  other.heardOf(end + 1_000)
  await expect(other.lastSeq()).rejects.toThrow(/ends at message \d+, before \d+/)
  await expect(other.lastSeq()).rejects.toBeInstanceOf(LogUnavailable)
})

/** Servers of their own, of which the first lacks an event: the only message in the log. */
async function damagedCluster(stack: AsyncDisposableStack) {
  const cluster = stack.use(await startNats())
  const log = await JetStreamEventLog.open(
    await connectNats(cluster.url.split(','), 'test', createLogger('silent', 'test')),
    3,
  )
  stack.defer(() => log.close())
  const admin = await connect({
    ...natsOptions(cluster.adminUrl),
    reconnect: true,
    maxReconnectAttempts: -1,
  })
  stack.defer(() => admin.close())
  const { streams } = await admin.jetstreamManager()
  const fill = () =>
    inParallel(50, (index) => log.append(written(`key/${index}`, 'x'.repeat(2_000))))
  await fill()
  const { seq } = await log.append(sent('tab_bbbbbbbbbbbbbbbbbbbb', DAMAGED))
  await fill()
  await vi.waitFor(async () => {
    const { cluster: group } = await streams.info('EVENTS')
    expect(group?.replicas?.every(({ current, lag }) => current && !lag)).toBe(true)
  }, WAIT)
  const servers = cluster.servers as [NatsServer, NatsServer, NatsServer]
  await servers[0].stop()
  servers[0].damage(DAMAGED)
  await servers[0].restart()
  return {
    log,
    seq,
    servers,
    lead: (server: NatsServer) => cluster.makeLeader('EVENTS', server),
    fillAnew: async (server: NatsServer) => {
      await server.stop()
      server.wipe()
      await server.restart()
    },
    /** Whoever leads is asked for the event. */
    whatLeaderHas: () =>
      answered(() =>
        streams.getMessage('EVENTS', { seq: messageOf(seq) }).then(
          (message) => message.string(),
          (error: Error) => {
            if (error.message !== 'no message found') throw error
            return undefined
          },
        ),
      ),
  }
}
