import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createSecretBox, SecretNotOpened } from '../../../src/webhooks/secret-box.ts'
import { newWebhookSecret } from '../../../src/webhooks/signature.ts'

const ADDRESS = 'tab_aaaaaaaaaaaaaaaaaaaa'
const box = createSecretBox(randomBytes(32))

describe('a sealed secret', () => {
  test('opens to what was sealed', () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), (secret, address) => {
        expect(box.open(box.seal(secret, address), address)).toBe(secret)
      }),
    )
  })

  test('keeps its format from one release to the next', () => {
    // Computed with another implementation: AESGCM of Python's cryptography package.
    const sealed = 'v1.AQEBAQEBAQEBAQEBAYn60vPglJ63WdzMIFgJjg9c5yu6F_o'
    const fixed = createSecretBox(Buffer.alloc(32, 7), (size) => Buffer.alloc(size, 1))
    expect(fixed.seal('whsec_x', ADDRESS)).toBe(sealed)
    expect(fixed.open(sealed, ADDRESS)).toBe('whsec_x')
  })

  test('shows nothing of the secret, and is never the same', () => {
    const secret = newWebhookSecret()
    const sealed = Array.from({ length: 50 }, () => box.seal(secret, ADDRESS))
    expect(new Set(sealed).size).toBe(50)
    for (const text of sealed) {
      expect(text).toMatch(/^v1\.[A-Za-z0-9_-]+$/)
      expect(Buffer.from(text.slice(3), 'base64url').toString('latin1')).not.toContain(
        secret.slice(6, 12),
      )
    }
  })

  test('does not open for another agent', () => {
    const sealed = box.seal('secret', ADDRESS)
    expect(() => box.open(sealed, 'tab_bbbbbbbbbbbbbbbbbbbb')).toThrow(SecretNotOpened)
  })

  test('does not open under another key', () => {
    const sealed = box.seal('secret', ADDRESS)
    expect(() => createSecretBox(randomBytes(32)).open(sealed, ADDRESS)).toThrow(SecretNotOpened)
  })

  test('does not open with any bit changed', () => {
    const bytes = Buffer.from(box.seal('secret', ADDRESS).slice(3), 'base64url')
    for (let bit = 0; bit < bytes.length * 8; bit += 1) {
      const changed = Buffer.from(bytes)
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      expect(() => box.open(`v1.${changed.toString('base64url')}`, ADDRESS)).toThrow(
        SecretNotOpened,
      )
    }
  })

  test('does not open when cut short at any length', () => {
    const sealed = box.seal('secret', ADDRESS)
    for (let length = 0; length < sealed.length; length += 1) {
      expect(() => box.open(sealed.slice(0, length), ADDRESS)).toThrow(SecretNotOpened)
    }
  })

  test('does not open when its version is not known', () => {
    const sealed = box.seal('secret', ADDRESS)
    expect(() => box.open(sealed.replace('v1', 'v2'), ADDRESS)).toThrow(
      'not a sealed webhook secret of version 1',
    )
    expect(() => box.open(`${sealed}.x`, ADDRESS)).toThrow(SecretNotOpened)
  })
})

test.each([0, 16, 31, 33])('a key of %i bytes is refused', (length) => {
  expect(() => createSecretBox(Buffer.alloc(length))).toThrow(`${length} bytes; it must be 32`)
})
