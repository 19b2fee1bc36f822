/**
 * The observation of a log that was filled beforehand: building its read models, and pages of it
 * however long it is; watchers; and what agents notice of a service that is asked for as much as it
 * can give.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { Client, keyPath } from '../lab/client.ts'
import { startKernel } from '../lab/kernel.ts'
import { seededRandom } from '../lab/random.ts'
import { releasePorts, reservePorts } from '../lab/servers/directory.ts'
import { openSqlite, type Sqlite, transaction } from '../src/platform/sqlite.ts'
import { takeOnly } from './feed.ts'
import { cpuTimes, median } from './load.ts'
import { benchPage } from './page.ts'

const MAIN = join(import.meta.dirname, '../src/main.ts')
const AGENTS = 1_000
const BATCH = 20_000
/** Events of the agent, and of the type, that hardly occur. */
const RARE = 50
const REQUESTS = 60
const DAYS = 30
const BEGINNING = Date.UTC(2026, 0, 1)
const CONTENT = 'x'.repeat(100)

type Rows = Record<string, Record<string, number>>

/** By what was done or asked, for each length of the log: seconds, then median ms of requests. */
export async function benchObservation(sizes: readonly number[]): Promise<Rows> {
  const rows: Rows = {}
  for (const size of sizes) {
    const column = size.toLocaleString('en')
    for (const [name, value] of Object.entries(await observed(size)))
      rows[name] = { ...rows[name], [column]: Number(value.toFixed(2)) }
  }
  return rows
}

async function observed(size: number): Promise<Record<string, number>> {
  const dataDir = await mkdtemp(join(tmpdir(), 'tabulum-observe-'))
  try {
    await using kernel = await startKernel({}, { dataDir })
    await kernel.stop()
    const file = join(dataDir, 'tabulum.db')
    const sqlite = openSqlite(file)
    const agents = fill(sqlite, size)
    sqlite.connection.close()
    const build = await rebuild(dataDir)
    const { size: logBytes } = await stat(file)
    const { size: modelBytes } = await stat(join(dataDir, 'observation-2.db')).catch(() =>
      stat(join(dataDir, 'observation-1.db')),
    )
    const took = {
      'log, MB': logBytes / 1_000_000,
      'read models, MB': modelBytes / 1_000_000,
      ...build,
    }
    console.log(`${size.toLocaleString('en')} events:`, took)
    const asked = await askAll(dataDir, agents, size)
    console.log(asked)
    return { ...took, ...asked, 'verify, s': await verifySeconds(dataDir) }
  } finally {
    await rm(dataDir, { recursive: true, force: true })
  }
}

/**
 * Starts the service on a log that was filled, and asks it for pages of all kinds. Median ms.
 * @param agents the busiest first
 */
export async function askAll(
  dataDir: string,
  agents: readonly string[],
  size: number,
): Promise<Record<string, number>> {
  await using service = await startService(dataDir)
  const { url } = service
  const rare = agents.at(-1) ?? ''
  const last = size + AGENTS + 1
  const middle = Math.floor(last / 2)
  const pages = {
    'first page': '/observe/events?limit=100',
    'late page': `/observe/events?limit=100&since=${last - 1_000}`,
    'late page of 1,000': `/observe/events?limit=1000&since=${last - 2_000}`,
    'backwards from the end': `/observe/events?limit=100&before=${last}`,
    'of a rare agent': `/observe/events?limit=100&agent=${rare}`,
    'of a rare agent, one type': `/observe/events?limit=100&agent=${rare}&type=state_written`,
    'of a rare type': '/observe/events?limit=100&type=push_failed',
    'of a busy agent, backwards': `/observe/events?limit=100&agent=${agents[0]}&before=${last}`,
    'agents, 1,000': '/observe/agents',
    'network, 1,000 edges': '/observe/network',
    'activity, all time': '/observe/activity?buckets=200',
    'activity of one agent': `/observe/activity?agent=${agents[0]}`,
    'history of a key': '/observe/state/key/1/history',
    'a moment in the middle': `/observe/moment?at=${middle}`,
    'a moment by its time': `/observe/moment?time=${new Date(BEGINNING + (DAYS / 2) * 86_400_000).toISOString()}`,
    'state of a moment, 100 keys': `/observe/state?at=${middle}`,
    'agents of a moment, 1,000': `/observe/agents?at=${middle}`,
    'network of a moment, 1,000 edges': `/observe/network?at=${middle}`,
    'between two, backwards': `/observe/events?agent=${agents[0]}&with=${agents[1]}&before=${last}`,
    'search of 2,000 events': `/observe/events?text=nowhere&before=${middle}`,
  }
  const took: Record<string, number> = {}
  for (const [name, path] of Object.entries(pages))
    took[`${name}, ms`] = median(await times(`${url}${path}`, REQUESTS))
  took['resident of the service, MiB'] = await memory(service.pid, 'VmRSS')
  // In a log of one process each number is an event's.
  const jumps = Array.from(
    { length: 1_000 },
    (_, index) => AGENTS + 2 + Math.floor((index / 1_000) * size),
  )
  return { ...took, ...(await benchPage(url, jumps)) }
}

/**
 * Writes a lifelike log: few agents do most, one does hardly anything. Returns the agents, the
 * busiest first.
 */
function fill({ connection }: Sqlite, size: number): string[] {
  const random = seededRandom(1)
  const insert = connection.prepare(
    'insert into events (ts, type, agent, data, about) values (?, ?, ?, ?, ?)',
  )
  const agents = Array.from({ length: AGENTS }, () => `tab_${randomBytes(10).toString('hex')}`)
  const rare = agents.at(-1) as string
  const pick = () => agents[Math.floor(random() ** 3 * (AGENTS - 1))] as string
  const rareEvery = Math.floor(size / RARE)
  const add = (
    ts: string,
    type: string,
    agent: string | null,
    data: object,
    about: number | null = null,
  ) => insert.run(ts, type, agent, JSON.stringify(data), about)
  const begun = new Date(BEGINNING).toISOString()
  transaction(connection, () => {
    add(begun, 'operator_created', null, {
      operator_id: 'o',
      contact_hash: '',
      accepted_terms: true,
    })
    for (const address of agents)
      add(begun, 'agent_registered', address, { address, operator_id: 'o', has_webhook: false })
  })
  for (let first = 0; first < size; first += BATCH) {
    transaction(connection, () => {
      for (let number = first; number < Math.min(size, first + BATCH); number++) {
        const ts = new Date(BEGINNING + (number / size) * DAYS * 86_400_000).toISOString()
        const isRare = number % rareEvery === 0
        const agent = isRare ? rare : pick()
        const chance = random()
        const key = `key/${Math.floor(random() * 10_000)}`
        const message_id = randomUUID()
        if (isRare && chance < 0.5)
          add(ts, 'push_failed', agent, { message_id, to: agent, reason: 'undeliverable' })
        else if (isRare || chance < 0.2)
          add(ts, 'state_written', agent, {
            key,
            value: CONTENT,
            value_length: CONTENT.length,
            written_by: agent,
          })
        else if (chance < 0.45) {
          const data = {
            message_id,
            from: agent,
            to: pick(),
            content: CONTENT,
            content_length: CONTENT.length,
          }
          add(ts, 'message_sent', agent, data)
        } else if (chance < 0.65)
          add(ts, 'message_delivered', agent, { message_id, to: agent, delivery_method: 'pull' })
        else add(ts, 'state_read', agent, { key, read_by: agent, found: true })
      }
    })
  }
  return agents
}

/**
 * Builds the read models by the command, and says how fast, and how much memory it took at most.
 */
async function rebuild(dataDir: string): Promise<Record<string, number>> {
  const begin = performance.now()
  const child = start(dataDir, 'observe', '--rebuild')
  let peak = 0
  const watching = setInterval(() => {
    memory(child.pid ?? 0, 'VmHWM').then(
      (mib) => {
        peak = Math.max(peak, mib)
      },
      () => {},
    )
  }, 200)
  let said = ''
  child.stdout?.on('data', (chunk) => (said += chunk))
  const [code] = await once(child, 'close')
  clearInterval(watching)
  if (code !== 0) throw new Error(`observe --rebuild ended with ${code}`)
  const events = Number(/^([\d,]+) events/m.exec(said)?.[1]?.replaceAll(',', ''))
  const seconds = (performance.now() - begin) / 1_000
  return {
    'building, s': seconds,
    'events built a second': events / seconds,
    'peak of building, MiB': peak,
  }
}

/**
 * The whole command: the log is made up, so it tells of differences from what the kernel keeps, and
 * of none from the read models.
 */
async function verifySeconds(dataDir: string): Promise<number> {
  const begin = performance.now()
  const child = start(dataDir, 'verify')
  let said = ''
  child.stdout?.on('data', (chunk) => (said += chunk))
  await once(child, 'close')
  if (/^observation: /m.test(said)) throw new Error('the read models are not as the log says')
  return (performance.now() - begin) / 1_000
}

function start(dataDir: string, command: string, ...args: string[]): ChildProcess {
  return spawn(process.execPath, [MAIN, command, ...args], {
    env: {
      PATH: process.env.PATH,
      DATA_DIR: dataDir,
      LOG_LEVEL: 'warn',
      RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
}

async function startService(dataDir: string) {
  const ports = await reservePorts(2)
  const [port, internal] = ports
  const child = spawn(process.execPath, [MAIN, 'observe'], {
    env: {
      ...{
        PATH: process.env.PATH,
        DATA_DIR: dataDir,
        LOG_LEVEL: 'warn',
        RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
      },
      ...{ HOST: '127.0.0.1', OBSERVE_PORT: String(port), INTERNAL_PORT: String(internal) },
    },
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const url = `http://127.0.0.1:${port}`
  while (
    !(await fetch(`${url}/observe/health`)
      .then(({ ok }) => ok)
      .catch(() => false))
  )
    await sleep(50)
  return {
    url,
    pid: child.pid ?? 0,
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM')
      await once(child, 'close')
      releasePorts(ports)
    },
  }
}

async function times(url: string, count: number): Promise<number[]> {
  const all: number[] = []
  for (let index = 0; index < count; index++) {
    const begin = performance.now()
    const answer = await fetch(url)
    await answer.arrayBuffer()
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`)
    all.push(performance.now() - begin)
  }
  return all
}

async function memory(pid: number, what: 'VmRSS' | 'VmHWM'): Promise<number> {
  const line = new RegExp(`^${what}:\\s+(\\d+) kB$`, 'm').exec(
    await readFile(`/proc/${pid}/status`, 'utf8'),
  )
  return Number(line?.[1]) / 1_024
}

const LIFTED = {
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000000',
  RATE_LIMIT_OBSERVE_PER_MIN: '1000000000',
  OBSERVE_MAX_STREAMS: '5000',
}
/** Watchers whose events are parsed and timed; the others' bytes are only taken. */
const TIMED = 5
const RATE = 1_000

/**
 * By the number of watchers on one process: how late events are on the wire, and the CPU of the
 * whole kernel.
 */
export async function benchWatchers(numbers: readonly number[], seconds: number): Promise<Rows> {
  const rows: Rows = {}
  for (const number of numbers) {
    await using kernel = await startKernel(LIFTED)
    const agents = await new Client(kernel.baseUrl).registerAgents(8)
    const { host } = new URL(kernel.observeUrl)
    const late: number[] = []
    let isMeasured = false
    const sockets = Array.from({ length: Math.min(TIMED, number) }, () => {
      const socket = new WebSocket(`ws://${host}/observe/events/stream`)
      socket.on('message', (data) => {
        if (isMeasured) late.push(Date.now() - Date.parse(JSON.parse(String(data)).ts))
      })
      return socket
    })
    let bytes = 0
    const takers = Array.from({ length: Math.max(0, number - TIMED) }, () =>
      takeOnly(host, (count) => (bytes += count)),
    )
    await Promise.all([
      ...sockets.map((socket) => once(socket, 'open')),
      ...takers.map((socket) => once(socket, 'data')),
    ])
    let written = 0
    const end = performance.now() + (seconds + 2) * 1_000
    const begin = performance.now()
    const pids = { kernel: () => [kernel.pid] }
    let before = 0
    await Promise.all(
      agents.map(async (agent, index) => {
        for (let turn = 0; performance.now() < end; turn++) {
          if (!isMeasured && performance.now() > begin + 2_000) {
            isMeasured = true
            before = cpuTimes(pids).kernel ?? 0
          }
          await agent.write(`watched/${index}`, CONTENT)
          if (isMeasured) written++
          const due = begin + ((turn + 1) * agents.length * 1_000) / RATE
          if (due > performance.now()) await sleep(due - performance.now())
        }
      }),
    )
    const cpu = (cpuTimes(pids).kernel ?? 0) - before
    const sorted = late.toSorted((one, other) => one - other)
    const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))] ?? Number.NaN
    rows[`${number} watchers`] = {
      'events a second': Math.round(written / seconds),
      'late, p50 ms': at(0.5),
      'late, p99 ms': at(0.99),
      'cores of the kernel': Number((cpu / seconds / 1_000).toFixed(2)),
      'MB a second to watchers': Number((bytes / seconds / 1_000_000).toFixed(1)),
      'resident MiB': Math.round(await memory(kernel.pid, 'VmRSS')),
    }
    for (const socket of sockets) socket.terminate()
    for (const socket of takers) socket.destroy()
  }
  return rows
}

/**
 * Threads that ask the service for all they can get, or that spin: as busy as the machine can be.
 */
const BUSY = 2
const SPIN = 'for (;;) Math.sqrt(2)'
const ASK = `const [url] = process.argv.slice(1); const paths = ['network', 'agents', 'events?limit=1000', 'activity?buckets=200']
const ask = async () => { for (let turn = 0; ; turn++) await fetch(url + '/observe/' + paths[turn % 4]).then((a) => a.arrayBuffer()).catch(() => {}) }
for (let count = 0; count < 16; count++) ask()`

/**
 * What one agent that writes notices: of nothing else, of processes that only spin, and of as many
 * that ask the service without end.
 */
export async function benchWatched(seconds: number): Promise<Rows> {
  await using kernel = await startKernel(LIFTED)
  const [agent] = await new Client(kernel.baseUrl).registerAgents(1)
  if (agent === undefined) throw new Error('an agent was asked for')
  for (let index = 0; index < 2_000; index++) await agent.write(`noticed/${index % 500}`, CONTENT)
  const rows: Rows = {}
  const measure = async (name: string, code?: string) => {
    const children = Array.from({ length: code === undefined ? 0 : BUSY }, () =>
      spawn(process.execPath, ['--input-type=module', '-e', code ?? '', kernel.observeUrl], {
        stdio: 'ignore',
      }),
    )
    await sleep(1_000)
    const all: number[] = []
    for (const end = performance.now() + seconds * 1_000; performance.now() < end; await sleep(5)) {
      const begin = performance.now()
      await agent.request('PUT', keyPath('noticed/1'), { json: { value: CONTENT } })
      all.push(performance.now() - begin)
    }
    for (const child of children) child.kill('SIGKILL')
    const sorted = all.toSorted((one, other) => one - other)
    rows[name] = {
      ...rows[name],
      requests: all.length,
      'p50 ms': Number((sorted[Math.floor(0.5 * sorted.length)] ?? 0).toFixed(2)),
      'p99 ms': Number((sorted[Math.floor(0.99 * sorted.length)] ?? 0).toFixed(2)),
    }
  }
  await measure('nothing else')
  await measure(`${BUSY} processes that spin`, SPIN)
  await measure(`${BUSY} processes that ask the observation without end`, ASK)
  return rows
}
