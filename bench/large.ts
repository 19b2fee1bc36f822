/**
 * Embedded storage as it fills: what starting, checking and copying take, and the same requests
 * beside a data directory that holds little. Keys and agents are written through the log, by what
 * writes it in `serve`, as registering a million agents would take hours of bcrypt.
 */
import { spawn } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Agent, Client, keyPath, percentEncode } from '../lab/client.ts'
import { type Kernel, startKernel } from '../lab/kernel.ts'
import type { EventOf } from '../src/events/event.ts'
import { createAppend } from '../src/events/sqlite-append.ts'
import { CursorSeal } from '../src/platform/cursor.ts'
import { openSqlite, type Sqlite, transaction } from '../src/platform/sqlite.ts'
import { SqliteSigningKeys } from '../src/platform/sqlite-signing-keys.ts'
import { registryWrites } from '../src/registry/sqlite-registry-writes.ts'
import { readModels } from '../src/storage/read-models.ts'
import { CONNECTIONS, cpuTimes, load, median } from './load.ts'
import { residentMiB } from './memory.ts'

const MAIN = join(import.meta.dirname, '../src/main.ts')
const VALUE = 'x'.repeat(100)
/** Events of one transaction of the filling. */
const BATCH = 10_000
const PAGE = 50
/** Rounds of measuring; the median counts. */
const ROUNDS = 8
const WARM_UP_REQUESTS = 100
const REQUESTS = 300

type Settings = Readonly<Record<string, string>>

/** A data directory that has been filled, and the kernel on it. */
interface Filled extends AsyncDisposable {
  readonly size: string
  readonly kernel: Kernel
  readonly token: string
  readonly requests: Readonly<Record<string, string>>
  /** What was measured on the way. */
  readonly took: Readonly<Record<string, number>>
}

/**
 * By what was done or asked, for each size: seconds and megabytes, then median ms and CPU ms of
 * requests, which take turns.
 */
export async function benchLarge(
  sizes: readonly number[],
  settings: Settings,
): Promise<Record<string, Record<string, number>>> {
  await using stack = new AsyncDisposableStack()
  const filled: Filled[] = []
  for (const size of sizes) filled.push(stack.use(await startFilled(size, settings)))
  const rows: Record<string, Record<string, number>> = {}
  const row = (name: string, values: readonly number[]) => {
    rows[name] = {
      ...Object.fromEntries(
        filled.map(({ size }, index) => [size, Number((values[index] ?? 0).toFixed(3))]),
      ),
      'last to first': Number(((values.at(-1) ?? 0) / (values[0] ?? 1)).toFixed(2)),
    }
  }
  const names = (of: (one: Filled) => object) => Object.keys(filled[0] ? of(filled[0]) : {})
  for (const name of names(({ took }) => took))
    row(
      name,
      filled.map(({ took }) => took[name] ?? 0),
    )
  for (const name of names(({ requests }) => requests)) {
    const medians = filled.map((): number[] => [])
    const cpu = filled.map(() => 0)
    for (let round = 0; round < ROUNDS; round++) {
      const forth = [...filled.entries()]
      for (const [index, { kernel, token, requests }] of round % 2 === 0
        ? forth
        : forth.toReversed()) {
        const url = requests[name] ?? ''
        await times(url, token, WARM_UP_REQUESTS)
        const pids = { kernel: () => [kernel.pid] }
        const before = cpuTimes(pids).kernel ?? 0
        medians[index]?.push(median(await times(url, token, REQUESTS)))
        cpu[index] = (cpu[index] ?? 0) + (cpuTimes(pids).kernel ?? 0) - before
      }
    }
    row(`${name}, ms`, medians.map(median))
    row(
      `${name}, CPU ms`,
      cpu.map((ms) => ms / (ROUNDS * REQUESTS)),
    )
  }
  return rows
}

async function startFilled(size: number, settings: Settings): Promise<Filled> {
  await using stack = new AsyncDisposableStack()
  const dataDir = await mkdtemp(join(tmpdir(), 'tabulum-large-'))
  stack.defer(() => rm(dataDir, { recursive: true, force: true }))
  const file = join(dataDir, 'tabulum.db')
  const agent = await prepare(dataDir, settings)
  const sqlite = openSqlite(file)
  const filling = await seconds(async () => fill(sqlite, size))
  const cursors = await CursorSeal.load(new SqliteSigningKeys(sqlite))
  const events = Number(sqlite.sql.get`select max(seq) as seq from events`?.seq)
  const seqOf = (place: number) =>
    String(sqlite.sql.get`select seq from agents order by seq limit 1 offset ${place}`?.seq)
  const [middle, end] = [Math.floor(size / 2), size - PAGE]
  const registry = [middle, end].map((place) => cursors.seal('registry', Buffer.from(seqOf(place))))
  const state = [middle, end].map((place) =>
    cursors.seal('state large/', Buffer.from(keyOf(place))),
  )
  sqlite.connection.close()

  const begin = performance.now()
  const kernel = stack.use(await startKernel(settings, { dataDir }))
  const starting = (performance.now() - begin) / 1_000
  const client = new Client(kernel.baseUrl)
  await client.request('GET', '/v1/agents/me', { token: agent.token })
  const resident = await residentMiB(kernel.pid)
  const copy = join(dataDir, 'copy.db')
  const backup = await seconds(() => command(dataDir, 'backup', copy))
  await rm(copy)
  const verify = await seconds(() => command(dataDir, 'verify'))
  const { size: bytes } = await stat(file)
  const owner = stack.move()
  const pages = `limit=${PAGE}`
  return {
    size: size.toLocaleString('en'),
    kernel,
    token: agent.token,
    took: {
      events,
      'events written a second': events / filling,
      'database, MB': bytes / 1_000_000,
      'start, s': starting,
      'backup, s': backup,
      'verify, s': verify,
      'resident after the first request, MiB': resident,
    },
    requests: {
      'state, one key': `${kernel.baseUrl}${keyPath(keyOf(middle))}`,
      'state, first page': `${kernel.baseUrl}/v1/state?prefix=large/&${pages}`,
      'state, from the middle': `${kernel.baseUrl}/v1/state?prefix=large/&${pages}&cursor=${percentEncode(state[0] ?? '')}`,
      'state, last page': `${kernel.baseUrl}/v1/state?prefix=large/&${pages}&cursor=${percentEncode(state[1] ?? '')}`,
      'registry, first page': `${kernel.baseUrl}/v1/registry?${pages}`,
      'registry, from the middle': `${kernel.baseUrl}/v1/registry?${pages}&cursor=${percentEncode(registry[0] ?? '')}`,
      'registry, last page': `${kernel.baseUrl}/v1/registry?${pages}&cursor=${percentEncode(registry[1] ?? '')}`,
      'events, first page': `${kernel.internalUrl}/events?${pages}`,
      'events, last page': `${kernel.internalUrl}/events?since=${events - PAGE}&${pages}`,
    },
    [Symbol.asyncDispose]: () => owner.disposeAsync(),
  }
}

/** Makes the database, with one agent in it that can ask. */
async function prepare(dataDir: string, settings: Settings): Promise<Agent> {
  await using kernel = await startKernel(settings, { dataDir })
  const [agent] = await new Client(kernel.baseUrl).registerAgents(1)
  if (!agent) throw new Error('an agent was asked for')
  await kernel.stop()
  return agent
}

function fill(sqlite: Sqlite, size: number): void {
  const append = createAppend(sqlite, readModels({ maxQueue: size }), Date.now)
  const { registerAgent } = registryWrites(sqlite, append)
  const operator_id = randomUUID()
  const by = 'tab_large'
  const agent = (): EventOf<'agent_registered'> => {
    const address = `tab_${randomBytes(10).toString('hex')}`
    const data = { address, operator_id, has_webhook: false }
    return { ts: new Date().toISOString(), type: 'agent_registered', agent: address, data }
  }
  for (let first = 0; first < size; first += BATCH) {
    transaction(sqlite.connection, () => {
      if (first === 0) {
        const data = { operator_id, contact_hash: '', accepted_terms: true } as const
        const { seq } = append({ ts: new Date().toISOString(), type: 'operator_created', data })
        sqlite.sql.run`
          insert into operators (seq, operator_id, token_lookup, token_hash) values (${seq}, ${operator_id}, x'', '')`
      }
      for (let number = first; number < Math.min(size, first + BATCH); number++) {
        registerAgent({
          event: agent(),
          secrets: { lookup: randomBytes(8), tokenHash: '', webhook: undefined },
        })
        const data = {
          key: keyOf(number),
          value: VALUE,
          value_length: VALUE.length,
          written_by: by,
        }
        append({ ts: new Date().toISOString(), type: 'state_written', agent: by, data })
      }
    })
  }
}

function keyOf(number: number): string {
  return `large/${String(number).padStart(8, '0')}`
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const begin = performance.now()
  await work()
  return (performance.now() - begin) / 1_000
}

async function command(dataDir: string, ...args: readonly string[]): Promise<void> {
  const environment = { PATH: process.env.PATH, DATA_DIR: dataDir, LOG_LEVEL: 'warn' }
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: environment,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`${args[0]} ended with ${code}`)
}

/** Of requests one after the other, each in ms. */
async function times(url: string, token: string, count: number): Promise<number[]> {
  const headers = { Authorization: `Bearer ${token}` }
  const times: number[] = []
  for (let index = 0; index < count; index++) {
    const begin = performance.now()
    const answer = await fetch(url, { headers })
    await answer.arrayBuffer()
    times.push(performance.now() - begin)
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`)
  }
  return times
}

/**
 * In the kernel's main thread; it prints the delay of its event loop, in ms, when it is sent a
 * signal, and begins anew.
 */
const PROBE = `data:text/javascript,${encodeURIComponent(`
  import { monitorEventLoopDelay } from 'node:perf_hooks'
  import { isMainThread } from 'node:worker_threads'
  if (isMainThread) {
    const delay = monitorEventLoopDelay({ resolution: 1 })
    delay.enable()
    process.on('SIGUSR2', () => {
      console.log('delay ' + delay.percentile(50) / 1e6 + ' ' + delay.percentile(99) / 1e6 + ' ' + delay.max / 1e6)
      delay.reset()
    })
  }`)}`

/**
 * The delay of the event loop while all connections write, in ms; 1 ms of it is what it is measured
 * by.
 */
export async function measureLoopDelay(
  seconds: number,
  settings: Settings,
): Promise<Record<string, number>> {
  await using kernel = await startKernel({ ...settings, NODE_OPTIONS: `--import=${PROBE}` })
  const agents = await new Client(kernel.baseUrl).registerAgents(CONNECTIONS)
  const write = (index: number) => {
    const path = keyPath(`delay/${index % 1_000}`)
    return {
      method: 'PUT',
      path,
      token: agents[index % CONNECTIONS]?.token ?? '',
      json: { value: VALUE },
    } as const
  }
  const said = () => [...kernel.output().matchAll(/^delay (\S+) (\S+) (\S+)$/gm)]
  const ask = async () => {
    const before = said().length
    kernel.process.kill('SIGUSR2')
    while (said().length === before) await new Promise((resolve) => setTimeout(resolve, 20))
    return said().at(-1)?.slice(1).map(Number) ?? []
  }
  await load(kernel.baseUrl, { seconds: 2, warmUpSeconds: 0 }, write)
  await ask()
  await load(kernel.baseUrl, { seconds: Math.max(10, seconds), warmUpSeconds: 0 }, write)
  const [p50 = Number.NaN, p99 = Number.NaN, max = Number.NaN] = await ask()
  const round = (ms: number) => Number(ms.toFixed(1))
  return { 'p50 ms': round(p50), 'p99 ms': round(p99), 'max ms': round(max) }
}
