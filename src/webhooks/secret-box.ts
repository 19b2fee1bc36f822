/**
 * Webhook secrets at rest: AES-256-GCM (NIST SP 800-38D) under one key of the cluster's.
 *
 * A sealed secret is `v1.` and, in base64url, nonce (12 bytes), ciphertext, tag (16 bytes). The
 * agent's address is authenticated with it, so a sealed secret copied to another agent's row does
 * not open there. Nonces are random: one key is good for 2^32 secrets (SP 800-38D section 8.3), far
 * more than there will be agents.
 */

import { createCipheriv, createDecipheriv, randomBytes as secureRandomBytes } from 'node:crypto'

/** Bytes of the key. */
export const SECRET_BOX_KEY_BYTES = 32

const VERSION = 'v1'
const CIPHER = 'aes-256-gcm'
const NONCE_BYTES = 12
const TAG_BYTES = 16

/**
 * What should be a sealed secret does not open: a wrong key, another agent's, altered, or of a
 * version not known here.
 */
export class SecretNotOpened extends Error {
  override readonly name = 'SecretNotOpened'
}

export interface SecretBox {
  /** Encrypts `secret` for the agent at `address`. No two results are equal. */
  seal(secret: string, address: string): string
  /** @throws SecretNotOpened, which says nothing of the contents */
  open(sealed: string, address: string): string
}

/**
 * @param key 32 random bytes
 * @param randomBytes for nonces; fix it in tests only: a nonce used twice gives both secrets away
 * @throws RangeError if the key has another length
 */
export function createSecretBox(
  key: Uint8Array,
  randomBytes: (size: number) => Uint8Array = secureRandomBytes,
): SecretBox {
  if (key.length !== SECRET_BOX_KEY_BYTES) {
    throw new RangeError(
      `the key for webhook secrets is ${key.length} bytes; it must be ${SECRET_BOX_KEY_BYTES}`,
    )
  }
  return {
    seal(secret, address) {
      const nonce = randomBytes(NONCE_BYTES)
      const cipher = createCipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES }).setAAD(
        associatedData(address),
      )
      const parts = [nonce, cipher.update(secret, 'utf8'), cipher.final(), cipher.getAuthTag()]
      return `${VERSION}.${Buffer.concat(parts).toString('base64url')}`
    },

    open(sealed, address) {
      const [version, payload = '', ...rest] = sealed.split('.')
      if (version !== VERSION || rest.length > 0)
        throw new SecretNotOpened('not a sealed webhook secret of version 1')
      const bytes = Buffer.from(payload, 'base64url')
      if (bytes.length < NONCE_BYTES + TAG_BYTES)
        throw new SecretNotOpened('a sealed webhook secret is cut short')
      const tagAt = bytes.length - TAG_BYTES
      try {
        const decipher = createDecipheriv(CIPHER, key, bytes.subarray(0, NONCE_BYTES), {
          authTagLength: TAG_BYTES,
        })
          .setAAD(associatedData(address))
          .setAuthTag(bytes.subarray(tagAt))
        return Buffer.concat([
          decipher.update(bytes.subarray(NONCE_BYTES, tagAt)),
          decipher.final(),
        ]).toString('utf8')
      } catch (cause) {
        throw new SecretNotOpened(
          'a webhook secret does not open: wrong key, wrong agent, or altered',
          { cause },
        )
      }
    },
  }
}

/**
 * Names the use too, so that nothing else sealed under the same key could be passed off as a
 * webhook secret.
 */
function associatedData(address: string): Buffer {
  return Buffer.from(`webhook-secret.${VERSION}.${address}`)
}
