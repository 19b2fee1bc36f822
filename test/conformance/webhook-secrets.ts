/**
 * The conformance suite of what webhook secrets are kept in: the ports `SealedSecrets` and
 * `SigningKeys`.
 */
import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import { CursorSeal } from '../../src/platform/cursor.ts'
import type { SigningKeys } from '../../src/platform/signing-keys.ts'
import type { RegistryStore } from '../../src/registry/registry-store.ts'
import { SecretNotOpened } from '../../src/webhooks/secret-box.ts'
import {
  type SealedSecret,
  type SealedSecrets,
  type WebhookSecret,
  WebhookSecrets,
} from '../../src/webhooks/webhook-secrets.ts'
import { newAgent } from './registry-store.ts'
import { inParallel } from './support.ts'

export interface SecretsHarness extends AsyncDisposable {
  /** Each as one process has it. */
  readonly processes: readonly [Parts, Parts]
  /** Of the same agents. */
  readonly registry: Pick<RegistryStore, 'registerAgent' | 'findAgent'>
}

interface Parts {
  readonly secrets: SealedSecrets
  readonly keys: SigningKeys
}

export function describeWebhookSecrets(name: string, create: () => Promise<SecretsHarness>): void {
  describe(`webhook secrets: ${name}`, () => {
    let harness: SecretsHarness
    let one: Parts
    let other: Parts
    beforeAll(async () => {
      harness = await create()
      ;[one, other] = harness.processes
    })
    afterAll(() => harness?.[Symbol.asyncDispose]())

    const address = newAddress()

    /** Registers an agent with what `seal` makes for it. */
    async function registerAgent(seal?: (address: string) => string): Promise<string> {
      const { address, secrets, event } = newAgent()
      const webhook = seal && { url: 'https://agent.example/', sealedSecret: seal(address) }
      await harness.registry.registerAgent({ ...secrets, webhook }, event)
      return address
    }

    /** All there are, page by page. */
    async function stored(limit = 200): Promise<SealedSecret[]> {
      const all: SealedSecret[] = []
      for (;;) {
        const page = await other.secrets.page(all.at(-1)?.address ?? '', limit)
        if (page.length === 0) return all
        all.push(...page)
      }
    }
    const storedByAddress = async () =>
      new Map((await stored()).map(({ address, sealed }) => [address, sealed]))

    it('the keys are of 32 bytes, one of each name, the same in every process', async () => {
      const [cursor, secret] = [
        await one.keys.signingKey('cursor'),
        await one.keys.signingKey('webhook_secrets'),
      ]
      expect([cursor.length, secret.length]).toEqual([32, 32])
      expect(cursor.equals(secret)).toBe(false)
      expect(cursor.equals(Buffer.alloc(32))).toBe(false)
      expect(await other.keys.signingKey('cursor')).toEqual(cursor)
      expect(await other.keys.signingKey('webhook_secrets')).toEqual(secret)
    })

    it('a cursor that one process sealed opens in another', async () => {
      const cursor = (await CursorSeal.load(one.keys)).seal('list', Buffer.from('here'))
      expect((await CursorSeal.load(other.keys)).open('list', cursor).toString()).toBe('here')
    })

    it('open in another process with the same key, or with none in either', async () => {
      for (const keys of [[], [randomBytes(32)]]) {
        const { secret, sealed } = (await WebhookSecrets.load(one, keys)).create(address)
        expect(secret).toMatch(/^whsec_/)
        expect(sealed).not.toContain(secret.slice('whsec_'.length))
        const opened = (await WebhookSecrets.load(other, keys)).open(sealed, address)
        expect(opened).toEqual({ secret, authorization: undefined })
      }
    })

    it('of the time before there was a key open with it', async () => {
      const { secret, sealed } = (await WebhookSecrets.load(one, [])).create(address)
      const opened = (await WebhookSecrets.load(one, [randomBytes(32)])).open(sealed, address)
      expect(opened).toEqual({ secret, authorization: undefined })
    })

    it('keep the authorization beside the secret, and do not show it', async () => {
      const secrets = await WebhookSecrets.load(one, [randomBytes(32)])
      const authorization = `Basic ${Buffer.from('user:a password').toString('base64')}`
      const { secret, sealed } = secrets.create(address, authorization)
      expect(sealed).not.toContain(authorization.slice('Basic '.length))
      expect(secrets.open(sealed, address)).toEqual({ secret, authorization })
    })

    it('do not open without their key, nor for another agent', async () => {
      const secrets = await WebhookSecrets.load(one, [randomBytes(32)])
      const { sealed } = secrets.create(address)
      const others = [
        await WebhookSecrets.load(one, []),
        await WebhookSecrets.load(one, [randomBytes(32)]),
      ]
      for (const other of others) expect(() => other.open(sealed, address)).toThrow(SecretNotOpened)
      expect(() => secrets.open(sealed, newAddress())).toThrow(SecretNotOpened)
    })

    it('come in pages by address, of agents with a webhook alone', async () => {
      const before = await stored()
      const [pulled, ...pushed] = [
        await registerAgent(),
        ...(await inParallel(7, () => registerAgent((agent) => `sealed of ${agent}`))),
      ]
      const expected = [
        ...before,
        ...pushed.map((address) => ({ address, sealed: `sealed of ${address}` })),
      ].toSorted((a, b) => (a.address < b.address ? -1 : 1))
      for (const limit of [1, 3, 7, 1_000]) expect(await stored(limit)).toEqual(expected)
      expect(expected.map(({ address }) => address)).not.toContain(pulled)
    })

    it('are changed where they are still what they were', async () => {
      const [changed, left] = [
        await registerAgent(() => 'before'),
        await registerAgent(() => 'another'),
      ]
      const changes = [changed, left, newAddress()].map((address) => ({
        address,
        before: 'before',
        after: 'after',
      }))
      expect(await one.secrets.change(changes)).toBe(1)
      const now = await storedByAddress()
      expect([now.get(changed), now.get(left)]).toEqual(['after', 'another'])
      expect((await harness.registry.findAgent(changed))?.hasWebhook).toBe(true)
    })

    it('change their key without a secret lost: the first seals, all open, and what is old is sealed anew', async () => {
      const [before, after] = [randomBytes(32), randomBytes(32)]
      const agents = new Map<string, WebhookSecret>()
      // So few that they are answered in time on a busy machine.
      const atOnce = 50
      const add = async (secrets: WebhookSecrets, count: number) => {
        for (let left = count; left > 0; left -= atOnce) {
          await inParallel(Math.min(left, atOnce), (index) =>
            registerAgent((agent) => {
              const authorization =
                index % 2 === 1 ? `Basic ${randomBytes(12).toString('base64')}` : undefined
              const { secret, sealed } = secrets.create(agent, authorization)
              agents.set(agent, { secret, authorization })
              return sealed
            }),
          )
        }
      }
      // Of no key that there is, those of the tests before among them.
      const strange = await WebhookSecrets.load(one, [randomBytes(32)])
      const foreign = await registerAgent((agent) => strange.create(agent).sealed)
      const notOpened = (await stored()).length
      await add(await WebhookSecrets.load(one, []), 2)
      await add(await WebhookSecrets.load(one, [before]), 600)
      const changing = await WebhookSecrets.load(one, [after, before])
      await add(changing, 2)
      await registerAgent()
      const old = await storedByAddress()
      for (const [agent, secret] of agents)
        expect(changing.open(old.get(agent) ?? '', agent)).toEqual(secret)

      expect(await changing.sealAnew(new AbortController().signal)).toEqual({
        sealed: 602,
        notOpened,
      })
      expect(await changing.sealAnew(new AbortController().signal)).toEqual({
        sealed: 0,
        notOpened,
      })
      const changed = await WebhookSecrets.load(other, [after])
      const now = await storedByAddress()
      for (const [agent, secret] of agents)
        expect(changed.open(now.get(agent) ?? '', agent)).toEqual(secret)
      expect(now.get(foreign)).toBe(old.get(foreign))
      const previous = await WebhookSecrets.load(one, [before])
      for (const agent of agents.keys())
        expect(() => previous.open(now.get(agent) ?? '', agent)).toThrow(SecretNotOpened)
    })
  })
}
