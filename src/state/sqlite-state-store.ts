/** The shared state in the embedded database. */
import type { EventOf } from '../events/event.ts'
import { sizeOf } from '../events/event.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import type { SqliteWriter } from '../platform/sqlite-writer.ts'
import { SqliteStateReader } from './sqlite-state-reader.ts'
import type { StateWrites } from './sqlite-state-writes.ts'
import { type StateStore, StoreFull, UnknownKey } from './state-store.ts'

export class SqliteStateStore extends SqliteStateReader implements StateStore {
  readonly #writer: Pick<SqliteWriter<StateWrites>, 'run'>

  /** @param reader another connection than the writer's */
  constructor(reader: Sqlite, writer: Pick<SqliteWriter<StateWrites>, 'run'>) {
    super(reader)
    this.#writer = writer
  }

  async write(event: EventOf<'state_written'>): Promise<void> {
    if ((await this.#writer.run('writeState', event, { bytes: sizeOf(event) })) === 'full')
      throw new StoreFull()
  }

  async delete(event: EventOf<'state_deleted'>): Promise<void> {
    if ((await this.#writer.run('deleteState', event)) === 'absent') throw new UnknownKey()
  }

  async close(): Promise<void> {}
}
