import { type AddressInfo, connect as connectTcp } from 'node:net'
import { createServer as createTlsServer } from 'node:tls'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import {
  type Behaviour,
  createTestAuthority,
  type Receiver,
  type ReceiverOptions,
  scriptedResolver,
  startReceiver,
  type TestAuthority,
} from '../../../lab/receiver.ts'
import { releasePorts, reservePorts } from '../../../lab/servers/directory.ts'
import type { DeliveryOutcome } from '../../../src/webhooks/delivery-outcome.ts'
import type { OpenSocket } from '../../../src/webhooks/guarded-connection.ts'
import { parseCidr } from '../../../src/webhooks/public-address.ts'
import {
  createWebhookClient,
  type WebhookClient,
  type WebhookClientOptions,
} from '../../../src/webhooks/webhook-client.ts'

/**
 * For tests that wait for a time-out. Enough for what comes before what is slow, on a machine that
 * is busy.
 */
const CONNECT_MS = 300
const TOTAL_MS = 1_000
/** For the timer, and for a machine that is busy with other tests, or stands still for seconds. */
const LEEWAY_MS = 20_000
/**
 * Every clock that a test is not about. What ends within the leeway was not ended by one of these.
 */
const PATIENT_MS = 60_000

const LOOPBACK = [parseCidr('127.0.0.1/32'), parseCidr('::1/128')]
const MESSAGE = { headers: { 'content-type': 'application/json' }, body: '{"content":"hello"}' }

let authority: TestAuthority
beforeAll(async () => {
  authority = await createTestAuthority()
})
afterAll(() => authority[Symbol.asyncDispose]())

/** One that closes no idle connection of its own accord, and asks for no time to be observed. */
async function receiver(options: Partial<ReceiverOptions> = {}): Promise<Receiver> {
  const started = await startReceiver({ authority, keepAliveMs: 0, ...options })
  onTestFinished(() => started.close())
  return started
}

/**
 * A client that trusts the test authority, knows no name, and may connect to 127.0.0.1 and ::1 but
 * nowhere else on loopback.
 */
function client(options: WebhookClientOptions = {}): WebhookClient {
  const created = createWebhookClient({
    allow: LOOPBACK,
    caFile: authority.caFile,
    resolve: scriptedResolver({}),
    connectTimeoutMs: PATIENT_MS,
    totalTimeoutMs: PATIENT_MS,
    idleTimeoutMs: PATIENT_MS,
    ...options,
  })
  onTestFinished(() => created.close())
  return created
}

/**
 * Opens a connection that is kept, so that no part of the time of what is sent next goes into
 * making one.
 */
async function connected(sender: WebhookClient, hook: Receiver): Promise<void> {
  hook.behave({ status: 200 })
  while ((await sender.post(hook.url, MESSAGE)).kind !== 'delivered');
}

async function timed(
  attempt: Promise<DeliveryOutcome>,
): Promise<{ outcome: DeliveryOutcome; ms: number }> {
  const start = performance.now()
  return { outcome: await attempt, ms: performance.now() - start }
}

describe('a delivery', () => {
  test('is a POST to path and query, with the headers and the body as given, and 2xx means delivered', async () => {
    const hook = await receiver({ behaviour: { status: 204 } })
    const body = Buffer.from(JSON.stringify({ content: 'ünïcödé \u0000 ☃' }))

    const outcome = await client().post(`${hook.url}/a%2Fb?x=1&y=%20`, {
      headers: { 'content-type': 'application/json', 'webhook-id': 'm1' },
      body,
    })

    expect(outcome).toEqual({ kind: 'delivered', status: 204 })
    expect(hook.deliveries).toMatchObject([
      {
        method: 'POST',
        path: '/hook/a%2Fb?x=1&y=%20',
        headers: {
          'content-type': 'application/json',
          'webhook-id': 'm1',
          host: `127.0.0.1:${hook.port}`,
        },
        body,
      },
    ])
  })

  test('to a name goes to the address that the name resolves to, with the name in TLS and in Host', async () => {
    const hook = await receiver()
    const resolve = scriptedResolver({ 'receiver.test': [['127.0.0.1']] })

    const outcome = await client({ resolve }).post(hook.urlFor('receiver.test'), MESSAGE)

    expect(outcome).toEqual({ kind: 'delivered', status: 200 })
    expect(hook.deliveries).toMatchObject([
      { serverName: 'receiver.test', headers: { host: `receiver.test:${hook.port}` } },
    ])
  })

  test('to a name goes to its second address when nobody answers at the first', async () => {
    const hook = await receiver()
    const resolve = scriptedResolver({ 'receiver.test': [['::1', '127.0.0.1']] })

    const outcome = await client({ resolve }).post(hook.urlFor('receiver.test'), MESSAGE)

    expect(outcome).toEqual({ kind: 'delivered', status: 200 })
  })

  test('to an IPv6 address is delivered, the certificate being for that address', async () => {
    const hook = await receiver({ host: '::1' })
    expect(hook.url).toContain('[::1]')
    expect(await client().post(hook.url, MESSAGE)).toEqual({ kind: 'delivered', status: 200 })
  })

  test.each([400, 404, 410, 429, 500, 503])('answered with %i is rejected', async (status) => {
    const hook = await receiver({ behaviour: { status, body: '{"secret":"of the receiver"}' } })
    expect(await client().post(hook.url, MESSAGE)).toEqual({ kind: 'rejected', status })
  })

  test.each([301, 302, 303, 307, 308])(
    'answered with %i is rejected, and not followed',
    async (status) => {
      const elsewhere = await receiver()
      const hook = await receiver({ behaviour: { status, headers: { location: elsewhere.url } } })

      expect(await client().post(hook.url, MESSAGE)).toEqual({ kind: 'rejected', status })
      expect(elsewhere.connections).toBe(0)
      expect(hook.deliveries).toHaveLength(1)
    },
  )

  test('answered with a redirect to a private address is rejected, and nothing is sent there', async () => {
    const inside = await receiver({ host: '127.0.0.2' })
    const hook = await receiver({ behaviour: { status: 307, headers: { location: inside.url } } })

    expect(await client().post(hook.url, MESSAGE)).toEqual({ kind: 'rejected', status: 307 })
    expect(inside.connections).toBe(0)
  })

  test.each(['interim_then_ok', 'continue_then_ok', 'many_interim_then_ok'] as const)(
    'may have interim answers, asked for or not, before the one that counts: %s',
    async (behaviour) => {
      const hook = await receiver({ behaviour })
      const sender = client()
      for (let i = 0; i < 3; i += 1)
        expect(await sender.post(hook.url, MESSAGE)).toEqual({ kind: 'delivered', status: 200 })
      expect(hook.connections).toBe(1)
      expect(hook.deliveries).toHaveLength(3)
    },
  )

  test.each([
    [429, '7', 7_000],
    [503, '0', 0],
    [503, 'soon', undefined],
    [503, '-1', undefined],
    [500, '7', undefined],
    [410, '7', undefined],
  ])(
    'answered with %i and Retry-After: %s is to wait for %s ms',
    async (status, retryAfter, retryAfterMs) => {
      const hook = await receiver({ behaviour: { status, headers: { 'retry-after': retryAfter } } })
      const expected = {
        kind: 'rejected',
        status,
        ...(retryAfterMs !== undefined && { retryAfterMs }),
      }
      expect(await client().post(hook.url, MESSAGE)).toEqual(expected)
    },
  )

  test('is delivered once however many answers come, and the second is nobody else’s', async () => {
    const hook = await receiver({ behaviour: 'two_answers' })
    const sender = client()
    expect(await sender.post(hook.url, MESSAGE)).toEqual({ kind: 'delivered', status: 200 })

    hook.behave({ status: 500 })
    expect(await sender.post(hook.url, MESSAGE)).toEqual({ kind: 'rejected', status: 500 })
  })

  test('with a header that HTTP does not allow is a defect of the caller’s and throws', async () => {
    const hook = await receiver()
    const attempt = client().post(hook.url, { headers: { 'x-bad': 'a\r\nb: c' }, body: '' })
    await expect(attempt).rejects.toThrow('x-bad')
    expect(hook.deliveries).toHaveLength(0)
  })
})

describe('an address that is not public', () => {
  test('given as itself is refused, and not even connected to', async () => {
    const hook = await receiver()
    expect(await client({ allow: [] }).post(hook.url, MESSAGE)).toMatchObject({
      kind: 'failed',
      stage: 'refused_address',
    })
    expect(hook.connections).toBe(0)
  })

  test.each([
    ['decimal', '2130706433'],
    ['hexadecimal', '0x7f000001'],
    ['octal', '0177.0.0.1'],
    ['short', '127.1'],
    ['full-width', '１２７.0.0.1'],
    ['with a final dot', '127.0.0.1.'],
    ['IPv4-mapped', '[::ffff:127.0.0.1]'],
    ['IPv4-compatible', '[::127.0.0.1]'],
    ['NAT64', '[64:ff9b::127.0.0.1]'],
    ['6to4', '[2002:7f00:1::]'],
    ['unspecified', '0'],
  ])('spelt %s is refused, and not even connected to', async (_spelling, hostname) => {
    const hook = await receiver()
    const outcome = await client({ allow: [] }).post(hook.urlFor(hostname), MESSAGE)
    expect(outcome).toMatchObject({ kind: 'failed', stage: 'refused_address' })
    expect(hook.connections).toBe(0)
  })

  test.each([
    ['private', ['127.0.0.2']],
    ['public and private', ['127.0.0.1', '127.0.0.2']],
    ['private and public', ['127.0.0.2', '127.0.0.1']],
    ['IPv4-mapped', ['::ffff:127.0.0.1']],
    ['NAT64', ['64:ff9b::7f00:1']],
    ['local NAT64', ['64:ff9b:1::7f00:1']],
    ['6to4', ['2002:7f00:1::1']],
    ['not an address', ['0x7f.1']],
  ])(
    'behind a name that resolves to what is %s is refused, and not even connected to',
    async (_form, addresses) => {
      const hook = await receiver()
      const inside = await receiver({ host: '127.0.0.2', port: hook.port })
      const resolve = scriptedResolver({ 'receiver.test': [addresses] })

      const outcome = await client({ resolve }).post(hook.urlFor('receiver.test'), MESSAGE)

      expect(outcome).toMatchObject({ kind: 'failed', stage: 'refused_address' })
      expect(hook.connections + inside.connections).toBe(0)
    },
  )

  test('that a name resolves to the second time is refused, each attempt being checked anew', async () => {
    const hook = await receiver()
    const inside = await receiver({ host: '127.0.0.2', port: hook.port })
    const resolve = scriptedResolver({ 'receiver.test': [['127.0.0.1'], ['127.0.0.2']] })
    const sender = client({ resolve, maxIdleConnections: 0 })

    expect(await sender.post(hook.urlFor('receiver.test'), MESSAGE)).toMatchObject({
      kind: 'delivered',
    })
    expect(await sender.post(hook.urlFor('receiver.test'), MESSAGE)).toMatchObject({
      stage: 'refused_address',
    })
    expect(resolve.lookUps).toHaveLength(2)
    expect(inside.connections).toBe(0)
  })

  test('that a name came to resolve to gains nothing while a connection is kept: it stays where it was checked', async () => {
    const hook = await receiver()
    const inside = await receiver({ host: '127.0.0.2', port: hook.port })
    const resolve = scriptedResolver({ 'receiver.test': [['127.0.0.1'], ['127.0.0.2']] })
    const sender = client({ resolve })

    for (let i = 0; i < 2; i += 1) {
      expect(await sender.post(hook.urlFor('receiver.test'), MESSAGE)).toMatchObject({
        kind: 'delivered',
      })
    }
    expect(hook.deliveries).toHaveLength(2)
    expect(inside.connections).toBe(0)
  })

  test('that is connected to although another was meant gets no byte: the last check is on the socket', async () => {
    const hook = await receiver()
    const inside = await receiver({ host: '127.0.0.2', port: hook.port })
    const sender = client({
      openSocket: (options) => connectTcp({ port: options.port, host: '127.0.0.2' }),
    })

    const outcome = await sender.post(hook.url, MESSAGE)
    await inside.disconnected()

    expect(outcome).toMatchObject({ kind: 'failed', stage: 'refused_address' })
    expect(inside.bytesReceived).toBe(0)
  })
})

describe('an address of DNS64 with a public one inside', () => {
  test.each([
    ['given as itself', '[64:ff9b::808:808]'],
    ['behind a name', 'receiver.test'],
  ])('%s is connected to', async (_how, host) => {
    const hook = await receiver({ certificateNames: ['receiver.test', '64:ff9b::808:808'] })
    const resolve = scriptedResolver({ 'receiver.test': [['64:ff9b::808:808']] })
    const asked: (string | undefined)[] = []
    // There is no translator here: the receiver stands in for what is behind it.
    const openSocket: OpenSocket = (options) => {
      options.lookup?.(options.host ?? '', {}, (_error, found) => asked.push(JSON.stringify(found)))
      return connectTcp({ port: options.port, host: '127.0.0.1' })
    }

    expect(await client({ resolve, openSocket }).post(hook.urlFor(host), MESSAGE)).toMatchObject({
      kind: 'delivered',
    })
    expect(asked).toEqual(['[{"address":"64:ff9b::808:808","family":6}]'])
  })
})

describe('a URL that may not be delivered to', () => {
  test.each([
    ['not https', (port: number) => `http://127.0.0.1:${port}/`],
    ['with credentials', (port: number) => `https://user:password@127.0.0.1:${port}/`],
    ['no URL', () => 'hook'],
  ])('%s fails, with nothing sent', async (_what, urlAt) => {
    const hook = await receiver()
    const outcome = await client().post(urlAt(hook.port), MESSAGE)
    expect(outcome).toMatchObject({ kind: 'failed', stage: 'url' })
    expect(hook.connections).toBe(0)
    expect(JSON.stringify(outcome)).not.toContain('password@')
  })
})

describe('TLS', () => {
  async function expectNothingSent(
    hook: Receiver,
    options: WebhookClientOptions,
    reason: string,
  ): Promise<void> {
    const resolve = scriptedResolver({ 'receiver.test': [['127.0.0.1']] })
    const outcome = await client({ resolve, ...options }).post(
      hook.urlFor('receiver.test'),
      MESSAGE,
    )
    expect(outcome).toEqual({ kind: 'failed', stage: 'tls', reason })
    await hook.disconnected()
    expect(hook.deliveries).toHaveLength(0)
  }

  test('to a certificate for another name fails, with nothing sent', async () => {
    const hook = await receiver({ certificateNames: ['other.test'] })
    await expectNothingSent(hook, {}, 'ERR_TLS_CERT_ALTNAME_INVALID')
  })

  test('to a certificate for another address fails, with nothing sent', async () => {
    const hook = await receiver({ certificateNames: ['receiver.test', '127.0.0.9'] })
    const outcome = await client().post(hook.url, MESSAGE)
    expect(outcome).toMatchObject({
      kind: 'failed',
      stage: 'tls',
      reason: 'ERR_TLS_CERT_ALTNAME_INVALID',
    })
    expect(hook.deliveries).toHaveLength(0)
  })

  test('to a certificate of an authority that is not trusted fails, with nothing sent', async () => {
    await using stranger = await createTestAuthority()
    const hook = await receiver({ authority: stranger })
    await expectNothingSent(hook, {}, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE')
  })

  test('is verified whatever the environment says', async () => {
    await using stranger = await createTestAuthority()
    const hook = await receiver({ authority: stranger })
    vi.stubEnv('NODE_TLS_REJECT_UNAUTHORIZED', '0')
    onTestFinished(() => void vi.unstubAllEnvs())
    await expectNothingSent(hook, {}, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE')
  })

  test('to what speaks plain text fails', async () => {
    await expectNothingSent(
      await receiver({ behaviour: 'plain_text' }),
      {},
      'ERR_SSL_WRONG_VERSION_NUMBER',
    )
  })

  test('that is reset fails', async () => {
    await expectNothingSent(await receiver({ behaviour: 'reset_on_connect' }), {}, 'ECONNRESET')
  })

  test('that never finishes costs the connect time-out', async () => {
    const hook = await receiver({ behaviour: 'tls_never_finishes' })
    const { outcome, ms } = await timed(
      client({ connectTimeoutMs: CONNECT_MS }).post(hook.url, MESSAGE),
    )
    expect(outcome).toEqual({ kind: 'failed', stage: 'tls', reason: 'timeout' })
    expect(ms).toBeGreaterThan(CONNECT_MS - 50)
    expect(ms).toBeLessThan(CONNECT_MS + LEEWAY_MS)
    await hook.disconnected()
  })

  test('is not negotiated again, however often the receiver asks', async () => {
    let renegotiated = 0
    const names = await authority.issue(['127.0.0.1'])
    const server = createTlsServer({ ...names, maxVersion: 'TLSv1.2' }, (socket) => {
      const again = () =>
        socket.renegotiate({}, (error) => {
          if (error !== null) return
          renegotiated++
          again()
        })
      socket.on('error', () => {}).resume()
      again()
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const outcome = await client({ totalTimeoutMs: 500 }).post(
      `https://127.0.0.1:${port}/`,
      MESSAGE,
    )
    expect(outcome).toMatchObject({ kind: 'failed' })
    expect(renegotiated).toBe(0)
  })

  test('needs a CA file that can be read and holds a certificate', () => {
    expect(() => createWebhookClient({ caFile: '/no/such/file.pem' })).toThrow('/no/such/file.pem')
    expect(() => createWebhookClient({ caFile: import.meta.filename })).toThrow(
      'holds no certificate',
    )
  })
})

describe('no connection', () => {
  test('when the name does not resolve', async () => {
    expect(await client().post('https://nowhere.test/', MESSAGE)).toEqual({
      kind: 'failed',
      stage: 'resolve',
      reason: 'ENOTFOUND',
    })
  })

  test('when the name resolves to no address', async () => {
    const resolve = scriptedResolver({ 'empty.test': [[]] })
    const outcome = await client({ resolve }).post('https://empty.test/', MESSAGE)
    expect(outcome).toMatchObject({ kind: 'failed', stage: 'resolve' })
  })

  test('when the resolver never answers, which costs the connect time-out', async () => {
    const resolve = scriptedResolver({ 'slow.test': ['never'] })
    const { outcome, ms } = await timed(
      client({ resolve, connectTimeoutMs: CONNECT_MS }).post('https://slow.test/', MESSAGE),
    )
    expect(outcome).toEqual({ kind: 'failed', stage: 'resolve', reason: 'timeout' })
    expect(ms).toBeLessThan(CONNECT_MS + LEEWAY_MS)
  })

  test('when nobody listens', async () => {
    // Reserved, as any other that is free may be another test's by now.
    const ports = await reservePorts(1)
    onTestFinished(() => releasePorts(ports))
    const outcome = await client().post(`https://127.0.0.1:${ports[0]}/hook`, MESSAGE)
    expect(outcome).toEqual({ kind: 'failed', stage: 'connect', reason: 'ECONNREFUSED' })
  })
})

describe('a receiver that misbehaves', () => {
  const quick: [Behaviour, DeliveryOutcome][] = [
    ['reset', { kind: 'failed', stage: 'send', reason: 'ECONNRESET' }],
    ['close', { kind: 'failed', stage: 'send', reason: 'closed by the other side' }],
    ['reset_in_headers', { kind: 'failed', stage: 'answer', reason: 'ECONNRESET' }],
    ['endless_headers', { kind: 'failed', stage: 'answer', reason: 'headers over 16384 bytes' }],
    ['endless_blank_lines', { kind: 'failed', stage: 'answer', reason: 'more than 65536 bytes' }],
    ['interim_storm', { kind: 'failed', stage: 'answer', reason: 'more than 100 interim answers' }],
    [
      'too_many_interim',
      { kind: 'failed', stage: 'answer', reason: 'more than 100 interim answers' },
    ],
    ['not_http', { kind: 'failed', stage: 'answer', reason: 'not HTTP/1.1' }],
    [
      'switch_protocols',
      { kind: 'failed', stage: 'answer', reason: 'switched to another protocol unasked' },
    ],
    [
      'bare_101',
      { kind: 'failed', stage: 'answer', reason: 'switched to another protocol unasked' },
    ],
    // The status had come, and that is the answer.
    ['endless_body', { kind: 'delivered', status: 200 }],
    ['endless_chunk_extension', { kind: 'delivered', status: 200 }],
  ]
  test.each(quick)('by %s is done with at once, and disconnected', async (behaviour, expected) => {
    const hook = await receiver({ behaviour })
    const begun = performance.now()
    expect(await client().post(hook.url, MESSAGE)).toEqual(expected)
    await hook.disconnected()
    expect(performance.now() - begun).toBeLessThan(LEEWAY_MS)
  })

  const slow: Behaviour[] = ['black_hole', 'slow_headers', 'interim_drip']
  test.each(slow)('by %s costs the total time-out, and is disconnected', async (behaviour) => {
    const hook = await receiver({ dripMs: 50 })
    const sender = client({ totalTimeoutMs: TOTAL_MS })
    await connected(sender, hook)
    hook.behave(behaviour)
    const { outcome, ms } = await timed(sender.post(hook.url, MESSAGE))
    expect(outcome).toMatchObject({ kind: 'failed', stage: 'timeout' })
    expect(ms).toBeGreaterThan(TOTAL_MS / 2)
    expect(ms).toBeLessThan(TOTAL_MS + LEEWAY_MS)
    await hook.disconnected()
  })

  test('by slow_body has delivered, and costs a second for the body', async () => {
    const hook = await receiver({ behaviour: 'slow_body', dripMs: 50 })
    const { outcome, ms } = await timed(client().post(hook.url, MESSAGE))
    expect(outcome).toEqual({ kind: 'delivered', status: 200 })
    expect(ms).toBeLessThan(1_000 + LEEWAY_MS)
    await hook.disconnected()
  })

  test('by slow_body has delivered, and costs the total time-out where that is shorter', async () => {
    const hook = await receiver({ dripMs: 50 })
    const sender = client({ totalTimeoutMs: 600 })
    // The shortest of several: a machine that stands still takes longer, or finds the time up
    // before the status is in.
    let shortest = Number.POSITIVE_INFINITY
    for (let tries = 0; tries < 20 && shortest > 900; tries += 1) {
      await connected(sender, hook)
      hook.behave('slow_body')
      const { outcome, ms } = await timed(sender.post(hook.url, MESSAGE))
      if (outcome.kind === 'delivered') shortest = Math.min(shortest, ms)
      await hook.disconnected()
    }
    expect(shortest).toBeGreaterThan(600 - 50)
    // The body alone may take a second.
    expect(shortest).toBeLessThan(900)
  })

  test('by endless_body is not read beyond the bound, but for what is under way', async () => {
    const hook = await receiver({ behaviour: 'endless_body' })
    let bytesRead = 0
    const sender = client({
      openSocket: (options) => {
        const socket = connectTcp(options)
        socket.once('close', () => {
          bytesRead = socket.bytesRead
        })
        return socket
      },
    })
    await sender.post(hook.url, MESSAGE)
    await hook.disconnected()
    expect(bytesRead).toBeGreaterThan(0)
    expect(bytesRead).toBeLessThan(4 * 65_536)
  })

  test('holds up nobody else', async () => {
    const hole = await receiver({ behaviour: 'black_hole' })
    const hook = await receiver()
    const sender = client()
    const stop = new AbortController()
    const lost = Array.from({ length: 50 }, () => sender.post(hole.url, MESSAGE, stop.signal))
    await hole.received(50)

    expect(await sender.post(hook.url, MESSAGE)).toMatchObject({ kind: 'delivered' })

    expect(sender.stats()).toMatchObject({ inFlight: 50 })
    stop.abort()
    await Promise.allSettled(lost)
    expect(sender.stats()).toMatchObject({ inFlight: 0 })
  })
})

describe('the caller’s signal', () => {
  test('ends an attempt that waits for an answer, with its own reason', async () => {
    const hook = await receiver({ behaviour: 'black_hole' })
    const stop = new AbortController()
    const attempt = client().post(hook.url, MESSAGE, stop.signal)
    await hook.received(1)
    stop.abort(new Error('shutting down'))
    await expect(attempt).rejects.toThrow('shutting down')
    await hook.disconnected()
  })

  test('ends an attempt that waits for the resolver', async () => {
    const stop = new AbortController()
    const resolve = scriptedResolver({ 'slow.test': ['never'] })
    const attempt = client({ resolve }).post('https://slow.test/', MESSAGE, stop.signal)
    stop.abort(new Error('shutting down'))
    await expect(attempt).rejects.toThrow('shutting down')
  })

  test('aborted already, nothing is begun', async () => {
    const hook = await receiver()
    await expect(
      client().post(hook.url, MESSAGE, AbortSignal.abort(new Error('too late'))),
    ).rejects.toThrow('too late')
    expect(hook.connections).toBe(0)
  })
})

describe('connections', () => {
  test('are used again', async () => {
    const hook = await receiver({ behaviour: { status: 200, body: 'x'.repeat(10_000) } })
    const sender = client()
    for (let i = 0; i < 10; i += 1)
      expect(await sender.post(hook.url, MESSAGE)).toMatchObject({ kind: 'delivered' })
    expect(hook.connections).toBe(1)
    expect(sender.stats()).toEqual({ inFlight: 0, idle: 1 })
  })

  test('are used again after an answer that is an error', async () => {
    const hook = await receiver({ behaviour: { status: 500, body: 'no' } })
    const sender = client()
    for (let i = 0; i < 3; i += 1) await sender.post(hook.url, MESSAGE)
    expect(hook.connections).toBe(1)
  })

  test('each allow as much to be read for one answer as for the next', async () => {
    const hook = await receiver({ behaviour: { status: 200, body: 'x'.repeat(50_000) } })
    const sender = client()
    for (let i = 0; i < 5; i += 1)
      expect(await sender.post(hook.url, MESSAGE)).toMatchObject({ kind: 'delivered' })
    expect(hook.connections).toBe(1)
  })

  test('are not used again when the receiver says so', async () => {
    const hook = await receiver({ behaviour: { status: 200, headers: { connection: 'close' } } })
    const sender = client()
    for (let i = 0; i < 3; i += 1)
      expect(await sender.post(hook.url, MESSAGE)).toMatchObject({ kind: 'delivered' })
    expect(hook.connections).toBe(3)
  })

  test('are not used for ever, so that a name that was moved is followed however busy it is', async () => {
    const hook = await receiver()
    const moved = await receiver({ host: '127.0.0.2', port: hook.port })
    const resolve = scriptedResolver({ 'receiver.test': [['127.0.0.1'], ['127.0.0.2']] })
    const sender = client({ resolve, allow: [parseCidr('127.0.0.0/8')], maxConnectionAgeMs: 200 })
    const url = hook.urlFor('receiver.test')
    for (
      const end = performance.now() + LEEWAY_MS;
      moved.deliveries.length === 0 && performance.now() < end;
    ) {
      expect(await sender.post(url, MESSAGE)).toMatchObject({ kind: 'delivered' })
    }
    expect(hook.deliveries.length).toBeGreaterThan(0)
    expect(moved.deliveries).toHaveLength(1)
    expect(resolve.lookUps).toHaveLength(2)
  })

  test('that the receiver closed while idle cost nothing: the delivery goes over a new one, once', async () => {
    const hook = await receiver()
    const sender = client()
    for (let i = 1; i <= 5; i += 1) {
      expect(await sender.post(hook.url, MESSAGE)).toMatchObject({ kind: 'delivered' })
      hook.hangUp()
      await hook.disconnected()
    }
    expect(hook.deliveries).toHaveLength(5)
    expect(hook.connections).toBe(5)
  })

  test('that are idle are bounded in number, the one idle for longest making room', async () => {
    const hooks = await Promise.all([receiver(), receiver(), receiver()])
    const [first, second, third] = hooks
    const sender = client({ maxIdleConnections: 2 })
    for (const hook of hooks) await sender.post(hook.url, MESSAGE)

    await first?.disconnected()
    expect(sender.stats()).toEqual({ inFlight: 0, idle: 2 })
    expect([second?.openConnections, third?.openConnections]).toEqual([1, 1])
  })

  test('that are idle are closed after a time', async () => {
    const [longer, hook] = await Promise.all([receiver(), receiver()])
    // First, so that it would also be closed first were the time the same for both.
    await client({ idleTimeoutMs: LEEWAY_MS }).post(longer.url, MESSAGE)
    const sender = client({ idleTimeoutMs: 200 })
    await sender.post(hook.url, MESSAGE)
    expect([longer.openConnections, hook.openConnections]).toEqual([1, 1])
    expect(
      await Promise.race([longer, hook].map((each) => each.disconnected().then(() => each))),
    ).toBe(hook)
    await expect.poll(() => sender.stats().idle, { timeout: LEEWAY_MS }).toBe(0)
  })

  test('carry one delivery at a time', async () => {
    const hook = await receiver()
    const sender = client()
    const outcomes = await Promise.all(
      Array.from({ length: 20 }, () => sender.post(hook.url, MESSAGE)),
    )
    expect(outcomes.every(({ kind }) => kind === 'delivered')).toBe(true)
    expect(hook.connections).toBe(20)
    expect(sender.stats()).toEqual({ inFlight: 0, idle: 20 })
  })

  test('are closed with the client: the idle ones at once, the others when their delivery is done', async () => {
    const [idle, busy] = await Promise.all([receiver(), receiver()])
    const sender = client()
    await sender.post(idle.url, MESSAGE)
    const last = sender.post(busy.url, MESSAGE)

    sender.close()
    await idle.disconnected()
    expect(await last).toEqual({ kind: 'delivered', status: 200 })
    await busy.disconnected()
    expect(sender.stats()).toEqual({ inFlight: 0, idle: 0 })
  })
})
