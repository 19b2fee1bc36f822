/**
 * The HTTP client for deliveries: what a receiver does, however slow or hostile, costs one slot for
 * a known time.
 */

import { constants } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createSecureContext, getCACertificates, type SecureContext } from 'node:tls'
import { startDeadline } from './deadline.ts'
import { DeliveryFailure, type DeliveryOutcome } from './delivery-outcome.ts'
import { type OpenSocket, openGuardedConnection } from './guarded-connection.ts'
import {
  ConnectionGone,
  type HttpAnswer,
  HttpConnection,
  type HttpPost,
} from './http-connection.ts'
import { IdleConnections } from './idle-connections.ts'
import type { Cidr } from './public-address.ts'
import { createHostResolver, type ResolveHost } from './resolve-host.ts'
import { parseRetryAfter } from './retry-after.ts'
import { hostOf, parseWebhookUrl, WebhookUrlRefused } from './webhook-url.ts'

export interface WebhookClientOptions {
  /** Blocks of addresses to deliver to although they are not public unicast. Default: none. */
  readonly allow?: readonly Cidr[]
  /**
   * A file of PEM certificates to trust as authorities beside the usual ones. Read once. Default:
   * none.
   */
  readonly caFile?: string
  /** Time for resolving, TCP and TLS together, in ms. Default 5,000. */
  readonly connectTimeoutMs?: number
  /** Time for everything up to the end of the answer, in ms. Default 10,000. */
  readonly totalTimeoutMs?: number
  /** Default: `createHostResolver()`. */
  readonly resolve?: ResolveHost
  /** How many connections are kept open for later use, to all receivers together. Default 256. */
  readonly maxIdleConnections?: number
  /**
   * How long each of them is kept, in ms. Default 4,000: below the 5 s after which Node's server,
   * the most impatient of the common ones, closes an idle connection. To send just as it closes is
   * to lose the attempt.
   */
  readonly idleTimeoutMs?: number
  /**
   * How long a connection is used at most, in ms, however busy it is. Default 60,000: so long do
   * deliveries go on to where a name led when its owner has moved it.
   */
  readonly maxConnectionAgeMs?: number
  /** The most that is read of an answer, in bytes, headers and body together. Default 65,536. */
  readonly maxAnswerBytes?: number
  /** For tests of the last check. Default `net.connect`. */
  readonly openSocket?: OpenSocket
}

export interface WebhookPost {
  readonly headers: Readonly<Record<string, string>>
  readonly body: string | Uint8Array
}

export interface WebhookClient {
  /**
   * One attempt to deliver: POSTs to `url` and waits for the answer's status. Never retries once
   * something was sent.
   *
   * Settles within the total time-out, whatever the receiver does. Bounds nothing but its own time
   * and reading: how many attempts run at once is the caller's business.
   *
   * @param url an https URL, in any form that `parseWebhookUrl` takes
   * @param signal aborts the attempt; the receiver may have got the message or not
   * @throws the reason of `signal` if that aborted: no fault of the receiver's, so not an outcome
   */
  post(url: string | URL, message: WebhookPost, signal?: AbortSignal): Promise<DeliveryOutcome>

  /** Connections now: carrying or opening for a delivery, and idle. */
  stats(): { readonly inFlight: number; readonly idle: number }

  /** Closes idle connections, and each other one when its delivery is done. */
  close(): void
}

/** @throws Error if `caFile` cannot be read or holds no certificate */
export function createWebhookClient({
  allow = [],
  caFile,
  connectTimeoutMs = 5_000,
  totalTimeoutMs = 10_000,
  resolve = createHostResolver(),
  maxIdleConnections = 256,
  idleTimeoutMs = 4_000,
  maxConnectionAgeMs = 60_000,
  maxAnswerBytes = 65_536,
  openSocket,
}: WebhookClientOptions = {}): WebhookClient {
  const secureContext = trusting(caFile)
  const idle = new IdleConnections(maxIdleConnections)
  let inFlight = 0
  let isClosed = false

  async function open(url: URL, signal: AbortSignal): Promise<HttpConnection> {
    using deadline = startDeadline(connectTimeoutMs, signal)
    const socket = await openGuardedConnection(
      hostOf(url),
      Number(url.port || 443),
      { resolve, allow, secureContext, connectTimeoutMs, ...(openSocket && { openSocket }) },
      deadline.signal,
    )
    const connection = new HttpConnection(url.origin, socket, { maxAnswerBytes, idleTimeoutMs })
    connection.onClose(() => idle.remove(connection))
    return connection
  }

  async function postOver(
    connection: HttpConnection,
    request: HttpPost,
    signal: AbortSignal,
  ): Promise<HttpAnswer> {
    const answer = await connection.post(request, signal)
    if (connection.isOpen) {
      if (isClosed || connection.ageMs > maxConnectionAgeMs) connection.destroy()
      else idle.put(connection)
    }
    return answer
  }

  async function send(url: URL, request: HttpPost, signal: AbortSignal): Promise<HttpAnswer> {
    for (let kept = idle.take(url.origin); kept !== undefined; kept = idle.take(url.origin)) {
      try {
        return await postOver(kept, request, signal)
      } catch (error) {
        if (!(error instanceof ConnectionGone)) throw error
      }
    }
    try {
      return await postOver(await open(url, signal), request, signal)
    } catch (error) {
      if (error instanceof ConnectionGone)
        throw new DeliveryFailure('send', 'closed by the other side')
      throw error
    }
  }

  return {
    async post(target, message, signal) {
      signal?.throwIfAborted()
      inFlight += 1
      using deadline = startDeadline(totalTimeoutMs, signal)
      try {
        const url = parseWebhookUrl(String(target))
        const request = {
          path: url.pathname + url.search,
          headers: message.headers,
          body: message.body,
        }
        return outcomeOf(await send(url, request, deadline.signal))
      } catch (error) {
        if (!deadline.passed) signal?.throwIfAborted()
        if (error instanceof DeliveryFailure)
          return { kind: 'failed', stage: error.stage, reason: error.reason }
        if (error instanceof WebhookUrlRefused)
          return { kind: 'failed', stage: 'url', reason: error.message }
        throw error
      } finally {
        inFlight -= 1
      }
    },

    stats: () => ({ inFlight, idle: idle.size }),

    close() {
      isClosed = true
      idle.destroyAll()
    },
  }
}

/** The answers that may say when to come again (RFC 9110 section 10.2.3, RFC 6585 section 4). */
const COME_AGAIN = new Set([429, 503])

function outcomeOf({ status, retryAfter }: HttpAnswer): DeliveryOutcome {
  if (status < 300) return { kind: 'delivered', status }
  const retryAfterMs = COME_AGAIN.has(status) ? parseRetryAfter(retryAfter, Date.now()) : undefined
  return { kind: 'rejected', status, ...(retryAfterMs !== undefined && { retryAfterMs }) }
}

/** Made once: to parse the usual authorities takes longer than a delivery. */
function trusting(caFile: string | undefined): SecureContext {
  const usual = getCACertificates('default')
  const ca = caFile === undefined ? usual : [...usual, certificatesIn(caFile)]
  // Without renegotiation (TLS 1.2): a receiver could ask for a handshake after the other, at no
  // more cost to itself than to us.
  return createSecureContext({
    ca,
    minVersion: 'TLSv1.2',
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
  })
}

function certificatesIn(file: string): string {
  const text = readFileSync(file, 'utf8')
  if (!text.includes('-----BEGIN CERTIFICATE-----'))
    throw new Error(`${file} holds no certificate in PEM`)
  return text
}
