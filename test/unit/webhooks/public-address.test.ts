import { BlockList, isIP } from 'node:net'
import fc from 'fast-check'
import ipaddr from 'ipaddr.js'
import { describe, expect, test } from 'vitest'
import { isPublicUnicast, parseCidr } from '../../../src/webhooks/public-address.ts'

const ipv4 = fc.ipV4()
const ipv6 = fc.ipV6()

/** Addresses from and to numbers. */
const toIpv4 = (bits: bigint) =>
  [24n, 16n, 8n, 0n].map((shift) => (bits >> shift) & 0xffn).join('.')
const toIpv6 = (bits: bigint) =>
  Array.from({ length: 8 }, (_, i) => ((bits >> BigInt(112 - 16 * i)) & 0xffffn).toString(16)).join(
    ':',
  )
const toBits = (address: string) =>
  ipaddr
    .parse(address)
    .toByteArray()
    .reduce((bits, byte) => (bits << 8n) | BigInt(byte), 0n)

/** An IPv4 address as the last two groups of an IPv6 one. */
const toHex = (address: string) =>
  toBits(address).toString(16).padStart(8, '0').replace(/^..../, '$&:')

/**
 * Any address inside a block, by arithmetic of its own: nothing here shares code with what is
 * tested.
 */
function inside(block: string): fc.Arbitrary<string> {
  const [network = '', length = ''] = block.split('/')
  const width = isIP(network) === 6 ? 128n : 32n
  const free = width - BigInt(length)
  return fc
    .bigInt({ min: 0n, max: (1n << free) - 1n })
    .map((low) => (width === 32n ? toIpv4 : toIpv6)(((toBits(network) >> free) << free) | low))
}

/**
 * The first and the last address of a block, and the one before and the one after where there is
 * one.
 */
function edges(block: string): string[] {
  const [network = '', length = ''] = block.split('/')
  const width = isIP(network) === 6 ? 128n : 32n
  const first = toBits(network)
  const last = first | ((1n << (width - BigInt(length))) - 1n)
  return [first - 1n, first, last, last + 1n]
    .filter((bits) => bits >= 0n && bits < 1n << width)
    .map(width === 32n ? toIpv4 : toIpv6)
}

const refused: [what: string, block: string][] = [
  ['this network', '0.0.0.0/8'],
  ['private', '10.0.0.0/8'],
  ['private', '172.16.0.0/12'],
  ['private', '192.168.0.0/16'],
  ['carrier-grade NAT', '100.64.0.0/10'],
  ['loopback', '127.0.0.0/8'],
  ['link-local and metadata', '169.254.0.0/16'],
  ['Azure host agent', '168.63.129.16/32'],
  ['protocol assignments', '192.0.0.0/24'],
  ['documentation', '192.0.2.0/24'],
  ['documentation', '198.51.100.0/24'],
  ['documentation', '203.0.113.0/24'],
  ['AS112', '192.31.196.0/24'],
  ['AMT', '192.52.193.0/24'],
  ['6to4 relay', '192.88.99.0/24'],
  ['AS112', '192.175.48.0/24'],
  ['benchmarking', '198.18.0.0/15'],
  ['multicast', '224.0.0.0/4'],
  ['reserved', '240.0.0.0/4'],
  ['broadcast', '255.255.255.255/32'],
  ['unspecified', '::/128'],
  ['loopback', '::1/128'],
  ['IPv4-compatible', '::/96'],
  ['IPv4-mapped', '::ffff:0:0/96'],
  ['IPv4-translated', '::ffff:0:0:0/96'],
  ['local NAT64', '64:ff9b:1::/48'],
  ['beside NAT64', '64:ff9b::1:0:0/96'],
  ['discard', '100::/64'],
  ['dummy', '100:0:0:1::/64'],
  ['protocol assignments', '2001::/23'],
  ['Teredo', '2001::/32'],
  ['benchmarking', '2001:2::/48'],
  ['AMT', '2001:3::/32'],
  ['AS112', '2001:4:112::/48'],
  ['ORCHID', '2001:10::/28'],
  ['ORCHIDv2', '2001:20::/28'],
  ['drone tags', '2001:30::/28'],
  ['documentation', '2001:db8::/32'],
  ['documentation', '3fff::/20'],
  ['6to4', '2002::/16'],
  ['AS112', '2620:4f:8000::/48'],
  ['segment routing', '5f00::/16'],
  ['unique-local', 'fc00::/7'],
  ['link-local', 'fe80::/10'],
  ['site-local', 'fec0::/10'],
  ['multicast', 'ff00::/8'],
]

describe('an address that is not public', () => {
  test.each(refused)('is one that is %s (%s)', (_what, block) => {
    fc.assert(fc.property(inside(block), (address) => !isPublicUnicast(address)))
  })

  test('is one that ipaddr.js knows to be special, whatever its own list', () => {
    fc.assert(
      fc.property(fc.oneof(ipv4, ipv6), (address) => {
        // Of `rfc6052` it depends on what is inside.
        if (!['unicast', 'rfc6052'].includes(ipaddr.parse(address).range()))
          expect(isPublicUnicast(address)).toBe(false)
      }),
      { numRuns: 2_000 },
    )
  })

  test('is any that carries an IPv4 address in one of the known ways, public or not', () => {
    fc.assert(
      fc.property(ipv4, (address) => {
        const hex = toHex(address)
        const local = `64:ff9b:1::${hex}`
        for (const form of [
          `::${hex}`,
          `::ffff:${hex}`,
          local,
          `2002:${hex}::`,
          `::ffff:0:${hex}`,
        ]) {
          expect(isPublicUnicast(form)).toBe(false)
        }
      }),
    )
  })

  test.each([
    '',
    'localhost',
    '1',
    '1.1',
    '01.1.1.1',
    '0x1.1.1.1',
    '1.1.1.1.',
    ' 1.1.1.1',
    '1.1.1.256',
    '16843009',
    '2606:4700::1%eth0',
    '[2606:4700::1]',
    '1.1.1.1/32',
  ])('is anything but an address in its usual spelling: "%s"', (text) => {
    expect(isPublicUnicast(text)).toBe(false)
  })
})

describe('a public address', () => {
  test.each([
    '1.1.1.1',
    '8.8.8.8',
    '100.63.255.255',
    '100.128.0.0',
    '172.15.0.1',
    '172.32.0.1',
    '192.0.1.1',
    '223.255.255.255',
  ])('is IPv4 %s', (address) => expect(isPublicUnicast(address)).toBe(true))

  test.each([
    '2606:4700:4700::1111',
    '2001:4860:4860::8888',
    '2001:200::1',
    '2a00:1450:4001::1',
    '3ffe::1',
    '2620:4f:8001::1',
  ])('is IPv6 %s', (address) => expect(isPublicUnicast(address)).toBe(true))

  test('is every one outside the refused blocks, and no other: with Node’s BlockList as the judge', () => {
    // One for each family: Node takes an IPv4 address for its IPv4-mapped form, which is in one of
    // the IPv6 blocks.
    const judges = { ipv4: new BlockList(), ipv6: new BlockList() }
    const familyOf = (address: string) => (isIP(address) === 6 ? 'ipv6' : 'ipv4')
    for (const [, block] of refused) {
      const [network = '', length] = block.split('/')
      judges[familyOf(network)].addSubnet(network, Number(length), familyOf(network))
    }
    const byTheEdges = refused
      .flatMap(([, block]) => edges(block))
      .filter((address) => isIP(address) === 4 || /^[23]...:/.test(address))
    const any = fc.oneof(ipv4, inside('2000::/3'), fc.constantFrom(...byTheEdges))
    fc.assert(
      fc.property(any, (address) => {
        expect(isPublicUnicast(address)).toBe(
          !judges[familyOf(address)].check(address, familyOf(address)),
        )
      }),
      { numRuns: 5_000 },
    )
  })
})

describe('an address of DNS64 (64:ff9b::/96)', () => {
  test('is public when the IPv4 address inside is, in whatever spelling', () => {
    fc.assert(
      fc.property(ipv4, (address) => {
        for (const form of [
          `64:ff9b::${address}`,
          `64:ff9b::${toHex(address)}`,
          `0064:FF9B:0:0:0:0:${toHex(address)}`,
        ]) {
          expect(isPublicUnicast(form)).toBe(isPublicUnicast(address))
        }
      }),
      { numRuns: 2_000 },
    )
  })

  test.each(refused.filter(([, block]) => isIP(block.split('/')[0] ?? '') === 4))(
    'is refused with one inside that is %s (%s)',
    (_what, block) => {
      fc.assert(
        fc.property(inside(block), (address) => !isPublicUnicast(`64:ff9b::${toHex(address)}`)),
      )
    },
  )

  test('is admitted by a block of its own, and by none of IPv4', () => {
    expect(isPublicUnicast('64:ff9b::10.0.0.1', [parseCidr('10.0.0.0/8')])).toBe(false)
    expect(isPublicUnicast('64:ff9b::10.0.0.1', [parseCidr('64:ff9b::a00:0/104')])).toBe(true)
  })
})

describe('an allowed block', () => {
  test('makes what is inside public, and changes nothing for the rest', () => {
    const allow = [parseCidr('10.1.0.0/16'), parseCidr('fd00::/8')]
    fc.assert(
      fc.property(fc.oneof(inside('10.1.0.0/16'), inside('fd00::/8')), (address) =>
        isPublicUnicast(address, allow),
      ),
    )
    fc.assert(
      fc.property(fc.oneof(inside('10.2.0.0/15'), inside('fc00::/8'), ipv4, ipv6), (address) => {
        fc.pre(!address.startsWith('10.1.') && !address.startsWith('fd'))
        expect(isPublicUnicast(address, allow)).toBe(isPublicUnicast(address))
      }),
    )
  })

  test('of IPv4 does not admit the IPv4-mapped form', () => {
    expect(isPublicUnicast('127.0.0.1', [parseCidr('127.0.0.0/8')])).toBe(true)
    expect(isPublicUnicast('::ffff:127.0.0.1', [parseCidr('127.0.0.0/8')])).toBe(false)
    expect(isPublicUnicast('::ffff:127.0.0.1', [parseCidr('::ffff:0:0/96')])).toBe(true)
  })

  test('may be a single address', () => {
    expect(isPublicUnicast('10.0.0.1', [parseCidr('10.0.0.1')])).toBe(true)
    expect(isPublicUnicast('10.0.0.2', [parseCidr('10.0.0.1')])).toBe(false)
    expect(isPublicUnicast('fd00::1', [parseCidr('fd00::1')])).toBe(true)
    expect(isPublicUnicast('fd00::2', [parseCidr('fd00::1')])).toBe(false)
  })

  test.each([
    '',
    '10',
    '10.0.0.0/33',
    '10.0.0.0/-1',
    '10.0.0.0/',
    '10.0.0.0/8/8',
    'fd00::/129',
    '10.1/16',
    'fe80::%1/64',
    'host/8',
    '10.0.0.0/0x8',
  ])('is not "%s"', (text) => {
    expect(() => parseCidr(text)).toThrow(RangeError)
  })
})
