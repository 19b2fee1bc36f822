/** Sets up Postgres once for all tests on real servers, with the kernel's own `migrate`. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { preparePostgres } from '../../lab/servers/postgres.ts'

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'main.ts')
const MIGRATE_DEADLINE_MS = 60_000

/** For vitest's `globalSetup`, of any number of projects. */
export default async function setup(): Promise<void> {
  await preparePostgres(async (ownerUrl) => {
    const env = { PATH: process.env.PATH ?? '', DATABASE_URL: ownerUrl }
    await promisify(execFile)(process.execPath, [MAIN, 'migrate'], { env, timeout: MIGRATE_DEADLINE_MS })
  })
}
