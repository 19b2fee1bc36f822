/** The embedded database with the kernel's schema, opened in the test process. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type Database, openEmbedded } from '../../src/platform/database.ts'
import { migrate, POSTGRES } from '../../src/platform/migrate.ts'
import { freshDataDirectory } from './kernel.ts'

export interface EmbeddedDatabase extends AsyncDisposable {
  readonly database: Database
}

/** Opens one with nothing in it; it is gone when disposed of. */
export async function openFreshDatabase(): Promise<EmbeddedDatabase> {
  const directory = await freshDataDirectory()
  const database = await openEmbedded(join(directory, 'database'))
  await migrate(database, POSTGRES)
  return {
    database,
    async [Symbol.asyncDispose]() {
      await database.destroy()
      await rm(directory, { recursive: true, force: true })
    },
  }
}
