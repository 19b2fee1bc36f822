/** Secrets and keys in Postgres: the suite of their ports. */
import { PostgresSigningKeys } from '../../src/platform/postgres-signing-keys.ts'
import { PostgresSealedSecrets } from '../../src/webhooks/postgres-sealed-secrets.ts'
import { describeWebhookSecrets } from '../conformance/webhook-secrets.ts'
import { openRegistry } from './support.ts'

describeWebhookSecrets('Postgres', async () => {
  const { database, store, [Symbol.asyncDispose]: dispose } = await openRegistry()
  const parts = () => ({
    secrets: new PostgresSealedSecrets(database),
    keys: new PostgresSigningKeys(database),
  })
  return { processes: [parts(), parts()], registry: store, [Symbol.asyncDispose]: dispose }
})
