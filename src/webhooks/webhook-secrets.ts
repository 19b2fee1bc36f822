/**
 * What deliveries are signed and authorized with: made and given at registration, kept encrypted in
 * the database.
 */
import type { SigningKeys } from '../platform/signing-keys.ts'
import { createSecretBox, type SecretBox, SecretNotOpened } from './secret-box.ts'
import { newWebhookSecret } from './signature.ts'

/** What nobody but the receiver of an agent's webhook may know. */
export interface WebhookSecret {
  /** That deliveries are signed with, as `newWebhookSecret` made it. */
  readonly secret: string
  /** The `Authorization` that they are sent with, if the URL had a user and a password. */
  readonly authorization: string | undefined
}

export interface SealedSecret {
  readonly address: string
  readonly sealed: string
}

export interface SecretChange {
  readonly address: string
  readonly before: string
  readonly after: string
}

/**
 * The port of the secrets that are stored, one of each agent that has a webhook. Throws
 * `Unavailable`.
 */
/** Any of its methods throws `Unavailable` where the store is out. */
export interface SealedSecrets {
  /**
   * A page of them, in order of the agents' addresses.
   *
   * @param after an address; the page begins behind it
   * @param limit secrets at most
   */
  page(after: string, limit: number): Promise<SealedSecret[]>

  /**
   * Changes each that is still what it was: another process may be at the same.
   *
   * @returns how many
   */
  change(changes: readonly SecretChange[]): Promise<number>
}

/** Secrets that are sealed anew in one round trip. */
const PAGE = 500

export class WebhookSecrets {
  readonly #secrets: SealedSecrets
  /** The first seals; the others open what was sealed before. */
  readonly #boxes: readonly SecretBox[]

  private constructor(secrets: SealedSecrets, boxes: readonly SecretBox[]) {
    this.#secrets = secrets
    this.#boxes = boxes
  }

  /**
   * Seals under the first of `sealingKeys` (32 bytes each), or under one that the database itself
   * keeps where there are none. What was sealed under any of them, or under the database's own,
   * opens.
   */
  static async load(
    { secrets, keys }: { secrets: SealedSecrets; keys: SigningKeys },
    sealingKeys: readonly Uint8Array[],
  ): Promise<WebhookSecrets> {
    const shared = await keys.signingKey('webhook_secrets')
    return new WebhookSecrets(
      secrets,
      [...sealingKeys, shared].map((key) => createSecretBox(key)),
    )
  }

  /**
   * A new secret for the agent at `address`, to be shown once; and what is to be stored: that and
   * the `authorization`, sealed.
   */
  create(address: string, authorization?: string): { secret: string; sealed: string } {
    const secret = newWebhookSecret()
    return { secret, sealed: this.#seal(write({ secret, authorization }), address) }
  }

  /** @throws SecretNotOpened */
  open(sealed: string, address: string): WebhookSecret {
    return read(this.#open(sealed, address).text)
  }

  /**
   * Seals all that is not sealed under the first key under that, so that the others can be thrown
   * away. May be broken off and begun again, and run in several processes at once. Returns how many
   * it sealed, and how many it found that no key opens. Throws `Unavailable`.
   */
  async sealAnew(signal: AbortSignal): Promise<{ sealed: number; notOpened: number }> {
    const done = { sealed: 0, notOpened: 0 }
    let last: string | undefined = ''
    while (last !== undefined && !signal.aborted) {
      const page = await this.#secrets.page(last, PAGE)
      last = page.at(-1)?.address
      const changes = page.flatMap(({ address, sealed: before }) => {
        try {
          const { text, isCurrent } = this.#open(before, address)
          return isCurrent ? [] : [{ address, before, after: this.#seal(text, address) }]
        } catch (error) {
          if (!(error instanceof SecretNotOpened)) throw error
          done.notOpened++
          return []
        }
      })
      if (changes.length > 0) done.sealed += await this.#secrets.change(changes)
    }
    return done
  }

  #seal(text: string, address: string): string {
    const [box] = this.#boxes
    if (box === undefined) throw new Error('there is always the key of the database')
    return box.seal(text, address)
  }

  #open(sealed: string, address: string): { text: string; isCurrent: boolean } {
    let failure: SecretNotOpened | undefined
    for (const [index, box] of this.#boxes.entries()) {
      try {
        return { text: box.open(sealed, address), isCurrent: index === 0 }
      } catch (error) {
        if (!(error instanceof SecretNotOpened)) throw error
        failure = error
      }
    }
    throw failure
  }
}

/**
 * The secret alone or, with a blank between, secret and authorization: a secret (base64) holds no
 * blank.
 */
function write({ secret, authorization }: WebhookSecret): string {
  return authorization === undefined ? secret : `${secret} ${authorization}`
}

function read(text: string): WebhookSecret {
  const blank = text.indexOf(' ')
  if (blank === -1) return { secret: text, authorization: undefined }
  return { secret: text.slice(0, blank), authorization: text.slice(blank + 1) }
}
