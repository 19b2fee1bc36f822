import { execFile } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { type ConnectionOptions, connect } from 'nats'
import { z } from 'zod'
import { DEPLOY, loopbackUrl } from './deploy.ts'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './directory.ts'
import { type Disk, limitFiles, mountDisk } from './disk.ts'
import { installNc } from './nc.ts'
import { Process } from './process.ts'
import { findProgram } from './programs.ts'

const run = promisify(execFile)

/**
 * Raft waits up to 9 s before it holds another election (nats-server, maxElectionTimeout), and the
 * machine may be busy.
 */
const START_DEADLINE_MS = 90_000
const REQUEST_TIMEOUT_MS = 2_000
/** Waited for the answers of all servers to one question. */
const GATHER_MS = 1_000
const PASSWORDS = {
  kernel: 'kernelPassword',
  observer: 'observerPassword',
  admin: 'adminPassword',
  system: 'systemPassword',
  route: 'routePassword',
}

export interface NatsServer {
  /** As the cluster knows it, and as `leader()` and `streamLeader()` name it. */
  readonly name: string
  readonly port: number
  readonly process: Process
  /** Where it keeps what it stores. */
  readonly directory: string
  /** Of its own, where one was asked for. */
  readonly disk: Disk | undefined
  stop(): Promise<void>
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  /**
   * Of a server that is stopped: flips one bit of the first message whose stored form holds `text`,
   * so that its checksum is wrong. Throws where there is none.
   */
  damage(text: string): void
  /** Of a server that is stopped: removes all that it has stored. */
  wipe(): void
  /**
   * Stops it if it runs, and starts it on the same ports and data. Resolves when it is in the
   * cluster again and has caught up.
   */
  restart(): Promise<void>
}

/** A log's place: an account with JetStream on three servers. */
export interface NatsAccount extends AsyncDisposable {
  /** Comma-separated, each as the user of the kernel. */
  readonly url: string
  readonly observerUrl: string
  readonly adminUrl: string
  /** Of the program that runs, like `2.9.10`. */
  readonly version: string
}

/** The one account on servers of its own. */
export interface NatsCluster extends NatsAccount {
  readonly servers: readonly NatsServer[]
  readonly systemUrl: string
  /** The server that leads JetStream, or undefined while none does. */
  leader(): Promise<NatsServer | undefined>
  /** The server that leads a stream, or undefined while none does. */
  streamLeader(stream: string): Promise<NatsServer | undefined>
  /** Asks whoever leads a stream to hand over, until this server does. */
  makeLeader(stream: string, server: NatsServer): Promise<void>
  stop(): Promise<void>
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  restart(): Promise<void>
  /**
   * Gives the kernel's user another password on all servers, as an operator would; without one, the
   * first. Resolves when they ask for it.
   */
  setKernelPassword(password?: string): Promise<void>
}

export interface NatsOptions {
  /** Default 3. */
  readonly servers?: number
  /**
   * Of a disk for each server, in memory, in MiB: see `disk.ts`. 0: one that is not mounted.
   * Without it none can be filled.
   */
  readonly diskMiB?: number | undefined
  /**
   * Run by `deploy/nats/start.sh`, which ends a server that only another start can mend; nobody
   * starts it again.
   */
  readonly watched?: boolean
  /** So many accounts more, each like the one of the kernel: see `numberedAccount`. */
  readonly accounts?: number
}

/** Starts a NATS cluster of its own with the configuration of deploy/. */
export async function startNats({
  servers: count = 3,
  diskMiB,
  watched = false,
  accounts = 0,
}: NatsOptions = {}): Promise<NatsCluster> {
  const directory = makeDirectory('nats')
  const ports = await reservePorts(count * 3)
  const file = await findProgram('nats-server')
  const version = await versionOf(file)
  // Port 0 of each server is for clients, 1 for the other servers, 2 for monitoring.
  const portOf = (server: number, which: 0 | 1 | 2) => ports[server * 3 + which] as number
  const numbers = Array.from({ length: count }, (_, index) => index)
  const url = (
    user: Exclude<keyof typeof PASSWORDS, 'route'>,
    members: readonly number[] = numbers,
  ) =>
    members.map((number) => loopbackUrl('nats', user, PASSWORDS[user], portOf(number, 0))).join(',')
  const routes = numbers.map((number) =>
    loopbackUrl('nats', 'route', PASSWORDS.route, portOf(number, 1)),
  )
  const homes = numbers.map((number) => join(directory, `nats-${number + 1}`))
  for (const home of homes) mkdirSync(home)
  const mounted = await Promise.all(
    homes.map((home) => (diskMiB ? mountDisk(home, diskMiB) : undefined)),
  )
  // A copy, in which a password can be changed.
  const configuration = join(directory, 'configuration')
  cpSync(join(DEPLOY, 'nats'), configuration, { recursive: true })
  writeFileSync(join(configuration, 'common.conf'), withAccounts(accounts))
  installNc(directory)
  const limits = homes.map((home, number) => {
    return diskMiB === undefined || mounted[number] ? undefined : limitFiles(`${home}.limit`)
  })
  const processes = homes.map((home, number) => {
    const [program = '', ...args] = [
      ...(limits[number]?.command ?? []),
      ...(watched ? ['sh', join(DEPLOY, 'nats', 'start.sh')] : []),
      file,
      '--config',
      join(configuration, isBefore(version, 2, 10) ? 'nats-2.9.conf' : 'nats.conf'),
    ]
    return new Process({
      name: `nats-${number + 1}`,
      file: program,
      args,
      env: {
        PATH: `${directory}:${process.env.PATH}`,
        NATS_WATCH_SECONDS: '0.5',
        NATS_SERVER_NAME: `nats-${number + 1}`,
        NATS_HOST: '127.0.0.1',
        NATS_PORT: String(portOf(number, 0)),
        NATS_CLUSTER_PORT: String(portOf(number, 1)),
        NATS_MONITOR_PORT: String(portOf(number, 2)),
        NATS_ROUTES: JSON.stringify(routes),
        NATS_STORE_DIR: home,
        NATS_MAX_FILE_STORE: '4GB',
        NATS_ROUTE_PASSWORD: PASSWORDS.route,
        NATS_KERNEL_PASSWORD: PASSWORDS.kernel,
        NATS_ADMIN_PASSWORD: PASSWORDS.admin,
        NATS_OBSERVER_PASSWORD: PASSWORDS.observer,
        NATS_SYSTEM_PASSWORD: PASSWORDS.system,
      },
      directory: home,
    })
  })

  /** Of the servers that answer, who leads JetStream and which members it counts as present. */
  const gather = async (expected: number) => {
    const connection = await connect(natsOptions(url('system')))
    try {
      const answers = await connection.requestMany('$SYS.REQ.SERVER.PING.JSZ', undefined, {
        maxMessages: expected,
        maxWait: GATHER_MS,
      })
      const states: z.infer<typeof jetStreamState>[] = []
      for await (const answer of answers) states.push(jetStreamState.parse(answer.json()))
      return states
    } finally {
      await connection.close()
    }
  }
  const named = (name: string | undefined) => members.find((member) => member.name === name)
  const leader = async () => {
    const states = await gather(processes.filter((server) => server.running).length)
    return named(
      states
        .map((state) => state.data?.meta_cluster?.leader)
        .find((name) => name !== undefined && name !== ''),
    )
  }

  /**
   * That a leader counts every running server in and up to date, and that the server itself serves
   * the kernel's account.
   */
  const whole = async (number: number): Promise<true | undefined> => {
    const running = processes.filter((server) => server.running).length
    const leading = (await gather(running)).find(
      (state) => state.data?.meta_cluster?.replicas !== undefined,
    )
    const followers = leading?.data?.meta_cluster?.replicas ?? []
    const current = followers.filter(
      (follower) => follower.current === true && follower.offline !== true,
    )
    if (leading === undefined || current.length < running - 1) return undefined
    const connection = await connect(natsOptions(url('kernel', [number])))
    try {
      await connection.jetstreamManager({ checkAPI: true, timeout: REQUEST_TIMEOUT_MS })
      return true
    } finally {
      await connection.close()
    }
  }
  const ready = (number: number) =>
    (processes[number] as Process).ready(() => whole(number), START_DEADLINE_MS)
  const members = processes.map((server, number): NatsServer => {
    return {
      name: server.name,
      port: portOf(number, 0),
      process: server,
      directory: homes[number] as string,
      disk: mounted[number] ?? limits[number]?.diskOf(server),
      stop: async () => void (await server.stop()),
      kill: () => server.kill(),
      freeze: () => server.freeze(),
      thaw: () => server.thaw(),
      damage: (text) => flipBit(homes[number] as string, text),
      wipe: () => rmSync(join(homes[number] as string, 'jetstream'), { recursive: true }),
      async restart() {
        if (server.running) await server.stop()
        server.start()
        await ready(number)
      },
    }
  })
  const streamLeader = async (stream: string) => {
    const connection = await connect(natsOptions(url('kernel')))
    try {
      const manager = await connection.jetstreamManager({
        checkAPI: false,
        timeout: REQUEST_TIMEOUT_MS,
      })
      return named((await manager.streams.info(stream)).cluster?.leader)
    } finally {
      await connection.close()
    }
  }
  const all = async (act: (server: Process) => Promise<unknown>) =>
    void (await Promise.all(processes.map(act)))
  const start = async () => {
    for (const server of processes) server.start()
    await Promise.all(numbers.map(ready))
  }
  const dispose = async () => {
    await removeDirectory(directory)
    releasePorts(ports)
  }
  try {
    await start()
  } catch (error) {
    await dispose()
    throw error
  }
  return {
    servers: members,
    url: url('kernel'),
    observerUrl: url('observer'),
    adminUrl: url('admin'),
    systemUrl: url('system'),
    version,
    leader,
    streamLeader,
    async makeLeader(stream, server) {
      const stepDown = async () => {
        const connection = await connect(natsOptions(url('admin')))
        try {
          // Servers before 2.11 know nothing of a wish, and elect whom they like.
          const wish = { placement: { preferred: server.name } }
          const body = isBefore(version, 2, 11) ? '' : JSON.stringify(wish)
          await connection.request(`$JS.API.STREAM.LEADER.STEPDOWN.${stream}`, body, {
            timeout: REQUEST_TIMEOUT_MS,
          })
        } finally {
          await connection.close()
        }
      }
      await server.process.ready(async () => {
        const leading = await streamLeader(stream)
        if (leading === server) return true
        if (leading !== undefined) await stepDown()
        return undefined
      }, START_DEADLINE_MS)
    },
    stop: () => all((server) => server.stop()),
    kill: () => all((server) => server.kill()),
    freeze: () => all((server) => server.freeze()),
    thaw: () => all((server) => server.thaw()),
    async setKernelPassword(password = PASSWORDS.kernel) {
      const text = withAccounts(accounts)
      writeFileSync(
        join(configuration, 'common.conf'),
        text.replace('$NATS_KERNEL_PASSWORD', password),
      )
      for (const server of processes) server.signal('SIGHUP')
      for (const number of numbers) {
        const server = loopbackUrl('nats', 'kernel', password, portOf(number, 0))
        await (processes[number] as Process).ready(async () => {
          await (await connect(natsOptions(server))).close()
          return true
        }, START_DEADLINE_MS)
      }
      // What docs/guarantees.md says of NATS 2.9: at a reload it forgets what is subscribed to on
      // other servers.
      if (isBefore(version, 2, 10) && password === PASSWORDS.kernel) {
        for (const member of members) await member.restart()
      }
    },
    async restart() {
      await all(async (server) => (server.running ? server.stop() : null))
      await start()
    },
    [Symbol.asyncDispose]: dispose,
  }
}

/** The configuration in deploy/, with so many accounts more. */
function withAccounts(count: number): string {
  const text = readFileSync(join(DEPLOY, 'nats', 'common.conf'), 'utf8')
  const [begin, end] = [text.indexOf('  TABULUM {'), text.indexOf('  SYSTEM {')]
  if (begin < 0 || end < begin)
    throw new Error('deploy/nats/common.conf: where is the account TABULUM?')
  const more = Array.from({ length: count }, (_, index) =>
    text
      .slice(begin, end)
      .replaceAll(/\b(TABULUM|OBSERVERS)\b/g, `$1_${index + 1}`)
      .replaceAll(/\buser: (kernel|admin|observer)\b/g, `user: $1_${index + 1}`),
  )
  return text.slice(0, end) + more.join('') + text.slice(end)
}

/**
 * One of the accounts of servers that several use, by its number from 1. Its log is gone when
 * disposed of.
 */
export function numberedAccount(
  { ports, version }: { ports: readonly number[]; version: string },
  number: number,
): NatsAccount {
  const url = (user: 'kernel' | 'observer' | 'admin') =>
    ports.map((port) => loopbackUrl('nats', `${user}_${number}`, PASSWORDS[user], port)).join(',')
  return {
    url: url('kernel'),
    observerUrl: url('observer'),
    adminUrl: url('admin'),
    version,
    async [Symbol.asyncDispose]() {
      const connection = await connect(natsOptions(url('admin')))
      try {
        const { streams } = await connection.jetstreamManager({ timeout: START_DEADLINE_MS })
        for await (const { config } of streams.list()) await streams.delete(config.name)
      } finally {
        await connection.close()
      }
    },
  }
}

/**
 * Options for the client from a comma-separated list of servers whose user and password it does not
 * read by itself.
 */
export function natsOptions(urls: string): ConnectionOptions {
  const servers = urls.split(',').map((url) => new URL(url))
  const [first] = servers
  if (first === undefined) throw new Error('No NATS server given')
  return {
    servers: servers.map((server) => server.host),
    user: first.username,
    pass: first.password,
    timeout: REQUEST_TIMEOUT_MS,
    reconnect: false,
    // The servers that tests reach through a proxy would otherwise tell clients the way around it.
    ignoreClusterUpdates: true,
  }
}

/** In one of the block files below a directory. */
function flipBit(home: string, text: string): void {
  // Raft has blocks of its own, which hold what is yet to be stored.
  const blocks = readdirSync(home, { recursive: true, encoding: 'utf8' }).filter((file) =>
    /\/streams\/EVENTS\/msgs\/\d+\.blk$/.test(file),
  )
  for (const block of blocks) {
    const path = join(home, block)
    const bytes = readFileSync(path)
    const at = bytes.indexOf(text)
    if (at < 0) continue
    bytes[at] = (bytes[at] as number) ^ 1
    writeFileSync(path, bytes)
    return
  }
  throw new Error(`no block of ${home} holds ${text}`)
}

/**
 * The newest server on PATH, where `go install` puts one, or where the distribution does: what is
 * deployed, for those who measure. What `NATS_SERVER_BIN` says goes first. Installs one where there
 * is none, as `findProgram`.
 */
export async function newestNatsServer(): Promise<{
  file: string
  version: string
  flushes: string
}> {
  const chosen = process.env.NATS_SERVER_BIN
  const directories = [
    '/usr/sbin',
    ...(process.env.PATH ?? '').split(delimiter),
    join(homedir(), 'go/bin'),
  ]
  const there = directories.map((directory) => join(directory, 'nats-server')).filter(existsSync)
  const files =
    chosen || there.length === 0 ? [await findProgram('nats-server')] : [...new Set(there)]
  const found = await Promise.all(
    files.map(async (file) => ({ file, version: await versionOf(file) })),
  )
  const [newest] = found.toSorted((one, other) =>
    other.version.localeCompare(one.version, 'en', { numeric: true }),
  )
  if (newest === undefined) throw new Error('there is no nats-server')
  const flushes = isBefore(newest.version, 2, 10) ? 'every two minutes' : 'always'
  return { ...newest, flushes }
}

async function versionOf(file: string): Promise<string> {
  const { stdout } = await run(file, ['--version'])
  const version = /v(\d+\.\d+\.\d+)/.exec(stdout)?.[1]
  if (version === undefined) throw new Error(`${file} --version said ${stdout}`)
  return version
}

function isBefore(version: string, major: number, minor: number): boolean {
  const [ours = 0, its = 0] = version.split('.').map(Number)
  return ours < major || (ours === major && its < minor)
}

/**
 * An answer to `$SYS.REQ.SERVER.PING.JSZ`, the parts that are read. Only the leader lists the
 * others.
 */
const jetStreamState = z.object({
  data: z
    .object({
      meta_cluster: z
        .object({
          leader: z.string().optional(),
          replicas: z
            .array(
              z.object({
                name: z.string(),
                current: z.boolean().optional(),
                offline: z.boolean().optional(),
              }),
            )
            .optional(),
        })
        .optional(),
    })
    .optional(),
})
