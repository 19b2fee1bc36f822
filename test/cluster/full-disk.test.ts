/**
 * NATS servers whose disks are full: appends work again once there is room, by what
 * `deploy/nats/start.sh` does.
 */
import { connect } from 'nats'
import { describe, expect, it, vi } from 'vitest'
import { natsOptions, startNats } from '../../lab/servers.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { connectNats } from '../../src/platform/nats.ts'
import { written } from '../conformance/support.ts'

const DISK_MIB = 64
const TEST_MS = 400_000
const WAIT = { timeout: 120_000, interval: 250 }
const EVENT = Buffer.alloc(100_000, 'x')

describe.each([
  ['disks that are full', DISK_MIB],
  ['disks that take no more writes', 0],
])('%s', (_, diskMiB) => {
  it('two servers are ended and started again, and take appends once there is room', {
    timeout: TEST_MS,
  }, async () => {
    await using stack = new AsyncDisposableStack()
    const nats = stack.use(await startNats({ diskMiB, watched: true }))
    const admin = await connect({
      ...natsOptions(nats.adminUrl),
      reconnect: true,
      maxReconnectAttempts: -1,
    })
    stack.defer(() => admin.close())
    const manager = await admin.jetstreamManager()
    await manager.streams.add({ name: 'EVENTS', subjects: ['events.>'], num_replicas: 3 })
    const stream = admin.jetstream()
    const append = () => stream.publish('events.x', EVENT, { timeout: 2_000 })
    await vi.waitFor(append, WAIT)

    const full = nats.servers.slice(0, 2)
    // As `restart` of Compose does with what has ended.
    let ends = 0
    const restarting = setInterval(() => {
      for (const { process } of full) {
        if (process.running) continue
        ends++
        process.start()
      }
    }, 500)
    stack.defer(() => clearInterval(restarting))
    for (const { disk } of full) disk?.fill()
    const isOld = nats.version.startsWith('2.9.')
    let refused = 0
    await vi.waitFor(async () => {
      await append().then(
        () => {
          refused = 0
        },
        () => refused++,
      )
      expect(refused).toBeGreaterThanOrEqual(5)
      // 2.9 says no more than that its stream is not current.
      if (!isOld) expect(ends).toBeGreaterThanOrEqual(2)
    }, WAIT)
    for (const { disk } of full) disk?.free()
    // As docs/deploying.md says of it; asked to end, it does not within half a minute.
    const kill = async () => {
      for (const { process } of full) await process.kill()
    }
    if (isOld) await kill()
    const appended = () => vi.waitFor(append, WAIT)
    const { seq } = await appended().catch(async (error: unknown) => {
      // 2.9 may start without finding its leader.
      if (!isOld) throw error
      await kill()
      return appended()
    })
    await vi.waitFor(async () => {
      const { state, cluster } = await manager.streams.info('EVENTS')
      expect(state.last_seq).toBeGreaterThanOrEqual(seq)
      expect(cluster?.replicas?.map(({ current, lag }) => current && !lag)).toEqual([true, true])
    }, WAIT)
  })

  it('one server that does not write any more is told of, until it has started again', {
    timeout: TEST_MS,
  }, async () => {
    await using stack = new AsyncDisposableStack()
    const nats = stack.use(await startNats({ diskMiB }))
    const connection = await connectNats(
      nats.url.split(','),
      'test',
      createLogger('silent', 'test'),
    )
    const log = await JetStreamEventLog.open(connection, 3)
    stack.defer(() => log.close())
    const whole = { offline: 0, lagEvents: 0 }
    await vi.waitFor(async () => expect(await log.replicas()).toEqual(whole), WAIT)
    const leading = await nats.streamLeader('EVENTS')
    const full =
      nats.servers.find((server) => server !== leading) ?? expect.fail('there are three servers')
    full.disk?.fill()
    await vi.waitFor(async () => {
      await log.append(written('key', 'x'.repeat(1_000)))
      expect(await log.replicas()).toMatchObject({ offline: 1 })
    }, WAIT)
    // It stays so, with room or without it.
    full.disk?.free()
    expect(await log.replicas()).toMatchObject({ offline: 1 })
    await full.process.kill()
    await full.restart()
    await vi.waitFor(async () => expect(await log.replicas()).toEqual(whole), WAIT)
  })
})
