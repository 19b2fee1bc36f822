/** Keys that the database made for itself, and that never leave it. All nodes share them. */
import { type Database, roundTrip } from './database.ts'
import type { Sqlite } from './sqlite.ts'

export type KeyName = 'cursor' | 'webhook_secrets'

export interface SigningKeys {
  /** 32 random bytes, always the same of one name. Throws `Unavailable`. */
  signingKey(name: KeyName): Promise<Buffer>
}

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

export class SqliteSigningKeys implements SigningKeys {
  readonly #sql: Sqlite['sql']

  constructor({ sql }: Sqlite) {
    this.#sql = sql
  }

  async signingKey(name: KeyName): Promise<Buffer> {
    const row = this.#sql.get`select key from signing_keys where name = ${name}`
    return Buffer.from(row?.key as Uint8Array)
  }
}
