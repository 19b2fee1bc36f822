/**
 * Requests as bytes, and what every door answers: `serve`, an api node, and HAProxy in front of
 * one, in each version. One list and one column, so that no client can tell the doors apart.
 *
 * Left out is what HAProxy mends before it passes it on, as RFC 9112 lets a proxy do and no setting
 * forbids it: bare line feeds and folded lines in a head, a length or a Host that is given twice
 * with the same value, a length beside a transfer coding. A node alone refuses them: `MENDED`.
 */
import { expect } from 'vitest'
import { REFUSALS, type Refusal } from '../../src/platform/http-refusals.ts'
import { type RawAnswer, sendRaw } from './raw-http.ts'

export interface RawCase {
  readonly what: string
  /** A character for each byte. */
  readonly bytes: string
  /** In order; the connection may be closed after the last. */
  readonly expected: readonly Expected[]
  /** The answers are those to HEAD. */
  readonly headless?: boolean
}

export type Expected = Refusal | { readonly status: number; readonly error?: string }

const HOST = 'Host: a'
const HEALTH = 'GET /v1/health HTTP/1.1'
const served: Expected = { status: 200 }
const { invalid, noResource, late, tooMuch, expectation, coding, largeHead } = REFUSALS
const notJson: Expected = { status: 415, error: 'unsupported_media_type' }

const head = (...lines: string[]) => `${lines.join('\r\n')}\r\n\r\n`
const get = (target: string, ...fields: string[]) => head(`GET ${target} HTTP/1.1`, HOST, ...fields)
const post = (fields: readonly string[], body: string) =>
  head('POST /v1/operators HTTP/1.1', HOST, 'Content-Type: application/json', ...fields) + body
const chunked = (body: string) => post(['Transfer-Encoding: chunked'], body)
const fields = (count: number) => Array.from({ length: count }, (_, index) => `X-${index}: y`)

const row = (what: string, bytes: string, ...expected: Expected[]): RawCase => ({
  what,
  bytes,
  expected,
})
const headOf = (what: string, bytes: string, ...expected: Expected[]): RawCase => ({
  what,
  bytes,
  expected,
  headless: true,
})

export const RAW_CASES: readonly RawCase[] = [
  // What is served.
  row('a plain request', get('/v1/health'), served),
  row('HTTP/1.0 without a Host', head('GET /v1/health HTTP/1.0'), served),
  row(
    'HTTP/1.0 that keeps its connection',
    head('GET /v1/health HTTP/1.0', 'Connection: keep-alive'),
    served,
  ),
  row('an empty line in front', `\r\n${get('/v1/health')}`, served),
  row('a slash too many', get('//v1/health'), served),
  row('more slashes', get('///v1/health?x=//'), served),
  row('a slash too many inside', get('/v1//health'), { status: 404, error: 'not_found' }),
  row('the absolute form', get('http://a/v1/health'), served),
  row('the absolute form, a slash too many', get('http://a//v1/health'), served),
  row('the absolute form with the default port', get('http://A:80/v1/health'), served),
  row('the absolute form in HTTP/1.0', head('GET http://a/v1/health HTTP/1.0'), served),
  row('a host that is an IPv6 address', head(HEALTH, 'Host: [::1]:80'), served),
  row('bytes above 0x7f in a header', get('/v1/health', 'X: \xc3\xa9'), served),
  row('100 header fields', get('/v1/health', ...fields(99)), served),
  row('a head of 15 KiB', get('/v1/health', `X: ${'x'.repeat(15_000)}`), served),
  row('a body with a GET', `${get('/v1/health', 'Content-Length: 3')}abc`, served),
  row(
    'an upgrade to a WebSocket',
    get(
      '/v1/health',
      'Connection: Upgrade',
      'Upgrade: websocket',
      'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
    ),
    served,
  ),
  row('an Expect in HTTP/1.0', head('GET /v1/health HTTP/1.0', 'Expect: x'), served),
  row('Expect: 100-continue', post(['Expect: 100-continue', 'Content-Length: 2'], '{}'), {
    status: 400,
    error: 'bad_request',
  }),
  row('a body in chunks', chunked('2\r\n{}\r\n0\r\n\r\n'), { status: 400, error: 'bad_request' }),
  row('a chunk with an extension, a trailer', chunked('2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n'), {
    status: 400,
    error: 'bad_request',
  }),
  row('no body', head('POST /v1/operators HTTP/1.1', HOST), notJson),
  row(
    'a body in HTTP/1.0',
    `${head('POST /v1/operators HTTP/1.0', 'Content-Length: 2')}{}`,
    notJson,
  ),
  row('two requests at once', get('/v1/health') + get('/v1/nothing'), served, {
    status: 404,
    error: 'not_found',
  }),
  // Methods.
  headOf('HEAD', head('HEAD /v1/health HTTP/1.1', HOST), served),
  headOf('HEAD of a page', head('HEAD /docs HTTP/1.1', HOST), served),
  headOf('HEAD without a token', head('HEAD /v1/state HTTP/1.1', HOST), { status: 401 }),
  headOf('HEAD of messages', head('HEAD /v1/messages HTTP/1.1', HOST), { status: 405 }),
  headOf('HEAD of what takes POST', head('HEAD /v1/operators HTTP/1.1', HOST), { status: 405 }),
  row('OPTIONS', head('OPTIONS /v1/health HTTP/1.1', HOST), {
    status: 405,
    error: 'method_not_allowed',
  }),
  row('OPTIONS *', head('OPTIONS * HTTP/1.1', HOST), noResource),
  row('TRACE', head('TRACE /v1/health HTTP/1.1', HOST), {
    status: 405,
    error: 'method_not_allowed',
  }),
  row('CONNECT', head('CONNECT a:443 HTTP/1.1', 'Host: a:443'), noResource),
  row('CONNECT in HTTP/1.0', head('CONNECT a:443 HTTP/1.0'), noResource),
  row('CONNECT to a path', head('CONNECT /v1/health HTTP/1.1', HOST), invalid),
  row('CONNECT to another host', head('CONNECT a:443 HTTP/1.1', 'Host: b:443'), invalid),
  row('an unknown method', head('FOO /v1/health HTTP/1.1', HOST), invalid),
  row('a method in small letters', head('get /v1/health HTTP/1.1', HOST), invalid),
  // Request lines.
  row('what is no HTTP', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n', invalid),
  row('words', 'hello\r\n\r\n', invalid),
  row('HTTP/0.9', 'GET /v1/health\r\n\r\n', invalid),
  row('HTTP/1.2', head('GET /v1/health HTTP/1.2', HOST), invalid),
  row('HTTP/2.0', head('GET /v1/health HTTP/2.0', HOST), invalid),
  row('the preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', invalid),
  row('HTTP/3.0', head('GET /v1/health HTTP/3.0', HOST), invalid),
  row('http/1.1 in small letters', head('GET /v1/health http/1.1', HOST), invalid),
  row('a space in front', ` ${get('/v1/health')}`, invalid),
  row('a space at the end', head('GET /v1/health HTTP/1.1 ', HOST), invalid),
  row('a path without a slash', get('v1/health'), invalid),
  row('GET *', get('*'), invalid),
  row('# in the path', get('/v1/health#x'), invalid),
  row('# in the query', get('/v1/health?x=1#x'), invalid),
  row('bytes above 0x7f in the path', get('/v1/state/\xc3\xa9'), invalid),
  row('bytes above 0x7f in the query', get('/v1/health?\xff'), invalid),
  row('a control character in the path', get('/v1/he\x01alth'), invalid),
  row('a tab in the path', get('/v1/\thealth'), invalid),
  row('DEL in the path', get('/v1/health\x7f'), invalid),
  row('the absolute form of another host', get('http://b/v1/health'), invalid),
  row('the absolute form of another port', get('http://a:8080/v1/health'), invalid),
  row('the absolute form of no host', get('http:///v1/health'), invalid),
  row('the absolute form with a user', get('http://u@a/v1/health'), invalid),
  row('the absolute form without a path', get('http://a?x=1'), invalid),
  row('the absolute form of another scheme', get('ftp://a/v1/health'), invalid),
  row('a target of 17 KiB', get(`/v1/state/${'x'.repeat(17_000)}`), largeHead),
  // Heads.
  row('no Host', head(HEALTH), invalid),
  row('an empty Host', head(HEALTH, 'Host:'), invalid),
  row('two Hosts', head(HEALTH, HOST, 'Host: b'), invalid),
  row('a Host with a space', head(HEALTH, 'Host: a b'), invalid),
  row('a Host with a user', head(HEALTH, 'Host: u@a'), invalid),
  row('a Host with a path', head(HEALTH, 'Host: a/b'), invalid),
  row('a Host that is a list', head(HEALTH, 'Host: a,b'), invalid),
  row('a Host in UTF-8', head(HEALTH, 'Host: \xc3\xa9'), invalid),
  row('a Host with a port that is none', head(HEALTH, 'Host: a:99999'), invalid),
  row('a field without a colon', get('/v1/health', 'bad header'), invalid),
  row('a field without a name', get('/v1/health', ': x'), invalid),
  row('a name with a character that is none of a name', get('/v1/health', 'B@d: x'), invalid),
  row('a space before the colon', get('/v1/health', 'X : y'), invalid),
  row('a first line that is folded', head(HEALTH, ` ${HOST}`), invalid),
  row('NUL in a value', get('/v1/health', 'X: a\x00b'), invalid),
  row('a control character in a value', get('/v1/health', 'X: a\x01b'), invalid),
  row('a bare carriage return', get('/v1/health', 'X: a\rb'), invalid),
  row('101 header fields', get('/v1/health', ...fields(100)), invalid),
  row('a head of 17 KiB', get('/v1/health', `X: ${'x'.repeat(17_000)}`), largeHead),
  row('an unknown Expect', post(['Expect: x', 'Content-Length: 2'], '{}'), expectation),
  row(
    'an upgrade to a WebSocket without its key',
    get('/v1/health', 'Connection: Upgrade', 'Upgrade: websocket'),
    invalid,
  ),
  row('a head that does not arrive', 'GET /v1/health HTTP/1.1\r\nHost: a', late),
  // Bodies.
  row('a negative length', post(['Content-Length: -1'], ''), invalid),
  row('a length with a sign', post(['Content-Length: +2'], '{}'), invalid),
  row('an empty length', post(['Content-Length: '], ''), invalid),
  row('a length in hexadecimal', post(['Content-Length: 0x2'], '{}'), invalid),
  row('a length of two words', post(['Content-Length: 2 2'], '{}'), invalid),
  row(
    'a length beyond all numbers',
    post(['Content-Length: 99999999999999999999999'], '{}'),
    invalid,
  ),
  row('a body too large by its length', post(['Content-Length: 99999999'], ''), {
    status: 413,
    error: 'value_too_large',
  }),
  row('another transfer coding', post(['Transfer-Encoding: gzip'], '0\r\n\r\n'), invalid),
  row(
    'another transfer coding before chunked',
    post(['Transfer-Encoding: gzip, chunked'], '0\r\n\r\n'),
    coding,
  ),
  row(
    'another transfer coding after chunked',
    post(['Transfer-Encoding: chunked, gzip'], '0\r\n\r\n'),
    invalid,
  ),
  row(
    'chunked twice',
    post(['Transfer-Encoding: chunked', 'Transfer-Encoding: chunked'], '0\r\n\r\n'),
    invalid,
  ),
  row(
    'a transfer coding that ends like chunked',
    post(['Transfer-Encoding: xchunked'], '0\r\n\r\n'),
    invalid,
  ),
  row(
    'the coding that was abolished',
    post(['Transfer-Encoding: identity', 'Content-Length: 2'], '{}'),
    invalid,
  ),
  row('an empty transfer coding', post(['Transfer-Encoding:'], '0\r\n\r\n'), invalid),
  row('a chunk whose length is none', chunked('zz\r\n{}\r\n0\r\n\r\n'), invalid),
  row('a chunk that is longer than it says', chunked('2\r\n{}xx0\r\n\r\n'), invalid),
  row(
    'a chunk whose length is beyond all numbers',
    chunked('fffffffffffffffff\r\n{}\r\n0\r\n\r\n'),
    invalid,
  ),
  row('a trailer without a colon', chunked('2\r\n{}\r\n0\r\nX y\r\n\r\n'), invalid),
  row(
    'a bad chunk with a GET',
    `${get('/v1/health', 'Transfer-Encoding: chunked')}zz\r\n`,
    invalid,
  ),
  row(
    'chunks with a GET of HTTP/1.0',
    `${head('GET /v1/health HTTP/1.0', 'Transfer-Encoding: chunked')}0\r\n\r\n`,
    tooMuch,
  ),
  // What was answered keeps its answer.
  row('what is no HTTP after a request', `${get('/v1/health')}\x01\x02no\r\n\r\n`, served, invalid),
  row('no Host after a request', get('/v1/health') + head(HEALTH), served, invalid),
  row('a bad chunk after a request', `${get('/v1/health')}${chunked('zz\r\n')}`, served, invalid),
  row(
    'what is no HTTP after two requests',
    `${get('/v1/health').repeat(2)}\x01\r\n\r\n`,
    served,
    served,
    invalid,
  ),
]

/** What a node refuses alone, and HAProxy makes valid on its way. */
export const MENDED: readonly RawCase[] = [
  row('a bare line feed', 'GET /v1/health HTTP/1.1\nHost: a\n\n', invalid),
  row('a bare line feed in a head', 'GET /v1/health HTTP/1.1\r\nHost: a\nX: y\r\n\r\n', invalid),
  row('a folded line', get('/v1/health', 'X: a', ' b'), invalid),
  row('the same Host twice', head(HEALTH, HOST, HOST), invalid),
  row('the same length twice', post(['Content-Length: 2', 'Content-Length: 2'], '{}'), invalid),
  row('a length that is a list', post(['Content-Length: 2, 2'], '{}'), invalid),
  row(
    'a length beside a transfer coding',
    post(['Content-Length: 2', 'Transfer-Encoding: chunked'], '2\r\n{}\r\n0\r\n\r\n'),
    invalid,
  ),
  row('a space after the length of a chunk', chunked('2 \r\n{}\r\n0\r\n\r\n'), invalid),
  row('a bare line feed after the length of a chunk', chunked('2\n{}\n0\n\n'), invalid),
  // HAProxy 3.2 closes the connection without a word.
  row('two lengths', post(['Content-Length: 2', 'Content-Length: 3'], '{}'), invalid),
  row(
    'a body with a GET of HTTP/1.0',
    `${head('GET /v1/health HTTP/1.0', 'Content-Length: 3')}abc`,
    tooMuch,
  ),
  // HAProxy 2.6 calls it 400.
  row('a head of 40 KiB', get('/v1/health', `X: ${'x'.repeat(40_000)}`), largeHead),
]

/**
 * Sends each and expects its answers: status, code and, where that is fixed, the message, in a body
 * of the contract's form; `ownWords` lets HAProxy say a status in its own words, which versions
 * before 3.2 do when they cannot read a request.
 */
export async function expectAnswers(
  port: number,
  { bytes, expected, headless }: RawCase,
  ownWords = false,
) {
  const answers = await sendRaw(port, bytes, { answers: expected.length, headless })
  const wanted = expected.map((one, index) =>
    ownWords && answers[index]?.body.startsWith(`<html><body><h1>${one.status} `)
      ? { status: one.status }
      : one,
  )
  expect(answers.map((answer, index) => shown(answer, wanted[index]))).toEqual(wanted)
}

/** An answer as far as the list says what it is. */
function shown({ status, headers, body }: RawAnswer, expected: Expected | undefined): object {
  if (status < 400 || expected === undefined || !('error' in expected)) return { status }
  if (headers['content-type'] !== 'application/json') return { status, body }
  const { error, message } = JSON.parse(body) as { error: unknown; message: unknown }
  return 'message' in expected ? { status, error, message } : { status, error }
}
