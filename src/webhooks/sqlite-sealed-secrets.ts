/** The sealed secrets of webhooks in the embedded database, each in its agent's row. */
import type { Sqlite } from '../platform/sqlite.ts'
import type { SqliteWriter } from '../platform/sqlite-writer.ts'
import type { SealedSecret, SealedSecrets, SecretChange } from './webhook-secrets.ts'

export function secretWrites({ sql }: Sqlite) {
  return {
    changeSecrets(changes: readonly SecretChange[]): number {
      return changes.reduce((count, { address, before, after }) => {
        const { changes: rows } = sql.run`
          update agents set webhook_secret = ${after} where address = ${address} and webhook_secret = ${before}`
        return count + Number(rows)
      }, 0)
    },
  }
}
export type SecretWrites = ReturnType<typeof secretWrites>

export class SqliteSealedSecrets implements SealedSecrets {
  readonly #sql: Sqlite['sql']
  readonly #writer: Pick<SqliteWriter<SecretWrites>, 'run'>

  /** @param reader another connection than the writer's */
  constructor(reader: Sqlite, writer: Pick<SqliteWriter<SecretWrites>, 'run'>) {
    this.#sql = reader.sql
    this.#writer = writer
  }

  async page(after: string, limit: number): Promise<SealedSecret[]> {
    const rows = this.#sql.all`
      select address, webhook_secret as sealed from agents
      where address > ${after} and webhook_secret is not null order by address limit ${limit}`
    return rows as unknown as SealedSecret[]
  }

  change(changes: readonly SecretChange[]): Promise<number> {
    return this.#writer.run('changeSecrets', changes)
  }
}
