/** What the endpoints of the observation stand on, and what they have in common. */
import type { ApiRequest, Parameter } from '../../api/endpoint.ts'
import type { Removals } from '../../removal/removals.ts'
import type { StateReader } from '../../state/state-store.ts'
import type { EventReader } from '../event-reader.ts'
import type { Freshness } from '../freshness.ts'
import type { ObservationTables } from '../observation-tables.ts'

export interface ObservationParts {
  readonly events: EventReader
  readonly tables: ObservationTables
  readonly freshness: Freshness
  readonly state: StateReader
  readonly removals: Removals
  /** Answers a request for the live stream, which takes over its connection. */
  readonly stream: (request: ApiRequest<undefined>) => Promise<Response>
  readonly maxKeyBytes: number
  /** The calendar, in ms since 1970. */
  readonly now: () => number
}

export const MAX_ENTRIES = 1_000
export const FAR = Number.MAX_SAFE_INTEGER

export const example = {
  address: 'tab_k3v9x0q2m7c1z8w5r4t6',
  other: 'tab_a1b2c3d4e5f6g7h8i9j0',
  time: '2026-01-01T12:00:00.000Z',
  hash: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
}

export const parameter = (
  name: string,
  description: string,
  schema: object = { type: 'string' },
): Parameter => ({
  name,
  in: 'query',
  description,
  schema,
})
export const limitOf = (maximum: number, fallback: number) =>
  parameter('limit', `Entries on the page; anything else means ${fallback}`, {
    type: 'integer',
    minimum: 1,
    maximum,
    default: fallback,
  })
export const cursorParameter = parameter(
  'cursor',
  '`next_cursor` of the page before; empty for the first',
)
export const typeParameter = parameter(
  'type',
  'Types of events, separated by commas; all unless given',
)
export const agentParameter = parameter('agent', "The event's `agent`")
export const seqParameter = (name: string, description: string) =>
  parameter(name, description, { type: 'integer', minimum: 0 })

export const atParameter = seqParameter(
  'at',
  'As it was after this `seq`; unless given as it is now',
)

export function timestamp(ms: number): string {
  return new Date(ms).toISOString()
}
