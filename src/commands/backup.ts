/**
 * `backup`: a copy of the embedded database as it is at one moment, while a kernel may go on using
 * it.
 */
import { unlinkSync } from 'node:fs'
import { rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { type Config, ConfigError } from '../config.ts'
import { exists } from '../platform/directory-lock.ts'
import { flushFile } from '../platform/flush-file.ts'
import { StartupError } from '../platform/startup-error.ts'
import { readDatabase } from '../storage/embedded-database.ts'

export async function backup(config: Config, target: string | undefined): Promise<void> {
  if (config.cluster) {
    throw new ConfigError(
      'backup copies embedded storage; docs/deploying.md says how a cluster is backed up',
    )
  }
  if (target === undefined)
    throw new StartupError('backup takes the file, or the directory, to write the copy to')
  const file = (await isDirectory(target)) ? join(target, `tabulum-${timestamp()}.db`) : target
  if (await exists(file)) throw new StartupError(`${file} is there already: name another file`)
  const partial = `${file}.partial`
  process.once('exit', () => removeIfThere(partial))
  // The copy holds what tokens are checked with: it is for this user alone.
  process.umask(0o077)
  await readDatabase(config, async ({ connection }) => {
    try {
      await rm(partial, { force: true })
      connection.prepare('vacuum into ?').run(partial)
      await flushFile(partial)
      await rename(partial, file)
    } catch (error) {
      throw new StartupError(`no copy was made: ${error instanceof Error ? error.message : error}`)
    }
  })
  const { size } = await stat(file)
  console.log(`Copied ${config.DATA_DIR} to ${file}, ${size.toLocaleString('en')} bytes.`)
}

/** Never throws. */
function removeIfThere(file: string): void {
  try {
    unlinkSync(file)
  } catch {
    // It was renamed, or never made.
  }
}

/** Of now, as part of a file's name. */
function timestamp(): string {
  return new Date().toISOString().replaceAll(':', '-').slice(0, 'yyyy-mm-ddThh-mm-ss'.length)
}

async function isDirectory(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false
}
