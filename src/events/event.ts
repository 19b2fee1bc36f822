/** The events of the public log: everything that happened, one record each. */
import { z } from 'zod'

/** Why a message is in the pull queue instead of having been pushed. */
const pushFailure = z
  .enum(['undeliverable', 'circuit_open', 'backlog_full'])
  .describe(
    "All attempts failed; the agent's circuit was open; more messages waited to be pushed to the agent than its queue may hold.",
  )
export type PushFailure = z.infer<typeof pushFailure>

const messageId = z.string().describe('A UUID')
const address = z.string().describe('Of an agent, tab_…')

/** What the log keeps of each removal of content. */
const removal = {
  reason: z.string().describe('For the public'),
  performed_by: z.string().describe('Who removed it'),
  content_hash: z.string().describe('SHA-256 of what was removed, in hexadecimal digits'),
}

/** Of an event whose content was removed; the content says where that is told of. */
const redaction = {
  redacted: z.literal(true).optional(),
  redacted_reason: z.string().optional().describe('For the public'),
}

/** What an event of each type carries. Never a credential or a hash of one. */
export const eventData = {
  operator_created: z.object({
    operator_id: z.string(),
    contact_hash: z.string(),
    accepted_terms: z.literal(true),
  }),
  agent_registered: z.object({ address, operator_id: z.string(), has_webhook: z.boolean() }),
  message_sent: z.object({
    message_id: messageId,
    from: address,
    to: address,
    content: z.string(),
    content_length: z.int().describe('In bytes, of what was sent'),
    ...redaction,
  }),
  message_delivered: z.object({
    message_id: messageId,
    to: address,
    delivery_method: z.enum(['pull', 'push']),
  }),
  // A message that was to be pushed is in the pull queue instead.
  push_failed: z.object({ message_id: messageId, to: address, reason: pushFailure }),
  state_written: z.object({
    key: z.string(),
    value: z.string(),
    value_length: z.int().describe('In bytes, of what was written'),
    written_by: address,
    ...redaction,
  }),
  state_deleted: z.object({ key: z.string(), deleted_by: address }),
  state_read: z.object({ key: z.string(), read_by: address, found: z.boolean() }),
  // Of each page. A request that was refused records nothing.
  registry_read: z.object({ read_by: address }),
  // By the operator of the infrastructure, of what is illegal to host.
  state_key_removed: z.object({ key: z.string(), ...removal }),
  message_redacted: z.object({ message_id: messageId, ...removal }),
} as const

export type EventData = { [T in keyof typeof eventData]: z.infer<(typeof eventData)[T]> }

export type EventType = keyof EventData

/**
 * An event before the log has given it its sequence number. `ts` is RFC 3339 in UTC. `agent` is
 * absent for operator events.
 */
export type NewEvent = {
  [T in EventType]: { ts: string; type: T; agent?: string; data: EventData[T] }
}[EventType]

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
  /**
   * The sequence number of the event that this one is about: of a delivery, a move to the pull
   * queue or a redaction, that of its message.
   */
  about?: number
  /** Whose queue the message of a redaction may wait in. */
  recipient?: string
  /** What a write took its room from, where that was a reservation of its own. A UUID. */
  reservation?: string
}

/**
 * An event with its sequence number in the one total order, and who appended it, where that is
 * known: there it is waited for.
 */
export type LoggedEvent = NewEvent & Routing & { seq: number; origin?: string }

/**
 * What events are about: a capability where they change something, and `read` where they only
 * record that somebody looked.
 */
export const EVENT_CLASSES = ['registry', 'message', 'state', 'read'] as const
export type EventClass = (typeof EVENT_CLASSES)[number]
export type Capability = Exclude<EventClass, 'read'>

const CLASS = {
  operator_created: 'registry',
  agent_registered: 'registry',
  message_sent: 'message',
  message_delivered: 'message',
  push_failed: 'message',
  state_written: 'state',
  state_deleted: 'state',
  state_read: 'read',
  registry_read: 'read',
  state_key_removed: 'state',
  message_redacted: 'message',
} as const satisfies Record<EventType, EventClass>

/** Whether this version has events of that type: a newer one may have more. */
export function isKnownType(type: string): type is EventType {
  return Object.hasOwn(CLASS, type)
}

export function classOf(type: EventType): EventClass {
  return CLASS[type]
}

/**
 * The events that change what the API answers, or those of one capability; the others only record
 * that somebody looked.
 */
export function changesOf(capability?: Capability): EventType[] {
  return Object.entries(CLASS).flatMap(([type, name]) =>
    name !== 'read' && (capability === undefined || name === capability) ? [type as EventType] : [],
  )
}

/** As the log shows it: `seq` first, then the rest in the contract's order. */
export function formatEvent({ seq, ts, type, agent, data }: LoggedEvent): string {
  return JSON.stringify({ seq, ts, type, agent, data })
}
