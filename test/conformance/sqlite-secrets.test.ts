/** Secrets and keys in SQLite: the suite of their ports. */

import { openSqlite, type Sqlite } from '../../src/platform/sqlite.ts'
import { SqliteSigningKeys } from '../../src/platform/sqlite-signing-keys.ts'
import { SqliteRegistryStore } from '../../src/registry/sqlite-registry-store.ts'
import { SqliteSealedSecrets } from '../../src/webhooks/sqlite-sealed-secrets.ts'
import { openFreshSqlite } from '../support/embedded-database.ts'
import { describeWebhookSecrets } from './webhook-secrets.ts'

describeWebhookSecrets('SQLite', async () => {
  const { file, reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite()
  const another = openSqlite(file, { readOnly: true })
  const onConnection = (connection: Sqlite) => ({
    secrets: new SqliteSealedSecrets(connection, writer),
    keys: new SqliteSigningKeys(connection),
  })
  return {
    processes: [onConnection(reader), onConnection(another)],
    registry: new SqliteRegistryStore(reader, writer),
    async [Symbol.asyncDispose]() {
      another.connection.close()
      await dispose()
    },
  }
})
