/**
 * A short run of the faults program (`npm run faults`), with a fixed seed: agents work on a cluster
 * that is broken and mended all the time.
 */
import { expect, it } from 'vitest'
import { check } from '../../lab/faults/checker.ts'
import { run } from '../../lab/faults/run.ts'
import { planFaults } from '../../lab/faults/schedule.ts'
import { seededRandom } from '../../lab/random.ts'

const SEED = 1
/** Of each kind one, none that takes longer than a few seconds. */
const NAMES = [
  'api killed',
  'api restarted',
  'all worker killed',
  'observer killed',
  'observer frozen',
  'projector killed',
  'projector frozen',
  'redis wiped',
  'redis killed',
  'postgres killed',
  'nats leader killed',
  'redis cut',
  'redis full',
  'postgres password changed',
  'nats password changed',
  'nats leader damaged',
  'all clocks set back',
  'large bodies',
]
const LASTS_MS = [500, 2_500] as const
/**
 * Less than a recovery may take, so that what is left to do meets the next fault; the last is
 * followed by a longer calm.
 */
const CALM_MS = [1_500, 3_000] as const
/** Half of what `npm run faults` asks: what agents ask takes most of what the run costs. */
const PACE_MS = 120
const TIMEOUT_MS = 600_000

it('nothing acknowledged is lost, repeated, out of order or stale, whatever is killed, frozen, cut or wiped', {
  timeout: TIMEOUT_MS,
}, async () => {
  const random = seededRandom(SEED)
  const { history, output } = await run({
    random,
    paceMs: PACE_MS,
    plan: (possible) =>
      planFaults(
        random,
        possible
          .filter(({ name }) => NAMES.includes(name))
          .map(({ name }) => ({ name, lastsMs: LASTS_MS })),
        80_000,
        CALM_MS,
      ),
    say: () => {},
  })
  const violations = check(history)
  if (violations.length > 0) console.error(output)
  expect(violations).toEqual([])
  // A run that did not do what it is about proves nothing.
  expect(history.faults.filter(({ hits }) => !hits.includes('machine')).length).toBeGreaterThan(12)
  expect(history.operations.filter(({ status }) => status === 503).length).toBeGreaterThan(0)
  for (const kind of ['send', 'receive', 'write', 'read', 'remove', 'register'] as const) {
    const well = history.operations.filter(
      (operation) => operation.kind === kind && operation.status < 300,
    )
    expect(well.length, kind).toBeGreaterThan(5)
  }
  expect(history.pushes.length).toBeGreaterThan(20)
  for (const { name, seen, connections } of history.watches) {
    expect(seen.length, name).toBeGreaterThan(20)
    expect(connections, name).toBeGreaterThan(0)
  }
  expect(Math.max(...history.watches.map(({ connections }) => connections))).toBeGreaterThan(1)
})
