import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { Webhook, WebhookVerificationError } from 'standardwebhooks'
import { describe, expect, test } from 'vitest'
import { newWebhookSecret, signatureHeaders } from '../../../src/webhooks/signature.ts'

describe('a webhook secret', () => {
  test('is whsec_ and 32 random bytes in base64', () => {
    const secret = newWebhookSecret((size) => Buffer.alloc(size, 0xff))
    expect(secret).toBe(`whsec_${Buffer.alloc(32, 0xff).toString('base64')}`)
  })

  test('is never the same', () => {
    expect(new Set(Array.from({ length: 100 }, () => newWebhookSecret())).size).toBe(100)
  })
})

describe('a signature', () => {
  test('is the one of the specification’s example', () => {
    // https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    // and its libraries' tests
    const headers = signatureHeaders({
      secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
      id: 'msg_p5jXN8AQM9LWM0D4loKWxJek',
      now: 1_614_265_330_000,
      body: '{"test": 2432232314}',
    })
    expect(headers).toEqual({
      'webhook-id': 'msg_p5jXN8AQM9LWM0D4loKWxJek',
      'webhook-timestamp': '1614265330',
      'webhook-signature': 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
    })
  })

  test('is accepted by the public library, for any body, as text and as bytes', () => {
    fc.assert(
      fc.property(fc.json(), (body) => {
        const secret = newWebhookSecret()
        const id = randomUUID()
        const now = Date.now()
        const headers = signatureHeaders({ secret, id, now, body })
        expect(signatureHeaders({ secret, id, now, body: Buffer.from(body) })).toEqual(headers)
        expect(new Webhook(secret).verify(body, headers)).toEqual(JSON.parse(body))
      }),
    )
  })

  test.each(['body', 'id', 'timestamp', 'secret'])(
    'is refused by the public library with another %s',
    (what) => {
      const secret = newWebhookSecret()
      const now = Date.now()
      const headers = signatureHeaders({ secret, id: 'm1', now, body: '{}' })
      const changed = {
        ...headers,
        ...(what === 'id' && { 'webhook-id': 'm2' }),
        ...(what === 'timestamp' && { 'webhook-timestamp': String(Math.floor(now / 1_000) - 1) }),
      }
      const webhook = new Webhook(what === 'secret' ? newWebhookSecret() : secret)
      expect(() => webhook.verify(what === 'body' ? '{ }' : '{}', changed)).toThrow(
        WebhookVerificationError,
      )
    },
  )

  test.each(['', 'a.b'])('needs an id that dots cannot make ambiguous, unlike "%s"', (id) => {
    expect(() => signatureHeaders({ secret: newWebhookSecret(), id, now: 0, body: '' })).toThrow(
      RangeError,
    )
  })

  test.each(['', 'whsec_', `whsec_${'A'.repeat(31)}`, 'A'.repeat(50), `whsec_${'A'.repeat(88)}`])(
    'needs a secret of its form, unlike "%s", and does not quote it',
    (secret) => {
      const sign = () => signatureHeaders({ secret, id: 'm1', now: 0, body: '' })
      expect(sign).toThrow(RangeError)
      expect(sign).not.toThrow('AAAA')
    },
  )
})
