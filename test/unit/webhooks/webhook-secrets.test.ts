import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { newAddress } from '../../../src/access/tokens.ts'
import { type Database, openEmbedded } from '../../../src/platform/database.ts'
import { migrate } from '../../../src/platform/migrate.ts'
import { SecretNotOpened } from '../../../src/webhooks/secret-box.ts'
import { WebhookSecrets } from '../../../src/webhooks/webhook-secrets.ts'

let directory: string
let database: Database
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tabulum-test-'))
  database = await openEmbedded(directory)
  await migrate(database)
})
afterAll(async () => {
  await database.destroy()
  await rm(directory, { recursive: true, force: true })
})

describe('webhook secrets', () => {
  const address = newAddress()

  it('open in another process with the same key, or with none in either', async () => {
    for (const key of [undefined, randomBytes(32)]) {
      const { secret, sealed } = (await WebhookSecrets.load(database, key)).create(address)
      expect(secret).toMatch(/^whsec_/)
      expect(sealed).not.toContain(secret.slice('whsec_'.length))
      expect((await WebhookSecrets.load(database, key)).open(sealed, address)).toBe(secret)
    }
  })

  it('of the time before there was a key open with it', async () => {
    const { secret, sealed } = (await WebhookSecrets.load(database, undefined)).create(address)
    expect((await WebhookSecrets.load(database, randomBytes(32))).open(sealed, address)).toBe(secret)
  })

  it('do not open without their key, nor for another agent', async () => {
    const secrets = await WebhookSecrets.load(database, randomBytes(32))
    const { sealed } = secrets.create(address)
    const others = [
      await WebhookSecrets.load(database, undefined),
      await WebhookSecrets.load(database, randomBytes(32)),
    ]
    for (const other of others) expect(() => other.open(sealed, address)).toThrow(SecretNotOpened)
    expect(() => secrets.open(sealed, newAddress())).toThrow(SecretNotOpened)
  })
})
