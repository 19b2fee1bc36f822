/** The embedded database with the kernel's schema, opened in the test process. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { freshDataDirectory } from '../../lab/kernel.ts'
import { openSqlite, type Sqlite } from '../../src/platform/sqlite.ts'
import { SqliteWriter } from '../../src/platform/sqlite-writer.ts'
import type { EmbeddedWriterOptions, EmbeddedWrites } from '../../src/storage/embedded-writer.ts'

const WRITER_THREAD = pathToFileURL(
  join(import.meta.dirname, '../../src/storage/embedded-writer.ts'),
)

export interface FreshSqlite extends AsyncDisposable {
  readonly file: string
  /** A connection that only reads. */
  readonly reader: Sqlite
  readonly writer: SqliteWriter<EmbeddedWrites>
}

/**
 * Opens one with nothing in it, with the thread that writes to it in `serve`; it is gone when
 * disposed of.
 */
export async function openFreshSqlite(
  options: Partial<Omit<EmbeddedWriterOptions, 'file'>> = {},
): Promise<FreshSqlite> {
  const directory = await freshDataDirectory()
  const file = join(directory, 'tabulum.sqlite')
  const data: EmbeddedWriterOptions = {
    capacityBytes: 1_000_000,
    maxQueue: 10_000,
    ...options,
    file,
  }
  // Each write says so from then on, which no test takes for a success.
  const onRuin = () => {}
  const writer = await SqliteWriter.open<EmbeddedWrites>({ thread: WRITER_THREAD, data, onRuin })
  const reader = openSqlite(file, { readOnly: true })
  return {
    file,
    reader,
    writer,
    async [Symbol.asyncDispose]() {
      await writer.close()
      reader.connection.close()
      await rm(directory, { recursive: true, force: true })
    },
  }
}
