import { expect, it } from 'vitest'
import { BeingBuilt, Freshness } from '../../src/observe/freshness.ts'

/** A log that ends at `end`, of which `applied` has been applied by another process. */
function start(waits = { ms: 1, firstMs: 1 }) {
  const log = { end: 0, applied: 0 }
  const parts = { lastSeq: async () => log.end, position: async () => log.applied }
  return { log, freshness: new Freshness(parts, waits) }
}
const LONG = { ms: 60_000, firstMs: 60_000 }

it('waits until all that was in the log has been applied, by this process or another', async () => {
  const { log, freshness } = start(LONG)
  log.end = 5
  const own = freshness.wait()
  freshness.advance(5)
  await own
  log.end = 9
  const others = freshness.wait()
  log.applied = 9
  await others
})

it('says that the read models are being built as long as they have never been as far as the log', async () => {
  const { log, freshness } = start()
  log.end = 5
  log.applied = 3
  await expect(freshness.wait()).rejects.toThrow(BeingBuilt)
  log.applied = 5
  await freshness.wait()
})

it('gives the answer as it is, once they have been, when they take too long', async () => {
  const { log, freshness } = start()
  await freshness.wait()
  log.end = 5
  await freshness.wait()
})

it('wakes who applies the log as soon as somebody waits, and not before', async () => {
  const { log, freshness } = start(LONG)
  const never = new AbortController().signal
  const pause = freshness.pause(60_000, never)
  log.end = 1
  const waiting = freshness.wait()
  await pause
  freshness.advance(1)
  await waiting
  // Nobody waits: it lasts as long as it is to.
  await freshness.pause(1, never)
  const stop = new AbortController()
  const stopped = freshness.pause(60_000, stop.signal)
  stop.abort()
  await stopped
})
