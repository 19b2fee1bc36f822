/** Programs of the bench that run in processes of their own, so that their CPU is theirs alone. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

export interface Program extends AsyncDisposable {
  readonly url: string
  readonly pid: number
}

/**
 * Starts a file of this directory, which prints its port on 127.0.0.1 when it listens. Throws when
 * it ends before.
 */
export async function startProgram(
  file: string,
  environment: Readonly<Record<string, string>> = {},
): Promise<Program> {
  const child = spawn(process.execPath, [join(import.meta.dirname, file)], {
    env: { PATH: process.env.PATH, ...environment },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`${file} ended with ${code}`)
  })
  const [port] = await Promise.race([once(child.stdout, 'data'), ended])
  ended.catch(() => {})
  if (child.pid === undefined) throw new Error(`${file} was not started`)
  return {
    url: `http://127.0.0.1:${String(port).trim()}`,
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM')
      await ended.catch(() => {})
    },
  }
}
