/**
 * `npm run bench -- [embedded] [cluster] [registration] [costs] [nodes] [sizes] [authentication]
 * [growth] [large] [webhooks] [ceiling] [observation] [page] [--seconds 3] [--agents 10000]
 * [--sizes 1000,100000,1000000] [--events 200000] [--json file]`; all if none is named.
 *
 * Starts what it needs and prints tables for people; `--json` writes the same for scripts. What
 * compares between machines is ratios within one run: of each endpoint to a bare Hono route, and on
 * the cluster to its floor, the smallest program that makes only the unavoidable calls to the same
 * servers (`floor-program.ts`), also with changes applied in the order of the log.
 * docs/performance.md has one run, and what limits each row.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { cpus, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { startCluster } from '../lab/cluster.ts'
import { startKernel } from '../lab/kernel.ts'
import { newestNatsServer } from '../lab/servers/nats.ts'
import { loadConfig } from '../src/config.ts'
import { benchAuthentication } from './authentication.ts'
import { benchCeiling } from './ceiling.ts'
import { benchCosts } from './costs.ts'
import {
  type EndpointFigures,
  type Floors,
  type Measured,
  measureEndpoints,
  measureRegistering,
} from './endpoints.ts'
import { benchFeed } from './feed.ts'
import { benchGrowth } from './growth.ts'
import { benchLarge, measureLoopDelay } from './large.ts'
import { type Figures, figuresOf, load, serverPids } from './load.ts'
import { measureMemory } from './memory.ts'
import { benchNetwork } from './network.ts'
import { benchNodes } from './nodes.ts'
import { benchObservation, benchWatched, benchWatchers } from './observe.ts'
import { benchFlood, benchVisible } from './page.ts'
import { startProgram } from './program.ts'
import { benchSizes } from './sizes.ts'
import { benchWebhooks } from './webhooks.ts'

/** As `npm start` has it. */
process.env.NODE_COMPILE_CACHE ??= join(import.meta.dirname, '../node_modules/.cache/node-compile')

const BENCHES = [
  'embedded',
  'cluster',
  'registration',
  'costs',
  'nodes',
  'sizes',
  'authentication',
  'growth',
  'large',
  'webhooks',
  'ceiling',
  'observation',
  'page',
]
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '3' },
    agents: { type: 'string', default: '10000' },
    sizes: { type: 'string', default: '1000,100000,1000000' },
    events: { type: 'string', default: '200000' },
    json: { type: 'string' },
  },
})
const unknown = positionals.filter((name) => !BENCHES.includes(name))
if (unknown.length > 0) {
  console.error(`There is no bench ${unknown.join(', ')}; there are ${BENCHES.join(', ')}`)
  process.exit(2)
}
const wanted = (name: string) => positionals.length === 0 || positionals.includes(name)
const seconds = positive('seconds', values.seconds)
const agents = positive('agents', values.agents)
const sizes = values.sizes.split(',').map((size) => positive('sizes', size))

// What is deployed: the newest that there is.
const nats = await newestNatsServer()
process.env.NATS_SERVER_BIN = nats.file
console.log(`NATS ${nats.version}, which flushes ${nats.flushes}`)

/** Of start-up, on a machine that does nothing else. */
const START_PROMISED_MS = { fresh: 6_000, again: 2_000 }
/** What limits is not the limits. */
const UNLIMITED = Object.fromEntries(
  ['MESSAGE', 'STATE_READ', 'STATE_WRITE', 'REGISTRY_READ'].map((name) => [
    `RATE_LIMIT_${name}_PER_MIN`,
    '100000000',
  ]),
)
const SETTINGS = {
  ...UNLIMITED,
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '100000000',
  MESSAGE_MAX_QUEUE_PER_AGENT: '1000000',
  // A session ends after 30 s, and all the agents of a bench are cold at once: it would measure
  // bcrypt now and then.
  BCRYPT_COST: '4',
}

const report: Record<string, unknown> = {
  nats: { version: nats.version, flushes: nats.flushes },
  date: new Date().toISOString(),
  machine: {
    processor: cpus()[0]?.model,
    processors: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
  },
}

const bare = await measureBareRoute()
report.bareRoute = bare
console.log(
  `bare Hono route: ${bare.perSecond.toFixed(0)} requests a second, p50 ${bare.p50Ms.toFixed(2)} ms\n`,
)

if (wanted('embedded')) {
  report.start = await startUpTimes()
  report.memory = await measureMemory(agents, SETTINGS)
  console.table(report.memory)
  await using kernel = await startKernel(SETTINGS)
  await using floor = await startProgram('embedded-floor-program.ts', {
    FLOOR_BCRYPT_COST: SETTINGS.BCRYPT_COST,
  })
  const measured = { url: kernel.baseUrl, pids: { kernel: () => [kernel.pid] } }
  const floors = { floor: { url: floor.url, pids: { floor: () => [floor.pid] } } }
  report.embedded = print('embedded', await measureEndpoints(measured, seconds, floors))
}
if (wanted('cluster'))
  report.cluster = await compare('cluster, one api node', SETTINGS.BCRYPT_COST, measureEndpoints)
if (wanted('registration')) {
  const defaultCost = String(loadConfig({}).BCRYPT_COST)
  report.registration = await compare(
    'registration at the default cost of bcrypt',
    defaultCost,
    measureRegistering,
  )
}
if (wanted('costs'))
  table('costs', 'unit costs, one call at a time and 32 at once', await benchCosts(seconds))
if (wanted('nodes'))
  table(
    'nodes',
    'CPU ms a request of all kernel processes, by api nodes and load',
    await benchNodes(seconds, SETTINGS),
  )
if (wanted('sizes')) table('sizes', 'bytes', await benchSizes(SETTINGS))
if (wanted('authentication'))
  table('authentication', 'authentication, ms', await benchAuthentication(SETTINGS))
if (wanted('growth')) {
  const title =
    'growth: ms (median), and CPU ms a request, at so many agents, keys and messages in one queue, and the greatest to the least'
  table('growth', title, await benchGrowth(sizes, SETTINGS))
}
if (wanted('ceiling')) {
  const title = `events a second: into one stream, and applied by one worker from a log of ${values.events}`
  table('ceiling', title, await benchCeiling(seconds, positive('events', values.events)))
}
if (wanted('large')) {
  const title =
    'embedded storage with so many keys and so many agents, and the greatest to the least'
  table('large', title, await benchLarge(sizes, SETTINGS))
  table(
    'loopDelay',
    'delay of the event loop while 32 connections write',
    await measureLoopDelay(seconds, SETTINGS),
  )
}
if (wanted('observation')) {
  const title = 'a log of so many events, observed'
  table('observation', title, await benchObservation([100_000, positive('events', values.events)]))
  table(
    'watchers',
    'watchers on `serve` beside 1,000 writes a second',
    await benchWatchers([0, 100, 1_000], seconds),
  )
  table(
    'feed',
    'live streams alone, of 1,000 made-up events a second',
    await benchFeed([1, 100, 1_000], seconds),
  )
  table(
    'watched',
    'one agent that writes, beside others on the machine',
    await benchWatched(seconds),
  )
}
if (wanted('page')) {
  const live = { ...(await benchVisible(10 * seconds)), ...(await benchFlood(10 * seconds)) }
  table('page', 'the page on which one watches, in a browser', live)
  table('network', 'its picture of a network', await benchNetwork(agents, 5 * agents, seconds))
}
if (wanted('webhooks')) report.webhooks = await benchWebhooks()
if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify(report, null, 2)}\n`)

/** A part of the report, printed. */
function table(name: string, title: string, rows: object): void {
  report[name] = rows
  console.log(`\n${title}`)
  console.table(rows)
}

/** A cluster of one api node and one worker beside the floors on the same servers. */
async function compare(
  title: string,
  bcryptCost: string,
  measure: (
    kernel: Measured,
    seconds: number,
    floors: Floors,
  ) => Promise<Record<string, EndpointFigures>>,
): Promise<Record<string, EndpointFigures>> {
  await using cluster = await startCluster({
    nodes: 1,
    workers: 1,
    settings: { ...SETTINGS, BCRYPT_COST: bcryptCost },
  })
  const environment = {
    FLOOR_DATABASE_URL: cluster.postgres.superuserUrl,
    FLOOR_REDIS_URL: cluster.redis.adminUrl,
    FLOOR_NATS_URL: cluster.nats.adminUrl,
    FLOOR_BCRYPT_COST: bcryptCost,
  }
  await using floor = await startProgram('floor-program.ts', environment)
  await using orderedFloor = await startProgram('floor-program.ts', {
    ...environment,
    FLOOR_IN_LOG_ORDER: 'yes',
  })
  const [node] = cluster.nodes
  const [worker] = cluster.workers
  if (!node || !worker) throw new Error('the cluster has no node or no worker')
  const servers = serverPids(cluster)
  return print(
    title,
    await measure(
      { url: node.url, pids: { api: () => [node.pid], worker: () => [worker.pid], ...servers } },
      seconds,
      {
        floor: { url: floor.url, pids: { floor: () => [floor.pid], ...servers } },
        orderedFloor: {
          url: orderedFloor.url,
          pids: { floor: () => [orderedFloor.pid], ...servers },
        },
      },
    ),
  )
}

function print(
  title: string,
  figures: Record<string, EndpointFigures>,
): Record<string, EndpointFigures> {
  console.log(`\n${title}`)
  console.table(
    Object.fromEntries(
      Object.entries(figures).map(([name, { kernel, floor, orderedFloor, ratios }]) => [
        name,
        {
          'requests/s': Math.round(kernel.perSecond),
          'of bare route': Number((kernel.perSecond / bare.perSecond).toFixed(3)),
          ...(floor && {
            'floor/s': Math.round(floor.perSecond),
            'of floor': ratios.floor && Number(ratios.floor.toFixed(2)),
            'of floor in log order': ratios.orderedFloor && Number(ratios.orderedFloor.toFixed(2)),
          }),
          'p50 ms': Number(kernel.p50Ms.toFixed(2)),
          'p99 ms': Number(kernel.p99Ms.toFixed(2)),
          ...(floor && {
            'floor p50': Number(floor.p50Ms.toFixed(2)),
            'floor p99': Number(floor.p99Ms.toFixed(2)),
          }),
          ...cpuColumns(kernel),
          ...(floor && {
            'CPU ms all': Number(allCpu(kernel).toFixed(3)),
            'CPU ms floor, all': Number(allCpu(floor).toFixed(3)),
            'in log order': orderedFloor && Number(allCpu(orderedFloor).toFixed(3)),
          }),
          failed: kernel.failed + (floor?.failed ?? 0) + (orderedFloor?.failed ?? 0),
        },
      ]),
    ),
  )
  return figures
}

function cpuColumns({ cpuMsPerRequest }: Figures): Record<string, number> {
  return Object.fromEntries(
    Object.entries(cpuMsPerRequest).map(([process, ms]) => [
      `CPU ms ${process}`,
      Number(ms.toFixed(3)),
    ]),
  )
}

function allCpu({ cpuMsPerRequest }: Figures): number {
  return Object.values(cpuMsPerRequest).reduce((sum, ms) => sum + ms, 0)
}

/** The least that an HTTP answer costs on this machine. */
async function measureBareRoute(): Promise<Figures> {
  await using program = await startProgram('bare-route.ts')
  const length = { seconds, warmUpSeconds: 1 }
  const stretch = await load(program.url, length, () => ({ method: 'GET', path: '/' }), {
    bare: () => [program.pid],
  })
  return figuresOf([stretch])
}

/**
 * Milliseconds from the start of the process to its first answer, on a fresh directory and on the
 * same one again. The bench fails where they are more than is promised.
 */
async function startUpTimes(): Promise<Record<string, number>> {
  const dataDir = await mkdtemp(join(tmpdir(), 'tabulum-bench-'))
  const times: Record<string, number> = {}
  try {
    for (const [name, promisedMs] of Object.entries(START_PROMISED_MS)) {
      const begin = performance.now()
      await using kernel = await startKernel(SETTINGS, { dataDir })
      const ms = Math.round(performance.now() - begin)
      times[`${name} ms`] = ms
      if (ms > promisedMs) {
        console.error(`start-up, ${name}: ${ms} ms, promised are ${promisedMs}`)
        process.exitCode = 1
      }
      await kernel.stop()
    }
  } finally {
    await rm(dataDir, { recursive: true, force: true })
  }
  console.log('start-up, embedded')
  console.table(times)
  return times
}

function positive(name: string, text: string): number {
  const value = Number(text)
  if (value > 0) return value
  console.error(`--${name} is a number greater than 0`)
  process.exit(2)
}
