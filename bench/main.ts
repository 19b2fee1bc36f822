/**
 * `npm run bench -- [embedded] [cluster] [growth] [webhooks] [--seconds 3] [--agents 10000] [--sizes 1000,100000,1000000] [--json file]`; all if
 * none is named.
 *
 * Starts kernels of its own and prints what they need: time to start, memory, and for each endpoint requests a second, latency and
 * CPU. Beside each endpoint stands its ratio to a bare Hono route measured in the same run, which is what compares between machines.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { cpus, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { startCluster } from '../test/support/cluster.ts'
import { startKernel } from '../test/support/kernel.ts'
import { measureBareRoute } from './bare-route.ts'
import { measureEndpoints } from './endpoints.ts'
import { benchGrowth } from './growth.ts'
import type { Figures } from './load.ts'
import { measureMemory } from './memory.ts'
import { benchWebhooks } from './webhooks.ts'

const BENCHES = ['embedded', 'cluster', 'growth', 'webhooks']
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '3' },
    agents: { type: 'string', default: '10000' },
    sizes: { type: 'string', default: '1000,100000,1000000' },
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

/** What limits is not the limits. */
const UNLIMITED = Object.fromEntries(
  ['MESSAGE', 'STATE_READ', 'STATE_WRITE', 'REGISTRY_READ'].map((name) => [`RATE_LIMIT_${name}_PER_MIN`, '100000000']),
)
const SETTINGS = {
  ...UNLIMITED,
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '100000000',
  MESSAGE_MAX_QUEUE_PER_AGENT: '1000000',
  // A session ends after 30 s, and all the agents of a bench are cold at once: it would measure bcrypt now and then.
  BCRYPT_COST: '4',
}

const report: Record<string, unknown> = {
  date: new Date().toISOString(),
  machine: {
    processor: cpus()[0]?.model,
    processors: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
  },
}

const bare = await measureBareRoute(seconds)
report.bareRoute = bare
console.log(`bare Hono route: ${bare.perSecond.toFixed(0)} requests a second, p50 ${bare.p50Ms.toFixed(2)} ms\n`)

if (wanted('embedded')) {
  report.start = await startUpTimes()
  report.memory = await measureMemory(agents, SETTINGS)
  console.table(report.memory)
  await using kernel = await startKernel(SETTINGS)
  report.embedded = await measure('embedded', kernel.baseUrl, { kernel: kernel.pid })
}
if (wanted('cluster')) {
  await using cluster = await startCluster({ nodes: 1, workers: 1, settings: SETTINGS })
  const [node] = cluster.nodes
  const [worker] = cluster.workers
  if (!node || !worker) throw new Error('the cluster has no node or no worker')
  report.cluster = await measure('cluster, one api node', node.url, { api: node.pid, worker: worker.pid })
}
if (wanted('growth')) {
  const growth = await benchGrowth(sizes, SETTINGS)
  report.growth = growth
  console.log('\ngrowth: ms (median) at so many agents, keys and messages in one queue, and the greatest to the least')
  console.table(growth)
}
if (wanted('webhooks')) await benchWebhooks()
if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify(report, null, 2)}\n`)

async function measure(title: string, baseUrl: string, pids: Record<string, number>): Promise<Record<string, Figures>> {
  const figures = await measureEndpoints(baseUrl, pids, seconds)
  console.log(`\n${title}`)
  console.table(
    Object.fromEntries(
      Object.entries(figures).map(([name, { perSecond, p50Ms, p99Ms, cpuMsPerRequest, failed }]) => [
        name,
        {
          'requests/s': Math.round(perSecond),
          'of bare route': Number((perSecond / bare.perSecond).toFixed(3)),
          'p50 ms': Number(p50Ms.toFixed(2)),
          'p99 ms': Number(p99Ms.toFixed(2)),
          ...Object.fromEntries(
            Object.entries(cpuMsPerRequest).map(([process, ms]) => [`CPU ms ${process}`, Number(ms.toFixed(3))]),
          ),
          failed,
        },
      ]),
    ),
  )
  return figures
}

/** Milliseconds from the start of the process to its first answer, on a fresh directory and on the same one again. */
async function startUpTimes(): Promise<Record<string, number>> {
  const dataDir = await mkdtemp(join(tmpdir(), 'tabulum-bench-'))
  const times: Record<string, number> = {}
  try {
    for (const name of ['fresh', 'again']) {
      const begin = performance.now()
      await using kernel = await startKernel(SETTINGS, { dataDir })
      times[`${name} ms`] = Math.round(performance.now() - begin)
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
