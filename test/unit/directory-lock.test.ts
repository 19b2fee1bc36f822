import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { DirectoryInUse, lockDirectory } from '../../src/platform/directory-lock.ts'

let parent: string
beforeAll(async () => {
  parent = await mkdtemp(join(tmpdir(), 'tabulum-test-'))
})
afterAll(() => rm(parent, { recursive: true, force: true }))

/** A process that takes the lock, says so, and stays. */
async function holder(directory: string) {
  const module = new URL('../../src/platform/directory-lock.ts', import.meta.url).href
  const script = `const { lockDirectory } = await import(${JSON.stringify(module)})
    await lockDirectory(${JSON.stringify(directory)}); console.log('locked'); setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  expect(String((await once(child.stdout, 'data'))[0])).toBe('locked\n')
  return {
    async kill() {
      const closed = once(child, 'close')
      child.kill('SIGKILL')
      await closed
    },
  }
}

describe('lockDirectory', () => {
  it('creates the directory, for its owner alone', async () => {
    const directory = join(parent, 'a', 'b')
    const unlock = await lockDirectory(directory)
    expect((await stat(directory)).mode & 0o777).toBe(0o700)
    unlock()
  })

  it('refuses a second taker in the same process, until it is given back', async () => {
    const directory = join(parent, 'same')
    const unlock = await lockDirectory(directory)
    await expect(lockDirectory(directory)).rejects.toBeInstanceOf(DirectoryInUse)
    await expect(lockDirectory(directory)).rejects.toThrow(`${directory} is in use`)
    unlock()
    ;(await lockDirectory(directory))()
  })

  it('refuses another process’s, until that is killed', async () => {
    const directory = join(parent, 'other')
    const other = await holder(directory)
    await expect(lockDirectory(directory)).rejects.toBeInstanceOf(DirectoryInUse)
    await other.kill()
    ;(await lockDirectory(directory))()
  })

  it('does not mistake another failure for a taken lock', async () => {
    const directory = join(parent, 'broken')
    ;(await lockDirectory(directory))()
    await writeFile(join(directory, 'lock'), 'this is no SQLite database, and long enough to be looked at'.repeat(40))
    const error: unknown = await lockDirectory(directory).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(Error)
    expect(error).not.toBeInstanceOf(DirectoryInUse)
    await chmod(directory, 0o700)
  })
})
