/**
 * Opens a TLS connection to a webhook's host, and to nothing but a public address.
 *
 * The safety is here, in the connection, and not in a check before it: a name that resolves
 * differently the second time gains nothing, because what is checked is what is connected to. In
 * order:
 *
 * 1. resolve, unless the host is an address; refuse if any of the addresses is not public
 * 2. connect to one of exactly these addresses: the socket never resolves anything itself
 * 3. check the address at the other end of the socket, before a byte is sent, whatever brought us
 *   there
 * 4. TLS, its certificate verified for the host of the URL
 */

import { connect as connectTcp, isIP, type Socket, type TcpNetConnectOpts } from 'node:net'
import { connect as connectTls, type SecureContext, type TLSSocket } from 'node:tls'
import { DeliveryFailure } from './delivery-outcome.ts'
import { errorCode } from './error-code.ts'
import { isPublicUnicast } from './public-address.ts'
import { HostNotPublic, type HostPolicy, publicAddressesOf } from './public-host.ts'

/**
 * Starts a TCP connection; `net.connect` in production, something that goes astray in a test of
 * step 3.
 */
export type OpenSocket = (options: TcpNetConnectOpts) => Socket

export interface GuardedConnectionOptions extends HostPolicy {
  /** Which certificate authorities are trusted, and the TLS versions. */
  readonly secureContext: SecureContext
  readonly openSocket?: OpenSocket
  /**
   * Time for resolving, TCP and TLS together, in ms: here only to share it among several addresses.
   */
  readonly connectTimeoutMs: number
}

/**
 * How long one of several addresses gets before the next is tried, in ms, at least and at most.
 * Above the round trip to anywhere, and long enough to send the first packet once more (RFC 6298:
 * after 1 s).
 */
const MIN_TRY_MS = 250
const MAX_TRY_MS = 1_500

/**
 * Connects to `host:port`, over TLS, ready for the first byte of HTTP.
 *
 * @param host a name or an address, an IPv6 one without brackets
 * @returns a socket with its listener for errors in place; the caller destroys it
 * @throws DeliveryFailure with the stage that failed: `resolve`, `refused_address`, `connect` or
 *   `tls`. Its reason is `timeout` if `signal` aborted; the socket is then destroyed.
 */
export async function openGuardedConnection(
  host: string,
  port: number,
  options: GuardedConnectionOptions,
  signal: AbortSignal,
): Promise<TLSSocket> {
  const addresses = await resolveHost(host, options, signal)
  const socket = await connectToOneOf(addresses, host, port, options, signal)
  if (!isPublicUnicast(socket.remoteAddress ?? '', options.allow)) {
    socket.destroy()
    throw new DeliveryFailure('refused_address', 'connected to an address that is not public')
  }
  return await secure(socket, host, options.secureContext, signal)
}

async function resolveHost(
  host: string,
  policy: HostPolicy,
  signal: AbortSignal,
): Promise<readonly string[]> {
  try {
    return await publicAddressesOf(host, policy, signal)
  } catch (error) {
    if (error instanceof HostNotPublic) throw new DeliveryFailure('refused_address', error.message)
    throw new DeliveryFailure('resolve', signal.aborted ? 'timeout' : (error as Error).message)
  }
}

async function connectToOneOf(
  addresses: readonly string[],
  host: string,
  port: number,
  { openSocket = connectTcp, connectTimeoutMs }: GuardedConnectionOptions,
  signal: AbortSignal,
): Promise<Socket> {
  const resolved = addresses.map((address) => ({ address, family: isIP(address) }))
  const socket = openSocket({
    host,
    port,
    noDelay: true,
    // Not called for a host that is an address: Node connects to that straight away, hence the
    // check afterwards.
    lookup: (_host, _options, found) => found(null, resolved),
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: Math.max(
      MIN_TRY_MS,
      Math.min(MAX_TRY_MS, Math.floor(connectTimeoutMs / addresses.length)),
    ),
  })
  return await socketEvent(socket, 'connect', 'connect', signal)
}

async function secure(
  tcp: Socket,
  host: string,
  secureContext: SecureContext,
  signal: AbortSignal,
): Promise<TLSSocket> {
  const socket = connectTls({
    socket: tcp,
    secureContext,
    // The certificate has to be for the host of the URL, name or address. Only a name may be sent
    // as SNI (RFC 6066).
    host,
    servername: isIP(host) > 0 ? '' : host,
    ALPNProtocols: ['http/1.1'],
    // Said here, so that NODE_TLS_REJECT_UNAUTHORIZED=0 in the environment changes nothing.
    rejectUnauthorized: true,
  })
  return await socketEvent(socket, 'secureConnect', 'tls', signal)
}

/**
 * The socket once it has emitted `event`. If it fails first or the signal aborts, it is destroyed.
 */
async function socketEvent<S extends Socket>(
  socket: S,
  event: 'connect' | 'secureConnect',
  stage: 'connect' | 'tls',
  signal: AbortSignal,
): Promise<S> {
  const done = Promise.withResolvers<S>()
  const succeed = () => done.resolve(socket)
  const abort = () => socket.destroy(new DeliveryFailure(stage, 'timeout'))
  // Stays for the life of the socket: an error that no one listens for ends the process.
  socket.on('error', (error) => {
    done.reject(
      error instanceof DeliveryFailure ? error : new DeliveryFailure(stage, errorCode(error)),
    )
  })
  const close = () => done.reject(new DeliveryFailure(stage, 'closed by the other side'))
  socket.once(event, succeed).once('close', close)
  if (signal.aborted) abort()
  else signal.addEventListener('abort', abort, { once: true })
  try {
    return await done.promise
  } finally {
    socket.off(event, succeed).off('close', close)
    signal.removeEventListener('abort', abort)
  }
}
