/**
 * Runs docker-compose.yml for real, as docs/deploying.md says to: `npm run test:compose`, or with the names of some of its
 * parts. Not in `npm test`, as it wants a Docker engine (DOCKER_HOST, 28 or later) whose published ports are on 127.0.0.1 here.
 * It has a project, volumes and passwords of its own, and removes what it made. The port is PUBLISH_PORT, or 18080.
 * COMPOSE_FILE may add files to docker-compose.yml.
 */
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual, promisify } from 'node:util'
import { z } from 'zod'

const run = promisify(execFile)
const ROOT = join(import.meta.dirname, '..', '..')
const PROJECT = 'tabulum-test'
const PORT = process.env.PUBLISH_PORT || '18080'
const BASE = `http://127.0.0.1:${PORT}`
/** Far above what a slow machine needs for one command of Compose, a build too. */
const COMMAND_MS = 600_000
/** So long may an answer take to come again after a server was killed. */
const BACK_MS = 180_000

const directory = mkdtempSync(join(tmpdir(), 'tabulum-compose-'))
const envFile = join(directory, 'env')
const wanted = process.argv.slice(2)

/** A setting in the environment would win over the one in the file. */
function environment(): NodeJS.ProcessEnv {
  const settings = [...readFileSync(join(ROOT, '.env.example'), 'utf8').matchAll(/^(\w+)=/gm)].map(([, name]) => name)
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !settings.includes(name)))
}

async function docker(args: readonly string[], input?: string | Buffer): Promise<Buffer> {
  const child = spawn('docker', args, { cwd: ROOT, env: environment(), timeout: COMMAND_MS })
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  const chunks: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
  const [stderr, [code]] = await Promise.all([text(child.stderr), once(child, 'close')])
  if (code !== 0) throw new Error(`docker ${args.join(' ')} ended with ${code}:\n${stderr.slice(-2_000)}`)
  return Buffer.concat(chunks)
}

const compose = (...args: readonly string[]) =>
  docker(['compose', '--project-name', PROJECT, '--env-file', envFile, ...args])
const up = (...args: readonly string[]) => compose('up', '--detach', '--wait', ...args)
const containers = async (service: string) =>
  (await compose('ps', '--quiet', service)).toString().split('\n').filter(Boolean).toSorted()

function set(values: Readonly<Record<string, string>>): void {
  const before = readFileSync(envFile, 'utf8').split('\n').filter(Boolean)
  const kept = before.filter((line) => !((line.split('=')[0] ?? '') in values))
  writeFileSync(envFile, [...kept, ...Object.entries(values).map((pair) => pair.join('='))].join('\n'))
}

function expect(what: string, actual: unknown, right: unknown): void {
  if (isDeepStrictEqual(actual, right)) return
  throw new Error(`${what}: ${JSON.stringify(actual)}, right is ${JSON.stringify(right)}`)
}

interface Answer {
  status: number
  body: unknown
}

/** Status 0: no answer. */
async function request(method: string, path: string, token?: string, body?: object): Promise<Answer> {
  const headers: Record<string, string> = token === undefined ? {} : { Authorization: `Bearer ${token}` }
  if (body !== undefined) headers['Content-Type'] = 'application/json'
  try {
    const signal = AbortSignal.timeout(30_000)
    const answer = await fetch(`${BASE}/v1${path}`, { method, headers, body: JSON.stringify(body) ?? null, signal })
    return { status: answer.status, body: await answer.json() }
  } catch {
    return { status: 0, body: undefined }
  }
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + BACK_MS
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`not within ${BACK_MS / 1_000} s: ${what}`)
    await sleep(500)
  }
}

interface Agent {
  address: string
  token: string
}

const challengeAnswer = z.object({
  challenge_id: z.string(),
  challenge_data: z.object({ seed: z.string(), operations: z.array(z.object({ op: z.string() })) }),
})

function solve({ challenge_data: { seed, operations } }: z.infer<typeof challengeAnswer>): string {
  const steps: Record<string, (value: string, argument: string) => string> = {
    reverse: (value) => [...value].reverse().join(''),
    base64_encode: (value) => Buffer.from(value).toString('base64'),
    base64_decode: (value) => Buffer.from(value, 'base64').toString(),
    hex_encode: (value) => Buffer.from(value).toString('hex'),
    sha256: (value) => createHash('sha256').update(value).digest('hex'),
    uppercase: (value) => value.toUpperCase(),
    lowercase: (value) => value.toLowerCase(),
    rot13: (value) =>
      value.replace(/[a-z]/gi, (letter) => {
        const first = letter <= 'Z' ? 65 : 97
        return String.fromCharCode(((letter.charCodeAt(0) - first + 13) % 26) + first)
      }),
    prepend: (value, argument) => argument + value,
    append: (value, argument) => value + argument,
  }
  return operations.reduce((value, { op }) => {
    const [name = '', argument = ''] = op.split(/:(.*)/s)
    return steps[name]?.(value, argument) ?? value
  }, seed)
}

async function register(operatorKey: string): Promise<Agent> {
  const challenge = await request('GET', '/agents/verification-challenge', operatorKey)
  const parsed = challengeAnswer.parse(challenge.body)
  const verification_response = { challenge_id: parsed.challenge_id, response: solve(parsed) }
  const { body } = await request('POST', '/agents', operatorKey, { verification_response })
  const { agent_address: address, agent_token: token } = z
    .object({ agent_address: z.string(), agent_token: z.string() })
    .parse(body)
  return { address, token }
}

const messagesOf = (answer: Answer) =>
  z.object({ messages: z.array(z.object({ message_id: z.string(), content: z.string() })) }).parse(answer.body).messages

let agents: [Agent, Agent]
/** Who writes to whom under load: so many that none meets its limit of 60 a minute with a turn of PAUSE_MS for one. */
let pairs: [Agent, Agent][] = []
const PAIRS = 12
const PAUSE_MS = 100

/** The requests of the README's tour. */
async function tour(): Promise<void> {
  const operator = await request('POST', '/operators', undefined, { contact_hash: 'a hash', accept_terms: true })
  expect('an operator', operator.status, 201)
  const { api_key } = z.object({ api_key: z.string() }).parse(operator.body)
  const pair = async (): Promise<[Agent, Agent]> => [await register(api_key), await register(api_key)]
  agents = await pair()
  pairs = []
  while (pairs.length < PAIRS) pairs.push(await pair())
  const [ada, bob] = agents
  expect('the registry', (await request('GET', '/registry', ada.token)).status, 200)
  for (const [from, to, content] of [
    [ada, bob, 'Bob, what is 6 times 7?'],
    [bob, ada, '42, Ada.'],
  ] as const) {
    expect('sending', (await request('POST', '/messages', from.token, { to: to.address, content })).status, 202)
    const received = messagesOf(await request('GET', '/messages', to.token))
    expect(
      'what came',
      received.map((message) => message.content),
      [content],
    )
  }
  expect('writing', (await request('PUT', '/state/answers/6-times-7', ada.token, { value: '42' })).status, 200)
  await stateIsThere()
}

async function stateIsThere(): Promise<void> {
  const read = await request('GET', '/state/answers/6-times-7', agents[1].token)
  expect('the value', z.object({ value: z.string() }).safeParse(read.body).data?.value, '42')
}

interface Load {
  requests: number
  /** Status and body of what was not acknowledged. */
  failed: string[]
}

/** Messages and values, some a second, from `action`'s begin to its end. @throws when something acknowledged is lost */
async function underLoad(action: () => Promise<unknown>): Promise<Load> {
  const outstanding = new Map<Agent, Set<string>>()
  const written = new Map<string, string>()
  const failed: string[] = []
  let requests = 0
  const counted = (answer: Answer, right: number): boolean => {
    requests++
    if (answer.status !== right) failed.push(`${answer.status} ${JSON.stringify(answer.body)}`)
    return answer.status === right
  }
  const take = async (recipient: Agent) => {
    const answer = await request('GET', '/messages?limit=100', recipient.token)
    if (answer.status === 200)
      for (const { message_id } of messagesOf(answer)) outstanding.get(recipient)?.delete(message_id)
    return answer
  }
  const turn = async (number: number, [sender, recipient]: [Agent, Agent]) => {
    const message = { to: recipient.address, content: `message ${number}` }
    const sent = await request('POST', '/messages', sender.token, message)
    if (counted(sent, 202)) {
      const waiting = outstanding.get(recipient) ?? new Set()
      outstanding.set(recipient, waiting.add(z.object({ message_id: z.string() }).parse(sent.body).message_id))
    }
    const [key, value] = [`load/${number}`, String(number)]
    if (counted(await request('PUT', `/state/${key}`, sender.token, { value }), 200)) written.set(key, value)
    counted(await take(recipient), 200)
  }
  const stop = new AbortController()
  const load = async () => {
    for (let number = 0; !stop.signal.aborted; number++) {
      await turn(number, pairs[number % PAIRS] ?? agents)
      await sleep(PAUSE_MS)
    }
  }
  const loading = load()
  try {
    await action()
  } finally {
    stop.abort()
    await loading
  }
  await until('all that was acknowledged is received', async () => {
    for (const [recipient, waiting] of outstanding) if (waiting.size > 0) await take(recipient)
    return [...outstanding.values()].every(({ size }) => size === 0)
  })
  for (const [index, [key, value]] of [...written].entries()) {
    const reader = pairs[index % PAIRS]?.[1].token
    const read = await request('GET', `/state/${key}`, reader)
    expect(key, z.object({ value: z.string() }).safeParse(read.body).data?.value, value)
  }
  return { requests, failed }
}

const answers = async () => (await request('GET', '/state?prefix=load/', agents[0].token)).status === 200
const counted = ({ requests, failed }: Load) => `${failed.length} of ${requests} requests failed`

const SERVICES = ['haproxy', 'api', 'worker', 'postgres', 'redis', 'nats-1', 'nats-2', 'nats-3']

const parts: Record<string, () => Promise<string>> = {
  async example() {
    await up()
    await tour()
    return 'healthy, and the tour works'
  },
  async scale() {
    set({ API_REPLICAS: '5', WORKER_REPLICAS: '1' })
    await up()
    expect('api nodes', (await containers('api')).length, 5)
    await up()
    expect('api nodes after another up', (await containers('api')).length, 5)
    expect('workers', (await containers('worker')).length, 1)
    set({ API_REPLICAS: '3', WORKER_REPLICAS: '2' })
    await up()
    expect('api nodes', (await containers('api')).length, 3)
    await stateIsThere()
    return '3 to 5 to 3 api nodes'
  },
  async monitoring() {
    const profile = ['--profile', 'monitoring']
    await compose(...profile, 'up', '--detach', '--wait')
    const query = 'wget -q -O - "http://127.0.0.1:9090/api/v1/query?query=count(up==1)"'
    // 3 api nodes, 2 workers and HAProxy; and Prometheus itself.
    await until('Prometheus sees 7 targets', async () => {
      const said = (await compose(...profile, 'exec', '-T', 'prometheus', 'sh', '-c', query)).toString()
      return said.includes('"7"')
    })
    await compose(...profile, 'rm', '--stop', '--force', 'prometheus')
    return 'Prometheus sees nodes, workers and HAProxy'
  },
  async upgrade() {
    const image = z
      .object({ services: z.object({ api: z.object({ image: z.string() }) }) })
      .parse(JSON.parse((await compose('config', '--format', 'json')).toString())).services.api.image
    const before = await containers('api')
    const old = (await docker(['image', 'inspect', '--format', '{{.Id}}', image])).toString().trim()
    await docker(['build', '--quiet', '--tag', image, '-'], `FROM ${image}\nLABEL tabulum.upgraded=${Date.now()}\n`)
    const load = await underLoad(async () => {
      await compose('run', '--rm', 'migrate')
      await up('--no-deps', '--no-recreate', '--scale', 'api=6', 'api')
      await up()
    })
    await docker(['tag', old, image])
    const after = await containers('api')
    expect('api nodes', after.length, 3)
    expect('old nodes that are left', after.filter((id) => before.includes(id)).length, 0)
    expect(`failed requests of ${load.requests}`, load.failed, [])
    return counted(load)
  },
  async restarts() {
    const lines: string[] = []
    for (const service of SERVICES) {
      const load = await underLoad(async () => {
        await compose('restart', service)
        await until(`the API answers after a restart of ${service}`, answers)
      })
      lines.push(`${service}: ${counted(load)}`)
    }
    return lines.join('; ')
  },
  async kills() {
    const lines: string[] = []
    for (const service of SERVICES) {
      const [id = ''] = await containers(service)
      const count = async () => (await docker(['inspect', '--format', '{{.RestartCount}}', id])).toString().trim()
      const before = await count()
      const pid = (await docker(['inspect', '--format', '{{.State.Pid}}', id])).toString().trim()
      const load = await underLoad(async () => {
        // Docker starts again what ended so, as it does not what `docker kill` ended. From the engine's machine, in whose table of processes it is.
        const image = (await docker(['inspect', '--format', '{{.Config.Image}}', id])).toString().trim()
        const kill = ['--rm', '--pid', 'host', '--privileged', '--user', '0:0', '--entrypoint', 'sh']
        await docker(['run', ...kill, image, '-c', `kill -9 ${pid}`])
        await until(`${service} is started again`, async () => (await count()) !== before)
        await up('--no-recreate')
        await until(`the API answers after ${service} was killed`, answers)
      })
      lines.push(`${service}: ${counted(load)}`)
    }
    return lines.join('; ')
  },
  async passwords() {
    const password = () => `p${createHash('sha256').update(`${Date.now()}${Math.random()}`).digest('hex').slice(0, 40)}`
    const roles = {
      TABULUM_PASSWORD: 'tabulum',
      TABULUM_OWNER_PASSWORD: 'tabulum_owner',
      POSTGRES_PASSWORD: 'postgres',
    }
    for (const [setting, role] of Object.entries(roles)) {
      const value = password()
      const psql = 'PGPASSWORD=$POSTGRES_PASSWORD psql --username=postgres --dbname=tabulum --set=ON_ERROR_STOP=1'
      await docker(
        ['compose', '-p', PROJECT, '--env-file', envFile, 'exec', '-T', 'postgres', 'sh', '-c', psql],
        `ALTER ROLE ${role} PASSWORD '${value}'`,
      )
      set({ [setting]: value })
      await up()
      await until(`the API answers with a new ${setting}`, answers)
    }
    const names = [
      'REDIS_KERNEL',
      'REDIS_ADMIN',
      'NATS_ROUTE',
      'NATS_KERNEL',
      'NATS_ADMIN',
      'NATS_OBSERVER',
      'NATS_SYSTEM',
    ]
    for (const name of names) {
      set({ [`${name}_PASSWORD`]: password() })
      await up()
      await until(`the API answers with a new ${name}_PASSWORD`, answers)
    }
    await stateIsThere()
    return 'each password changed, the data is there'
  },
  async refusal() {
    set({ ENVIRONMENT: 'production' })
    const refused = await up().then(
      () => 'started',
      (error: unknown) => String(error),
    )
    expect('up names where to look', refused.includes('check-environment-see-its-log'), true)
    const log = (await compose('logs', 'check-environment-see-its-log')).toString()
    expect('the log names the setting', log.includes('WEBHOOK_SECRET_KEY has the value of .env.example'), true)
    set({ ENVIRONMENT: 'development' })
    await up()
    return 'public passwords are refused, and up says where the reasons are'
  },
  async again() {
    await compose('down')
    await up()
    await stateIsThere()
    return 'down and up, the data is there'
  },
}

/** @throws what is missing, in a sentence. */
async function checkEngine(): Promise<void> {
  for (const [what, args] of [
    ['the docker command', ['--version']],
    ['a Docker engine that answers (DOCKER_HOST)', ['version', '--format', '{{.Server.Version}}']],
    ['the Compose plugin, docker compose', ['compose', 'version', '--short']],
  ] as const) {
    const said = await run('docker', [...args]).catch((error: { stderr?: string; message: string }) => {
      throw new Error(`npm run test:compose needs ${what}: ${(error.stderr || error.message).trim()}`)
    })
    if (args[0] === 'version' && Number.parseInt(said.stdout, 10) < 28)
      throw new Error(
        `npm run test:compose needs a Docker engine of version 28 or later, this is ${said.stdout.trim()}`,
      )
  }
}

async function main(): Promise<void> {
  const unknown = wanted.filter((name) => !(name in parts))
  if (unknown.length > 0)
    throw new Error(`no such part: ${unknown.join(', ')}; there are ${Object.keys(parts).join(', ')}`)
  await checkEngine()
  copyFileSync(join(ROOT, '.env.example'), envFile)
  set({
    PUBLISH_PORT: PORT,
    ENTRY_SUBNET: '10.213.188.0/24',
    PUBLISHED_SUBNET: '10.213.189.0/24',
    OUTBOUND_SUBNET: '10.213.190.0/24',
  })
  try {
    await compose('build')
    for (const [name, part] of Object.entries(parts)) {
      // All others are on what the first began.
      if (name !== 'example' && wanted.length > 0 && !wanted.includes(name)) continue
      const start = Date.now()
      const result = await part()
      console.log(`${name} (${((Date.now() - start) / 1_000).toFixed(1)} s): ${result}`)
    }
  } finally {
    await compose('--profile', 'monitoring', 'down', '--volumes')
    rmSync(directory, { recursive: true })
  }
}

await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
})
