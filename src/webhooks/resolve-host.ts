/**
 * Host names to addresses, over the network and off the thread pool.
 *
 * `dns.lookup` would wait in getaddrinfo on a thread, and libuv gives such waits half of its four
 * threads: two agents whose name servers never answer could hold up every other agent's deliveries
 * (nodejs/node#8436). c-ares waits on the event loop, as many at once as it takes, and can be
 * cancelled. What it does not read is the hosts file, which is read here first, as `files dns` in
 * nsswitch.conf has it. It appends no search domain: a webhook's host is a full name.
 */

import { Resolver } from 'node:dns/promises'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'

/**
 * Finds every address of a host name, in no particular order.
 *
 * May reject for any reason, may return nothing, and may ignore the signal: who calls it copes with
 * each.
 */
export type ResolveHost = (hostname: string, signal: AbortSignal) => Promise<readonly string[]>

export interface HostResolverOptions {
  /**
   * Name servers to ask, as `address` or `address:port`. Default: those of the system
   * (resolv.conf).
   */
  readonly servers?: readonly string[]
  /** Names that need no name server. Default: /etc/hosts. */
  readonly hostsFile?: string
}

/** Time for the first question to one server, in ms; c-ares doubles it from one try to the next. */
const FIRST_TRY_MS = 1_000
const TRIES = 4

/**
 * Once one family of addresses is known, how long the other may take, in ms. A name server that
 * drops AAAA questions must not keep an IPv4 host from its deliveries. RFC 8305 section 3 waits 50
 * ms, with a person watching.
 */
const LATE_FAMILY_MS = 300

/** A resolver that reads the hosts file, then asks for A and AAAA records at once. */
export function createHostResolver({
  servers,
  hostsFile = '/etc/hosts',
}: HostResolverOptions = {}): ResolveHost {
  return async (hostname, signal) => {
    const listed = await addressesInHostsFile(hostsFile, hostname)
    return listed.length > 0 ? listed : await addressesInDns(hostname, servers, signal)
  }
}

async function addressesInDns(
  hostname: string,
  servers: readonly string[] | undefined,
  signal: AbortSignal,
): Promise<string[]> {
  signal.throwIfAborted()
  // One for each look-up, because cancel() cancels all of a resolver's questions; it costs 25 µs to
  // make.
  const resolver = new Resolver({ timeout: FIRST_TRY_MS, tries: TRIES })
  if (servers !== undefined) resolver.setServers(servers)
  const cancel = () => resolver.cancel()
  let lateFamily: NodeJS.Timeout | undefined
  const startLateFamily = (addresses: string[]): string[] => {
    lateFamily ??= setTimeout(cancel, LATE_FAMILY_MS)
    return addresses
  }
  signal.addEventListener('abort', cancel, { once: true })
  try {
    const answers = await Promise.allSettled([
      resolver.resolve4(hostname).then(startLateFamily),
      resolver.resolve6(hostname).then(startLateFamily),
    ])
    signal.throwIfAborted()
    const found = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []))
    const failure = answers.find((answer) => answer.status === 'rejected')
    if (found.length === 0 && failure !== undefined) throw failure.reason
    return found
  } finally {
    clearTimeout(lateFamily)
    signal.removeEventListener('abort', cancel)
  }
}

/**
 * Lines of `address name name …`, `#` starting a comment: hosts(5). A file that cannot be read
 * lists nothing.
 */
async function addressesInHostsFile(file: string, hostname: string): Promise<string[]> {
  const text = await readFile(file, 'utf8').catch(() => '')
  return text.split('\n').flatMap((line) => {
    const [address = '', ...names] = (line.split('#', 1)[0] ?? '').trim().split(/\s+/)
    return isIP(address) > 0 && names.some((name) => name.toLowerCase() === hostname.toLowerCase())
      ? [address]
      : []
  })
}
