/** What may be registered as a `webhook_url`. */

import { startDeadline } from './deadline.ts'
import { type HostPolicy, publicAddressesOf } from './public-host.ts'

/**
 * Length of a webhook URL, in characters, both as given and in its normal form (where it is all
 * ASCII, so bytes).
 */
export const MAX_WEBHOOK_URL_LENGTH = 2_048

/**
 * How long a host may take to resolve at registration, in ms: a client is waiting for its answer.
 */
const REGISTRATION_DEADLINE_MS = 2_000

/** A host name without its final dot, RFC 1035 section 2.3.4 (255 octets on the wire). */
const MAX_HOST_NAME_LENGTH = 253

/**
 * A webhook URL that will not do. The message is for the person who sent it, and tells nothing
 * about our network.
 */
export class WebhookUrlRefused extends Error {
  override readonly name = 'WebhookUrlRefused'
}

/**
 * A webhook URL in its normal form, the form to store and to deliver to.
 *
 * - The scheme is https.
 * - No user, no password: `readWebhookUrl` takes them out.
 * - Any port from 1 to 65535. Ports are not what keeps us from talking to what is not a receiver:
 *   the address is, and that TLS speaks first, with nothing in it that the URL's author could
 *   choose but a host name.
 * - Addresses in whatever spelling (decimal, octal, hexadecimal, short, full-width) come out in
 *   dotted decimal, as the URL Standard has it (https://url.spec.whatwg.org/#concept-ipv4-parser):
 *   there is one spelling left to check.
 * - A final dot of the host, and the fragment, which no server ever sees, are taken off.
 *
 * Says nothing about where the host is: that is `checkWebhookUrl`.
 *
 * @throws WebhookUrlRefused
 */
export function parseWebhookUrl(text: string): URL {
  const url = parse(text)
  if (url.username !== '' || url.password !== '') {
    throw new WebhookUrlRefused('webhook_url must not contain a user or password here')
  }
  return url
}

/** What a `webhook_url` says. */
export interface WebhookTarget {
  /** In its normal form, without user and password. */
  readonly url: string
  /**
   * Value of the `Authorization` header that they make: a secret. Undefined where there are none.
   */
  readonly authorization: string | undefined
}

/**
 * A webhook URL as it is registered: in any form that `parseWebhookUrl` takes, and it may have a
 * user and a password, which are sent as Basic authorization: percent-decoded, in UTF-8 (RFC 7617).
 *
 * @throws WebhookUrlRefused, whose message holds nothing of the URL
 */
export function readWebhookUrl(text: string): WebhookTarget {
  const url = parse(text)
  const authorization = basicAuthorization(url)
  url.username = ''
  url.password = ''
  return { url: url.href, authorization }
}

function basicAuthorization({ username, password }: URL): string | undefined {
  if (username === '' && password === '') return undefined
  const [user, secret] = [decodeUserInfo(username), decodeUserInfo(password)]
  if (user.includes(':'))
    throw new WebhookUrlRefused('the user in webhook_url must not contain a colon')
  return `Basic ${Buffer.from(`${user}:${secret}`).toString('base64')}`
}

function decodeUserInfo(text: string): string {
  let decoded: string
  try {
    decoded = decodeURIComponent(text)
  } catch {
    throw new WebhookUrlRefused('user and password in webhook_url must be percent-encoded UTF-8')
  }
  if (/\p{Cc}/u.test(decoded)) {
    throw new WebhookUrlRefused(
      'user and password in webhook_url must not contain control characters',
    )
  }
  return decoded
}

function parse(text: string): URL {
  if (text.length > MAX_WEBHOOK_URL_LENGTH) throw tooLong()
  // The URL Standard strips tabs, line breaks and surrounding blanks, so what is stored would not
  // be what was sent.
  if (/[\p{Cc}\p{Z}]/u.test(text))
    throw new WebhookUrlRefused('webhook_url must not contain blanks or line breaks')
  const url = URL.parse(text)
  if (url === null) throw new WebhookUrlRefused('webhook_url is not a valid URL')
  if (url.protocol !== 'https:') throw new WebhookUrlRefused('webhook_url must start with https://')
  if (url.port === '0') throw new WebhookUrlRefused('webhook_url has port 0; a port is 1 to 65535')
  const hostname = url.hostname.replace(/\.$/, '')
  if (hostname.length > MAX_HOST_NAME_LENGTH || hostname.split('.').includes('')) {
    throw new WebhookUrlRefused('webhook_url has a host name that cannot exist')
  }
  url.hostname = hostname
  url.hash = ''
  if (url.href.length > MAX_WEBHOOK_URL_LENGTH) throw tooLong()
  return url
}

/** The host of a URL as `net` and `dns` take it: an IPv6 address without its brackets. */
export function hostOf(url: URL): string {
  return url.hostname.startsWith('[') ? url.hostname.slice(1, -1) : url.hostname
}

export interface WebhookUrlCheck extends HostPolicy {
  /** How long resolving may take, in ms. Default 2,000. */
  readonly deadlineMs?: number
}

/**
 * Whether the host of a parsed webhook URL is, or resolves to, public unicast addresses and nothing
 * else.
 *
 * This is a courtesy to who registers, an error now and not lost deliveries later. It protects
 * nothing: the name may resolve differently the next moment, which is why `webhook-client.ts`
 * checks every connection anew.
 *
 * That the host does not resolve, resolves too slowly, or has an address of ours, reads the same in
 * the message: told apart, it would say which names exist on our network. The cause
 * (`HostUnresolved`, `HostNotPublic`) is kept for the log.
 *
 * @throws WebhookUrlRefused, or the reason of `signal` if that aborts first
 */
export async function checkWebhookUrl(
  url: URL,
  check: WebhookUrlCheck,
  signal?: AbortSignal,
): Promise<void> {
  using deadline = startDeadline(check.deadlineMs ?? REGISTRATION_DEADLINE_MS, signal)
  try {
    await publicAddressesOf(hostOf(url), check, deadline.signal)
  } catch (cause) {
    signal?.throwIfAborted()
    throw new WebhookUrlRefused(
      'the host of webhook_url must resolve, and to public addresses only',
      { cause },
    )
  }
}

function tooLong(): WebhookUrlRefused {
  return new WebhookUrlRefused(`webhook_url is longer than ${MAX_WEBHOOK_URL_LENGTH} characters`)
}
