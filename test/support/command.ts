/** Runs the program's commands as operators do, each in a process of its own. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'main.ts')

export interface Ended {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

/** Starts `command` on the data directory. It is gone with the test at the latest. */
export function startCommand(dataDir: string, args: readonly string[]) {
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: {
      PATH: process.env.PATH,
      NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE,
      HOST: '127.0.0.1',
      PORT: '0',
      INTERNAL_PORT: '0',
      OBSERVE_PORT: '0',
      DATA_DIR: dataDir,
      LOG_LEVEL: 'warn',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  let out = ''
  let err = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text
  })
  const ended: Promise<Ended> = once(child, 'close').then(([code]) => ({
    code: code as number | null,
    out,
    err,
  }))
  return {
    child,
    ended,
    /**
     * Resolves with what `find` finds in what was printed so far, as soon as that is not undefined.
     */
    async printed<T>(find: (out: string) => T | undefined): Promise<T> {
      for (;;) {
        const found = find(out)
        if (found !== undefined) return found
        const event = await Promise.race([once(child.stdout, 'data'), ended])
        if ('code' in event) throw new Error(`ended with ${event.code}: ${event.err}`)
      }
    },
  }
}

/** Runs a command to its end. */
export const runCommand = (dataDir: string, ...args: readonly string[]): Promise<Ended> =>
  startCommand(dataDir, args).ended
