/** The events of the public log: everything that happened, one record each. */

/** What an event of each type carries. Never a credential or a hash of one. */
export interface EventData {
  operator_created: { operator_id: string; contact_hash: string; accepted_terms: true }
  agent_registered: { address: string; operator_id: string; has_webhook: boolean }
  message_sent: { message_id: string; from: string; to: string; content: string; content_length: number }
  message_delivered: { message_id: string; to: string; delivery_method: 'pull' | 'push' }
  /** A message that was to be pushed is in the pull queue instead. */
  message_queued: { message_id: string; to: string; reason: QueuedReason }
  state_written: { key: string; value: string; value_length: number; written_by: string }
  state_deleted: { key: string; deleted_by: string }
  state_read: { key: string; read_by: string; found: boolean }
  registry_read: { read_by: string }
}

/**
 * Why a message was not pushed: all attempts failed, the agent's circuit was open, or more messages waited to be pushed to the agent than its
 * queue may hold.
 */
export type QueuedReason = 'undeliverable' | 'circuit_open' | 'backlog_full'

export type EventType = keyof EventData

/** An event before the log has given it its place. `ts` is RFC 3339 in UTC. `agent` is absent for operator events. */
export type NewEvent = { [T in EventType]: { ts: string; type: T; agent?: string; data: EventData[T] } }[EventType]

export type EventOf<T extends EventType> = Extract<NewEvent, { type: T }>

/** Characters that an event's data has, which is nearly its size. */
export function sizeOf({ data }: NewEvent): number {
  let size = 0
  for (const value of Object.values(data)) if (typeof value === 'string') size += value.length
  return size
}

/** How a message leaves (`queue`, `webhook`) or left (`pull`, `push`); part of an event's subject. */
export type Via = 'queue' | 'webhook' | 'pull' | 'push'

/** What the projections need beside the public event. */
export interface Routing {
  via?: Via
  /** The place of the event that this one is about: of a delivery or of a move to the pull queue, that of its message. */
  about?: number
  /** What a write took its room from, where that was a reservation of its own. A UUID. */
  reservation?: string
}

/** An event with its place in the one total order, and who appended it, where that is known: there it is waited for. */
export type LoggedEvent = NewEvent & Routing & { seq: number; origin?: string }

const CAPABILITY = {
  operator_created: 'registry.change',
  agent_registered: 'registry.change',
  message_sent: 'message.change',
  message_delivered: 'message.change',
  message_queued: 'message.change',
  state_written: 'state.change',
  state_deleted: 'state.change',
  state_read: 'state.read',
  registry_read: 'registry.read',
} as const satisfies Record<EventType, string>

/**
 * The subject an event is published on: `events.<capability>.<change|read>.<type>.<via>.<agent>`, always six tokens, `-` where
 * there is none. So a consumer asks the server for just what it wants:
 * `events.*.*.message_sent.>` is one type, `events.*.*.*.*.tab_x` one agent, `events.*.change.>` all that changes something.
 */
export function eventSubject(event: NewEvent, via?: Via): string {
  return `events.${CAPABILITY[event.type]}.${event.type}.${via ?? '-'}.${event.agent ?? '-'}`
}

export type Capability = 'registry' | 'message' | 'state'

/** The events that change what the API answers, or those of one capability; the others only record that somebody looked. */
export function changesOf(capability: Capability | '' = ''): EventType[] {
  return Object.entries(CAPABILITY).flatMap(([type, name]) =>
    name.startsWith(capability) && name.endsWith('.change') ? [type as EventType] : [],
  )
}

/** As the log shows it: `seq` first, then the rest in the contract's order. */
export function formatEvent({ seq, ts, type, agent, data }: LoggedEvent): string {
  return JSON.stringify({ seq, ts, type, agent, data })
}
