/** Reading a request's path, query and body as they came over the wire. */
import type { HttpBindings } from '@hono/node-server'
import type { Context } from 'hono'
import type { z } from 'zod'
import { BrokenRequest } from '../platform/http-refusals.ts'
import { brokenBy } from '../platform/http-server.ts'
import type { ApiEnvironment } from './endpoint.ts'
import { ApiError } from './errors.ts'

/**
 * The path as the client sent it. URL parsers resolve `..` and collapse what they know, and keys of the state may hold anything, so
 * routing and keys go by this.
 */
export function rawPath(bindings: HttpBindings): string {
  const target = bindings.incoming.url ?? '/'
  // A proxy may send the absolute form.
  const path = target.startsWith('/') ? target : target.replace(/^[a-z]+:\/\/[^/?]*/i, '')
  const [whole = ''] = path.split('?', 1)
  // A base URL that ends in a slash puts one too many in front; those of a key stand further on.
  return whole.replace(/^\/+/, '/') || '/'
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Percent-decodes once; bytes that were sent unescaped stand for themselves. Throws `bad_request` for what is malformed or not UTF-8. */
export function percentDecode(text: string, what: string): string {
  try {
    // Node gives each byte of the request line as one character.
    return decodeURIComponent(text.replace(/[\x80-\xff]/g, (byte) => `%${byte.charCodeAt(0).toString(16)}`))
  } catch {
    throw new ApiError('bad_request', `${what} must be percent-encoded UTF-8`)
  }
}

/** A query as it came: each parameter is decoded when it is asked for, so that a malformed one that nobody reads does no harm. */
export type Query = ReadonlyMap<string, string>

/** The parameters of the query, not decoded yet; of one given twice, the first. */
export function readQuery(bindings: HttpBindings): Query {
  const target = bindings.incoming.url ?? ''
  const start = target.indexOf('?')
  const query = new Map<string, string>()
  if (start === -1) return query
  for (const pair of target.slice(start + 1).split('&')) {
    const equals = pair.indexOf('=')
    const [name, value] = equals === -1 ? [pair, ''] : [pair.slice(0, equals), pair.slice(equals + 1)]
    if (!query.has(name)) query.set(name, value)
  }
  return query
}

/** A parameter, percent-decoded, `+` being a space; undefined if it was not given. Throws `bad_request`. */
export function readText(query: Query, name: string): string | undefined {
  const text = query.get(name)
  return text === undefined ? undefined : percentDecode(text.replaceAll('+', ' '), name)
}

/** Where a page begins; undefined, as for one that is given empty, is at the first. Throws `bad_request`. */
export function readCursor(query: Query): string | undefined {
  return readText(query, 'cursor') || undefined
}

/** A page size: a whole number from 1 to `maximum`; anything else means `fallback`. */
export function readLimit(query: Query, fallback: number, maximum: number): number {
  const text = query.get('limit') ?? ''
  const value = /^\d{1,9}$/.test(text) ? Number(text) : 0
  return value >= 1 && value <= maximum ? value : fallback
}

/** What a body must be: JSON of this schema, in so many bytes at most. */
export interface BodyRule<T> {
  schema: z.ZodType<T>
  maxBytes: number
}

/**
 * Reads, parses and checks a JSON body. Throws `unsupported_media_type`, `value_too_large`, and `bad_request` that says which field is
 * wrong and what would be right.
 */
export async function readJson<T>(context: Context<ApiEnvironment>, { schema, maxBytes }: BodyRule<T>): Promise<T> {
  const type = context.req.header('content-type')?.split(';')[0]?.trim().toLowerCase()
  if (type !== 'application/json') throw new ApiError('unsupported_media_type', 'Content-Type must be application/json')
  const bytes = await readBody(context.env.incoming, maxBytes)
  let body: unknown
  try {
    body = JSON.parse(utf8.decode(bytes))
  } catch {
    throw new ApiError('bad_request', 'the body must be JSON in UTF-8')
  }
  const result = schema.safeParse(body)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const field = issue?.path.join('.') || 'the body'
  // Schemas name `value_too_large` where the contract answers it.
  const code = issue?.code === 'custom' && issue.params?.error === 'value_too_large' ? 'value_too_large' : 'bad_request'
  throw new ApiError(code, `${field}: ${issue?.message ?? 'is not valid'}`)
}

/**
 * The body's bytes. Not through Hono's Request, whose stream cannot be given up without the connection, on which the client's next request
 * may be under way: of a body that is too large the rest is read and thrown away, for as long as the server lets a request take.
 */
function readBody(incoming: HttpBindings['incoming'], maxBytes: number): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
  const tooLarge = () => new ApiError('value_too_large', `the body must be at most ${maxBytes} bytes`)
  if (Number(incoming.headers['content-length'] ?? 0) > maxBytes) throw tooLarge()
  const chunks: Buffer[] = []
  let size = 0
  incoming.on('data', (chunk: Buffer) => {
    size += chunk.length
    if (size <= maxBytes) {
      chunks.push(chunk)
    } else {
      chunks.length = 0
      reject(tooLarge())
    }
  })
  incoming.once('end', () => resolve(Buffer.concat(chunks)))
  const brokeOff = () => {
    // The client has gone, so nobody reads this.
    if (!incoming.readableEnded) reject(new ApiError('bad_request', 'the body broke off'))
  }
  const broken = brokenBy(incoming)
  if (broken) throw broken
  incoming.on('error', (error) => (error instanceof BrokenRequest ? reject(error) : brokeOff()))
  incoming.once('close', brokeOff)
  if (incoming.destroyed) brokeOff()
  return promise
}
