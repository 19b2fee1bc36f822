/** The answers of the observation API, as its document describes them. */
import { z } from 'zod'
import { eventData } from '../events/event.ts'

const timestamp = () => z.iso.datetime().describe('RFC 3339 in UTC')
const address = () => z.string().describe('Of an agent, tab_…')
const seq = () => z.int().describe('Sequence number in the log')
const nextCursor = () =>
  z.string().nullable().describe('Give it as `cursor` for the next page; null on the last one')

export const event = z.object({
  seq: seq(),
  ts: timestamp(),
  type: z.enum(Object.keys(eventData) as [string, ...string[]]),
  agent: address().optional().describe('Whose doing it was; absent for operators'),
  data: z
    .looseObject({})
    .describe('By the type. `redacted` and `redacted_reason` where something was removed'),
})

export const eventsBody = z.object({
  events: z.array(event),
  next_cursor: seq().describe(
    'Of the last event of the page, or that was looked at for it; of an empty page what was asked for',
  ),
  has_more: z.boolean(),
})

export const stateListBody = z.object({
  keys: z.array(
    z.object({
      key: z.string(),
      last_modified_by: address(),
      last_modified_at: timestamp(),
      value_length: z.int().describe('In bytes'),
    }),
  ),
  next_cursor: nextCursor(),
  total: z
    .int()
    .nullable()
    .describe('Keys with that prefix; null with `at` and a prefix, where nobody counts them'),
})

export const stateBody = z.object({
  key: z.string(),
  value: z.string(),
  last_modified_by: address().optional(),
  last_modified_at: timestamp().optional(),
  redacted: z.literal(true).optional().describe('It was removed'),
  reason: z.string().optional().describe('Why'),
})

export const historyBody = z.object({
  key: z.string(),
  versions: z.array(
    z.object({
      seq: seq(),
      ts: timestamp(),
      type: z.enum(['state_written', 'state_deleted', 'state_key_removed']),
      agent: address().optional(),
      value_length: z
        .int()
        .nullable()
        .describe('In bytes; null where the key was deleted or removed'),
    }),
  ),
  next_cursor: nextCursor(),
})

export const agentBody = z.object({
  address: address(),
  registered_at: timestamp(),
  messages_sent: z.int(),
  messages_received: z.int().describe('Addressed to it, fetched or not'),
  state_writes: z.int(),
  last_active: timestamp().nullable().describe('When it last did something; null if it never did'),
})
export const agentsBody = z.object({
  agents: z.array(agentBody),
  next_cursor: nextCursor(),
  total: z.int(),
})

export const networkBody = z.object({
  nodes: z.array(agentBody.pick({ address: true, messages_sent: true, messages_received: true })),
  edges: z.array(z.object({ from: address(), to: address(), count: z.int() })),
})

export const activityBody = z.object({
  from: timestamp(),
  to: timestamp(),
  bucket_seconds: z.int(),
  buckets: z
    .array(
      z.object({
        start: timestamp(),
        total: z.int(),
        types: z.record(z.string(), z.int()),
        first_seq: seq().describe('Sequence number of the first event in it'),
      }),
    )
    .describe('In order; those without an event are left out'),
})

export const momentBody = z.object({
  seq: seq().describe('Of the last event up to then; 0 before the first'),
  ts: timestamp().nullable().describe('When that was; null before the first'),
  agents: z.int(),
  keys: z.int(),
  events: z.int(),
  types: z.record(z.string(), z.int()).describe('Events by type'),
})

export const transparencyBody = z.object({
  removals: z.array(
    z.object({
      ts: timestamp(),
      action: z.enum(['state_key_removed', 'message_redacted']),
      key: z.string().optional(),
      message_id: z.string().optional(),
      reason: z.string(),
      performed_by: z.string(),
      content_hash: z.string().describe('SHA-256 of what was removed, in hexadecimal digits'),
    }),
  ),
  next_cursor: nextCursor(),
  total: z.int(),
})
