import type { KeyName, SigningKeys } from './signing-keys.ts'
import type { Sqlite } from './sqlite.ts'

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
