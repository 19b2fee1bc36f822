/**
 * Which addresses a webhook may be sent to: public unicast ones, and those that the operator allows
 * by name.
 *
 * Both sides of server-side request forgery rest on this page: the check at registration and the
 * check of every connection. It knows addresses only; host names are the business of
 * `public-host.ts`.
 */

import { isIP } from 'node:net'
import ipaddr from 'ipaddr.js'
import { withoutNat64 } from '../platform/nat64.ts'

type Address = ipaddr.IPv4 | ipaddr.IPv6

/**
 * A block of addresses, as `parseCidr` returns it: any address inside, and the number of leading
 * bits that count.
 */
export type Cidr = readonly [address: Address, prefixLength: number]

/**
 * IPv4: all of the address space but these blocks.
 *
 * Sources: the IANA IPv4 Special-Purpose Address Registry
 * (https://www.iana.org/assignments/iana-ipv4-special-registry, RFC 6890, RFC 8190) in full, the
 * blocks it calls globally reachable included: those are anycast services, and none is anyone's web
 * server. Not in that registry: multicast (RFC 5771), and 168.63.129.16, public by its number but
 * on every Azure machine the host's own agent
 * (https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16).
 */
const REFUSED_IPV4: readonly Cidr[] = [
  '0.0.0.0/8', // this network, RFC 791; Linux takes 0.0.0.0 for the machine itself
  '10.0.0.0/8', // private, RFC 1918
  '100.64.0.0/10', // carrier-grade NAT, RFC 6598; holds 100.100.100.200, a cloud metadata service
  '127.0.0.0/8', // loopback, RFC 1122
  '168.63.129.16/32', // the host agent of an Azure machine
  '169.254.0.0/16', // link-local, RFC 3927; holds 169.254.169.254, the metadata service of most clouds
  '172.16.0.0/12', // private, RFC 1918
  '192.0.0.0/24', // IETF protocol assignments, RFC 6890; holds 192.0.0.192, a cloud metadata service
  '192.0.2.0/24', // documentation, RFC 5737
  '192.31.196.0/24', // AS112, RFC 7535
  '192.52.193.0/24', // AMT relays, RFC 7450
  '192.88.99.0/24', // 6to4 relays, RFC 7526
  '192.168.0.0/16', // private, RFC 1918
  '192.175.48.0/24', // AS112, RFC 7534
  '198.18.0.0/15', // benchmarking, RFC 2544
  '198.51.100.0/24', // documentation, RFC 5737
  '203.0.113.0/24', // documentation, RFC 5737
  '224.0.0.0/4', // multicast, RFC 5771
  '240.0.0.0/4', // reserved, RFC 1112, and the limited broadcast address, RFC 8190
].map(parseCidr)

/**
 * IPv6: only 2000::/3, the one block that IANA hands out for global unicast (RFC 4291 section 2.4,
 * https://www.iana.org/assignments/ipv6-unicast-address-assignments). That alone refuses the
 * unspecified and loopback addresses, IPv4-compatible (::/96) and IPv4-mapped (::ffff:0:0/96) ones,
 * IPv4-translated (::ffff:0:0:0/96), NAT64 for local use (64:ff9b:1::/48), discard and dummy
 * (100::/64, 100:0:0:1::/64), segment routing (5f00::/16), unique-local, link-local, site-local and
 * multicast.
 */
const GLOBAL_UNICAST_IPV6 = parseCidr('2000::/3')

/**
 * … and in there, not these. Source: the IANA IPv6 Special-Purpose Address Registry
 * (https://www.iana.org/assignments/iana-ipv6-special-registry). Forms that carry an IPv4 address
 * inside (6to4, Teredo) are refused whatever they carry: nobody serves webhooks on them, and to
 * unpack them is one more thing to get wrong. The one exception is 64:ff9b::/96: on a network
 * without IPv4 every host that has no IPv6 is there (DNS64, RFC 6147), so an address in it is
 * judged by the IPv4 address inside.
 */
const REFUSED_IPV6: readonly Cidr[] = [
  '2001::/23', // IETF protocol assignments, RFC 2928: Teredo, benchmarking, AMT, AS112, ORCHID, drone tags
  '2001:db8::/32', // documentation, RFC 3849
  '2002::/16', // 6to4, RFC 3056
  '2620:4f:8000::/48', // AS112, RFC 7534
  '3fff::/20', // documentation, RFC 9637
].map(parseCidr)

/**
 * Whether a webhook may be sent to `address`.
 *
 * What this cannot know: a network that translates a prefix of its own to IPv4 (NAT64 with a
 * network-specific prefix, RFC 6052 section 2.2). Where there is one, block it on the way out.
 *
 * @param address an IPv4 address in dotted decimal or an IPv6 address, as `dns` and
 *   `socket.remoteAddress` give them; anything else, a zone (`fe80::1%eth0`) or an odd spelling
 *   (`0x7f.1`) included, is not public
 * @param allow blocks that count as public whatever they are. A block of IPv4 does not admit the
 *   same address in its IPv4-mapped form, nor under 64:ff9b::/96, where none but public ones belong
 *   (RFC 6052 section 3.1).
 */
export function isPublicUnicast(address: string, allow: readonly Cidr[] = []): boolean {
  if (isIP(address) === 0 || address.includes('%')) return false
  const parsed = ipaddr.parse(address)
  if (isInAny(parsed, allow)) return true
  const reached = withoutNat64(parsed)
  return reached.kind() === 'ipv4'
    ? !isInAny(reached, REFUSED_IPV4)
    : isIn(reached, GLOBAL_UNICAST_IPV6) && !isInAny(reached, REFUSED_IPV6)
}

/**
 * A block of addresses from its usual notation: `10.0.0.0/8`, `fd00::/8`; a bare address is a block
 * of one.
 *
 * @throws RangeError if the text is neither
 */
export function parseCidr(text: string): Cidr {
  const [address = '', length, ...rest] = text.split('/')
  const family = isIP(address)
  const maxLength = family === 6 ? 128 : 32
  const prefixLength = length === undefined ? maxLength : Number(length)
  const isLength = length === undefined || (/^\d{1,3}$/.test(length) && prefixLength <= maxLength)
  if (family === 0 || address.includes('%') || !isLength || rest.length > 0) {
    throw new RangeError(`"${text}" is not a block of addresses such as 10.0.0.0/8 or fd00::/8`)
  }
  return [ipaddr.parse(address), prefixLength]
}

function isInAny(address: Address, blocks: readonly Cidr[]): boolean {
  return blocks.some((block) => isIn(address, block))
}

function isIn(address: Address, [network, prefixLength]: Cidr): boolean {
  return address.kind() === network.kind() && address.match(network, prefixLength)
}
