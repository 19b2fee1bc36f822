/** Reading a JSON body, within the bytes that requests may hold. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { HttpBindings } from '@hono/node-server'
import type { Context } from 'hono'
import type { z } from 'zod'
import type { Hold } from '../platform/byte-budget.ts'
import { readInTurn } from '../platform/http-bodies.ts'
import { BrokenRequest } from '../platform/http-refusals.ts'
import { brokenBy } from '../platform/http-server.ts'
import { Turnstile } from '../platform/turnstile.ts'
import { ApiError } from './api-error.ts'
import type { ApiEnvironment } from './endpoint.ts'

/** What a body must be: JSON of this schema, in so many bytes at most. */
export interface BodyRule<T> {
  schema: z.ZodType<T>
  maxBytes: number
}

/**
 * What a request holds for each byte of its body, beside that byte: the body in one piece and as
 * text, then the value in the event, as JSON again, as bytes, and on its way to the log. Not all at
 * once: with this a node stays within 512 MiB whatever comes (test/cluster/large-bodies.test.ts).
 */
const MADE_OF_A_BYTE = 3
/**
 * Arrays, objects, strings and commas in a body at most; ours have a dozen. What JSON makes of them
 * takes up to 30 times their bytes and a hundred times as long as text: 6 MB of `[` end a process,
 * 6 MB of `[],` keep it busy for 2 s.
 */
const MAX_PARTS = 1_000

/**
 * Requests that hold so many bytes and more are parsed one at a time: 6 MB of `\u0000` take 25 ms.
 */
const LARGE_BYTES = 1_048_576
const large = new Turnstile(1)

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * Reads, parses and checks a JSON body, which `hold` grows with. Throws `unsupported_media_type`,
 * `value_too_large`, `bad_request` that says which field is wrong and what would be right, and
 * `Overloaded`.
 */
export async function readJson<T>(
  context: Context<ApiEnvironment>,
  { schema, maxBytes }: BodyRule<T>,
  hold: Hold,
): Promise<T> {
  const type = context.req.header('content-type')?.split(';')[0]?.trim().toLowerCase()
  if (type !== 'application/json')
    throw new ApiError('unsupported_media_type', 'Content-Type must be application/json')
  if (context.req.header('content-encoding') !== undefined)
    throw new ApiError(
      'unsupported_media_type',
      'the body must be sent as it is, without a Content-Encoding',
    )
  const chunks = await readBody(context.env.incoming, maxBytes, hold)
  try {
    hold.resize((1 + MADE_OF_A_BYTE) * hold.bytes)
    const parse = () => parseJson(Buffer.concat(chunks.splice(0)), schema)
    return hold.bytes < LARGE_BYTES ? parse() : await large.pass(() => sparingly(parse))
  } finally {
    // Node keeps a request, with whatever listens to it, until the next one on its connection.
    chunks.length = 0
  }
}

function parseJson<T>(bytes: Buffer, schema: z.ZodType<T>): T {
  if (hasTooManyParts(bytes))
    throw new ApiError(
      'bad_request',
      `the body must not have more than ${MAX_PARTS} names and values`,
    )
  let body: unknown
  try {
    body = JSON.parse(utf8.decode(bytes))
  } catch {
    throw new ApiError('bad_request', 'the body must be JSON in UTF-8')
  }
  const result = schema.safeParse(body, { error: inOurWords })
  if (result.success) return result.data
  const [issue] = result.error.issues
  const field = issue?.path.join('.') || 'the body'
  // Schemas name `value_too_large` where the contract answers it.
  const code =
    issue?.code === 'custom' && issue.params?.error === 'value_too_large'
      ? 'value_too_large'
      : 'bad_request'
  throw new ApiError(code, `${field}: ${issue?.message ?? 'is not valid'}`)
}

const QUOTE = 0x22
const BACKSLASH = 0x5c
const COMMA = 0x2c
const OPENING_BRACKET = 0x5b
const OPENING_BRACE = 0x7b

/**
 * Whether the JSON has more parts than MAX_PARTS, by the characters outside strings that they begin
 * with.
 */
function hasTooManyParts(json: Buffer): boolean {
  if (json.length <= MAX_PARTS) return false
  let parts = 0
  for (let index = 0; index < json.length; index++) {
    const byte = json[index]
    if (byte === QUOTE) index = endOfString(json, index + 1)
    else if (byte !== COMMA && byte !== OPENING_BRACKET && byte !== OPENING_BRACE) continue
    if (++parts > MAX_PARTS) return true
  }
  return false
}

/** Where the string ends that begins there: at its closing quote, or with the JSON. */
function endOfString(json: Buffer, start: number): number {
  const quote = json.indexOf(QUOTE, start)
  if (quote === -1) return json.length
  if (json[quote - 1] !== BACKSLASH) return quote
  let end = start
  while (end < json.length && json[end] !== QUOTE) end += json[end] === BACKSLASH ? 2 : 1
  return end
}

/** What is said of a field that is missing or of another type, where its schema says nothing. */
function inOurWords(issue: z.core.$ZodRawIssue): string | undefined {
  if (issue.code !== 'invalid_type') return undefined
  return issue.input === undefined
    ? 'is missing'
    : `must be ${TYPES[issue.expected] ?? issue.expected}`
}

const TYPES: Readonly<Record<string, string>> = {
  string: 'a string',
  number: 'a number',
  boolean: 'true or false',
  object: 'a JSON object',
  array: 'a JSON array',
}

/** Runs it, and leaves the event loop to everybody else for as long as it took. */
async function sparingly<T>(run: () => T): Promise<T> {
  const start = performance.now()
  try {
    return run()
  } finally {
    await sleep(performance.now() - start)
  }
}

/**
 * The parts of the body, each held as it comes. Not through Hono's Request, whose stream cannot be
 * given up without the connection, on which the client's next request may be under way: of a body
 * that is refused the rest is read and thrown away, for as long as the server lets a request take.
 * What is said to be too much is not waited for.
 */
function readBody(
  incoming: HttpBindings['incoming'],
  maxBytes: number,
  hold: Hold,
): Promise<Buffer[]> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer[]>()
  const tooLarge = () =>
    new ApiError('value_too_large', `the body must be at most ${maxBytes} bytes`)
  const announced = Number(incoming.headers['content-length'] ?? 0)
  if (announced > maxBytes) throw tooLarge()
  // What comes is held, and not what is said to come: that costs nothing, and may never be sent.
  hold.resize((1 + MADE_OF_A_BYTE) * announced)
  hold.resize(0)
  let chunks: Buffer[] = []
  let size = 0
  let isRefused = false
  const refuse = (error: unknown) => {
    isRefused = true
    chunks = []
    hold.release()
    reject(error)
  }
  readInTurn(incoming, (chunk) => {
    size += chunk.length
    try {
      if (size > maxBytes) throw tooLarge()
      hold.resize(size)
      chunks.push(chunk)
    } catch (error) {
      refuse(error)
    }
    return !isRefused
  })
  incoming.once('end', () => resolve(chunks))
  const brokeOff = () => {
    // The client has gone, so nobody reads this.
    if (!incoming.readableEnded) refuse(new ApiError('bad_request', 'the body broke off'))
  }
  const broken = brokenBy(incoming)
  if (broken) throw broken
  incoming.on('error', (error) => (error instanceof BrokenRequest ? refuse(error) : brokeOff()))
  incoming.once('close', brokeOff)
  if (incoming.destroyed) brokeOff()
  return promise
}
