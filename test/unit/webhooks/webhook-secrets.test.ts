import { randomBytes, randomUUID } from 'node:crypto'
import { afterAll, describe, expect, it } from 'vitest'
import { newAddress } from '../../../src/access/tokens.ts'
import { SecretNotOpened } from '../../../src/webhooks/secret-box.ts'
import { type WebhookSecret, WebhookSecrets } from '../../../src/webhooks/webhook-secrets.ts'
import { openFreshDatabase } from '../../support/embedded-database.ts'

const fresh = await openFreshDatabase()
const { database } = fresh
afterAll(() => fresh[Symbol.asyncDispose]())

describe('webhook secrets', () => {
  const address = newAddress()

  it('open in another process with the same key, or with none in either', async () => {
    for (const keys of [[], [randomBytes(32)]]) {
      const { secret, sealed } = (await WebhookSecrets.load(database, keys)).create(address)
      expect(secret).toMatch(/^whsec_/)
      expect(sealed).not.toContain(secret.slice('whsec_'.length))
      expect((await WebhookSecrets.load(database, keys)).open(sealed, address)).toEqual({
        secret,
        authorization: undefined,
      })
    }
  })

  it('of the time before there was a key open with it', async () => {
    const { secret, sealed } = (await WebhookSecrets.load(database, [])).create(address)
    expect((await WebhookSecrets.load(database, [randomBytes(32)])).open(sealed, address)).toEqual({
      secret,
      authorization: undefined,
    })
  })

  it('keep the authorization beside the secret, and do not show it', async () => {
    const secrets = await WebhookSecrets.load(database, [randomBytes(32)])
    const authorization = `Basic ${Buffer.from('user:a password').toString('base64')}`
    const { secret, sealed } = secrets.create(address, authorization)
    expect(sealed).not.toContain(authorization.slice('Basic '.length))
    expect(secrets.open(sealed, address)).toEqual({ secret, authorization })
  })

  it('do not open without their key, nor for another agent', async () => {
    const secrets = await WebhookSecrets.load(database, [randomBytes(32)])
    const { sealed } = secrets.create(address)
    const others = [await WebhookSecrets.load(database, []), await WebhookSecrets.load(database, [randomBytes(32)])]
    for (const other of others) expect(() => other.open(sealed, address)).toThrow(SecretNotOpened)
    expect(() => secrets.open(sealed, newAddress())).toThrow(SecretNotOpened)
  })

  it('change their key without a secret lost: the first seals, all open, and what is old is sealed anew', async () => {
    const [before, after] = [randomBytes(32), randomBytes(32)]
    const agents = new Map<string, WebhookSecret>()
    const add = async (secrets: WebhookSecrets, count: number) => {
      for (let index = 0; index < count; index++) {
        const agent = newAddress()
        const authorization = index % 2 === 1 ? `Basic ${randomBytes(12).toString('base64')}` : undefined
        const { secret, sealed } = secrets.create(agent, authorization)
        agents.set(agent, { secret, authorization })
        await insertAgent(agent, sealed)
      }
    }
    await add(await WebhookSecrets.load(database, []), 2)
    await add(await WebhookSecrets.load(database, [before]), 600)
    const changing = await WebhookSecrets.load(database, [after, before])
    await add(changing, 2)
    // Of no key that there is.
    const foreign = newAddress()
    await insertAgent(foreign, (await WebhookSecrets.load(database, [randomBytes(32)])).create(foreign).sealed)
    await insertAgent(newAddress(), null)
    const old = await stored()
    for (const [agent, secret] of agents) expect(changing.open(old.get(agent) ?? '', agent)).toEqual(secret)

    expect(await changing.sealAnew(new AbortController().signal)).toEqual({ sealed: 602, notOpened: 1 })
    expect(await changing.sealAnew(new AbortController().signal)).toEqual({ sealed: 0, notOpened: 1 })
    const changed = await WebhookSecrets.load(database, [after])
    const now = await stored()
    for (const [agent, secret] of agents) expect(changed.open(now.get(agent) ?? '', agent)).toEqual(secret)
    expect(now.get(foreign)).toBe(old.get(foreign))
    const previous = await WebhookSecrets.load(database, [before])
    for (const agent of agents.keys()) expect(() => previous.open(now.get(agent) ?? '', agent)).toThrow(SecretNotOpened)
  })

  async function insertAgent(agent: string, sealed: string | null): Promise<void> {
    await database
      .insertInto('agents')
      .values({
        address: agent,
        operator_id: randomUUID(),
        token_lookup: randomBytes(8),
        token_hash: '',
        webhook_url: null,
        webhook_secret: sealed,
        seq: null,
        registered_at: null,
        revoked_at: null,
      })
      .execute()
  }

  async function stored(): Promise<Map<string, string>> {
    const rows = await database.selectFrom('agents').select(['address', 'webhook_secret']).execute()
    return new Map(rows.map((row) => [row.address, row.webhook_secret ?? '']))
  }
})
