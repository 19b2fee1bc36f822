/** Which events a request asks for: the parameters that the pages of events and the live streams have in common. */
import { ApiError } from '../api/errors.ts'
import { type Query, readText } from '../api/request.ts'
import { type EventType, eventData } from '../events/event.ts'
import type { EventFilter } from './live/source.ts'

const ADDRESS = /^tab_[a-z0-9]{20}$/
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
