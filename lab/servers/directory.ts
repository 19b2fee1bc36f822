/**
 * Directories of servers and the ports they use. Everything a test process starts works somewhere
 * below one directory, which a watchdog clears, processes and files, when the test process is gone
 * in whatever way.
 */
import { execFile, spawn } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readlinkSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

const REMOVE_SCRIPT = join(import.meta.dirname, 'remove.sh')
const REMOVE_DEADLINE_MS = 60_000

/**
 * Below the ports that the system gives to outgoing connections (from 32768), so none of those
 * takes one while a server is down.
 */
const FIRST_PORT = 15_000
const PORTS = 15_000
/** Holds one symbolic link for each port in use, to the directory of the process that uses it. */
const RESERVATIONS = join(tmpdir(), 'tabulum-test-ports')

let root: string | undefined
let directories = 0

/**
 * A new directory, gone with everything that works in it after `removeDirectory` or with this
 * process.
 */
export function makeDirectory(name: string): string {
  const directory = join(watchedRoot(), `${name}-${++directories}`)
  mkdirSync(directory, { mode: 0o711 })
  return directory
}

/** Kills what works in the directory and removes it. */
export async function removeDirectory(directory: string): Promise<void> {
  await run('sh', [REMOVE_SCRIPT, directory], { cwd: '/', timeout: REMOVE_DEADLINE_MS })
}

/**
 * So many ports that are free and that no other test process will take before this one is gone,
 * even while nothing listens on them: a server that was stopped can start on its own again.
 */
export async function reservePorts(count: number): Promise<number[]> {
  const owner = watchedRoot()
  const ports: number[] = []
  for (let attempt = 0; ports.length < count; attempt++) {
    if (attempt === 1_000)
      throw new Error(`Found only ${ports.length} free ports of the ${count} needed`)
    const port = FIRST_PORT + Math.floor(Math.random() * PORTS)
    if (!reserve(port, owner)) continue
    if (await isFree(port)) ports.push(port)
    else releasePorts([port])
  }
  return ports
}

export function releasePorts(ports: readonly number[]): void {
  for (const port of ports) unlinkSync(join(RESERVATIONS, String(port)))
}

function reserve(port: number, owner: string): boolean {
  const link = join(RESERVATIONS, String(port))
  try {
    mkdirSync(RESERVATIONS, { recursive: true })
    symlinkSync(owner, link)
    return true
  } catch {
    // Taken, or the watchdog of another process has just removed the empty directory: another port
    // will do.
    removeIfStale(link)
    return false
  }
}

/** A reservation whose owner is gone, of a machine that went down before the watchdog was done. */
function removeIfStale(link: string): void {
  try {
    if (!existsSync(readlinkSync(link))) unlinkSync(link)
  } catch {
    // Somebody else has removed it.
  }
}

function isFree(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const server = createServer()
  server.once('error', () => resolve(false))
  server.listen(port, () => server.close(() => resolve(true)))
  return promise
}

function watchedRoot(): string {
  if (root !== undefined) return root
  if (process.platform !== 'linux') throw new Error('The tests on real servers run on Linux only')
  root = mkdtempSync(join(tmpdir(), 'tabulum-servers-'))
  // Postgres runs as another user and must be able to reach its own directory.
  chmodSync(root, 0o711)
  const watchdog = spawn('sh', [REMOVE_SCRIPT, '--when-orphaned', root, RESERVATIONS], {
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  // It must not keep this process from ending. Its standard input ends when this process does.
  watchdog.unref()
  const input = watchdog.stdin as unknown as { unref?(): void }
  input.unref?.()
  return root
}
