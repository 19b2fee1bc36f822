/**
 * Finds the servers' programs. On Debian as root a missing one is installed first; elsewhere the
 * error says what to install.
 */
import { execFile } from 'node:child_process'
import { accessSync, constants, existsSync, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Downloads included. Another test process may be installing before this one. */
const INSTALL_DEADLINE_MS = 600_000
/** Only root installs, so only root needs to write there. */
const INSTALL_LOCK = '/run/lock/tabulum-test-install'

/** Each program, and the Debian package that has it. */
const PACKAGES = {
  postgres: 'postgresql',
  initdb: 'postgresql',
  psql: 'postgresql',
  pg_dump: 'postgresql',
  pg_restore: 'postgresql',
  pgbouncer: 'pgbouncer',
  'redis-server': 'redis-server',
  'nats-server': 'nats-server',
  haproxy: 'haproxy',
  promtool: 'prometheus',
  kubectl: 'kubernetes-client',
  strace: 'strace',
  chromium: 'chromium',
} as const

export type Program = keyof typeof PACKAGES

const found = new Map<Program, Promise<string>>()

/**
 * The path of a program: what an environment variable like `NATS_SERVER_BIN` or `HAPROXY_BIN` says;
 * else the distribution's, which is what continuous integration has; else the first on PATH.
 */
export function findProgram(program: Program): Promise<string> {
  let path = found.get(program)
  if (path === undefined) {
    path = find(program)
    found.set(program, path)
  }
  return path
}

/** Finds all of them. Throws one error that says of each that is missing what to install. */
export async function findAllPrograms(): Promise<void> {
  const missing: string[] = []
  // One after the other: installing is.
  for (const program of Object.keys(PACKAGES) as Program[]) {
    await findProgram(program).catch((error: Error) => missing.push(error.message))
  }
  if (missing.length > 0) throw new Error(missing.join('\n'))
}

/** Of each program its name and its version, like `nats-server 2.9.10`. */
export function versionsOf(programs: readonly Program[]): Promise<string[]> {
  return Promise.all(
    programs.map(async (program) => {
      // HAProxy alone has no long form.
      const { stdout } = await run(await findProgram(program), [
        program === 'haproxy' ? '-v' : '--version',
      ])
      return `${program} ${/\d+\.\d+(\.\d+)*/.exec(stdout)?.[0] ?? stdout.trim()}`
    }),
  )
}

async function find(program: Program): Promise<string> {
  const variable = `${program.toUpperCase().replaceAll('-', '_')}_BIN`
  const chosen = process.env[variable]
  if (chosen !== undefined) {
    if (!isProgram(chosen)) throw new Error(`${variable}=${chosen}: there is no such program`)
    return chosen
  }
  const there = lookUp(program)
  if (there !== undefined) return there

  const name = PACKAGES[program]
  const advice = `The tests need ${program}, which is not installed. Install it (Debian, Ubuntu: apt-get install ${name}) or set ${variable} to its path.`
  if (process.getuid?.() !== 0 || !existsSync('/usr/bin/apt-get')) throw new Error(advice)
  await install(name, advice)
  const installed = lookUp(program)
  if (installed === undefined)
    throw new Error(`The package ${name} was installed, but has no ${program}. ${advice}`)
  return installed
}

function lookUp(program: Program): string | undefined {
  return [
    ...postgresDirectories(),
    '/usr/bin',
    '/usr/sbin',
    ...(process.env.PATH ?? '').split(delimiter),
  ]
    .map((directory) => join(directory, program))
    .find(isProgram)
}

/**
 * What `POSTGRES_BIN_DIR` says; Debian keeps the programs of each version apart and off PATH: the
 * newest first.
 */
function postgresDirectories(): string[] {
  const chosen = process.env.POSTGRES_BIN_DIR
  if (chosen !== undefined) return [chosen]
  const root = '/usr/lib/postgresql'
  if (!existsSync(root)) return []
  return readdirSync(root)
    .sort((a, b) => Number(b) - Number(a))
    .map((version) => join(root, version, 'bin'))
}

async function install(name: string, advice: string): Promise<void> {
  const script = join(import.meta.dirname, 'install.sh')
  try {
    await run('flock', [INSTALL_LOCK, 'sh', script, name], {
      timeout: INSTALL_DEADLINE_MS,
      maxBuffer: 16 * 1024 * 1024,
    })
  } catch (error) {
    throw new Error(`${advice} Installing it was tried: ${error}`, { cause: error })
  }
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
