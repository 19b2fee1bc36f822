/**
 * Docker and Compose for a run of the test: a project, settings and volumes of its own. Whatever
 * waits here has a deadline.
 */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual, promisify } from 'node:util'
import { z } from 'zod'

const run = promisify(execFile)
export const ROOT = join(import.meta.dirname, '..', '..')
const PROJECT = 'tabulum-test'
export const PORT = process.env.PUBLISH_PORT || '18080'
export const OBSERVE_PORT = process.env.OBSERVE_PORT || '18090'
/** Far above what a slow machine needs for one command of Compose, a build too. */
const COMMAND_MS = 600_000
/** So long may anything take to come again after a server was restarted or killed. */
const BACK_MS = 180_000
const ASK_EVERY_MS = 500
/** For reading the whole event log, whose command then waits for more. */
const TAIL_S = 20
/** A label of the image that the upgrade leads to. */
export const UPGRADED = 'tabulum.upgraded'

/** Ends every command and every wait, but those of `removeAll`. */
const stopping = new AbortController()
export const stop = (reason: Error) => stopping.abort(reason)

const directory = mkdtempSync(join(tmpdir(), 'tabulum-compose-'))
process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
const envFile = join(directory, 'env')

/** A setting in the environment would win over the one in the file. */
function environment(): NodeJS.ProcessEnv {
  const settings = [...readFileSync(join(ROOT, '.env.example'), 'utf8').matchAll(/^(\w+)=/gm)].map(
    ([, name]) => name,
  )
  return Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !settings.includes(name)),
  )
}

interface CommandOptions {
  input?: string | Buffer
  signal?: AbortSignal
}

/**
 * Runs a command in the project's directory. @throws when it fails, with what it said, or takes too
 * long
 */
export async function command(
  program: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<Buffer> {
  const { input, signal = stopping.signal } = options
  signal.throwIfAborted()
  // In a group of its own: what a terminal tells this process is not for it, and whatever it
  // started ends with it.
  const child = spawn(program, args, { cwd: ROOT, env: environment(), detached: true })
  const deadline = AbortSignal.timeout(COMMAND_MS)
  const ended = AbortSignal.any([signal, deadline])
  const end = () => {
    if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, 'SIGKILL')
  }
  ended.addEventListener('abort', end, { once: true })
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  const chunks: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
  const [stderr, [code]] = await Promise.all([text(child.stderr), once(child, 'close')])
  ended.removeEventListener('abort', end)
  signal.throwIfAborted()
  const what = `${program} ${args.join(' ')}`
  if (deadline.aborted)
    throw new Error(`not within ${COMMAND_MS / 1_000} s: ${what}\n${stderr.slice(-2_000)}`)
  if (code !== 0) throw new Error(`${what} ended with ${code}:\n${stderr.slice(-2_000)}`)
  return Buffer.concat(chunks)
}

export const docker = (args: readonly string[], input?: string | Buffer) =>
  command('docker', args, input === undefined ? {} : { input })

const ofProject = (args: readonly string[]) => [
  'compose',
  '--project-name',
  PROJECT,
  '--env-file',
  envFile,
  ...args,
]
export const compose = (...args: readonly string[]) => docker(ofProject(args))
export const composeWith = (input: string | Buffer, ...args: readonly string[]) =>
  docker(ofProject(args), input)
export const up = (...args: readonly string[]) => compose('up', '--detach', '--wait', ...args)
export const containers = async (service: string) =>
  (await compose('ps', '--quiet', service)).toString().split('\n').filter(Boolean).toSorted()

/** Of all that run on and on; what ends by itself has no health. */
export async function areHealthy(): Promise<boolean> {
  const health = (await compose('ps', '--format', '{{.Health}}'))
    .toString()
    .split('\n')
    .filter(Boolean)
  return health.length > 0 && health.every((one) => one === 'healthy')
}

/** Of a container, in the words of Docker. */
export const inspect = async (format: string, id: string) =>
  (await docker(['inspect', '--format', format, id])).toString().trim()

/** Kills a container's process, and waits for the engine to start it again. */
export async function kill(service: string, id: string): Promise<void> {
  const count = () => inspect('{{.RestartCount}}', id)
  const before = await count()
  const [pid, image] = [await inspect('{{.State.Pid}}', id), await inspect('{{.Config.Image}}', id)]
  // The engine starts again what ended so, as it does not what `docker kill` ended. From a
  // container, because the process is in the table of the engine's machine.
  const privileged = ['--rm', '--pid', 'host', '--privileged', '--user', '0:0', '--network', 'none']
  await docker(['run', ...privileged, '--entrypoint', 'sh', image, '-c', `kill -9 ${pid}`])
  await until(`${service}, which is to be started again`, async () => (await count()) !== before)
}

export function set(values: Readonly<Record<string, string>>): void {
  const before = readFileSync(envFile, 'utf8').split('\n').filter(Boolean)
  const kept = before.filter((line) => !((line.split('=')[0] ?? '') in values))
  writeFileSync(
    envFile,
    [...kept, ...Object.entries(values).map((pair) => pair.join('='))].join('\n'),
  )
}

/** Of a cluster that runs beside others: ranges and ports that theirs do not have. */
function setOwn(): void {
  set({
    PUBLISH_PORT: PORT,
    OBSERVE_PORT,
    PROMETHEUS_PORT: '19091',
    ENTRY_SUBNET: '10.213.188.0/24',
    OBSERVERS_SUBNET: '10.213.187.0/24',
    PUBLISHED_SUBNET: '10.213.189.0/24',
    OUTBOUND_SUBNET: '10.213.190.0/24',
  })
}

export function setExample(): void {
  copyFileSync(join(ROOT, '.env.example'), envFile)
  setOwn()
}

/** As an operator makes them. */
export async function setNew(): Promise<void> {
  rmSync(envFile)
  await command('sh', ['deploy/compose/make-environment.sh', envFile])
  setOwn()
}

/** Those in force, by name. */
export const settings = (): Record<string, string> =>
  Object.fromEntries(
    readFileSync(envFile, 'utf8')
      .split('\n')
      .flatMap((line) => (/^\w+=/.test(line) ? [line.split(/=(.*)/s).slice(0, 2)] : [])),
  )

export function expect(what: string, actual: unknown, right: unknown): void {
  if (isDeepStrictEqual(actual, right)) return
  throw new Error(`${what}: ${JSON.stringify(actual)}, right is ${JSON.stringify(right)}`)
}

/** @throws when it takes longer, and says what was waited for; or when the run is stopped */
export async function within<T>(what: string, work: Promise<T>, ms = BACK_MS): Promise<T> {
  const settled = new AbortController()
  const signal = AbortSignal.any([settled.signal, stopping.signal])
  const late = sleep(ms, undefined, { signal }).then(
    () => Promise.reject(new Error(`not within ${ms / 1_000} s: ${what}`)),
    () => Promise.reject(stopping.signal.reason),
  )
  try {
    return await Promise.race([work, late])
  } finally {
    settled.abort()
  }
}

export async function until(
  what: string,
  holds: () => Promise<boolean>,
  ms = BACK_MS,
): Promise<void> {
  let isOver = false
  const asking = async () => {
    while (!isOver && !(await holds())) await sleep(ASK_EVERY_MS)
  }
  try {
    await within(what, asking(), ms)
  } finally {
    isOver = true
  }
}

/** Lines of the event log that `filter`, a command of a shell, lets through. */
async function logThrough(filter: string): Promise<string[]> {
  const tail = `timeout ${TAIL_S} node src/main.ts tail --json | ${filter}; true`
  return (await compose('exec', '-T', 'api', 'sh', '-c', tail))
    .toString()
    .split('\n')
    .filter(Boolean)
}

/** Whether the event log has a text, without a quote in it, as the operators read it. */
export const logHas = async (text: string): Promise<boolean> =>
  (await logThrough(`grep -F '${text}'`)).length > 0

const delivery = z.object({
  type: z.literal('message_delivered'),
  data: z.object({ message_id: z.string() }),
})

/** The messages that were handed out, as the event log has it. */
export async function delivered(): Promise<Set<string>> {
  const events = (await logThrough('grep message_delivered')).map(
    (line) => delivery.safeParse(JSON.parse(line)).data,
  )
  return new Set(events.flatMap((event) => event?.data.message_id ?? []))
}

/** What the containers of the project do now, for whoever reads why a part failed. */
export async function states(): Promise<string> {
  const format = '{{.Service}}: {{.Status}}'
  return (await compose('--profile', '*', 'ps', '--all', '--format', format)).toString()
}

/**
 * Containers, networks and volumes, of load-tests/compose.yml too, and the image of the upgrade.
 * The others stay, as a cache.
 */
export async function removeAll(): Promise<void> {
  const { signal } = new AbortController()
  await command('docker', ofProject(['--profile', '*', 'down', '--volumes', '--remove-orphans']), {
    signal,
  })
  await command('docker', ['image', 'prune', '--force', '--filter', `label=${UPGRADED}`], {
    signal,
  })
}

/** @throws what is missing, in a sentence. */
export async function checkEngine(): Promise<void> {
  for (const [what, args] of [
    ['the docker command', ['--version']],
    ['a Docker engine that answers (DOCKER_HOST)', ['version', '--format', '{{.Server.Version}}']],
    ['the Compose plugin, docker compose', ['compose', 'version', '--short']],
  ] as const) {
    const asked = run('docker', [...args], { timeout: 30_000 })
    const said = await asked.catch((error: { stderr?: string; message: string }) => {
      throw new Error(
        `npm run test:compose needs ${what}: ${(error.stderr || error.message).trim()}`,
      )
    })
    if (args[0] === 'version' && Number.parseInt(said.stdout, 10) < 28)
      throw new Error(
        `npm run test:compose needs a Docker engine of version 28 or later, this is ${said.stdout.trim()}`,
      )
  }
}
