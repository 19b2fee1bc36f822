/**
 * A host as a URL has it: an IPv6 address in brackets; of one that means all addresses, the machine
 * itself.
 */
export function urlHost(host: string): string {
  if (host === '0.0.0.0' || host === '::') return 'localhost'
  return host.includes(':') ? `[${host}]` : host
}
