import type { IncomingMessage } from 'node:http'
import type { HttpBindings } from '@hono/node-server'
import { describe, expect, it } from 'vitest'
import { clientAddressReader } from '../../src/api/client-address.ts'

function from(peer: string | undefined, forwarded?: string): HttpBindings {
  const headers = forwarded === undefined ? {} : { 'x-forwarded-for': forwarded }
  const incoming = { socket: { remoteAddress: peer }, headers } as unknown as IncomingMessage
  return { incoming } as HttpBindings
}

describe('without trusted proxies', () => {
  const read = clientAddressReader([])

  it('the client is the peer, whatever the header says', () => {
    expect(read(from('203.0.113.5'))).toBe('203.0.113.5')
    expect(read(from('203.0.113.5', '198.51.100.1'))).toBe('203.0.113.5')
    expect(read(from('127.0.0.1', '198.51.100.1, 10.0.0.1'))).toBe('127.0.0.1')
  })

  it('an address has one spelling', () => {
    expect(read(from('::ffff:203.0.113.5'))).toBe('203.0.113.5')
    expect(read(from('2001:DB8:0:0::1'))).toBe(read(from('2001:db8::1')))
  })

  it('a connection that is gone has no address, and makes no error', () => {
    expect(read(from(undefined, '198.51.100.1'))).toBe('')
  })
})

describe('behind trusted proxies', () => {
  const read = clientAddressReader(['10.0.0.0/8', '192.0.2.7/32', 'fd00::/8'])

  it.each([
    ['one proxy', '10.1.2.3', '198.51.100.1', '198.51.100.1'],
    ['one proxy, over IPv6', '::ffff:10.1.2.3', '198.51.100.1', '198.51.100.1'],
    ['two proxies', '10.1.2.3', '198.51.100.1, 192.0.2.7', '198.51.100.1'],
    ['a client that made the header up', '10.1.2.3', '6.6.6.6, 198.51.100.1', '198.51.100.1'],
    ['a client that names a proxy', '10.1.2.3', '10.9.9.9, 198.51.100.1', '198.51.100.1'],
    ['a client that names a proxy, behind two', '10.1.2.3', '10.9.9.9, 198.51.100.1, 10.2.2.2', '198.51.100.1'],
    ['an IPv4-mapped entry', '10.1.2.3', '::ffff:198.51.100.1', '198.51.100.1'],
    ['an IPv4-mapped entry of a proxy', '10.1.2.3', '198.51.100.1, ::ffff:10.2.2.2', '198.51.100.1'],
    ['an IPv6 client', 'fd00::1', '2001:DB8::0001', '2001:db8::1'],
    ['proxies alone: the farthest', '10.1.2.3', '10.4.4.4, 10.5.5.5', '10.4.4.4'],
    ['blanks and empty entries', '10.1.2.3', ' , 198.51.100.1 ,, ', '198.51.100.1'],
  ])('%s', (_, peer, forwarded, expected) => {
    expect(read(from(peer, forwarded))).toBe(expected)
  })

  it('a proxy that says nothing, or nonsense, is the client itself', () => {
    expect(read(from('10.1.2.3'))).toBe('10.1.2.3')
    expect(read(from('10.1.2.3', ''))).toBe('10.1.2.3')
    expect(read(from('10.1.2.3', 'unknown'))).toBe('10.1.2.3')
    expect(read(from('10.1.2.3', '198.51.100.1, _hidden'))).toBe('10.1.2.3')
  })

  it('from a peer that is no proxy the header is ignored', () => {
    expect(read(from('203.0.113.5', '198.51.100.1'))).toBe('203.0.113.5')
    expect(read(from('11.0.0.1', '10.0.0.1'))).toBe('11.0.0.1')
    expect(read(from('fe80::1', '198.51.100.1'))).toBe('fe80::1')
  })
})
