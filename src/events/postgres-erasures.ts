/** Erasures in a table of Postgres. */
import { type Database, roundTrip } from '../platform/database.ts'
import { Batch } from './batch.ts'
import type { Erasures } from './erasures.ts'

export class PostgresErasures implements Erasures {
  readonly #database: () => Promise<Database>

  /** @param database opened when a message is missing, which is hardly ever */
  constructor(database: () => Promise<Database>) {
    this.#database = database
  }

  async find(message: number): Promise<Batch | undefined> {
    const database = await this.#database()
    const row = await roundTrip(database, 'find_erasure', () =>
      database
        .selectFrom('erasures')
        .select('lines')
        .where('message', '=', message)
        .executeTakeFirst(),
    )
    return row && new Batch(message, Buffer.from(row.lines))
  }
}
