import { execFile } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { DEPLOY, loopbackUrl } from './deploy.ts'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './directory.ts'
import { Process } from './process.ts'
import { findProgram } from './programs.ts'

const run = promisify(execFile)

const START_DEADLINE_MS = 60_000
const DATABASE = 'tabulum'
const PASSWORDS = {
  postgres: 'superuser-password',
  tabulum_owner: 'owner-password',
  tabulum: 'app-password',
  tabulum_observer: 'observer-password',
}

/** Small enough to run many at once. */
const SMALL = ['shared_buffers=32MB', 'max_wal_size=256MB']
/**
 * Tests survive the death of processes, not of the machine: what was written is safe with the
 * system without a flush.
 */
const FAST = ['fsync=off', 'full_page_writes=off']

/**
 * Says where data directories are that servers start with copies of: `preparePostgres` has made
 * them.
 */
const PREPARED = 'TABULUM_TEST_PREPARED_POSTGRES'

export interface PostgresDatabase extends AsyncDisposable {
  /** The kernel's schema is there, of this version. */
  readonly isMigrated: boolean
  readonly host: string
  readonly port: number
  /** As the role that owns the schema: for migrations. */
  readonly ownerUrl: string
  /** As the role of api nodes and workers. */
  readonly appUrl: string
  /** As the role of the observation service. */
  readonly observerUrl: string
  readonly superuserUrl: string
}

/** A database on a server of its own. */
export interface PostgresServer extends PostgresDatabase {
  readonly process: Process
  readonly dataDirectory: string
  /** Disconnects clients, writes everything down, ends. */
  stop(): Promise<void>
  /** SIGKILL to all its processes. */
  kill(): Promise<void>
  freeze(): Promise<void>
  thaw(): Promise<void>
  /** Stops it if it runs, and starts it on the same port and data. */
  restart(): Promise<void>
  /**
   * Gives the role of api nodes and workers another password, as an operator would, and disconnects
   * them; without one, the first. Resolves when the server asks for it.
   */
  setAppPassword(password?: string): Promise<void>
}

/**
 * Starts a Postgres of its own with the configuration and roles of deploy/. `durable` flushes to
 * disk as production does; `migrated`: with the kernel's schema, where that has been prepared.
 */
export async function startPostgres({
  durable = false,
  migrated = false,
  maxConnections,
}: {
  durable?: boolean
  migrated?: boolean
  /** More than production has, for one that many clusters share. */
  maxConnections?: number
} = {}): Promise<PostgresServer> {
  const prepared = process.env[PREPARED]
  if (migrated && prepared === undefined)
    throw new TypeError('no kernel schema was prepared: preparePostgres comes first')
  const kind = migrated ? 'migrated' : 'fresh'
  const directory = makeDirectory('postgres')
  const [port] = (await reservePorts(1)) as [number]
  const user = serverUser()
  const data = join(directory, 'data')
  const server = new Process({
    name: 'postgres',
    file: await findProgram('postgres'),
    args: [
      ...['-D', data],
      // Copied, since the user that it runs as may not be able to read the sources.
      ...settings([
        `config_file=${join(directory, 'postgresql.conf')}`,
        `hba_file=${join(directory, 'pg_hba.conf')}`,
      ]),
      ...settings([`port=${port}`, 'listen_addresses=127.0.0.1', 'unix_socket_directories=']),
      // In the data directory rather than in /dev/shm, where a killed server would leave it.
      ...settings(['dynamic_shared_memory_type=mmap', ...SMALL, ...(durable ? [] : FAST)]),
      ...settings(maxConnections === undefined ? [] : [`max_connections=${maxConnections}`]),
    ],
    env: { PATH: process.env.PATH ?? '', LC_ALL: 'C' },
    directory,
    user,
    // Fast shutdown; SIGTERM would wait for clients to leave.
    stopSignal: 'SIGINT',
  })
  const url = (name: keyof typeof PASSWORDS) =>
    loopbackUrl('postgres', name, PASSWORDS[name], port, DATABASE)
  const start = async () => {
    server.start()
    await server.ready(() => answers(url('postgres')), START_DEADLINE_MS)
  }
  const dispose = async () => {
    await removeDirectory(directory)
    releasePorts([port])
  }
  try {
    for (const file of ['postgresql.conf', 'pg_hba.conf']) {
      copyFileSync(join(DEPLOY, 'postgres', file), join(directory, file))
      chmodSync(join(directory, file), 0o644)
    }
    await run('cp', ['-a', prepared === undefined ? await template() : join(prepared, kind), data])
    await start()
  } catch (error) {
    await dispose()
    throw error
  }
  return {
    isMigrated: migrated && prepared !== undefined,
    host: '127.0.0.1',
    port,
    ownerUrl: url('tabulum_owner'),
    appUrl: url('tabulum'),
    observerUrl: url('tabulum_observer'),
    superuserUrl: url('postgres'),
    process: server,
    dataDirectory: data,
    stop: async () => void (await server.stop()),
    kill: () => server.kill(),
    freeze: () => server.freeze(),
    thaw: () => server.thaw(),
    async restart() {
      if (server.running) await server.stop()
      await start()
    },
    async setAppPassword(password = PASSWORDS.tabulum) {
      const sql = postgres(url('postgres'), { max: 1, onnotice: () => {} })
      try {
        await sql.unsafe(`alter role tabulum password '${password}'`)
        await sql`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tabulum'`
      } finally {
        await sql.end()
      }
      await server.ready(
        () => answers(loopbackUrl('postgres', 'tabulum', password, port, DATABASE)),
        START_DEADLINE_MS,
      )
    },
    [Symbol.asyncDispose]: dispose,
  }
}

/**
 * Makes a database like that of a migrated server, on such a server that several use. It is gone
 * when disposed of.
 */
export async function makeDatabase(
  { host, port }: { host: string; port: number },
  name: string,
): Promise<PostgresDatabase> {
  const url = (user: keyof typeof PASSWORDS, database = name) =>
    loopbackUrl('postgres', user, PASSWORDS[user], port, database)
  const administer = async (...statements: string[]) => {
    const sql = postgres(url('postgres', 'postgres'), { max: 1, onnotice: () => {} })
    try {
      for (const statement of statements) await sql.unsafe(statement)
    } finally {
      await sql.end()
    }
  }
  await administer(
    `create database ${name} template ${DATABASE} owner tabulum_owner`,
    // What belongs to a database itself is not copied: see deploy/postgres/init.
    `revoke all on database ${name} from public`,
    `grant connect, temporary on database ${name} to tabulum`,
    `grant connect on database ${name} to tabulum_observer`,
  )
  return {
    isMigrated: true,
    host,
    port,
    ownerUrl: url('tabulum_owner'),
    appUrl: url('tabulum'),
    observerUrl: url('tabulum_observer'),
    superuserUrl: url('postgres'),
    [Symbol.asyncDispose]: () => administer(`drop database ${name} with (force)`),
  }
}

/**
 * Makes the data directories that all servers of a test run start with copies of, below a directory
 * that lasts as long as this process; `migrate` is given the owner's url. From now on they are
 * used, in this process and those that it starts.
 */
export async function preparePostgres(migrate: (ownerUrl: string) => Promise<void>): Promise<void> {
  if (process.env[PREPARED] !== undefined) return
  const prepared = makeDirectory('postgres-prepared')
  await run('cp', ['-a', await template(), join(prepared, 'fresh')])
  await using server = await startPostgres()
  await migrate(server.ownerUrl)
  await server.stop()
  await run('cp', ['-a', server.dataDirectory, join(prepared, 'migrated')])
  process.env[PREPARED] = prepared
}

let made: Promise<string> | undefined

/**
 * A data directory as the postgres image makes it. Takes longer than to copy one: made once in this
 * process.
 */
function template(): Promise<string> {
  made ??= makeTemplate(serverUser())
  return made
}

/**
 * What the postgres image does at its first start: creates the cluster and the database, then runs
 * the init scripts.
 */
async function makeTemplate(user: User | undefined): Promise<string> {
  const directory = makeDirectory('postgres-template')
  const data = join(directory, 'data')
  const password = join(directory, 'password')
  const [port] = (await reservePorts(1)) as [number]
  mkdirSync(data, { mode: 0o700 })
  writeFileSync(password, PASSWORDS.postgres)
  if (user !== undefined)
    for (const path of [directory, data, password]) chownSync(path, user.uid, user.gid)
  const env = { PATH: process.env.PATH ?? '', LC_ALL: 'C' }
  const how = [
    '-U',
    'postgres',
    '--pwfile',
    password,
    '--auth=scram-sha-256',
    '--no-sync',
    '-E',
    'UTF8',
    '--locale=C',
  ]
  await run(await findProgram('initdb'), ['-D', data, ...how], { cwd: directory, env, ...user })

  const server = new Process({
    name: 'postgres (init)',
    file: await findProgram('postgres'),
    args: [
      '-D',
      data,
      ...settings([
        `port=${port}`,
        'listen_addresses=127.0.0.1',
        'unix_socket_directories=',
        ...FAST,
      ]),
    ],
    env,
    directory,
    user,
    stopSignal: 'SIGINT',
  })
  const url = (database: string) =>
    loopbackUrl('postgres', 'postgres', PASSWORDS.postgres, port, database)
  server.start()
  await server.ready(() => answers(url('postgres')), START_DEADLINE_MS)
  const psql = async (database: string, ...what: string[]) => {
    await run(
      await findProgram('psql'),
      ['--no-psqlrc', '--quiet', '--set', 'ON_ERROR_STOP=1', ...what, url(database)],
      {
        cwd: directory,
        env: {
          ...env,
          TABULUM_OWNER_PASSWORD: PASSWORDS.tabulum_owner,
          TABULUM_PASSWORD: PASSWORDS.tabulum,
          TABULUM_OBSERVER_PASSWORD: PASSWORDS.tabulum_observer,
        },
      },
    )
  }
  await psql('postgres', '--command', `CREATE DATABASE ${DATABASE}`)
  await psql(DATABASE, '--file', join(DEPLOY, 'postgres', 'init', '10-roles.sql'))
  await server.stop()
  releasePorts([port])
  return data
}

function settings(values: readonly string[]): string[] {
  return values.flatMap((value) => ['-c', value])
}

/** Whether it lets a client in and runs a query. */
async function answers(url: string): Promise<true> {
  const sql = postgres(url, { max: 1, connect_timeout: 10, onnotice: () => {} })
  try {
    await sql`SELECT 1`
    return true
  } finally {
    await sql.end({ timeout: 1 })
  }
}

type User = { readonly uid: number; readonly gid: number }

/** Postgres and PgBouncer refuse to run as root. The user that its package made, else nobody. */
export function serverUser(): User | undefined {
  if (process.getuid?.() !== 0) return undefined
  const lines = existsSync('/etc/passwd') ? readFileSync('/etc/passwd', 'utf8').split('\n') : []
  const fields = (
    lines.find((line) => line.startsWith('postgres:')) ?? 'nobody:x:65534:65534'
  ).split(':')
  return { uid: Number(fields[2]), gid: Number(fields[3]) }
}
