/** Which client a request comes from, behind proxies or not. */
import type { HttpBindings } from '@hono/node-server'
import ipaddr from 'ipaddr.js'

/**
 * Returns a function that finds the client's address: the peer's or, as long as that is a trusted proxy (a CIDR range of
 * `trustedProxies`), the right-most `X-Forwarded-For` entry that none of them wrote. From any other peer the header is ignored.
 */
export function clientAddressReader(trustedProxies: readonly string[]): (bindings: HttpBindings) => string {
  const ranges = trustedProxies.map((range) => ipaddr.parseCIDR(range))
  const isTrusted = (address: string) => {
    if (!ipaddr.isValid(address)) return false
    const parsed = ipaddr.process(address)
    return ranges.some((range) => parsed.kind() === range[0].kind() && parsed.match(range))
  }
  return ({ incoming }) => {
    const peer = normal(incoming.socket.remoteAddress ?? '')
    if (!isTrusted(peer)) return peer
    const entries = String(incoming.headers['x-forwarded-for'] ?? '')
      .split(',')
      .flatMap((entry) => entry.trim() || [])
    const client = entries.findLast((entry) => !isTrusted(entry)) ?? entries[0]
    return client === undefined || !ipaddr.isValid(client) ? peer : normal(client)
  }
}

/** One spelling for each address; IPv4 in IPv6 as IPv4. */
function normal(address: string): string {
  return ipaddr.isValid(address) ? ipaddr.process(address).toString() : address
}
