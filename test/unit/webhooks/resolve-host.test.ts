import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createTestAuthority, startReceiver } from '../../../lab/receiver.ts'
import { parseCidr } from '../../../src/webhooks/public-address.ts'
import { createHostResolver, type ResolveHost } from '../../../src/webhooks/resolve-host.ts'
import { createWebhookClient } from '../../../src/webhooks/webhook-client.ts'
import { type Answer, type NameServer, type RecordType, startNameServer } from './name-server.ts'

const never = new AbortController().signal

async function resolver(
  answer: (name: string, type: RecordType) => Answer,
  hosts = '',
): Promise<{ resolve: ResolveHost; server: NameServer }> {
  const server = await startNameServer(answer)
  const directory = await mkdtemp(join(tmpdir(), 'hosts-'))
  onTestFinished(async () => {
    await server[Symbol.asyncDispose]()
    await rm(directory, { recursive: true })
  })
  const hostsFile = join(directory, 'hosts')
  await writeFile(hostsFile, hosts)
  return { resolve: createHostResolver({ servers: [server.address], hostsFile }), server }
}

/** What the server was asked. A question that it is slow to answer comes again, after a second. */
const asked = (server: NameServer): string[] => [...new Set(server.questions)].sort()

describe('a host name', () => {
  test('resolves to all of its addresses, of both families', async () => {
    const { resolve, server } = await resolver((_name, type) =>
      type === 'A' ? ['192.0.2.1', '192.0.2.2'] : ['2001:db8::1'],
    )
    expect([...(await resolve('hook.example', never))].sort()).toEqual([
      '192.0.2.1',
      '192.0.2.2',
      '2001:db8::1',
    ])
    expect(asked(server)).toEqual(['A hook.example', 'AAAA hook.example'])
  })

  test('may have addresses of one family only', async () => {
    const { resolve } = await resolver((_name, type) => (type === 'A' ? ['192.0.2.1'] : []))
    expect(await resolve('hook.example', never)).toEqual(['192.0.2.1'])
    const other = await resolver((_name, type) => (type === 'A' ? 'missing' : ['2001:db8::1']))
    expect(await other.resolve('hook.example', never)).toEqual(['2001:db8::1'])
  })

  test.each<Answer>(['broken', 'silent'])(
    'resolves to IPv4 addresses where for IPv6 the server is %s',
    async (answer) => {
      const { resolve } = await resolver((_name, type) => (type === 'A' ? ['192.0.2.1'] : answer))
      const start = performance.now()
      expect(await resolve('hook.example', never)).toEqual(['192.0.2.1'])
      // To try to the end takes 15 s.
      expect(performance.now() - start).toBeLessThan(10_000)
    },
  )

  test('that does not exist is an error', async () => {
    const { resolve } = await resolver(() => 'missing')
    await expect(resolve('hook.example', never)).rejects.toMatchObject({ code: 'ENOTFOUND' })
  })

  test('that exists without an address is an error', async () => {
    const { resolve } = await resolver(() => [])
    await expect(resolve('hook.example', never)).rejects.toMatchObject({ code: 'ENODATA' })
  })

  test('is asked for as it is, with no search domain appended', async () => {
    const { resolve, server } = await resolver(() => 'missing')
    await resolve('hook', never).catch(() => {})
    expect(asked(server)).toEqual(['A hook', 'AAAA hook'])
  })

  test('whose name server says nothing is given up when the signal aborts, with its reason', async () => {
    const { resolve } = await resolver(() => 'silent')
    const stop = new AbortController()
    const attempt = resolve('hook.example', stop.signal)
    stop.abort(new Error('too slow'))
    await expect(attempt).rejects.toThrow('too slow')
  })

  test('is looked up anew each time: nothing is remembered', async () => {
    let address = '192.0.2.1'
    const { resolve } = await resolver((_name, type) => (type === 'A' ? [address] : []))
    expect(await resolve('hook.example', never)).toEqual(['192.0.2.1'])
    address = '192.0.2.2'
    expect(await resolve('hook.example', never)).toEqual(['192.0.2.2'])
  })

  test('does not wait for another whose name server says nothing', async () => {
    const { resolve } = await resolver((name, type) => {
      if (name === 'silent.example') return 'silent'
      return type === 'A' ? ['192.0.2.1'] : []
    })
    const stop = new AbortController()
    let ended = 0
    const silent = Array.from({ length: 100 }, () =>
      resolve('silent.example', stop.signal)
        .catch(() => 'given up')
        .finally(() => ended++),
    )
    expect(await resolve('hook.example', never)).toEqual(['192.0.2.1'])
    expect(ended).toBe(0)
    stop.abort()
    expect(new Set(await Promise.all(silent))).toEqual(new Set(['given up']))
  })
})

describe('the hosts file', () => {
  const hosts = `# 10.0.0.9 hook.example
10.0.0.1  Hook.example alias # hook2.example
10.0.0.2\thook.example
fd00::1 hook.example
nonsense hook.example
`

  test('comes first', async () => {
    const { resolve, server } = await resolver(() => ['192.0.2.1'], hosts)
    expect(await resolve('hook.example', never)).toEqual(['10.0.0.1', '10.0.0.2', 'fd00::1'])
    expect(await resolve('alias', never)).toEqual(['10.0.0.1'])
    expect(server.questions).toEqual([])
  })

  test('leaves to the name server what it does not list', async () => {
    const { resolve } = await resolver((_name, type) => (type === 'A' ? ['192.0.2.1'] : []), hosts)
    expect(await resolve('hook2.example', never)).toEqual(['192.0.2.1'])
  })

  test('need not exist', async () => {
    const { server } = await resolver((_name, type) => (type === 'A' ? ['192.0.2.1'] : []))
    const resolve = createHostResolver({ servers: [server.address], hostsFile: '/no/such/file' })
    expect(await resolve('hook.example', never)).toEqual(['192.0.2.1'])
  })
})

test('a delivery to a name whose server changes its answer goes nowhere but to the public address', async () => {
  await using authority = await createTestAuthority()
  await using hook = await startReceiver({ authority })
  await using inside = await startReceiver({ authority, host: '127.0.0.2', port: hook.port })
  let addresses = ['127.0.0.1']
  const { resolve } = await resolver((_name, type) => (type === 'A' ? addresses : []))
  const client = createWebhookClient({
    allow: [parseCidr('127.0.0.1')],
    caFile: authority.caFile,
    resolve,
    maxIdleConnections: 0,
    connectTimeoutMs: 60_000,
    totalTimeoutMs: 60_000,
  })
  const message = { headers: {}, body: '{}' }

  expect(await client.post(hook.urlFor('receiver.test'), message)).toEqual({
    kind: 'delivered',
    status: 200,
  })
  for (addresses of [['127.0.0.1', '127.0.0.2'], ['127.0.0.2']]) {
    const outcome = await client.post(hook.urlFor('receiver.test'), message)
    expect(outcome).toMatchObject({ kind: 'failed', stage: 'refused_address' })
  }
  expect(inside.connections).toBe(0)
  expect(hook.connections).toBe(1)
})
