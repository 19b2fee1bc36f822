/** What deliveries are signed and authorized with: made and given at registration, kept encrypted in the database. */
import { sql } from 'kysely'
import { type Database, roundTrip } from '../platform/database.ts'
import { createSecretBox, type SecretBox, SecretNotOpened } from './secret-box.ts'
import { newWebhookSecret } from './signature.ts'

/** What nobody but the receiver of an agent's webhook may know. */
export interface WebhookSecret {
  /** That deliveries are signed with, as `newWebhookSecret` made it. */
  readonly secret: string
  /** The `Authorization` that they are sent with, if the URL had a user and a password. */
  readonly authorization: string | undefined
}

/** Secrets that are sealed anew in one round trip. */
const PAGE = 500

export class WebhookSecrets {
  readonly #database: Database
  /** The first seals; the others open what was sealed before. */
  readonly #boxes: readonly SecretBox[]

  private constructor(database: Database, boxes: readonly SecretBox[]) {
    this.#database = database
    this.#boxes = boxes
  }

  /**
   * Seals under the first of `keys` (32 bytes each), or under one that the database itself keeps where there are none. What was sealed
   * under any of them, or under the database's own, opens.
   */
  static async load(database: Database, keys: readonly Uint8Array[]): Promise<WebhookSecrets> {
    const { key: shared } = await database
      .selectFrom('signing_keys')
      .select('key')
      .where('name', '=', 'webhook_secrets')
      .executeTakeFirstOrThrow()
    return new WebhookSecrets(
      database,
      [...keys, shared].map((key) => createSecretBox(key)),
    )
  }

  /** A new secret for the agent at `address`, to be shown once; and what is to be stored: that and the `authorization`, sealed. */
  create(address: string, authorization?: string): { secret: string; sealed: string } {
    const secret = newWebhookSecret()
    return { secret, sealed: this.#seal(write({ secret, authorization }), address) }
  }

  /** @throws SecretNotOpened */
  open(sealed: string, address: string): WebhookSecret {
    return read(this.#open(sealed, address).text)
  }

  /**
   * Seals all that is not sealed under the first key under that, so that the others can be thrown away. May be broken off and begun
   * again, and run in several processes at once. Returns how many it sealed, and how many it found that no key opens. Throws
   * `DatabaseUnavailable`.
   */
  async sealAnew(signal: AbortSignal): Promise<{ sealed: number; notOpened: number }> {
    const done = { sealed: 0, notOpened: 0 }
    let last: string | undefined = ''
    while (last !== undefined && !signal.aborted) {
      const page = await this.#page(last)
      last = page.at(-1)?.address
      const changes = page.flatMap(({ address, before }) => {
        try {
          const { text, isCurrent } = this.#open(before, address)
          return isCurrent ? [] : [{ address, before, after: this.#seal(text, address) }]
        } catch (error) {
          if (!(error instanceof SecretNotOpened)) throw error
          done.notOpened++
          return []
        }
      })
      if (changes.length > 0) done.sealed += await this.#change(changes)
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

  async #page(after: string): Promise<{ address: string; before: string }[]> {
    const { rows } = await roundTrip(this.#database, 'read_webhook_secrets', () =>
      sql<{ address: string; before: string }>`
        select address, webhook_secret as before from agents
        where address > ${after} and webhook_secret is not null order by address limit ${PAGE}`.execute(this.#database),
    )
    return rows
  }

  /** Where it is still what it was: another process may be at the same. */
  async #change(changes: readonly { address: string; before: string; after: string }[]): Promise<number> {
    const { numAffectedRows } = await roundTrip(this.#database, 'seal_webhook_secrets', () =>
      sql`
        update agents set webhook_secret = change.after
        from json_to_recordset(${JSON.stringify(changes)}::json) as change (address text, before text, after text)
        where agents.address = change.address and agents.webhook_secret = change.before`.execute(this.#database),
    )
    return Number(numAffectedRows ?? 0)
  }
}

/** The secret alone or, with a blank between, secret and authorization: a secret (base64) holds no blank. */
function write({ secret, authorization }: WebhookSecret): string {
  return authorization === undefined ? secret : `${secret} ${authorization}`
}

function read(text: string): WebhookSecret {
  const blank = text.indexOf(' ')
  if (blank === -1) return { secret: text, authorization: undefined }
  return { secret: text.slice(0, blank), authorization: text.slice(blank + 1) }
}
