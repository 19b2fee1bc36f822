import { once } from 'node:events'
import { createServer, type IncomingMessage, request } from 'node:http'
import { isIP } from 'node:net'
import type { HttpBindings } from '@hono/node-server'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { clientAddressReader } from '../../src/api/client-address.ts'

function from(peer: string | undefined, forwarded?: string): HttpBindings {
  const headers = forwarded === undefined ? {} : { 'x-forwarded-for': forwarded }
  const incoming = { socket: { remoteAddress: peer }, headers } as unknown as IncomingMessage
  return { incoming } as HttpBindings
}

const reader = (trustedProxies: string[], ipv6Prefix = 64) =>
  clientAddressReader({ trustedProxies, ipv6Prefix })

describe('without trusted proxies', () => {
  const read = reader([])

  it('the client is the peer, whatever the header says', () => {
    expect(read(from('203.0.113.5'))).toBe('203.0.113.5')
    expect(read(from('203.0.113.5', '198.51.100.1'))).toBe('203.0.113.5')
    expect(read(from('127.0.0.1', '198.51.100.1, 10.0.0.1'))).toBe('127.0.0.1')
  })

  it('an address has one spelling', () => {
    expect(read(from('::ffff:203.0.113.5'))).toBe('203.0.113.5')
    expect(read(from('2001:DB8:0:0::1'))).toBe(read(from('2001:db8::1')))
    expect(read(from('fe80::1%eth0'))).toBe('fe80::/64')
  })

  it('a connection that is gone has no address, and makes no error', () => {
    expect(read(from(undefined, '198.51.100.1'))).toBe('')
  })
})

describe('IPv6 clients', () => {
  it('are told apart by their /64', () => {
    const read = reader([])
    expect(read(from('2001:db8:1:2::1'))).toBe('2001:db8:1:2::/64')
    expect(read(from('2001:db8:1:2:ffff:ffff:ffff:ffff'))).toBe('2001:db8:1:2::/64')
    expect(read(from('2001:db8:1:3::1'))).toBe('2001:db8:1:3::/64')
  })

  it.each([
    [128, '2001:db8:1:2::1/128'],
    [56, '2001:db8:1::/56'],
    [1, '::/1'],
  ])('or by as many bits as the setting says: %d', (prefix, expected) => {
    expect(reader([], prefix)(from('2001:db8:1:2::1'))).toBe(expected)
  })

  it('are those of IPv4 where a translator has written them so, each on its own', () => {
    const read = reader(['10.0.0.0/8'])
    expect(read(from('64:ff9b::198.51.100.1'))).toBe('198.51.100.1')
    expect(read(from('10.0.0.1', '64:ff9b::c633:6402'))).toBe('198.51.100.2')
  })
})

describe('behind trusted proxies', () => {
  const read = reader(['10.0.0.0/8', '192.0.2.7/32', 'fd00::/8'])

  it.each([
    ['one proxy', '10.1.2.3', '198.51.100.1', '198.51.100.1'],
    ['one proxy, over IPv6', '::ffff:10.1.2.3', '198.51.100.1', '198.51.100.1'],
    ['two proxies', '10.1.2.3', '198.51.100.1, 192.0.2.7', '198.51.100.1'],
    ['a client that made the header up', '10.1.2.3', '6.6.6.6, 198.51.100.1', '198.51.100.1'],
    ['a client that names a proxy', '10.1.2.3', '10.9.9.9, 198.51.100.1', '198.51.100.1'],
    [
      'a client that names a proxy, behind two',
      '10.1.2.3',
      '10.9.9.9, 198.51.100.1, 10.2.2.2',
      '198.51.100.1',
    ],
    ['an IPv4-mapped entry', '10.1.2.3', '::ffff:198.51.100.1', '198.51.100.1'],
    [
      'an IPv4-mapped entry of a proxy',
      '10.1.2.3',
      '198.51.100.1, ::ffff:10.2.2.2',
      '198.51.100.1',
    ],
    ['an IPv6 client', 'fd00::1', '2001:DB8::0001', '2001:db8::/64'],
    ['proxies alone: the farthest', '10.1.2.3', '10.4.4.4, 10.5.5.5', '10.4.4.4'],
    ['blanks and empty entries', '10.1.2.3', ' , 198.51.100.1 ,, ', '198.51.100.1'],
    ['a port', '10.1.2.3', '198.51.100.1:567', '198.51.100.1'],
    ['a port that is a word', '10.1.2.3', '198.51.100.1:_p-1', '198.51.100.1'],
    [
      'a port behind a proxy with one',
      '10.1.2.3',
      '198.51.100.1:567, 192.0.2.7:8443',
      '198.51.100.1',
    ],
    ['brackets and a port', '10.1.2.3', '[2001:db8::1]:443', '2001:db8::/64'],
    ['brackets', '10.1.2.3', '[2001:db8::1]', '2001:db8::/64'],
    ['quotes, brackets and a port', '10.1.2.3', '"[2001:db8::1]:443"', '2001:db8::/64'],
    ['quotes', '10.1.2.3', '"198.51.100.1"', '198.51.100.1'],
    ['a zone', '10.1.2.3', 'fe80::1%eth0', 'fe80::/64'],
    [
      'brackets around an IPv4-mapped entry',
      '10.1.2.3',
      '[::ffff:198.51.100.1]:80',
      '198.51.100.1',
    ],
    [
      'a proxy in brackets, with a zone',
      '10.1.2.3',
      '198.51.100.1, [fd00::7%eth0]:1',
      '198.51.100.1',
    ],
  ])('%s', (_, peer, forwarded, expected) => {
    expect(read(from(peer, forwarded))).toBe(expected)
  })

  it('a proxy that forwards for nobody is the client itself', () => {
    expect(read(from('10.1.2.3'))).toBe('10.1.2.3')
    expect(read(from('10.1.2.3', ''))).toBe('10.1.2.3')
    expect(read(from('10.1.2.3', ' , '))).toBe('10.1.2.3')
  })

  it.each([
    ['unknown', '?unknown'],
    ['Unknown', '?unknown'],
    ['198.51.100.1, _hidden', '?_hidden'],
    ['_hidden:_port, 10.4.4.4', '?_hidden:_port'],
    ['198.51.100.1:', '?198.51.100.1:'],
    ['0x7f.1', '?0x7f.1'],
    ['12345', '?12345'],
    [`198.51.100.1, ${'x'.repeat(10_000)}`, `?${'x'.repeat(64)}`],
  ])('an entry that names no address is a client by what it says: %s', (forwarded, expected) => {
    expect(read(from('10.1.2.3', forwarded))).toBe(expected)
  })

  it('whatever the entry that no proxy wrote, its bucket is not a proxy’s, and bounded', () => {
    const inBrackets = fc
      .tuple(fc.ipV6(), fc.nat(65_535))
      .map(([address, port]) => `[${address}]:${port}`)
    const entry = fc.oneof(
      fc.string(),
      fc.ipV4(),
      fc.ipV6(),
      inBrackets,
      fc.constantFrom('unknown', '""', '[]', '[', '"'),
    )
    const word = entry.filter(
      (text) => !text.includes(',') && !/(^|[^\d.])10\.|192\.0\.2\.7|fd/i.test(text),
    )
    fc.assert(
      fc.property(word, fc.array(entry), (last, before) => {
        fc.pre(last.trim() !== '')
        const bucket = read(from('10.1.2.3', [...before, last, '10.4.4.4'].join(', ')))
        expect(bucket).not.toMatch(/^10\./)
        expect(bucket.length).toBeLessThanOrEqual(65)
        // What comes before it, the client made up.
        expect(bucket).toBe(read(from('10.1.2.3', last)))
        expect(bucket.startsWith('?') || isIP(bucket.split('/')[0] ?? '') > 0).toBe(true)
      }),
      { numRuns: 2_000 },
    )
  })

  it('ports, brackets and quotes change nothing', () => {
    fc.assert(
      fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), fc.nat(65_535), (address, port) => {
        const bare = read(from('10.1.2.3', address))
        const withPort = isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`
        for (const spelling of [withPort, `"${withPort}"`, ` ${withPort} `, `[${address}]`]) {
          expect(read(from('10.1.2.3', spelling)), spelling).toBe(bare)
        }
      }),
    )
  })

  it('from a peer that is no proxy the header is ignored', () => {
    expect(read(from('203.0.113.5', '198.51.100.1'))).toBe('203.0.113.5')
    expect(read(from('11.0.0.1', '10.0.0.1'))).toBe('11.0.0.1')
    expect(read(from('fe80::1', '198.51.100.1'))).toBe('fe80::/64')
  })
})

it('several headers are one list', async () => {
  const read = reader(['127.0.0.0/8'])
  const server = createServer((incoming, outgoing) =>
    outgoing.end(read({ incoming } as HttpBindings)),
  )
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  const asked = request({
    port,
    host: '127.0.0.1',
    headers: { 'X-Forwarded-For': ['6.6.6.6', '198.51.100.1:80'] },
  })
  const [answer] = (await once(asked.end(), 'response')) as [IncomingMessage]
  expect(String((await once(answer, 'data'))[0])).toBe('198.51.100.1')
  server.close()
})
