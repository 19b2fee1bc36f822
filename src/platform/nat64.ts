/** IPv4 addresses as networks without IPv4 write them: RFC 6052, under the well-known prefix. */
import ipaddr from 'ipaddr.js'

const WELL_KNOWN_PREFIX = ipaddr.parseCIDR('64:ff9b::/96')

/**
 * The IPv4 address inside an address of 64:ff9b::/96, which is what a translator connects to; any
 * other address as it is. Translators have prefixes of their own too (64:ff9b:1::/48 among them,
 * RFC 8215); what is behind those is not known here.
 */
export function withoutNat64(address: ipaddr.IPv4 | ipaddr.IPv6): ipaddr.IPv4 | ipaddr.IPv6 {
  if (address.kind() !== 'ipv6' || !address.match(WELL_KNOWN_PREFIX)) return address
  return new ipaddr.IPv4(address.toByteArray().slice(12))
}
