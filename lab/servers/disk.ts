/**
 * A disk of one server's own that tests can fill up. Mounted, it is a small one in memory, which
 * `remove.sh` unmounts with its directory. Where that is not allowed, or not wanted, the system's
 * limit on the size of files (setrlimit(2), RLIMIT_FSIZE) stands for it: no file can be written.
 */
import { execFile, execFileSync } from 'node:child_process'
import { closeSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Process } from './process.ts'

const PIECE = Buffer.alloc(1 << 20)

export interface Disk {
  /** Takes all the room that there is. */
  fill(): void
  /** Gives it back. */
  free(): void
}

/** Mounts a disk in memory over an empty directory; undefined where that is not allowed. */
export async function mountDisk(directory: string, sizeMiB: number): Promise<Disk | undefined> {
  try {
    await promisify(execFile)('mount', [
      '-t',
      'tmpfs',
      '-o',
      `size=${sizeMiB}m`,
      'tmpfs',
      directory,
    ])
  } catch {
    return undefined
  }
  const filler = join(directory, 'filler')
  return {
    fill() {
      const file = openSync(filler, 'w')
      try {
        for (;;) writeSync(file, PIECE)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
      } finally {
        closeSync(file)
      }
    },
    free: () => rmSync(filler, { force: true }),
  }
}

/**
 * What stands for a disk: how the server has to be started for it, and what fills it once the
 * process is known.
 */
export interface FileLimit {
  /** In front of its command line. */
  readonly command: readonly string[]
  diskOf(process: Process): Disk
}

/** `file` is to say what the limit is at the next start. */
export function limitFiles(file: string): FileLimit {
  writeFileSync(file, 'unlimited')
  return {
    command: ['sh', '-c', 'ulimit -S -f "$(cat "$0")" && exec "$@"', file],
    diskOf(process) {
      const set = (limit: '0' | 'unlimited') => {
        writeFileSync(file, limit)
        if (process.running)
          execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${limit}:`])
      }
      return { fill: () => set('0'), free: () => set('unlimited') }
    },
  }
}
