import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { DirectoryInUse, lockDirectory } from '../../src/platform/directory-lock.ts'
import { StartupError } from '../../src/platform/startup-error.ts'

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
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
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

  it('says of a damaged lock what to do, and does not take it for one that is taken', async () => {
    const directory = join(parent, 'broken')
    ;(await lockDirectory(directory))()
    await writeFile(
      join(directory, 'lock'),
      'this is no SQLite database, and long enough to be looked at'.repeat(40),
    )
    await expectNotUsable(directory, /lock is damaged.*remove it while no kernel runs/)
  })

  it('says why there cannot be such a directory, at once', async () => {
    await writeFile(join(parent, 'file'), '')
    await mkdir(join(parent, 'strange', 'lock'), { recursive: true })
    await expectNotUsable(join(parent, 'file'), /EEXIST/)
    await expectNotUsable(join(parent, 'file', 'below'), /ENOTDIR/)
    await expectNotUsable(join(parent, 'strange'), /unable to open database file/)
    await expectNotUsable('/proc/nope', /ENOENT/)
    await expectNotUsable('/proc/nope/below', /ENOENT/)
    await expectNotUsable('/proc', /unable to open database file|ENOENT|EACCES/)
  })

  it('says that it is another’s, or full', async () => {
    const others = join(parent, 'others')
    await mkdir(others, { mode: 0o700 })
    await chmod(parent, 0o755)
    expect(await asNobody(others)).toMatch(/^StartupError cannot keep data in .*others \(EACCES/)
    const limited = join(parent, 'full')
    expect(await withFileSizeLimit(limited)).toMatch(
      /^StartupError cannot keep data in .*full \(EFBIG/,
    )
    // The lock is given back.
    ;(await lockDirectory(limited))()
    expect(await readdir(limited)).toEqual(['lock'])
  })

  async function expectNotUsable(directory: string, cause: RegExp) {
    const error: unknown = await lockDirectory(directory).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(StartupError)
    expect(String(error)).toContain(directory)
    expect(String(error)).toMatch(cause)
  }
})

const MODULE = new URL('../../src/platform/directory-lock.ts', import.meta.url).href

/** What another process says of taking the lock, having first run `before`. */
async function said(directory: string, before: string, shell = 'exec "$0" "$@"'): Promise<string> {
  const script = `const { lockDirectory } = await import(${JSON.stringify(MODULE)}); ${before}
    await lockDirectory(${JSON.stringify(directory)}).then(() => console.log('locked'), (e) => console.log(e.name, e.message))`
  const args = ['-c', shell, process.execPath, '--input-type=module', '-e', script]
  const child = spawn('/bin/sh', args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let out = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text
  })
  await once(child, 'close')
  return out
}

/** Where the tests run as root, which may write anywhere, the process becomes nobody first. */
function asNobody(directory: string): Promise<string> {
  if (process.getuid?.() === 0)
    return said(directory, 'process.setgid(65534); process.setuid(65534)')
  return said(directory, `(await import('node:fs')).chmodSync(${JSON.stringify(directory)}, 0)`)
}

/** A limit on the size of files (100 KiB) stands in for a disk that is full. */
function withFileSizeLimit(directory: string): Promise<string> {
  return said(directory, '', 'trap \'\' XFSZ; ulimit -f 200; exec "$0" "$@"')
}
