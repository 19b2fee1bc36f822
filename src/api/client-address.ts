/**
 * Which client a request comes from, behind proxies or not: the name of the bucket that it draws
 * on.
 */
import { isIP } from 'node:net'
import type { HttpBindings } from '@hono/node-server'
import ipaddr from 'ipaddr.js'
import { withoutNat64 } from '../platform/nat64.ts'

export interface ClientAddressOptions {
  /** CIDR ranges of the proxies whose `X-Forwarded-For` is believed. */
  trustedProxies: readonly string[]
  /**
   * Leading bits of an IPv6 address that tell clients apart: who has one address there usually has
   * a whole /64 (RFC 6177).
   */
  ipv6Prefix: number
}

type Address = ipaddr.IPv4 | ipaddr.IPv6

/** Peers whose names are remembered at most: a connection is good for many requests. */
const MAX_PEERS = 1_000

/**
 * Of an entry that is no address, in characters: what proxies write there is short, and the name of
 * a bucket must be.
 */
const MAX_WORD_LENGTH = 64

/**
 * Returns a function that names the client of a request: its IPv4 address, the block of its IPv6
 * address (`2001:db8::/64`), or `?` and a word for one whose address nobody says; empty for a
 * connection that is gone.
 *
 * The client is the peer or, where that is a trusted proxy, the right-most `X-Forwarded-For` entry
 * that none of them wrote. From any other peer the header is ignored.
 *
 * That entry is the last thing that a trusted proxy vouches for. Where it is no address (`unknown`,
 * `_hidden`, RFC 7239 section 6), those to its left are the client's own words, and the proxy's
 * bucket would be one for all clients, the proxy's health checks included. So the word itself names
 * a bucket: a proxy that hides each client behind a word of its own keeps them apart.
 */
export function clientAddressReader({
  trustedProxies,
  ipv6Prefix,
}: ClientAddressOptions): (bindings: HttpBindings) => string {
  const ranges = trustedProxies.map((range) => ipaddr.parseCIDR(range))
  const isTrusted = (address: Address | undefined) =>
    address !== undefined &&
    ranges.some((range) => address.kind() === range[0].kind() && address.match(range))

  const bucketOf = (address: Address) => {
    const client = withoutNat64(address)
    return client.kind() === 'ipv4' ? client.toString() : block(client as ipaddr.IPv6, ipv6Prefix)
  }

  /** Of peers that are no proxies, by their addresses. */
  const names = new Map<string, string>()
  const remember = (address: string, name: string) => {
    if (names.size >= MAX_PEERS) names.clear()
    names.set(address, name)
    return name
  }

  return ({ incoming }) => {
    const { remoteAddress = '' } = incoming.socket
    const known = names.get(remoteAddress)
    if (known !== undefined) return known
    const peer = parse(remoteAddress)
    if (peer === undefined) return remoteAddress
    if (!isTrusted(peer)) return remember(remoteAddress, bucketOf(peer))
    // Node joins several headers by commas. Empty elements of a list do not count (RFC 9110 section
    // 5.6.1.2).
    const entries = String(incoming.headers['x-forwarded-for'] ?? '')
      .split(',')
      .flatMap((entry) => entry.trim() || [])
      .map((text) => ({ text, address: parse(withoutPort(text)) }))
    const client = entries.findLast(({ address }) => !isTrusted(address)) ?? entries[0]
    if (client === undefined) return bucketOf(peer)
    return client.address
      ? bucketOf(client.address)
      : `?${client.text.toLowerCase().slice(0, MAX_WORD_LENGTH)}`
  }
}

/**
 * What is in an entry beside a port, obfuscated or not (RFC 7239 section 6), brackets and quotes.
 */
function withoutPort(entry: string): string {
  const text = entry.replace(/^"(.*)"$/, '$1').trim()
  const [, bracketed, plain] =
    /^(?:\[([^\]]*)\]|([^:]*))(?::(?:\d{1,5}|_[\w.-]+))?$/.exec(text) ?? []
  return bracketed ?? plain ?? text
}

/**
 * An address in its usual spelling, IPv4 in IPv6 as IPv4, without the zone, which says nothing of
 * who it is.
 */
function parse(text: string): Address | undefined {
  const address = text.replace(/%.*$/, '')
  return isIP(address) > 0 ? ipaddr.process(address) : undefined
}

function block(address: ipaddr.IPv6, prefixLength: number): string {
  const network = ipaddr.IPv6.networkAddressFromCIDR(`${address}/${prefixLength}`)
  return `${network}/${prefixLength}`
}
