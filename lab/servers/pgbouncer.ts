import { chmodSync, chownSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import postgres from 'postgres'
import { makeDirectory, releasePorts, removeDirectory, reservePorts } from './directory.ts'
import { type PostgresServer, serverUser } from './postgres.ts'
import { Process } from './process.ts'
import { findProgram } from './programs.ts'

const START_DEADLINE_MS = 10_000
/**
 * Fewer than the clients want, so that they share connections and find what another has left
 * behind.
 */
const SERVER_CONNECTIONS = 8

export interface PgBouncer extends AsyncDisposable {
  /** The same database and role as the server's `appUrl`, through the pooler. */
  readonly appUrl: string
  readonly process: Process
}

/** Starts PgBouncer in transaction mode before a Postgres. */
export async function startPgBouncer(
  server: Pick<PostgresServer, 'host' | 'port' | 'appUrl'>,
): Promise<PgBouncer> {
  const directory = makeDirectory('pgbouncer')
  const [port] = (await reservePorts(1)) as [number]
  const user = serverUser()
  const upstream = new URL(server.appUrl)
  const file = (name: string, text: string) => {
    const path = join(directory, name)
    writeFileSync(path, text)
    chmodSync(path, 0o600)
    if (user) chownSync(path, user.uid, user.gid)
    return path
  }
  const users = file('users.txt', `"${upstream.username}" "${upstream.password}"\n`)
  const config = file(
    'pgbouncer.ini',
    `[databases]
* = host=${server.host} port=${server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${users}
pool_mode = transaction
default_pool_size = ${SERVER_CONNECTIONS}
max_client_conn = 500
`,
  )
  const pooler = new Process({
    name: 'pgbouncer',
    file: await findProgram('pgbouncer'),
    args: [config],
    env: { PATH: process.env.PATH ?? '' },
    directory,
    user,
    stopSignal: 'SIGINT',
  })
  const url = new URL(server.appUrl)
  url.port = String(port)
  const dispose = async () => {
    await removeDirectory(directory)
    releasePorts([port])
  }
  try {
    pooler.start()
    await pooler.ready(async () => {
      const sql = postgres(url.href, {
        max: 1,
        connect_timeout: 2,
        prepare: false,
        onnotice: () => {},
      })
      try {
        await sql`SELECT 1`
        return true
      } finally {
        await sql.end({ timeout: 1 })
      }
    }, START_DEADLINE_MS)
  } catch (error) {
    await dispose()
    throw error
  }
  return { appUrl: url.href, process: pooler, [Symbol.asyncDispose]: dispose }
}
