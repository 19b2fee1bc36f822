/**
 * Signatures that tell a receiver our deliveries from forgeries, as Standard Webhooks 1.0.0 has
 * them: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
 *
 * Receivers verify them with one of the public libraries; `examples/webhook-receiver.ts` shows it.
 */

import { createHmac, randomBytes as secureRandomBytes } from 'node:crypto'

/**
 * Bytes of a new secret: as many as HMAC-SHA-256 makes use of (RFC 2104 section 3). The
 * specification says 24 to 64.
 */
const SECRET_BYTES = 32
const MIN_SECRET_BYTES = 24
const MAX_SECRET_BYTES = 64
const SECRET_PREFIX = 'whsec_'

/** Makes a webhook secret: `whsec_` and 32 random bytes in base64. */
export function newWebhookSecret(
  randomBytes: (size: number) => Buffer = secureRandomBytes,
): string {
  return SECRET_PREFIX + randomBytes(SECRET_BYTES).toString('base64')
}

export interface SignedDelivery {
  /** As `newWebhookSecret` made it. */
  readonly secret: string
  /**
   * The same for every attempt at one message, so that the receiver can drop repeats: the message's
   * id. No dots.
   */
  readonly id: string
  /**
   * When this attempt is made, in ms since 1970. Receivers refuse what is more than some 5 minutes
   * off their clock.
   */
  readonly now: number
  /** The body exactly as it will be sent. */
  readonly body: string | Uint8Array
}

/** A type and not an interface, so that it is a record of headers too. */
export type SignatureHeaders = {
  readonly 'webhook-id': string
  /** In whole seconds since 1970. */
  readonly 'webhook-timestamp': string
  /** `v1,` and the HMAC-SHA-256 of `id.timestamp.body` in base64. */
  readonly 'webhook-signature': string
}

/**
 * The three headers that go with a delivery.
 *
 * @throws RangeError if the secret or the id has not the form it must have; the message does not
 *   hold it
 */
export function signatureHeaders({ secret, id, now, body }: SignedDelivery): SignatureHeaders {
  // What is signed is joined by dots, so an id with dots could be read as another id, time and
  // body.
  if (id === '' || id.includes('.'))
    throw new RangeError('a webhook id must not be empty or contain dots')
  const timestamp = String(Math.floor(now / 1_000))
  const mac = createHmac('sha256', keyOf(secret))
    .update(`${id}.${timestamp}.`)
    .update(body)
    .digest('base64')
  return { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': `v1,${mac}` }
}

function keyOf(secret: string): Buffer {
  const key = Buffer.from(secret.slice(SECRET_PREFIX.length), 'base64')
  if (
    !secret.startsWith(SECRET_PREFIX) ||
    key.length < MIN_SECRET_BYTES ||
    key.length > MAX_SECRET_BYTES
  ) {
    throw new RangeError(
      `a webhook secret is ${SECRET_PREFIX} and ${MIN_SECRET_BYTES} to ${MAX_SECRET_BYTES} bytes in base64`,
    )
  }
  return key
}
