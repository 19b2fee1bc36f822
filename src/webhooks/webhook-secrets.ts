/** The secrets that deliveries are signed with: made at registration, kept encrypted in the database. */
import type { Database } from '../platform/database.ts'
import { createSecretBox, type SecretBox, SecretNotOpened } from './secret-box.ts'
import { newWebhookSecret } from './signature.ts'

export class WebhookSecrets {
  readonly #box: SecretBox
  readonly #earlierBox: SecretBox

  private constructor(box: SecretBox, earlierBox: SecretBox) {
    this.#box = box
    this.#earlierBox = earlierBox
  }

  /**
   * Seals under `key` (32 bytes), or under one that the database itself keeps where there is none. What was sealed before there was
   * a key opens still.
   */
  static async load(database: Database, key: Uint8Array | undefined): Promise<WebhookSecrets> {
    const { key: shared } = await database
      .selectFrom('signing_keys')
      .select('key')
      .where('name', '=', 'webhook_secrets')
      .executeTakeFirstOrThrow()
    const earlierBox = createSecretBox(shared)
    return new WebhookSecrets(key === undefined ? earlierBox : createSecretBox(key), earlierBox)
  }

  /** A new secret for the agent at `address`: to be shown once, and to be stored. */
  create(address: string): { secret: string; sealed: string } {
    const secret = newWebhookSecret()
    return { secret, sealed: this.#box.seal(secret, address) }
  }

  /** @throws SecretNotOpened */
  open(sealed: string, address: string): string {
    try {
      return this.#box.open(sealed, address)
    } catch (error) {
      if (!(error instanceof SecretNotOpened) || this.#box === this.#earlierBox) throw error
      return this.#earlierBox.open(sealed, address)
    }
  }
}
