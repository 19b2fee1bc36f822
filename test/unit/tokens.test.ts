import { createHash } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { newAddress, newToken, parseAuthorization } from '../../src/access/tokens.ts'

const PREFIX = { agent: 'at_live_', operator: 'sk_live_' } as const

describe.each(['agent', 'operator'] as const)('a token of an %s', (level) => {
  it('has its prefix and 256 random bits in hex', () => {
    const secrets = Array.from({ length: 500 }, () => newToken(level).secret)
    for (const secret of secrets)
      expect(secret).toMatch(new RegExp(`^${PREFIX[level]}[0-9a-f]{64}$`))
    expect(new Set(secrets).size).toBe(500)
    // Each of the 64 digits varies.
    for (let index = 0; index < 64; index++) {
      expect(new Set(secrets.map((secret) => secret[8 + index])).size).toBe(16)
    }
  })

  it('is looked up by the first 8 bytes of its SHA-256 and known by the whole', () => {
    const token = newToken(level)
    const hash = createHash('sha256').update(token.secret).digest()
    expect(token).toMatchObject({ level, digest: hash.toString('hex') })
    expect(token.lookup).toEqual(hash.subarray(0, 8))
  })

  it('is read from the header as it was made', () => {
    const token = newToken(level)
    for (const header of [
      `Bearer ${token.secret}`,
      `bearer ${token.secret}`,
      `BEARER   ${token.secret} `,
    ]) {
      expect(parseAuthorization(header, level)).toEqual(token)
    }
  })

  it('is not read from anything else', () => {
    const { secret } = newToken(level)
    const other = newToken(level === 'agent' ? 'operator' : 'agent').secret
    const headers = [
      undefined,
      '',
      'Bearer',
      'Bearer ',
      secret,
      `Basic ${secret}`,
      `Bearer${secret}`,
      ` Bearer ${secret}`,
      `Bearer\t${secret}`,
      `Bearer ${secret}x`,
      `Bearer ${secret.slice(0, -1)}`,
      `Bearer ${secret} ${secret}`,
      `Bearer ${secret}, Bearer ${secret}`,
      `Bearer ${secret}\n`,
      `Bearer ${secret.toUpperCase()}`,
      `Bearer ${PREFIX[level]}${'A'.repeat(64)}`,
      `Bearer "${secret}"`,
      `Bearer ${other}`,
    ]
    for (const header of headers)
      expect(parseAuthorization(header, level), String(header)).toBeUndefined()
  })

  it('is not read from any text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        expect(parseAuthorization(`Bearer ${text}`, level)).toBeUndefined()
      }),
    )
  })
})

it('an address is tab_ and 20 of [a-z0-9], each as likely', () => {
  const addresses = Array.from({ length: 1_000 }, newAddress)
  for (const address of addresses) expect(address).toMatch(/^tab_[a-z0-9]{20}$/)
  expect(new Set(addresses).size).toBe(addresses.length)
  const counts = new Map<string, number>()
  for (const character of addresses.join('').replaceAll('tab_', ''))
    counts.set(character, (counts.get(character) ?? 0) + 1)
  expect(counts.size).toBe(36)
  // 20,000 draws: 556 expected, 23 the standard deviation.
  for (const count of counts.values()) expect(Math.abs(count - 20_000 / 36)).toBeLessThan(6 * 23.2)
})
