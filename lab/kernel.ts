/**
 * Starts the program as users do, `serve` in a process of its own on fresh embedded storage, for
 * tests that speak to it over HTTP.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { get } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './servers/directory.ts'

const MAIN = join(import.meta.dirname, '..', 'src', 'main.ts')
/** Other tests want the CPU too. */
const START_DEADLINE_MS = 180_000
/** A little over the default of SHUTDOWN_TIMEOUT. */
const STOP_DEADLINE_MS = 30_000
const EVENTS_PAGE = 1_000
/** Of what a process has printed, the last so many characters are kept. */
const OUTPUT_LIMIT = 1_000_000

/** One line of the event log. `data` is left as it came: what is in it is for tests to judge. */
export const event = z.strictObject({
  seq: z.int(),
  ts: z.string(),
  type: z.string(),
  agent: z.string().optional(),
  data: z.record(z.string(), z.unknown()),
})
export type Event = z.infer<typeof event>

export interface Kernel extends AsyncDisposable {
  /** The agent API, without a path: `http://127.0.0.1:<port>`. */
  readonly baseUrl: string
  readonly internalUrl: string
  readonly observeUrl: string
  readonly dataDir: string
  readonly pid: number
  readonly process: ChildProcess
  /** What the process has printed so far, both streams. */
  output(): string
  /** SIGTERM, and the exit code. Throws when the process has not gone within 30 s. */
  stop(): Promise<number | null>
  /** SIGKILL. Resolves when the process is gone. */
  kill(): Promise<void>
  /** The whole event log after `since` (exclusive), in order. */
  events(since?: number): Promise<Event[]>
}

/**
 * Starts a kernel and waits until it answers. `settings` become its environment, over these
 * defaults: free ports on 127.0.0.1, a fresh data directory, warnings only, the cheapest bcrypt. A
 * data directory that is passed in is left alone at the end; one made here is removed. `under`: a
 * program, with its arguments, that runs it.
 */
export async function startKernel(
  settings: Readonly<Record<string, string>> = {},
  options: { dataDir?: string; under?: readonly string[] } = {},
): Promise<Kernel> {
  const givenDir = options.dataDir
  const temporaryDir = givenDir === undefined ? await freshDataDirectory() : undefined
  const ports = await reservePorts(3)
  const [port, internalPort, observePort] = ports as [number, number, number]
  const environment = {
    PATH: process.env.PATH ?? '',
    HOME: process.env.HOME ?? '',
    NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? '',
    // As `npm start` has it.
    MALLOC_ARENA_MAX: '2',
    HOST: '127.0.0.1',
    PORT: String(port),
    INTERNAL_PORT: String(internalPort),
    OBSERVE_PORT: String(observePort),
    DATA_DIR: givenDir ?? temporaryDir ?? '',
    LOG_LEVEL: 'warn',
    BCRYPT_COST: '4',
    ...settings,
  }
  // As `npm start` has it.
  const node = [process.execPath, '--max-semi-space-size=8']
  const [program = '', ...rest] = [...(options.under ?? []), ...node, MAIN, 'serve']
  const child = spawn(program, rest, {
    // Whatever works there is gone with it.
    cwd: environment.DATA_DIR,
    env: environment,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const running = track(child)
  const url = (number: string) => `http://127.0.0.1:${number}`
  const kernel: Kernel = {
    baseUrl: url(environment.PORT),
    internalUrl: url(environment.INTERNAL_PORT),
    observeUrl: url(environment.OBSERVE_PORT),
    dataDir: environment.DATA_DIR,
    pid: child.pid ?? -1,
    process: child,
    output: running.output,
    stop: () => running.end('SIGTERM'),
    kill: async () => void (await running.end('SIGKILL')),
    events: (since = 0) => readEvents(url(environment.INTERNAL_PORT), since),
    async [Symbol.asyncDispose]() {
      await running.end('SIGKILL')
      releasePorts(ports)
      if (temporaryDir !== undefined) await removeDirectory(temporaryDir)
    },
  }
  try {
    await healthy(kernel.baseUrl, running)
    return kernel
  } catch (error) {
    await kernel[Symbol.asyncDispose]()
    throw error
  }
}

/** A data directory that holds nothing yet; gone with this process at the latest. */
export async function freshDataDirectory(): Promise<string> {
  return makeDirectory('data')
}

interface Running {
  output(): string
  hasExited(): boolean
  /**
   * Sends the signal, unless the process is gone already, and resolves to its exit code (null when
   * a signal ended it).
   */
  end(signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null>
}

function track(child: ChildProcess): Running {
  let printed = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      printed = (printed + text).slice(-OUTPUT_LIMIT)
    })
  }
  const killWithTests = () => void child.kill('SIGKILL')
  process.once('exit', killWithTests)
  const gone = new Promise<number | null>((resolve) => {
    child.once('error', (error) => {
      printed += `${error}\n`
      resolve(null)
    })
    child.once('close', (code) => resolve(code))
  }).finally(() => process.off('exit', killWithTests))
  const hasExited = () =>
    child.pid === undefined || child.exitCode !== null || child.signalCode !== null
  return {
    output: () => printed,
    hasExited,
    async end(signal) {
      if (!hasExited()) child.kill(signal)
      const code = await Promise.race([
        gone,
        sleep(STOP_DEADLINE_MS, 'late' as const, { ref: false }),
      ])
      if (code !== 'late') return code
      child.kill('SIGKILL')
      await gone
      throw new Error(
        `The kernel was still running ${STOP_DEADLINE_MS} ms after ${signal}. It printed:\n${printed}`,
      )
    },
  }
}

async function healthy(baseUrl: string, running: Running): Promise<void> {
  const deadline = Date.now() + START_DEADLINE_MS
  while (Date.now() < deadline) {
    if (running.hasExited()) {
      await running.end('SIGKILL')
      throw new Error(`The kernel ended while starting. It printed:\n${running.output()}`)
    }
    const answer = await fetchText(`${baseUrl}/v1/health`, 1_000).catch(() => undefined)
    if (answer?.status === 200) return
    await sleep(25)
  }
  throw new Error(
    `The kernel was not healthy after ${START_DEADLINE_MS} ms. It printed:\n${running.output()}`,
  )
}

/**
 * The event log after `since` (exclusive), read page by page from the internal port of a process. A
 * page may hold fewer events than asked for, as large ones fill it sooner; an empty page is the
 * end.
 */
export async function readEvents(internalUrl: string, since: number): Promise<Event[]> {
  const events: Event[] = []
  for (let last = since; ; ) {
    const { status, text } = await fetchText(
      `${internalUrl}/events?since=${last}&limit=${EVENTS_PAGE}`,
      20_000,
    )
    if (status !== 200) throw new Error(`The event log answered ${status}: ${text}`)
    const page = text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => event.parse(JSON.parse(line)))
    events.push(...page)
    last = page.at(-1)?.seq ?? last
    if (page.length === 0) return events
  }
}

function fetchText(url: string, timeoutMs: number): Promise<{ status: number; text: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; text: string }>()
  const request = get(url, { agent: false, signal: AbortSignal.timeout(timeoutMs) }, (response) => {
    const chunks: Buffer[] = []
    response.on('data', (chunk: Buffer) => chunks.push(chunk))
    response.on('end', () =>
      resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() }),
    )
    response.on('error', reject)
  })
  request.on('error', reject)
  return promise
}
