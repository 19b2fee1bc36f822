/** Keys that the database made for itself, and that never leave it. All nodes share them. */

export type KeyName = 'cursor' | 'webhook_secrets'

export interface SigningKeys {
  /** 32 random bytes, always the same of one name. Throws `Unavailable`. */
  signingKey(name: KeyName): Promise<Buffer>
}
