/**
 * One server or kernel process with everything it forks: started, stopped, killed, frozen and
 * started again.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const STOP_DEADLINE_MS = 35_000
const SIGNAL_DEADLINE_MS = 30_000
const POLL_MS = 10
/** Of what a process has printed, the last so many characters are kept. */
const OUTPUT_LIMIT = 1_000_000

export interface Command {
  /** For error messages. */
  readonly name: string
  readonly file: string
  readonly args: readonly string[]
  readonly env: Readonly<Record<string, string>>
  /** Of this process alone: by it those that it forks are recognised. */
  readonly directory: string
  /** User and group to run as; those of the tests unless given. */
  readonly user?: { readonly uid: number; readonly gid: number } | undefined
  /** What asks the program to finish what it is doing and end; SIGTERM unless given. */
  readonly stopSignal?: NodeJS.Signals
}

export class Process {
  readonly #command: Command
  #child: ChildProcess | undefined
  #exit: Promise<number | null> = Promise.resolve(null)
  #output = ''
  #frozen = false

  constructor(command: Command) {
    this.#command = command
  }

  /** Starts it, and leaves it to the caller to find out when it is ready. */
  start(): void {
    if (this.running) throw new Error(`${this.name} is running already`)
    const { file, args, env, directory, user } = this.#command
    const child = spawn(file, args, {
      cwd: directory,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...user,
    })
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.#output = (this.#output + text).slice(-OUTPUT_LIMIT)
      })
    }
    const { promise, resolve } = Promise.withResolvers<number | null>()
    child.once('error', (error) => {
      this.#output += `${error}\n`
      resolve(null)
    })
    child.once('exit', (code) => resolve(code))
    this.#child = child
    this.#exit = promise
    this.#frozen = false
  }

  get name(): string {
    return this.#command.name
  }

  get running(): boolean {
    const child = this.#child
    return child?.pid !== undefined && child.exitCode === null && child.signalCode === null
  }

  /** It has ended by itself, or by a signal other than those that end it on purpose. */
  get crashed(): boolean {
    const { exitCode = null, signalCode = null } = this.#child ?? {}
    return (
      (exitCode !== null && exitCode !== 0) ||
      (signalCode !== null && !/^SIG(TERM|KILL|INT)$/.test(signalCode))
    )
  }

  /** Between freeze and thaw. */
  get frozen(): boolean {
    return this.#frozen
  }

  get pid(): number {
    if (this.#child?.pid === undefined || !this.running)
      throw new Error(`${this.name} is not running`)
    return this.#child.pid
  }

  /** The process and all that it has forked. */
  pids(): number[] {
    return pidsIn(this.#command.directory)
  }

  /** What it has printed, both streams, over all its starts. */
  output(): string {
    return this.#output
  }

  /** Resolves when it ends, to its exit code (null when a signal ended it). */
  exited(): Promise<number | null> {
    return this.#exit
  }

  /**
   * Asks it to end and waits; resolves to the exit code. Throws when it has not gone within 35 s.
   */
  async stop(): Promise<number | null> {
    if (this.#frozen) await this.thaw()
    if (this.running) this.signal(this.#command.stopSignal ?? 'SIGTERM')
    const code = await Promise.race([
      this.#exit,
      sleep(STOP_DEADLINE_MS, 'late' as const, { ref: false }),
    ])
    if (code !== 'late') return code
    await this.kill()
    throw new Error(
      `${this.name} did not stop within ${STOP_DEADLINE_MS} ms. It printed:\n${this.#output}`,
    )
  }

  /** SIGKILL to the process and all that it has forked. Resolves when none is left. */
  async kill(): Promise<void> {
    await this.#until('killed', () => {
      const pids = this.pids()
      for (const pid of pids) send(pid, 'SIGKILL')
      return pids.length === 0
    })
    await this.#exit
    this.#frozen = false
  }

  /**
   * SIGSTOP to the process and all that it has forked: their connections stay open and nobody
   * answers.
   */
  async freeze(): Promise<void> {
    this.signal('SIGSTOP')
    this.#frozen = true
    // What it forked before it stopped is found in the next round.
    await this.#until('frozen', () => {
      const moving = this.pids().filter((pid) => !isStopped(pid))
      for (const pid of moving) send(pid, 'SIGSTOP')
      return moving.length === 0
    })
  }

  async thaw(): Promise<void> {
    await this.#until('thawed', () => {
      const stopped = this.pids().filter(isStopped)
      for (const pid of stopped) send(pid, 'SIGCONT')
      return stopped.length === 0
    })
    this.#frozen = false
  }

  /** A signal to the process alone. */
  signal(signal: NodeJS.Signals): void {
    send(this.pid, signal)
  }

  /**
   * Waits until `check` gives something other than undefined. Throws with what the process has
   * printed when it ends before, or when the deadline passes; errors of `check` mean not yet.
   */
  async ready<T>(check: () => Promise<T | undefined>, deadlineMs: number): Promise<T> {
    const deadline = Date.now() + deadlineMs
    for (let reason: unknown; ; ) {
      if (!this.running)
        throw new Error(`${this.name} ended while starting. It printed:\n${this.#output}`)
      try {
        const result = await check()
        if (result !== undefined) return result
      } catch (error) {
        reason = error
      }
      if (Date.now() > deadline) {
        throw new Error(
          `${this.name} was not ready after ${deadlineMs} ms (${reason}). It printed:\n${this.#output}`,
        )
      }
      await sleep(POLL_MS)
    }
  }

  async #until(what: string, done: () => boolean): Promise<void> {
    const deadline = Date.now() + SIGNAL_DEADLINE_MS
    while (!done()) {
      if (Date.now() > deadline)
        throw new Error(`${this.name} was not ${what} within ${SIGNAL_DEADLINE_MS} ms`)
      await sleep(POLL_MS)
    }
  }
}

/** The processes whose working directory is this one or below it. */
export function pidsIn(directory: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      const at = workingDirectory(pid)
      return at === directory || at?.startsWith(`${directory}/`)
    })
}

function workingDirectory(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/cwd`)
  } catch {
    return undefined
  }
}

/**
 * Whether it is stopped, by field 3 of /proc/<pid>/stat (proc(5)); the name before it may hold
 * anything, so count from its end.
 */
function isStopped(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return /^[TtZX]$/.test(stat.charAt(stat.lastIndexOf(')') + 2))
  } catch {
    return true
  }
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    // It has just ended.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
