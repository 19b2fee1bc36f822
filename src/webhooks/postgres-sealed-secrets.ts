/** The sealed secrets of webhooks in Postgres, each in its agent's row. */
import { sql } from 'kysely'
import { type Database, roundTrip } from '../platform/database.ts'
import type { SealedSecret, SealedSecrets, SecretChange } from './webhook-secrets.ts'

export class PostgresSealedSecrets implements SealedSecrets {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  async page(after: string, limit: number): Promise<SealedSecret[]> {
    const { rows } = await roundTrip(this.#database, 'read_webhook_secrets', () =>
      sql<SealedSecret>`
        select address, webhook_secret as sealed from agents
        where address > ${after} and webhook_secret is not null order by address limit ${limit}`.execute(
        this.#database,
      ),
    )
    return rows
  }

  async change(changes: readonly SecretChange[]): Promise<number> {
    const { numAffectedRows } = await roundTrip(this.#database, 'seal_webhook_secrets', () =>
      sql`
        update agents set webhook_secret = change.after
        from json_to_recordset(${JSON.stringify(changes)}::json) as change (address text, before text, after text)
        where agents.address = change.address and agents.webhook_secret = change.before`.execute(
        this.#database,
      ),
    )
    return Number(numAffectedRows ?? 0)
  }
}
