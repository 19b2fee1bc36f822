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

/** What the projections need beside the public event. */
export interface Routing {
  /** Set on a message that is to be pushed. */
  via?: 'webhook'
  /** The sequence number of the event that this one is about: of a delivery or of a move to the pull queue, that of its message. */
  about?: number
  /** What a write took its room from, where that was a reservation of its own. A UUID. */
  reservation?: string
}

/** An event with its place in the one total order, and who appended it, where that is known: there it is waited for. */
export type LoggedEvent = NewEvent & Routing & { seq: number; origin?: string }

/** What events are about: a capability where they change something, and `read` where they only record that somebody looked. */
export const EVENT_CLASSES = ['registry', 'message', 'state', 'read'] as const
export type EventClass = (typeof EVENT_CLASSES)[number]
export type Capability = Exclude<EventClass, 'read'>

const CLASS = {
  operator_created: 'registry',
  agent_registered: 'registry',
  message_sent: 'message',
  message_delivered: 'message',
  message_queued: 'message',
  state_written: 'state',
  state_deleted: 'state',
  state_read: 'read',
  registry_read: 'read',
} as const satisfies Record<EventType, EventClass>

export function classOf(type: EventType): EventClass {
  return CLASS[type]
}

/** The events that change what the API answers, or those of one capability; the others only record that somebody looked. */
export function changesOf(capability?: Capability): EventType[] {
  return Object.entries(CLASS).flatMap(([type, name]) =>
    name !== 'read' && (capability === undefined || name === capability) ? [type as EventType] : [],
  )
}

/** As the log shows it: `seq` first, then the rest in the contract's order. */
export function formatEvent({ seq, ts, type, agent, data }: LoggedEvent): string {
  return JSON.stringify({ seq, ts, type, agent, data })
}
