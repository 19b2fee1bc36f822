/**
 * From a host to the addresses that may be connected to: the one gate that registration and
 * delivery share.
 */

import { isIP } from 'node:net'
import { untilAborted } from './deadline.ts'
import { errorCode } from './error-code.ts'
import { type Cidr, isPublicUnicast } from './public-address.ts'
import type { ResolveHost } from './resolve-host.ts'

/** How hosts are resolved, and which addresses beside public unicast ones are fine. */
export interface HostPolicy {
  readonly resolve: ResolveHost
  readonly allow: readonly Cidr[]
}

/**
 * The host has no address, or none could be found. The message is the resolver's error code, or
 * says why not.
 */
export class HostUnresolved extends Error {
  override readonly name = 'HostUnresolved'
}

/**
 * The host is, or resolves to, an address that is not public. The message does not say which: it
 * may be read by anyone.
 */
export class HostNotPublic extends Error {
  override readonly name = 'HostNotPublic'
}

/**
 * Every address of `host`, all of them public. One that is not spoils the lot: a name that answers
 * with public and private addresses at once has no honest use, and dropping the bad ones would only
 * hide it.
 *
 * @param host a name, or an IPv4 or IPv6 address without brackets
 * @throws HostUnresolved | HostNotPublic, or the signal's reason once it aborts, whether or not
 *   `resolve` heeds it
 */
export async function publicAddressesOf(
  host: string,
  { resolve, allow }: HostPolicy,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const addresses = isIP(host) > 0 ? [host] : await addressesOf(host, resolve, signal)
  if (addresses.length === 0) throw new HostUnresolved('no addresses')
  if (!addresses.every((address) => isPublicUnicast(address, allow))) {
    throw new HostNotPublic('the host has an address that is not public')
  }
  return addresses
}

async function addressesOf(
  host: string,
  resolve: ResolveHost,
  signal: AbortSignal,
): Promise<readonly string[]> {
  try {
    return await untilAborted(resolve(host, signal), signal)
  } catch (error) {
    signal.throwIfAborted()
    throw new HostUnresolved(errorCode(error), { cause: error })
  }
}
