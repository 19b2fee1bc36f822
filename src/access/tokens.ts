/** Tokens that operators and agents show, and the random names they get. */
import { hash, randomBytes, randomInt } from 'node:crypto'

export type Level = 'operator' | 'agent'

const PREFIX = { operator: 'sk_live_', agent: 'at_live_' } as const
const FORMAT = {
  operator: /^[Bb][Ee][Aa][Rr][Ee][Rr] +(sk_live_[0-9a-f]{64}) *$/,
  agent: /^[Bb][Ee][Aa][Rr][Ee][Rr] +(at_live_[0-9a-f]{64}) *$/,
} as const

/**
 * A token in the form it is looked up by; the token itself goes no further than the request that
 * shows it.
 */
export interface PresentedToken {
  level: Level
  /** The token itself: for the verifier alone. */
  secret: string
  /** First 8 bytes of the token's SHA-256: what the database finds candidates by. */
  readonly lookup: Buffer
  /** The whole SHA-256 in hex: what a session is known by. */
  digest: string
}

/** A new token of 256 random bits. */
export function newToken(level: Level): PresentedToken {
  return present(level, PREFIX[level] + randomBytes(32).toString('hex'))
}

/**
 * Reads an `Authorization` header. Undefined unless it is a well-formed bearer token of that level
 * (RFC 6750; the scheme in any case).
 */
export function parseAuthorization(
  header: string | undefined,
  level: Level,
): PresentedToken | undefined {
  const token = FORMAT[level].exec(header ?? '')?.[1]
  return token === undefined ? undefined : present(level, token)
}

function present(level: Level, secret: string): PresentedToken {
  const digest = hash('sha256', secret)
  return {
    level,
    secret,
    // Most tokens have a session, and need none.
    get lookup() {
      return Buffer.from(digest.slice(0, 16), 'hex')
    },
    digest,
  }
}

const ADDRESS_ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789'

/** Of an agent. */
export const ADDRESS = /^tab_[a-z0-9]{20}$/

/** `tab_` and 20 of [a-z0-9]: 103 random bits, so that two never meet. */
export function newAddress(): string {
  return `tab_${Array.from({ length: 20 }, () => ADDRESS_ALPHABET[randomInt(ADDRESS_ALPHABET.length)]).join('')}`
}
