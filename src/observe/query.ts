/** What a request asks for: the parameters of the observation API. */
import { z } from 'zod'
import { ADDRESS } from '../access/tokens.ts'
import { ApiError } from '../api/api-error.ts'
import { percentDecode, type Query, readText } from '../api/request.ts'
import { type EventType, eventData } from '../events/event.ts'
import { UnknownCursor } from '../platform/cursor.ts'
import type { EventFilter } from './live/source.ts'
import { spanFor } from './observation-tables.ts'

const EVENT_TYPES: ReadonlySet<string> = new Set(Object.keys(eventData))

/** Of a text that is searched for, and of the beginning of keys. */
const MAX_TEXT_CHARACTERS = 200
const MAX_KEY_CHARACTERS = 1_024

/** What events somebody asks for; a parameter that is empty is not given. Throws `bad_request`. */
export function readEventFilter(query: Query): EventFilter {
  const types = readTypes(query)
  const agent = readAddress(query, 'agent')
  const partner = readAddress(query, 'with')
  const key = readText(query, 'key')
  const text = readText(query, 'text')
  if (partner && !agent)
    throw new ApiError('bad_request', 'with needs agent: messages between the two are shown')
  if (key && key.length > MAX_KEY_CHARACTERS)
    throw new ApiError('bad_request', `key must have at most ${MAX_KEY_CHARACTERS} characters`)
  if (text && text.length > MAX_TEXT_CHARACTERS)
    throw new ApiError('bad_request', `text must have at most ${MAX_TEXT_CHARACTERS} characters`)
  return {
    ...(types ? { types } : {}),
    ...(agent ? { agent } : {}),
    ...(partner ? { with: partner } : {}),
    ...(key ? { key } : {}),
    ...(text ? { text } : {}),
  }
}

/** An agent's address; undefined if it was not given, or is empty. Throws `bad_request`. */
export function readAddress(query: Query, name: string): string | undefined {
  const address = readText(query, name)
  if (address && !ADDRESS.test(address))
    throw new ApiError('bad_request', `${name} must be an address: tab_ and 20 of a-z and 0-9`)
  return address || undefined
}

/**
 * A parameter that is a sequence number; undefined if it was not given, or is empty. Throws
 * `bad_request`.
 */
export function readSeq(query: Query, name: string): number | undefined {
  return parseSeq(readText(query, name), name)
}

/** The same of any text. `what` says what it was, for a person. */
export function parseSeq(text: string | undefined, what: string): number | undefined {
  if (!text) return undefined
  if (!/^\d{1,15}$/.test(text)) {
    throw new ApiError(
      'bad_request',
      `${what} must be the seq of an event: a whole number of at most 15 digits`,
    )
  }
  return Number(text)
}

/**
 * `type`, some separated by commas; undefined if it was not given, or is empty. Throws
 * `bad_request`.
 */
export function readTypes(query: Query): Set<EventType> | undefined {
  const text = readText(query, 'type')
  if (!text) return undefined
  const names = text.split(',')
  if (!names.every(isEventType)) {
    throw new ApiError(
      'bad_request',
      `type must be some of ${[...EVENT_TYPES].join(', ')}, separated by commas`,
    )
  }
  return new Set(names)
}

function isEventType(name: string): name is EventType {
  return EVENT_TYPES.has(name)
}

/** The position in a cursor. Throws `UnknownCursor`. */
export function idOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  if (!/^\d{1,15}$/.test(text)) throw new UnknownCursor()
  return Number(text)
}

/**
 * The agent in one: its id, how many messages it had sent and received, and its address. Throws
 * `UnknownCursor`.
 */
export function agentOf(
  text: string | undefined,
): { id: number; busy: number; address: string } | undefined {
  if (text === undefined) return undefined
  const [, id, busy, address] = /^(\d{1,15})\.(\d{1,15})\.(tab_[a-z0-9]{20})$/.exec(text) ?? []
  if (address === undefined) throw new UnknownCursor()
  return { id: Number(id), busy: Number(busy), address }
}

/** The key in one. Throws `UnknownCursor`. */
export function keyOf(text: string): Buffer {
  const key = Buffer.from(text, 'base64url')
  if (key.toString('base64url') !== text) throw new UnknownCursor()
  return key
}

const timeSchema = z.iso.datetime({ offset: true })
/** With a bucket of many years behind it the year has four digits still. */
const LATEST_MS = Date.UTC(9000, 0, 1)

/** Milliseconds since 1970; undefined if it was not given. Throws `bad_request`. */
export function readTime(query: Query, name: string): number | undefined {
  // A zone's plus must not have become a space.
  const text = query.get(name)
  if (!text) return undefined
  const time = percentDecode(text, name)
  const ms = timeSchema.safeParse(time).success ? Date.parse(time) : Number.NaN
  if (Number.isNaN(ms) || ms > LATEST_MS)
    throw new ApiError('bad_request', `${name} must be a time such as 2026-01-01T12:00:00Z`)
  return ms
}

/** A stretch of time in buckets that whole spans fill, no more of them than asked for. */
export function stretchOf({
  from,
  to,
  buckets,
  agent,
}: {
  from: number
  to: number
  buckets: number
  agent?: string | undefined
}): { from: number; to: number; width: number; span: number } {
  const span = spanFor((to - from) / buckets, agent)
  const start = Math.floor(from / span) * span
  const spans = Math.ceil((to - start) / span)
  const width = Math.ceil(spans / buckets) * span
  return { from: start, to: start + Math.ceil((to - start) / width) * width, width, span }
}
