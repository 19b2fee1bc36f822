import { type Database, roundTrip } from './database.ts'
import type { KeyName, SigningKeys } from './signing-keys.ts'

export class PostgresSigningKeys implements SigningKeys {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  async signingKey(name: KeyName): Promise<Buffer> {
    const { key } = await roundTrip(this.#database, 'signing_key', () =>
      this.#database
        .selectFrom('signing_keys')
        .select('key')
        .where('name', '=', name)
        .executeTakeFirstOrThrow(),
    )
    return key
  }
}
