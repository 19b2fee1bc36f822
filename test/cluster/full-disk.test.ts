/** NATS servers whose disks are full: appends work again once there is room, by what `deploy/nats/start.sh` does. */
import { connect } from 'nats'
import { afterAll, expect, it, vi } from 'vitest'
import { natsOptions, startNats } from '../support/servers.ts'

const DISK_MIB = 64
const TEST_MS = 400_000
const WAIT = { timeout: 120_000, interval: 250 }
const EVENT = Buffer.alloc(100_000, 'x')

const stack = new AsyncDisposableStack()
afterAll(() => stack.disposeAsync(), 60_000)

it('two servers with full disks are ended and started again, and take appends once there is room', {
  timeout: TEST_MS,
}, async ({ skip }) => {
  const nats = stack.use(await startNats({ diskMiB: DISK_MIB, watched: true }))
  if (nats.servers.some(({ disk }) => disk === undefined)) return skip('this machine does not allow to mount a disk')
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
  if (isOld) for (const { process } of full) await process.kill()
  const { seq } = await vi.waitFor(append, WAIT)
  await vi.waitFor(async () => {
    const { state, cluster } = await manager.streams.info('EVENTS')
    expect(state.last_seq).toBeGreaterThanOrEqual(seq)
    expect(cluster?.replicas?.map(({ current, lag }) => current && !lag)).toEqual([true, true])
  }, WAIT)
})
