/** The format of the event log as JSON Schema, for those who read it. */
import { z } from 'zod'
import { type EventType, eventData } from './event.ts'

const line = {
  ts: z.iso.datetime().describe('When it happened, by the clock of the node that appended it'),
  agent: z.string().optional().describe('Whose doing it was, tab_…; absent for operators'),
}
const routing = z
  .looseObject({
    via: z.literal('webhook').optional().describe('A message that is to be pushed'),
    about: z
      .int()
      .optional()
      .describe('Sequence number of the message that was delivered, queued or redacted'),
    recipient: z
      .string()
      .optional()
      .describe('Whose queue a message that was redacted may wait in'),
    reservation: z.string().optional(),
  })
  .describe(
    "What the kernel's own projections need beside the public event; not for others to rely on",
  )

/**
 * JSON Schema (draft 2020-12) of a line of a message of the stream. Readers ignore what they do not
 * know.
 */
export function eventLineSchema(): object {
  const types = Object.keys(eventData) as EventType[]
  const events = types.map((type) =>
    z.looseObject({
      ...line,
      type: z.literal(type),
      data: eventData[type].loose(),
      routing: routing.optional(),
    }),
  )
  return {
    title: 'Event',
    description:
      'A line of a message in the JetStream stream EVENTS. Its sequence number is that of the message × 1,000, plus its index in it, from 0.',
    ...z.toJSONSchema(z.union(events)),
  }
}
