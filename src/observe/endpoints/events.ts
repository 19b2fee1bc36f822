/** The log: pages of it, and as it happens. */
import { HELD_OF_AN_ANSWER, jsonBytes } from '../../api/answer-size.ts'
import { type Endpoint, endpoint } from '../../api/endpoint.ts'
import { readLimit } from '../../api/request.ts'
import type { LoggedEvent } from '../../events/event.ts'
import { PAGE_BYTES } from '../../events/event-log.ts'
import { contentOf } from '../event-reader.ts'
import { readEventFilter, readSeq } from '../query.ts'
import * as schemas from '../schemas.ts'
import {
  agentParameter,
  example,
  FAR,
  limitOf,
  type ObservationParts,
  parameter,
  seqParameter,
  typeParameter,
} from './parts.ts'

const MAX_EVENTS = 1_000
/** What a page of events may hold before it is known how long it is. */
const EVENTS_ANSWER_BYTES = HELD_OF_AN_ANSWER * PAGE_BYTES
/** Of an event as JSON, beside its content. */
const ENVELOPE_BYTES = 500

const filterParameters = [
  typeParameter,
  agentParameter,
  parameter('with', 'Only messages between `agent` and this one, from either'),
  parameter('key', 'Only events about keys that begin so'),
  parameter(
    'text',
    'Only events that say this somewhere in their data, whatever the case: in the first 10,000 characters of each text',
  ),
]

export function eventEndpoints({ events, stream }: ObservationParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'stream',
      method: 'GET',
      path: '/observe/events/stream',
      summary: 'Events as they happen',
      description:
        'As a WebSocket: one event as JSON in each text frame. With `Accept: text/event-stream` as Server-Sent Events: `id` is the `seq`, ' +
        'and `Last-Event-ID` goes on after it. Without gaps and repeats. A client that reads nothing for 10 s is dropped; it goes on from the ' +
        'last `seq` that it has.',
      limit: 'client',
      parameters: [
        ...filterParameters,
        seqParameter('since', 'Begins after this `seq`; unless given with what comes next'),
        {
          name: 'Last-Event-ID',
          in: 'header',
          description: 'Of Server-Sent Events: as `since`, and counts before it',
          schema: { type: 'integer' },
        },
      ],
      success: {
        status: 200,
        description: 'The stream',
        schema: schemas.event,
        example: {
          seq: 1_000,
          ts: example.time,
          type: 'registry_read',
          agent: example.address,
          data: { read_by: example.address },
        },
      },
      errors: ['bad_request', 'too_many_connections'],
      handle: stream,
    }),
    endpoint({
      operationId: 'listEvents',
      method: 'GET',
      path: '/observe/events',
      summary: 'The event log',
      description:
        'In its order; with `before` backwards, the latest first. A page ends after 8 MiB; with `key` or `text` also after 2,000 events that ' +
        'were looked at: `next_cursor` is the last of them then, and there may be more although there is none on the page.',
      limit: 'client',
      parameters: [
        seqParameter('since', 'After this `seq`'),
        ...filterParameters,
        limitOf(MAX_EVENTS, 100),
        seqParameter('before', 'The page that ends before this `seq`, the latest first'),
        seqParameter('until', 'Up to this `seq`, inclusive'),
      ],
      success: {
        status: 200,
        description: 'A page',
        schema: schemas.eventsBody,
        example: {
          events: [
            {
              seq: 1_000,
              ts: example.time,
              type: 'registry_read',
              agent: example.address,
              data: { read_by: example.address },
            },
          ],
          next_cursor: 1_000,
          has_more: false,
        },
      },
      errors: ['bad_request'],
      handle: async ({ query, answer }) => {
        const since = readSeq(query, 'since')
        const before = readSeq(query, 'before')
        const limit = readLimit(query, 100, MAX_EVENTS)
        const question = {
          filter: readEventFilter(query),
          since: since ?? 0,
          before,
          until: readSeq(query, 'until') ?? FAR,
          limit,
        }
        answer.resize(EVENTS_ANSWER_BYTES)
        const { events: page, hasMore, through } = await events.page(question)
        const content = page.reduce(
          (sum, event) => sum + ENVELOPE_BYTES + jsonBytes(contentOf(event)),
          0,
        )
        answer.resize(HELD_OF_AN_ANSWER * content)
        return {
          status: 200,
          body: {
            events: page.map(publicEvent),
            next_cursor: through,
            has_more: hasMore,
          },
        }
      },
    }),
  ]
}

function publicEvent({ seq, ts, type, agent, data }: LoggedEvent): object {
  return { seq, ts, type, agent, data }
}
