import { execFile } from 'node:child_process'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { DEPLOY } from './deploy.ts'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './directory.ts'
import { Process } from './process.ts'
import { findProgram } from './programs.ts'

const run = promisify(execFile)

const START_DEADLINE_MS = 60_000
const RELOAD_DEADLINE_MS = 60_000
/** Of one that runs, on a machine that may be busy. */
const ANSWER_TIMEOUT_MS = 10_000
/** Several times what a reload takes. */
const RELOAD_RETRY_MS = 1_000

/** An api node, or a process of the observation service, as the load balancer sees it. */
export interface BackendNode {
  readonly host: string
  readonly port: number
  /** Where it answers /readyz. */
  readonly internalPort: number
}

export interface BackendStatus extends BackendNode {
  /** `UP`, `DOWN`, or either with its progress to the other, like `UP 1/2`. */
  readonly status: string
  /** Health checks that failed while it was in use, since HAProxy started. */
  readonly failedChecks: number
}

export interface HaproxyServer extends AsyncDisposable {
  readonly port: number
  readonly url: string
  /** For whoever watches. */
  readonly observePort: number
  readonly observeUrl: string
  /** Prometheus metrics. */
  readonly metricsUrl: string
  readonly process: Process
  /** How it finds its nodes at the moment. */
  nodes(): Promise<BackendStatus[]>
  /** The same of the observation service. */
  observers(): Promise<BackendStatus[]>
  /** Serves other nodes from now on, by a reload that loses no request. */
  setNodes(nodes: readonly BackendNode[]): Promise<void>
  /** Finishes its requests and ends. */
  stop(): Promise<void>
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  restart(): Promise<void>
}

export interface HaproxyOptions {
  /** One that nothing listens on; a free one unless given. */
  readonly port?: number
  readonly nodes: readonly BackendNode[]
  /** Processes of the observation service; none unless given. */
  readonly observers?: readonly BackendNode[]
  /** Variables of its environment beside the ports. */
  readonly settings?: Readonly<Record<string, string>>
  /** Makes another configuration of that in deploy/, as with times that a test can wait for. */
  readonly edit?: (configuration: string) => string
}

/**
 * Starts an HAProxy of its own with the configuration of deploy/ and the nodes that are given
 * instead of DNS.
 */
export async function startHaproxy(options: HaproxyOptions): Promise<HaproxyServer> {
  const { port: given, nodes: first, observers = [], settings = {}, edit } = options
  const directory = makeDirectory('haproxy')
  const reserved = await reservePorts(given === undefined ? 3 : 2)
  const [metricsPort, observePort, free] = reserved as [number, number, number | undefined]
  const port = given ?? (free as number)
  const configuration = edit
    ? editedConfiguration(directory, edit)
    : join(DEPLOY, 'haproxy', 'haproxy.cfg')
  const backend = join(directory, 'backend.cfg')
  const socket = join(directory, 'admin.sock')
  let nodes = first
  const configure = (wanted: readonly BackendNode[]) => {
    nodes = wanted
    writeFileSync(backend, backendConfiguration(wanted, observers, socket))
  }
  const server = new Process({
    name: 'haproxy',
    file: await findProgram('haproxy'),
    // Master and worker, in the foreground, as the image starts it.
    args: ['-W', '-db', '-f', configuration, '-f', backend],
    env: {
      ...settings,
      PORT: String(port),
      OBSERVE_PORT: String(observePort),
      HAPROXY_BIND: '127.0.0.1',
      HAPROXY_METRICS_PORT: String(metricsPort),
      HAPROXY_METRICS_BIND: '127.0.0.1',
    },
    directory,
    stopSignal: 'SIGUSR1',
  })
  const statusOf = async (
    proxy: string,
    members: readonly BackendNode[],
  ): Promise<BackendStatus[]> => {
    const rows = parseStatistics(await ask(socket, 'show stat'))
    return members.map((member, index) => {
      const row = rows.find(
        (candidate) => candidate.pxname === proxy && candidate.svname === `node-${index + 1}`,
      )
      return { ...member, status: row?.status ?? 'unknown', failedChecks: Number(row?.chkfail) }
    })
  }
  const status = () => statusOf('api', nodes)
  const metricsUrl = `http://127.0.0.1:${metricsPort}/metrics`
  const start = async () => {
    configure(nodes)
    server.start()
    await server.ready(
      async () => (await status()).every((node) => node.status !== 'unknown') || undefined,
      START_DEADLINE_MS,
    )
  }
  const dispose = async () => {
    await removeDirectory(directory)
    releasePorts(reserved)
  }
  try {
    await start()
  } catch (error) {
    await dispose()
    throw error
  }
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    observePort,
    observeUrl: `http://127.0.0.1:${observePort}`,
    metricsUrl,
    process: server,
    nodes: status,
    observers: () => statusOf('observe', observers),
    async setNodes(wanted) {
      configure(wanted)
      const before = await workerPid(socket)
      let asked = 0
      await server.ready(async () => {
        if ((await workerPid(socket)) === before) {
          // A master that has just started misses the signal.
          if (Date.now() - asked > RELOAD_RETRY_MS) {
            asked = Date.now()
            server.signal('SIGUSR2')
          }
          return undefined
        }
        return (await status()).every((node) => node.status !== 'unknown') || undefined
      }, RELOAD_DEADLINE_MS)
    },
    stop: async () => void (await server.stop()),
    kill: () => server.kill(),
    freeze: () => server.freeze(),
    thaw: () => server.thaw(),
    async restart() {
      if (server.running) await server.stop()
      await start()
    },
    [Symbol.asyncDispose]: dispose,
  }
}

/** The version of the program that `startHaproxy` starts, `[3, 2]` for 3.2.26. */
export async function haproxyVersion(): Promise<[major: number, minor: number]> {
  const { stdout } = await run(await findProgram('haproxy'), ['-v'])
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(stdout) ?? []
  if (major === undefined || minor === undefined)
    throw new Error(`HAProxy calls its version ${stdout}`)
  return [Number(major), Number(minor)]
}

/** The configuration of deploy/ otherwise, beside the errors that it names. */
function editedConfiguration(directory: string, edit: (configuration: string) => string): string {
  const configuration = join(directory, 'haproxy.cfg')
  writeFileSync(configuration, edit(readFileSync(join(DEPLOY, 'haproxy', 'haproxy.cfg'), 'utf8')))
  symlinkSync(join(DEPLOY, 'haproxy', 'errors'), join(directory, 'errors'))
  return configuration
}

/** In the place of backend-dns.cfg: nodes by address, and a socket to ask how they are. */
function backendConfiguration(
  nodes: readonly BackendNode[],
  observers: readonly BackendNode[],
  socket: string,
): string {
  const servers = (members: readonly BackendNode[]) =>
    members
      .map(
        ({ host, port, internalPort }, index) =>
          `  server node-${index + 1} ${host}:${port} port ${internalPort}\n`,
      )
      .join('')
  return [
    `global\n  stats socket ${socket} mode 600 level admin\n`,
    `backend api from agents\n${servers(nodes)}`,
    `backend observe from observers\n${servers(observers)}`,
  ].join('\n')
}

async function workerPid(socket: string): Promise<string> {
  const pid = /^Pid: (\d+)$/m.exec(await ask(socket, 'show info'))?.[1]
  if (pid === undefined) throw new Error('HAProxy did not say its pid')
  return pid
}

async function ask(path: string, command: string): Promise<string> {
  const connection = connect(path)
  connection.setTimeout(ANSWER_TIMEOUT_MS, () =>
    connection.destroy(new Error(`HAProxy did not answer «${command}»`)),
  )
  connection.end(`${command}\n`)
  return await text(connection)
}

/**
 * The CSV of `show stat`: a header line that starts with `# `, then a line for each frontend,
 * backend and server.
 */
function parseStatistics(csv: string): Record<string, string>[] {
  const [header = '', ...lines] = csv.split('\n').filter((line) => line !== '')
  const names = header.replace('# ', '').split(',')
  return lines.map((line) =>
    Object.fromEntries(line.split(',').map((value, index) => [names[index] ?? '', value])),
  )
}
