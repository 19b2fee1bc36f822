/** A small disk that tests can fill up. `remove.sh` unmounts it with its directory. */
import { execFile } from 'node:child_process'
import { closeSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'

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
    await promisify(execFile)('mount', ['-t', 'tmpfs', '-o', `size=${sizeMiB}m`, 'tmpfs', directory])
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
