/**
 * What is refused before the application sees it, as it is no HTTP that every door serves: this
 * server and HAProxy in front of it give the same answer, and where they differ by nature, the
 * stricter one does for both. HAProxy's own answers are in deploy/haproxy/errors.
 */
import type { IncomingMessage } from 'node:http'

/** The contract's answer to what never became a request. */
export interface Refusal {
  readonly status: 400 | 405 | 408 | 413 | 417 | 422 | 431
  readonly error: 'bad_request' | 'method_not_allowed' | 'value_too_large'
  /** For a person. */
  readonly message: string
}

export const REFUSALS = {
  invalid: { status: 400, error: 'bad_request', message: 'The request is not valid HTTP.' },
  noResource: {
    status: 405,
    error: 'method_not_allowed',
    message: 'This method is not served here.',
  },
  late: { status: 408, error: 'bad_request', message: 'The request did not arrive in time.' },
  tooMuch: {
    status: 413,
    error: 'value_too_large',
    message: 'The request carries more than it may.',
  },
  expectation: {
    status: 417,
    error: 'bad_request',
    message: 'What the Expect header asks for is not served here.',
  },
  coding: {
    status: 422,
    error: 'bad_request',
    message: 'Of transfer codings only chunked is served here.',
  },
  largeHead: {
    status: 431,
    error: 'bad_request',
    message: 'The request line and its header fields are too large.',
  },
} as const satisfies Record<string, Refusal>

/**
 * The body of a request can never come whole, as what was sent for it is no HTTP or came too late.
 */
export class BrokenRequest extends Error {
  override name = 'BrokenRequest'
  readonly refusal: Refusal

  constructor(refusal: Refusal) {
    super(refusal.message)
    this.refusal = refusal
  }
}

/**
 * Header fields of a request. HAProxy takes 100 (tune.http.maxhdr, less the request line), and adds
 * one that is not counted here.
 */
const MAX_FIELDS = 100
const ADDED_BY_PROXIES = 'x-forwarded-for'

/** A name or an IPv4 address, or an IPv6 address in brackets, with a port or not. */
const AUTHORITY = /^(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?$/i
const ABSOLUTE_TARGET = /^(https?):\/\/([^/?]+)(?:\/|$)/i
const DEFAULT_PORTS: Readonly<Record<string, RegExp>> = { http: /:80$/, https: /:443$/ }
const EITHER_PORT = /:(?:80|443)$/
/**
 * Methods whose body means nothing in HTTP/1.0, where what follows could be taken for another
 * request.
 */
const WITHOUT_BODY = new Set(['GET', 'HEAD', 'DELETE'])

/** What an error of Node's parser, or of its clock, is answered with. */
export function refusalOf(code: string | undefined): Refusal {
  if (code === 'HPE_HEADER_OVERFLOW') return REFUSALS.largeHead
  if (code === 'HPE_CHUNK_EXTENSIONS_OVERFLOW') return REFUSALS.tooMuch
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return REFUSALS.late
  return REFUSALS.invalid
}

/** Why a request that Node has parsed is refused all the same; undefined if it is not. */
export function judge(incoming: IncomingMessage): Refusal | undefined {
  const { httpVersion, url: target = '', method = '', headers } = incoming
  if (httpVersion !== '1.1' && httpVersion !== '1.0') return REFUSALS.invalid
  const { fields, hosts } = countFields(incoming.rawHeaders)
  if (fields > MAX_FIELDS || hosts > 1 || (hosts === 0 && httpVersion === '1.1'))
    return REFUSALS.invalid
  if (headers.host !== undefined && !isAuthority(headers.host)) return REFUSALS.invalid
  if (target === '*' && method === 'OPTIONS') return REFUSALS.noResource
  if (target.includes('#') || !isTarget(target, headers.host)) return REFUSALS.invalid
  const coding = headers['transfer-encoding']
  if (coding !== undefined && coding.toLowerCase() !== 'chunked') return REFUSALS.coding
  const hasBody = coding !== undefined || Number(headers['content-length'] ?? 0) > 0
  if (hasBody && httpVersion === '1.0' && WITHOUT_BODY.has(method)) return REFUSALS.tooMuch
  const opensSocket =
    /\bupgrade\b/i.test(headers.connection ?? '') && /^websocket$/i.test(headers.upgrade ?? '')
  if (opensSocket && headers['sec-websocket-key'] === undefined) return REFUSALS.invalid
  return undefined
}

/** The answer to a CONNECT: nothing is connected to, whether it is well formed or not. */
export function judgeConnect({ url = '', headers: { host } }: IncomingMessage): Refusal {
  const isWhole = isAuthority(url) && /:\d+$/.test(url)
  return isWhole && (host === undefined || isSame(url, host, EITHER_PORT))
    ? REFUSALS.noResource
    : REFUSALS.invalid
}

function countFields(rawHeaders: readonly string[]): { fields: number; hosts: number } {
  let fields = 0
  let hosts = 0
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index] ?? ''
    if (name.length === ADDED_BY_PROXIES.length && name.toLowerCase() === ADDED_BY_PROXIES) continue
    fields++
    if (name.length === 4 && name.toLowerCase() === 'host') hosts++
  }
  return { fields, hosts }
}

/** One that is well formed: most requests name the same as the one before. */
let lastAuthority = ''

function isAuthority(text: string): boolean {
  if (text === lastAuthority) return text !== ''
  if (!AUTHORITY.test(text) || !URL.canParse(`http://${text}/`)) return false
  lastAuthority = text
  return true
}

/** A path, or a URL of the host that the request is for. */
function isTarget(target: string, host: string | undefined): boolean {
  if (target.startsWith('/')) return true
  const [, scheme = '', authority = ''] = ABSOLUTE_TARGET.exec(target) ?? []
  const port = DEFAULT_PORTS[scheme.toLowerCase()]
  return (
    port !== undefined &&
    isAuthority(authority) &&
    (host === undefined || isSame(authority, host, port))
  )
}

function isSame(one: string, other: string, port: RegExp): boolean {
  return one.replace(port, '').toLowerCase() === other.replace(port, '').toLowerCase()
}
