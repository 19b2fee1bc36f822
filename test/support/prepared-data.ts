/** Sets up the embedded database once for all tests that start on a fresh one: a copy takes a fraction of the time. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startKernel } from './kernel.ts'

/** For vitest's `globalSetup`: makes the directory, and returns what removes it when all tests are done. The environment says where it is. */
export default async function setup(): Promise<(() => Promise<void>) | undefined> {
  if (process.env.TABULUM_TEST_PREPARED_DATA !== undefined) return
  const directory = await mkdtemp(join(tmpdir(), 'tabulum-test-prepared-'))
  await using kernel = await startKernel({}, { dataDir: directory })
  await kernel.stop()
  process.env.TABULUM_TEST_PREPARED_DATA = directory
  return () => rm(directory, { recursive: true, force: true })
}
