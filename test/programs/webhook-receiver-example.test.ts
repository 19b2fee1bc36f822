import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { createWebhookReceiver, type Message } from '../../examples/webhook-receiver.ts'
import { createTestAuthority, type TestAuthority } from '../../lab/receiver.ts'
import { parseCidr } from '../../src/webhooks/public-address.ts'
import { newWebhookSecret, signatureHeaders } from '../../src/webhooks/signature.ts'
import { createWebhookClient, type WebhookClient } from '../../src/webhooks/webhook-client.ts'

const secret = newWebhookSecret()
const message: Message = {
  message_id: '7b0d9c1e-3c53-4a4e-9d3b-2d8c5c1f0a11',
  from: 'tab_aaaaaaaaaaaaaaaaaaaa',
  to: 'tab_bbbbbbbbbbbbbbbbbbbb',
  content: 'hello \u0000 ☃',
  timestamp: '2026-01-02T03:04:05.678Z',
}
const body = JSON.stringify(message)

let authority: TestAuthority
let client: WebhookClient
beforeAll(async () => {
  authority = await createTestAuthority()
  client = createWebhookClient({
    allow: [parseCidr('127.0.0.1')],
    caFile: authority.caFile,
    connectTimeoutMs: 60_000,
    totalTimeoutMs: 60_000,
  })
})
afterAll(async () => {
  client.close()
  await authority[Symbol.asyncDispose]()
})

describe('the receiver of the examples', () => {
  const onMessage = vi.fn<(message: Message) => void | Promise<void>>()
  let url: string
  beforeEach(async () => {
    onMessage.mockReset()
    const server = createServer(
      await authority.issue(['127.0.0.1']),
      createWebhookReceiver({ secret, onMessage }),
    )
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    url = `https://127.0.0.1:${(server.address() as AddressInfo).port}/`
    return () => {
      server.closeAllConnections()
      server.close()
    }
  })

  const post = (headers: Record<string, string>, sent = body) =>
    client.post(url, { headers: { 'content-type': 'application/json', ...headers }, body: sent })
  const signed = (now = Date.now(), key = secret) =>
    signatureHeaders({ secret: key, id: message.message_id, now, body })

  test('takes a delivery that is signed', async () => {
    expect(await post(signed())).toEqual({ kind: 'delivered', status: 204 })
    expect(onMessage.mock.calls).toEqual([[message]])
  })

  test('takes a message once, however often it is delivered', async () => {
    for (const now of [Date.now() - 60_000, Date.now(), Date.now()]) {
      expect(await post(signed(now))).toEqual({ kind: 'delivered', status: 204 })
    }
    expect(onMessage).toHaveBeenCalledTimes(1)
  })

  test('takes a message once, also when a repeat comes while it is being handled', async () => {
    const handling = Promise.withResolvers<void>()
    onMessage.mockReturnValueOnce(handling.promise)
    const deliveries = [post(signed()), post(signed())]
    await vi.waitFor(() => expect(onMessage).toHaveBeenCalled(), { timeout: 10_000 })
    handling.resolve()
    expect(await Promise.all(deliveries)).toEqual([
      { kind: 'delivered', status: 204 },
      { kind: 'delivered', status: 204 },
    ])
    expect(onMessage).toHaveBeenCalledTimes(1)
  })

  test('asks for a message again that it could not handle', async () => {
    vi.spyOn(console, 'error').mockImplementationOnce(() => {})
    onMessage.mockRejectedValueOnce(new Error('disk full'))
    expect(await post(signed())).toEqual({ kind: 'rejected', status: 500 })
    expect(await post(signed())).toEqual({ kind: 'delivered', status: 204 })
    expect(onMessage).toHaveBeenCalledTimes(2)
  })

  test.each([
    ['without a signature', () => post({})],
    ['signed with another secret', () => post(signed(Date.now(), newWebhookSecret()))],
    ['signed for another body', () => post(signed(), `${body} `)],
    ['signed too long ago', () => post(signed(Date.now() - 600_000))],
    [
      'signed with what is no signature',
      () => post({ ...signed(), 'webhook-signature': 'v1,x v1 v2,y' }),
    ],
    ['signed for another message', () => post({ ...signed(), 'webhook-id': 'other' })],
  ])('refuses what is %s', async (_what, attempt) => {
    expect(await attempt()).toEqual({ kind: 'rejected', status: 401 })
    expect(onMessage).not.toHaveBeenCalled()
  })

  test('refuses what is too large', async () => {
    expect(await post(signed(), 'x'.repeat(600_000))).toEqual({ kind: 'rejected', status: 413 })
  })
})
