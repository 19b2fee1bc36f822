/** What a request asks for: the parameters of the observation API. */
import { z } from 'zod'
import { ADDRESS } from '../access/tokens.ts'
import { ApiError } from '../api/errors.ts'
import { percentDecode, type Query, readText } from '../api/request.ts'
import { type EventType, eventData } from '../events/event.ts'
import { UnknownCursor } from '../platform/cursor.ts'
import type { EventFilter } from './live/source.ts'
import { spanFor } from './observation-tables.ts'

const EVENT_TYPES: ReadonlySet<string> = new Set(Object.keys(eventData))

/** `type`, some separated by commas, and `agent`; one that is empty is not given. Throws `bad_request`. */
export function readEventFilter(query: Query): EventFilter {
  const types = readText(query, 'type')
  const agent = readText(query, 'agent')
  if (agent && !ADDRESS.test(agent)) {
    throw new ApiError('bad_request', 'agent must be an address: tab_ and 20 of a-z and 0-9')
  }
  return { ...(types ? { types: parseTypes(types) } : {}), ...(agent ? { agent } : {}) }
}

/** A parameter that is the place of an event; undefined if it was not given, or is empty. Throws `bad_request`. */
export function readSeq(query: Query, name: string): number | undefined {
  return parseSeq(readText(query, name), name)
}

/** The same of any text. `what` says what it was, for a person. */
export function parseSeq(text: string | undefined, what: string): number | undefined {
  if (!text) return undefined
  if (!/^\d{1,15}$/.test(text)) {
    throw new ApiError('bad_request', `${what} must be the seq of an event: a whole number of at most 15 digits`)
  }
  return Number(text)
}

function parseTypes(text: string): Set<EventType> {
  const names = text.split(',')
  if (!names.every(isEventType)) {
    throw new ApiError('bad_request', `type must be some of ${[...EVENT_TYPES].join(', ')}, separated by commas`)
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

/** The key in one. Throws `UnknownCursor`. */
export function keyOf(text: string): Buffer {
  const key = Buffer.from(text, 'base64url')
  if (key.toString('base64url') !== text) throw new UnknownCursor()
  return key
}

const timeSchema = z.iso.datetime({ offset: true })
/** With a bucket of many years behind it the year has four digits still. */
const LATEST_MS = Date.UTC(9000, 0, 1)

/** Seconds since 1970; undefined if it was not given. Throws `bad_request`. */
export function readTime(query: Query, name: string): number | undefined {
  // A zone's plus must not have become a space.
  const text = query.get(name)
  if (!text) return undefined
  const time = percentDecode(text, name)
  const ms = timeSchema.safeParse(time).success ? Date.parse(time) : Number.NaN
  if (Number.isNaN(ms) || ms > LATEST_MS)
    throw new ApiError('bad_request', `${name} must be a time such as 2026-01-01T12:00:00Z`)
  return Math.floor(ms / 1_000)
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
