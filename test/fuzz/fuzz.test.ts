/**
 * Requests of every shape, from nearly right ones to noise, over kept-alive connections and many at
 * a time. Whatever comes, the kernel answers as the contract has it, goes on, and does not grow.
 *
 * FUZZ_SEED=<integer> repeats a run, or makes another.
 */
import { readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type Answer,
  Client,
  errorBody,
  percentEncode,
  type RequestOptions,
} from '../../lab/client.ts'
import { type Kernel, startKernel } from '../../lab/kernel.ts'

const SEED = Number(process.env.FUZZ_SEED ?? 20_260_101)
const BATCH_SIZE = 50
const WARM_UP_BATCHES = 100
const MEASURED_BATCHES = 320

/**
 * By so much may the resident memory grow over the measured requests. A leak of 10 KB a request,
 * which is what a retained request with its headers and a small body takes, would be 160 MB; heaps
 * that are still finding their size, and the pages of the embedded database that come into use,
 * take less than half of the bound.
 */
const MAX_GROWTH_BYTES = 150_000_000

/** Minutes on two cores that have nothing else to do; a machine may be ten times slower. */
const TIMEOUT_MS = 1_800_000

/** Longer heads than the parser takes, 16 KiB, are among the broken requests. */
const MAX_HEAD_CHARACTERS = 10_000

/** For how long an answer to a broken request is awaited before the connection is given up. */
const RAW_DEADLINE_MS = 500

/**
 * So many of the answers may be a 503 at most: where the machine is held up, a change may wait for
 * its turn for too long. On one that is not there is none.
 */
const MAX_UNAVAILABLE_SHARE = 0.01

/**
 * The resident memory goes up and down with what is collected: it is read so often, and the least
 * of it counts.
 */
const MEMORY_READINGS = 10
const MEMORY_READING_INTERVAL_MS = 300

/** Every status that an embedded kernel may answer, and its code. */
const CODES: Readonly<Record<number, string>> = {
  400: 'bad_request',
  401: 'unauthorized',
  403: 'verification_failed',
  404: 'not_found',
  405: 'method_not_allowed',
  413: 'value_too_large',
  415: 'unsupported_media_type',
  429: 'rate_limited',
  431: 'bad_request',
  503: 'unavailable',
  507: 'store_full',
}

interface Generated {
  /** To the observation service instead of the agent API. */
  isObservation?: boolean
  method: string
  path: string
  options: RequestOptions
}
interface Known {
  agents: { address: string; token: string }[]
  operatorToken: string
}

describe('fuzzing', () => {
  it(`no request brings a 5xx but a rare 503, a crash, an answer outside the contract, or growth (FUZZ_SEED=${SEED})`, {
    timeout: TIMEOUT_MS,
  }, async () => {
    console.log(`FUZZ_SEED=${SEED}`)
    await using kernel = await startKernel({
      RATE_LIMIT_MESSAGE_PER_MIN: '100000000',
      RATE_LIMIT_STATE_READ_PER_MIN: '100000000',
      RATE_LIMIT_STATE_WRITE_PER_MIN: '100000000',
      RATE_LIMIT_REGISTRY_READ_PER_MIN: '100000000',
      RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '100000000',
      RATE_LIMIT_OBSERVE_PER_MIN: '100000000',
      MESSAGE_MAX_QUEUE_PER_AGENT: '500',
      STATE_CAPACITY_BYTES: '3000000',
    })
    const client = new Client(kernel.baseUrl)
    const observer = new Client(kernel.observeUrl)
    const known: Known = {
      agents: await client.registerAgents(4),
      operatorToken: (await client.registerOperator()).token,
    }
    const counts = { sent: 0, statuses: new Map<number, number>() }
    const count = (status: number) => {
      counts.sent++
      counts.statuses.set(status, (counts.statuses.get(status) ?? 0) + 1)
    }

    const requests = fc.array(
      fc.oneof(
        { weight: 40, arbitrary: requestOf(known) },
        { weight: 7, arbitrary: observationOf(known) },
        { weight: 3, arbitrary: brokenRequestOf(known) },
      ),
      { minLength: BATCH_SIZE, maxLength: BATCH_SIZE, size: 'max' },
    )
    const batch = fc.asyncProperty(requests, async (generated) => {
      await Promise.all(
        generated.map(async (request) =>
          count(
            Buffer.isBuffer(request)
              ? await checkBroken(kernel, request)
              : await check(request.isObservation ? observer : client, request),
          ),
        ),
      )
    })
    const send = (batches: number, seed: number) =>
      fc.assert(batch, {
        seed,
        numRuns: batches,
        endOnFailure: true,
        reporter: (details) => report(details, kernel),
      })

    await send(WARM_UP_BATCHES, SEED)
    const before = await residentBytes(kernel)
    await send(MEASURED_BATCHES, SEED + 1)
    const growth = (await residentBytes(kernel)) - before

    const megabytes = (bytes: number) => `${Math.round(bytes / 1e6)} MB`
    console.log(
      `${counts.sent} requests; resident ${megabytes(before)}, grown by ${megabytes(growth)}; by status:`,
      Object.fromEntries([...counts.statuses].toSorted(([one], [two]) => one - two)),
    )
    expect(counts.sent).toBeGreaterThanOrEqual(20_000)
    // Enough got through to what lies behind the checks.
    for (const status of [200, 201, 202]) expect(counts.statuses.get(status)).toBeGreaterThan(100)
    expect(counts.statuses.get(503) ?? 0).toBeLessThan(MAX_UNAVAILABLE_SHARE * counts.sent)
    expect(growth).toBeLessThan(MAX_GROWTH_BYTES)
    expect(kernel.process.exitCode).toBeNull()
    expect((await client.request('GET', '/v1/health')).status).toBe(200)
    expect((await observer.request('GET', '/observe/health')).status).toBe(200)
    // Whatever clients do, it is no defect of the kernel: nothing of level `error` (50) or `fatal`
    // (60) in its log.
    expect(
      kernel.output().match(/^.*("level":[56]0|uncaught|unhandled|out of memory).*$/im)?.[0],
    ).toBeUndefined()
    expect(await kernel.stop()).toBe(0)
  })
})

/** Sends a request and expects an answer that the contract knows. */
async function check(client: Client, { method, path, options }: Generated): Promise<number> {
  try {
    const answer = await client.request(method, path, options)
    checkAnswer(method, answer)
    return answer.status
  } catch (cause) {
    const brief = (_: string, value: unknown) =>
      typeof value === 'string' ? value.slice(0, 500) : value
    throw new Error(`${method} ${path} ${JSON.stringify(options, brief).slice(0, 2_000)}`, {
      cause,
    })
  }
}

function checkAnswer(method: string, answer: Answer): void {
  const { status } = answer
  if (status === 503) expect(answer.headers['retry-after'], String(answer)).toMatch(/^[1-9]\d*$/)
  const isSuccess = [200, 201, 202].includes(status)
  if (method === 'HEAD') {
    expect(answer.body).toHaveLength(0)
    if (!isSuccess) expect(CODES, String(answer)).toHaveProperty(String(status))
  } else if (isSuccess) {
    expect(answer.json).toBeTypeOf('object')
  } else {
    expect({ status, error: answer.error }, String(answer)).toEqual({
      status,
      error: CODES[status] ?? 'unknown',
    })
  }
}

/**
 * Sends bytes that need not be HTTP, over a connection of their own. What the HTTP parser refuses
 * never reaches the kernel, so its refusal needs no JSON; but a refusal it is, and one that is JSON
 * is the contract's.
 */
async function checkBroken(kernel: Kernel, bytes: Buffer): Promise<number> {
  const text = await exchange(Number(new URL(kernel.baseUrl).port), bytes)
  const statuses = [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map((match) => Number(match[1]))
  const described = `${JSON.stringify(bytes.toString('latin1').slice(0, 1_000))} brought ${JSON.stringify(text.slice(0, 1_000))}`
  const isAccepted = (status: number) =>
    status < 300 || (status >= 400 && status < 500) || status === 503
  if (!statuses.every(isAccepted)) throw new Error(described)
  if (text !== '' && statuses.length === 0) throw new Error(described)
  const [head = '', ...rest] = text.split('\r\n\r\n')
  // The connection may have been given up in the middle of the answer.
  if (rest.length === 0) return statuses[0] ?? 0
  const isUnavailable = /^HTTP\/1\.1 503/.test(head)
  if (isUnavailable && !/^retry-after: [1-9]\d*\r?$/im.test(head)) throw new Error(described)
  if (
    isUnavailable ||
    (/^HTTP\/1\.1 4/.test(head) && /^content-type: application\/json/im.test(head))
  ) {
    const length = Number(/^content-length: (\d+)/im.exec(head)?.[1])
    const body = rest.join('\r\n\r\n')
    if (body.length < length) return statuses[0] ?? 0
    const { success, data } = errorBody.safeParse(JSON.parse(body.slice(0, length)))
    if (!success || (isUnavailable && data.error !== 'unavailable')) throw new Error(described)
  }
  return statuses[0] ?? 0
}

function exchange(port: number, bytes: Buffer): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  const socket = connect({ port, host: '127.0.0.1' })
  let received = ''
  socket.setTimeout(RAW_DEADLINE_MS, () => socket.destroy())
  socket.setEncoding('latin1').on('data', (text: string) => {
    received += text
  })
  // A server may reset a connection that it was sent nonsense over.
  socket.on('error', () => {})
  socket.on('close', () => resolve(received))
  socket.end(bytes)
  return promise
}

function report<T>(details: fc.RunDetails<T>, kernel: Kernel): void {
  if (!details.failed) return
  const messages: string[] = []
  for (let error: unknown = details.errorInstance; error instanceof Error; error = error.cause)
    messages.push(error.message)
  throw new Error(
    `FUZZ_SEED=${SEED}, batch ${details.numRuns}: ${messages.join('\n')}\n${kernel.output().slice(-5_000)}`,
  )
}

async function residentBytes(kernel: Kernel): Promise<number> {
  const readings: number[] = []
  while (readings.length < MEMORY_READINGS) {
    if (readings.length > 0) await sleep(MEMORY_READING_INTERVAL_MS)
    const status = await readFile(`/proc/${kernel.pid}/status`, 'utf8')
    readings.push(Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1_024)
  }
  return Math.min(...readings)
}

// What is sent.

/**
 * Any Unicode text, now and then with lone surrogates in it, which JSON can write and UTF-8 cannot.
 */
const text = fc.oneof(
  { weight: 3, arbitrary: fc.string({ unit: 'grapheme-ascii', maxLength: 40 }) },
  { weight: 3, arbitrary: fc.string({ unit: 'binary', maxLength: 40 }) },
  {
    weight: 2,
    arbitrary: fc.constantFrom(
      '',
      '\u0000',
      '😀',
      '\ufeff',
      '\ud800',
      'a\udc00',
      '__proto__',
      'null',
      '../..',
      '%',
      "'--",
    ),
  },
  { weight: 1, arbitrary: fc.nat(70_000).map((length) => 'x'.repeat(length)) },
)

/** Wrong types, and values that trip over themselves. */
const anything: fc.Arbitrary<unknown> = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc.constantFrom<unknown>(
    null,
    true,
    0,
    -0,
    1e308,
    Number.MAX_SAFE_INTEGER + 2,
    [],
    {},
    [[]],
    ['x'],
    { length: 1 },
  ),
  text,
)

/** A field that is right most of the time. */
const mostly = <T>(right: fc.Arbitrary<T>) =>
  fc.oneof<fc.WeightedArbitrary<unknown>[]>(
    { weight: 5, arbitrary: right },
    { weight: 1, arbitrary: anything },
  )

/** Few enough keys that requests meet on them, and some that are new. */
const keySpelling = fc.oneof(
  { weight: 5, arbitrary: fc.nat(20).map((number) => `key/${number}`) },
  {
    weight: 2,
    arbitrary: fc
      .string({ unit: 'binary', minLength: 1, maxLength: 20 })
      .map((key) => percentEncode(key)),
  },
  { weight: 2, arbitrary: pathText(30) },
  {
    weight: 2,
    arbitrary: fc.constantFrom(
      '..',
      '.',
      '/',
      '//',
      'a//b',
      '%2F',
      '%2e%2e',
      '%',
      '%zz',
      '%FF',
      '%00',
      '_capacity',
      '+',
      '?',
      'a%20b',
    ),
  },
  { weight: 1, arbitrary: fc.nat(3_000).map((length) => 'k'.repeat(length)) },
)

/**
 * Any visible ASCII characters. Other bytes in a path are broken HTTP, which the parser refuses:
 * see below.
 */
function pathText(maxLength: number): fc.Arbitrary<string> {
  return fc
    .array(fc.integer({ min: 0x21, max: 0x7e }), { maxLength })
    .map((codes) => String.fromCharCode(...codes))
}

const queryPart = fc.oneof(
  fc.constantFrom(
    'limit=1',
    'limit=0',
    'limit=1000',
    'limit=-1',
    'limit=abc',
    'limit=1&limit=2',
    'limit',
    'limit=%',
  ),
  fc.constantFrom(
    'cursor=',
    'cursor=garbage',
    'cursor=AAAA',
    'cursor=%00',
    'cursor=eyJrIjoiYSJ9',
    '__proto__=1',
    'a[b]=c',
  ),
  text.map((value) => `prefix=${percentEncode(value)}`),
  pathText(20).map((value) => `prefix=${value}`),
  pathText(20),
)
const query = fc.oneof(
  { weight: 2, arbitrary: fc.constant('') },
  {
    weight: 1,
    arbitrary: fc
      .array(queryPart, { minLength: 1, maxLength: 4 })
      .map((parts) => `?${parts.join('&')}`),
  },
)

const headerValue = fc.oneof(
  fc.string({ unit: 'grapheme-ascii', maxLength: 60 }),
  fc
    .array(fc.integer({ min: 0x80, max: 0xff }), { maxLength: 20 })
    .map((codes) => String.fromCharCode(...codes)),
  fc.nat(6_000).map((length) => 'h'.repeat(length)),
)
/** Added to a request. Several values are several headers of the name. */
const extraHeaders = fc.oneof(
  { weight: 3, arbitrary: fc.constant({}) },
  {
    weight: 1,
    arbitrary: fc.dictionary(
      fc.constantFrom(
        'X-Forwarded-For',
        'X-Forwarded-Proto',
        'Forwarded',
        'Accept',
        'Accept-Encoding',
        'Content-Encoding',
        'Cookie',
        'Host',
        'If-None-Match',
        'If-Modified-Since',
        'Idempotency-Key',
        'Origin',
        'Range',
        'TE',
        'Traceparent',
        'X-Http-Method-Override',
        'X-Request-Id',
        '__proto__x',
      ),
      fc.oneof(headerValue, fc.array(headerValue, { minLength: 2, maxLength: 3 })),
      { maxKeys: 3, noNullPrototype: true },
    ),
  },
)
const contentType = fc.oneof(
  { weight: 12, arbitrary: fc.constant<string[]>(['application/json']) },
  {
    weight: 1,
    arbitrary: fc.constantFrom<string[]>(
      [],
      ['text/plain'],
      ['application/json; charset=utf-8'],
      ['application/json;'],
      ['application/json; charset=utf-16'],
      ['application/json', 'text/plain'],
      ['multipart/form-data; boundary=x'],
      [''],
    ),
  },
)

const noise = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes))

/** Bodies that are wrong whatever the route. */
const strangeBody: fc.Arbitrary<string | Buffer> = fc.oneof(
  noise,
  fc.json({ maxDepth: 4 }),
  text,
  fc.nat(50_000).map((depth) => '['.repeat(depth) + ']'.repeat(depth)),
  fc.nat(20_000).map((depth) => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`),
  fc.nat(400).map((digits) => `{"value":${'9'.repeat(digits + 1)}}`),
  fc.constantFrom(
    '{"__proto__":{"to":"x","content":"y","value":"z"}}',
    '{"constructor":{"prototype":{"value":"x"}}}',
    '{"value":1e999}',
    '{"value":"a","value":"b"}',
    '{"value":"\\ud800"}',
    '\ufeff{"value":"x"}',
    '{"value":"x"}\u0000',
    'null',
    '',
  ),
  fc.constant(`{"padding":"${'x'.repeat(300_000)}"}`),
)

function bodyOf(route: string, known: Known): fc.Arbitrary<string | Buffer> {
  const address = fc.constantFrom(...known.agents.map((agent) => agent.address))
  const shapes: Record<string, Record<string, fc.Arbitrary<unknown>>> = {
    operators: { contact_hash: mostly(text), accept_terms: mostly(fc.constant(true)) },
    agents: {
      verification_response: mostly(
        fc.record({ challenge_id: mostly(fc.uuid()), response: mostly(text) }),
      ),
      webhook_url: mostly(
        fc.constantFrom(
          '',
          'https://1.1.1.1/',
          'https://a:b@1.1.1.1/',
          'https://a:%@1.1.1.1/',
          'https://127.0.0.1/',
          'http://x/',
          'https://[::]/',
          'https://',
        ),
      ),
    },
    messages: { to: mostly(address), content: mostly(text) },
    state: { value: mostly(text) },
  }
  const shape = shapes[route] ?? {}
  const near = fc
    .tuple(
      fc.record(shape, {
        requiredKeys: Object.keys(shape).filter((name) => name !== 'webhook_url'),
      }),
      fc.oneof(
        { weight: 6, arbitrary: fc.constant({}) },
        { weight: 1, arbitrary: fc.dictionary(text, anything, { maxKeys: 3 }) },
      ),
    )
    .map(([right, more]) => JSON.stringify({ ...more, ...right }))
  return fc.oneof({ weight: 6, arbitrary: near }, { weight: 1, arbitrary: strangeBody })
}

/** Whatever is asked of the observation service, which only reads. */
function observationOf(known: Known): fc.Arbitrary<Generated> {
  const address = fc.constantFrom(...known.agents.map((agent) => agent.address))
  const place = fc.oneof(
    fc.nat(5_000).map(String),
    fc.constantFrom('0', '-1', '', 'x', '1e3', '999999999999999', '9999999999999999', '%30'),
  )
  const time = fc.constantFrom(
    ...[
      '2026-01-01T00:00:00Z',
      '2099-12-31T23:59:59.999Z',
      '9999-12-31T23:59:59Z',
      '0000-01-01T00:00:00Z',
    ],
    ...[
      '2026-01-01T00:00:00+02:00',
      '2026-01-01T00:00:00%2B02:00',
      '2026-13-01T00:00:00Z',
      'now',
      '',
      '%',
    ],
  )
  const types = fc.constantFrom(
    'state_written',
    'message_sent,state_read',
    ',',
    'nothing',
    'state_written,',
    '%',
  )
  const part = fc.oneof(
    queryPart,
    fc
      .tuple(
        fc.constantFrom(
          'since',
          'before',
          'until',
          'at',
          'cursor',
          'min_count',
          'buckets',
          'limit',
        ),
        place,
      )
      .map((pair) => pair.join('=')),
    fc.tuple(fc.constantFrom('from', 'to', 'time'), time).map((pair) => pair.join('=')),
    types.map((names) => `type=${names}`),
    fc
      .tuple(fc.constantFrom('agent', 'with', 'search'), fc.oneof(address, pathText(30)))
      .map((pair) => pair.join('=')),
    fc
      .tuple(fc.constantFrom('key', 'text', 'prefix', 'search'), pathText(300))
      .map((pair) => pair.join('=')),
    fc
      .constantFrom('registered', 'newest', 'busiest', 'address', '', '%')
      .map((order) => `sort=${order}`),
  )
  const path = fc.oneof(
    fc.constantFrom(
      ...[
        'events',
        'agents',
        'network',
        'activity',
        'moment',
        'transparency',
        'state',
        'state/',
        'health',
      ],
      'openapi.json',
      ...['events/stream', 'events/', 'nothing', '', 'state/_capacity'],
    ),
    keySpelling.map((key) => `state/${key}`),
    keySpelling.map((key) => `state/${key}/history`),
    fc.oneof(address, pathText(30)).map((agent) => `agents/${agent}`),
  )
  const method = fc.oneof(
    { weight: 20, arbitrary: fc.constant('GET') },
    { weight: 1, arbitrary: fc.constantFrom('HEAD', 'POST', 'PUT', 'DELETE', 'PATCH') },
  )
  return fc.tuple(method, path, fc.array(part, { maxLength: 4 })).map(([method, path, parts]) => ({
    isObservation: true,
    method,
    path: `/observe/${path}${parts.length > 0 ? `?${parts.join('&')}` : ''}`,
    options: {},
  }))
}

interface Route {
  method: string
  path: fc.Arbitrary<string>
  body?: string
  isForOperators?: boolean
}

function requestOf(known: Known): fc.Arbitrary<Generated> {
  const fixed = (path: string) => fc.constant(path)
  const key = keySpelling.map((spelling) => `/v1/state/${spelling}`)
  const routes: fc.Arbitrary<Route> = fc.oneof(
    { weight: 2, arbitrary: fc.constant({ method: 'GET', path: fixed('/v1/health') }) },
    {
      weight: 1,
      arbitrary: fc.constant({ method: 'POST', path: fixed('/v1/operators'), body: 'operators' }),
    },
    {
      weight: 1,
      arbitrary: fc.constant({
        method: 'GET',
        path: fixed('/v1/agents/verification-challenge'),
        isForOperators: true,
      }),
    },
    {
      weight: 1,
      arbitrary: fc.constant({
        method: 'POST',
        path: fixed('/v1/agents'),
        body: 'agents',
        isForOperators: true,
      }),
    },
    { weight: 1, arbitrary: fc.constant({ method: 'GET', path: fixed('/v1/agents/me') }) },
    { weight: 2, arbitrary: fc.constant({ method: 'GET', path: fixed('/v1/registry') }) },
    {
      weight: 4,
      arbitrary: fc.constant({ method: 'POST', path: fixed('/v1/messages'), body: 'messages' }),
    },
    { weight: 3, arbitrary: fc.constant({ method: 'GET', path: fixed('/v1/messages') }) },
    { weight: 5, arbitrary: fc.constant({ method: 'PUT', path: key, body: 'state' }) },
    { weight: 4, arbitrary: fc.constant({ method: 'GET', path: key }) },
    { weight: 3, arbitrary: fc.constant({ method: 'DELETE', path: key }) },
    {
      weight: 3,
      arbitrary: fc.constant({ method: 'GET', path: fc.constantFrom('/v1/state', '/v1/state/') }),
    },
    { weight: 1, arbitrary: fc.constant({ method: 'GET', path: fixed('/v1/state/_capacity') }) },
    {
      weight: 2,
      arbitrary: fc.constant({ method: 'GET', path: pathText(40).map((path) => `/${path}`) }),
    },
    {
      weight: 1,
      arbitrary: fc.constant({ method: 'GET', path: pathText(40).map((path) => `/v1/${path}`) }),
    },
  )
  const otherMethod = fc.constantFrom(
    'GET',
    'POST',
    'PUT',
    'DELETE',
    'PATCH',
    'HEAD',
    'OPTIONS',
    'TRACE',
    'PROPFIND',
    'PURGE',
    'QUERY',
  )
  const token = fc.oneof(
    { weight: 12, arbitrary: fc.constantFrom(...known.agents.map((agent) => agent.token)) },
    { weight: 2, arbitrary: fc.constant(known.operatorToken) },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        undefined,
        '',
        'x',
        `at_live_${'0'.repeat(64)}`,
        `sk_live_${'f'.repeat(64)}`,
        'y'.repeat(5_000),
      ),
    },
  )
  return routes.chain((route) =>
    fc
      .record({
        method: fc.oneof(
          { weight: 14, arbitrary: fc.constant(route.method) },
          { weight: 1, arbitrary: otherMethod },
        ),
        path: route.path,
        query,
        token: route.isForOperators ? fc.constant(known.operatorToken) : token,
        body:
          route.body === undefined
            ? fc.oneof(
                { weight: 20, arbitrary: fc.constant(undefined) },
                { weight: 1, arbitrary: strangeBody },
              )
            : bodyOf(route.body, known),
        contentType,
        extra: extraHeaders,
        chunked: fc.nat(9).map((number) => number === 0),
      })
      .map(
        ({
          method,
          path,
          query: queryText,
          token: tokenText,
          body,
          contentType: types,
          extra,
          chunked,
        }) => {
          const fits =
            path.length + queryText.length + JSON.stringify(extra).length < MAX_HEAD_CHARACTERS
          const headers: Record<string, string | string[]> = fits ? { ...extra } : {}
          // Node's client sends one Host at most; two of them are among the broken requests.
          if (Array.isArray(headers.Host)) headers.Host = headers.Host.join(',')
          if (body !== undefined && types.length > 0) headers['Content-Type'] = types
          const options: RequestOptions = { headers, token: tokenText }
          if (body !== undefined) Object.assign(options, { body, chunked })
          return { method, path: fits ? path + queryText : path, options }
        },
      ),
  )
}

/** Bytes that are HTTP only nearly: wrong lengths, wrong chunks, wrong heads. */
function brokenRequestOf(known: Known): fc.Arbitrary<Buffer> {
  const token = known.agents[0]?.token ?? ''
  const head = `Host: x\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/json\r\n`
  const put = `PUT /v1/state/raw HTTP/1.1\r\n${head}`
  const body = '{"value":"x"}'
  const contentLength = fc.constantFrom(
    'abc',
    '-1',
    '1e3',
    '99999999999999999999',
    '5 5',
    '+5',
    '5, 5',
    '5,6',
    '0x5',
    '',
    '0',
    '5',
    '1000000',
  )
  const transferEncoding = fc.constantFrom(
    'gzip',
    'chunked, chunked',
    'identity',
    'xchunked',
    'chunked, gzip',
    'CHUNKED',
    '',
    'chunked\r\nTransfer-Encoding: gzip',
  )
  const chunks = fc.constantFrom(
    'zz\r\n',
    '-1\r\n',
    'FFFFFFFFFFFFFFFFFF\r\n',
    '5\r\nabc',
    '3\nabc\n0\n\n',
    `5;${'x'.repeat(20_000)}\r\nabcde\r\n`,
    '0\r\nTrailer: x\r\n\r\n',
    '0\r\n',
    '',
  )
  const requestLine = fc.constantFrom(
    'GET  /v1/health HTTP/1.1',
    'GET /v1/health HTTP/9.9',
    'GET /v1/health HTTP/1.0',
    'GET /v1/health',
    'get /v1/health HTTP/1.1',
    'GET /v1/\u0000 HTTP/1.1',
    'GET /v1/ health HTTP/1.1',
    'GET http://other/v1/health HTTP/1.1',
    'GET http:// HTTP/1.1',
    'GET //x:99999/ HTTP/1.1',
    'GET ? HTTP/1.1',
    'GET v1/health HTTP/1.1',
    'GET \\ HTTP/1.1',
    'GET /v1/state/\u00e9 HTTP/1.1',
    'GET /v1/state?prefix=\u00ff HTTP/1.1',
    'GET /v1/state/\u007f HTTP/1.1',
    'OPTIONS * HTTP/1.1',
    'CONNECT x:80 HTTP/1.1',
    'PRI * HTTP/2.0',
    `GET /${'x'.repeat(20_000)} HTTP/1.1`,
  )
  const headerLines = fc.constantFrom(
    'no colon\r\n',
    'Space : x\r\n',
    'Folded: x\r\n y\r\n',
    'Nul: \u0000\r\n',
    'Host: a\r\nHost: b\r\n',
    'Host: [\r\n',
    'Host: a b\r\n',
    'Host: %\r\n',
    '',
    `Long: ${'x'.repeat(20_000)}\r\n`,
    Array.from({ length: 3_000 }, (_, index) => `H${index}: x\r\n`).join(''),
    'Host: x\r\nExpect: 100-continue\r\n',
    'Host: x\r\nExpect: something\r\n',
    'Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n',
    'Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n',
  )
  return fc.oneof(
    contentLength.map((length) =>
      Buffer.from(`${put}Content-Length: ${length}\r\n\r\n${body}`, 'latin1'),
    ),
    fc
      .tuple(contentLength, contentLength)
      .map(([one, two]) =>
        Buffer.from(
          `${put}Content-Length: ${one}\r\nContent-Length: ${two}\r\n\r\n${body}`,
          'latin1',
        ),
      ),
    transferEncoding.map((coding) =>
      Buffer.from(`${put}Transfer-Encoding: ${coding}\r\n\r\n${body}`, 'latin1'),
    ),
    fc
      .tuple(contentLength, chunks)
      .map(([length, chunk]) =>
        Buffer.from(
          `${put}Content-Length: ${length}\r\nTransfer-Encoding: chunked\r\n\r\n${chunk}`,
          'latin1',
        ),
      ),
    chunks.map((chunk) =>
      Buffer.from(`${put}Transfer-Encoding: chunked\r\n\r\n${chunk}`, 'latin1'),
    ),
    requestLine.map((line) => Buffer.from(`${line}\r\n${head}\r\n`, 'latin1')),
    headerLines.map((lines) => Buffer.from(`GET /v1/health HTTP/1.1\r\n${lines}\r\n`, 'latin1')),
    fc.tuple(fc.nat(put.length), noise).map(([place, bytes]) => {
      const whole = Buffer.from(`${put}Content-Length: ${body.length}\r\n\r\n${body}`, 'latin1')
      return Buffer.concat([whole.subarray(0, place), bytes, whole.subarray(place)])
    }),
    fc.nat(put.length).map((length) => Buffer.from(put.slice(0, length), 'latin1')),
    noise,
  )
}
