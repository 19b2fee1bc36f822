/** Reading a request's path and query as they came over the wire. */
import type { HttpBindings } from '@hono/node-server'
import { ApiError } from './api-error.ts'

/**
 * The path as the client sent it. URL parsers resolve `..` and collapse what they know, and keys of
 * the state may hold anything, so routing and keys go by this.
 */
export function rawPath({ incoming }: Pick<HttpBindings, 'incoming'>): string {
  const target = incoming.url ?? '/'
  // A proxy may send the absolute form.
  const path = target.startsWith('/') ? target : target.replace(/^[a-z]+:\/\/[^/?]*/i, '')
  const [whole = ''] = path.split('?', 1)
  // A base URL that ends in a slash puts one too many in front; those of a key stand further on.
  return whole.replace(/^\/+/, '/') || '/'
}

/**
 * Percent-decodes once; bytes that were sent unescaped stand for themselves. Throws `bad_request`
 * for what is malformed or not UTF-8.
 */
export function percentDecode(text: string, what: string): string {
  try {
    // Node gives each byte of the request line as one character.
    return decodeURIComponent(
      text.replace(/[\x80-\xff]/g, (byte) => `%${byte.charCodeAt(0).toString(16)}`),
    )
  } catch {
    throw new ApiError('bad_request', `${what} must be percent-encoded UTF-8`)
  }
}

/**
 * A query as it came: each parameter is decoded when it is asked for, so that a malformed one that
 * nobody reads does no harm.
 */
export type Query = ReadonlyMap<string, string>

/** The parameters of the query, not decoded yet; of one given twice, the first. */
export function readQuery(bindings: HttpBindings): Query {
  const target = bindings.incoming.url ?? ''
  const start = target.indexOf('?')
  const query = new Map<string, string>()
  if (start === -1) return query
  for (const pair of target.slice(start + 1).split('&')) {
    const equals = pair.indexOf('=')
    const [name, value] =
      equals === -1 ? [pair, ''] : [pair.slice(0, equals), pair.slice(equals + 1)]
    if (!query.has(name)) query.set(name, value)
  }
  return query
}

/**
 * A parameter, percent-decoded, `+` being a space; undefined if it was not given. Throws
 * `bad_request`.
 */
export function readText(query: Query, name: string): string | undefined {
  const text = query.get(name)
  return text === undefined ? undefined : percentDecode(text.replaceAll('+', ' '), name)
}

/**
 * Where a page begins; undefined, as for one that is given empty, is at the first. Throws
 * `bad_request`.
 */
export function readCursor(query: Query): string | undefined {
  return readText(query, 'cursor') || undefined
}

/**
 * A page size, or another number of things: a whole one from 1 to `maximum`; anything else means
 * `fallback`.
 */
export function readLimit(query: Query, fallback: number, maximum: number, name = 'limit'): number {
  const text = query.get(name) ?? ''
  const value = /^\d{1,9}$/.test(text) ? Number(text) : 0
  return value >= 1 && value <= maximum ? value : fallback
}
