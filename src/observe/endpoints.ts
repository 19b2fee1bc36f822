/** The endpoints of the observation API, in the contract's order. */

import { HELD_OF_AN_ANSWER, holdText, jsonBytes } from '../api/answer-size.ts'
import { type ApiContext, type ApiRequest, type Endpoint, endpoint, type Parameter } from '../api/endpoint.ts'
import { CONTRACT_VERSION } from '../api/endpoints.ts'
import { ApiError } from '../api/errors.ts'
import { percentDecode, type Query, rawPath, readCursor, readLimit, readText } from '../api/request.ts'
import { healthBody } from '../api/schemas.ts'
import type { LoggedEvent } from '../events/event.ts'
import { PAGE_BYTES } from '../events/event-log.ts'
import { REDACTED } from '../removal/redaction.ts'
import type { Removals } from '../removal/removals.ts'
import type { StateReader } from '../state/state-store.ts'
import { contentOf, type EventReader } from './event-reader.ts'
import type { Freshness } from './freshness.ts'
import type { AgentFigures, ObservationTables } from './observation-tables.ts'
import { idOf, keyOf, readEventFilter, readSeq, readTime, stretchOf } from './query.ts'
import * as schemas from './schemas.ts'

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
  readonly now?: () => number
}

const MAX_EVENTS = 1_000
const MAX_ENTRIES = 1_000
const MAX_EDGES = 50_000
const DEFAULT_EDGES = 1_000
const MAX_BUCKETS = 500
const DEFAULT_BUCKETS = 60
/** What a page of events may hold before it is known how long it is. */
const EVENTS_ANSWER_BYTES = HELD_OF_AN_ANSWER * PAGE_BYTES
/** Of an event as JSON, beside its content. */
const ENVELOPE_BYTES = 500
/** Of an edge and its nodes, as JSON. */
const EDGE_BYTES = 300
/** How a request for the history of a key ends. */
const HISTORY = '/history'
const FAR = Number.MAX_SAFE_INTEGER

const example = {
  address: 'tab_k3v9x0q2m7c1z8w5r4t6',
  other: 'tab_a1b2c3d4e5f6g7h8i9j0',
  time: '2026-01-01T12:00:00.000Z',
  hash: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
}

const parameter = (name: string, description: string, schema: object = { type: 'string' }): Parameter => ({
  name,
  in: 'query',
  description,
  schema,
})
const limitOf = (maximum: number, fallback: number) =>
  parameter('limit', `Entries on the page; anything else means ${fallback}`, {
    type: 'integer',
    minimum: 1,
    maximum,
    default: fallback,
  })
const cursor = parameter('cursor', '`next_cursor` of the page before; empty for the first')
const typeParameter = parameter('type', 'Types of events, separated by commas; all unless given')
const agentParameter = parameter('agent', "The event's `agent`")
const seqParameter = (name: string, description: string) =>
  parameter(name, description, { type: 'integer', minimum: 0 })
const pathParameter = (name: string, description: string): Parameter => ({
  name,
  in: 'path',
  description,
  schema: { type: 'string' },
  required: true,
})

const keyParameter = pathParameter('key', 'Percent-decoded once; it may hold `/`')

export function createObservationEndpoints(parts: ObservationParts): Endpoint[] {
  const { events, tables, freshness, state, removals, stream, maxKeyBytes, now = Date.now } = parts

  const listState = async ({ query }: Pick<ApiRequest<unknown>, 'query'>) => {
    const prefix = readText(query, 'prefix') ?? ''
    const limit = readLimit(query, 100, MAX_ENTRIES)
    const after = readCursor(query)
    const { keys, total } = await state.listings(prefix, after === undefined ? undefined : keyOf(after), limit + 1)
    const page = keys.slice(0, limit)
    const last = page.at(-1)
    return {
      status: 200 as const,
      body: {
        keys: page.map(({ key, modifiedBy, modifiedAt, length }) => ({
          key: key.toString('utf8'),
          last_modified_by: modifiedBy,
          last_modified_at: modifiedAt,
          value_length: length,
        })),
        next_cursor: keys.length > limit && last ? last.key.toString('base64url') : null,
        total,
      },
    }
  }

  /** What there is to say of a key now; undefined if it never was there. */
  const valueNow = async (key: string): Promise<object | undefined> => {
    const entry = await state.find(key)
    if (entry)
      return {
        key,
        value: entry.value,
        last_modified_by: entry.modifiedBy,
        last_modified_at: entry.modifiedAt,
      }
    return redactionOf(key)
  }

  const redactionOf = async (key: string): Promise<object | undefined> => {
    const removal = (await removals.ofKeys([key])).get(key)
    return removal && { key, value: REDACTED, redacted: true, reason: removal.reason }
  }

  /** The same as of a place of the log. */
  const valueAt = async (key: string, at: number): Promise<object | undefined> => {
    await freshness.wait()
    const [version] = await tables.versions(key, at + 1, 1)
    if (version?.type === 'state_key_removed') return redactionOf(key)
    if (version?.type !== 'state_written') return undefined
    const event = await events.get(version.seq)
    if (event?.type !== 'state_written') return undefined
    const { value, written_by, redacted, redacted_reason } = event.data as typeof event.data & Redaction
    return {
      key,
      value,
      last_modified_by: written_by,
      last_modified_at: event.ts,
      ...(redacted && { redacted, reason: redacted_reason }),
    }
  }

  const history = async (key: string, query: Query) => {
    const limit = readLimit(query, 100, MAX_ENTRIES)
    const before = idOf(readCursor(query))
    await freshness.wait()
    const versions = await tables.versions(key, before ?? FAR, limit + 1)
    if (versions.length === 0 && before === undefined)
      throw new ApiError('not_found', 'there is no such key, and never was')
    const page = versions.slice(0, limit)
    return {
      status: 200 as const,
      body: {
        key,
        versions: page.map(({ seq, type, author, at, length }) => ({
          seq,
          ts: timestamp(at),
          type,
          ...(author !== null && { agent: author }),
          value_length: length,
        })),
        next_cursor: versions.length > limit ? String(page.at(-1)?.seq) : null,
      },
    }
  }

  return [
    endpoint({
      operationId: 'health',
      method: 'GET',
      path: '/observe/health',
      summary: 'Whether the service is up',
      success: {
        status: 200,
        description: 'It is',
        schema: healthBody,
        example: { status: 'ok', version: CONTRACT_VERSION },
      },
      handle: async () => ({ status: 200, body: { status: 'ok', version: CONTRACT_VERSION } }),
    }),
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
        typeParameter,
        agentParameter,
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
      description: 'In its order; with `before` backwards, the latest first. A page ends after 8 MiB.',
      limit: 'client',
      parameters: [
        seqParameter('since', 'After this `seq`'),
        typeParameter,
        agentParameter,
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
        const { events: page, hasMore } = await events.page(question)
        const content = page.reduce((sum, event) => sum + ENVELOPE_BYTES + jsonBytes(contentOf(event)), 0)
        answer.resize(HELD_OF_AN_ANSWER * content)
        return {
          status: 200,
          body: {
            events: page.map(publicEvent),
            next_cursor: page.at(-1)?.seq ?? before ?? since ?? 0,
            has_more: hasMore,
          },
        }
      },
    }),
    endpoint({
      operationId: 'listState',
      method: 'GET',
      path: '/observe/state',
      summary: 'Keys of the shared state, in byte order',
      limit: 'client',
      parameters: [parameter('prefix', 'Matched byte for byte'), cursor, limitOf(MAX_ENTRIES, 100)],
      success: {
        status: 200,
        description: 'A page, and how many keys have the prefix',
        schema: schemas.stateListBody,
        example: {
          keys: [
            {
              key: 'jobs/1',
              last_modified_by: example.address,
              last_modified_at: example.time,
              value_length: 4,
            },
          ],
          next_cursor: null,
          total: 1,
        },
      },
      errors: ['bad_request'],
      handle: listState,
    }),
    endpoint({
      operationId: 'readState',
      method: 'GET',
      path: '/observe/state/{key}',
      summary: 'A key and its value',
      limit: 'client',
      parameters: [keyParameter, seqParameter('at', 'The value as it was after this `seq`; unless given as it is now')],
      success: {
        status: 200,
        description: 'Its value, or what is shown in its place',
        schema: schemas.stateBody,
        example: {
          key: 'jobs/1',
          value: 'done',
          last_modified_by: example.address,
          last_modified_at: example.time,
        },
      },
      errors: ['bad_request', 'not_found'],
      handle: async ({ context, key, query, answer }) => {
        if (key === '') return listState({ query })
        checkKey(key)
        const at = readSeq(query, 'at')
        const found = await (at === undefined ? valueNow(key) : valueAt(key, at))
        if (found) {
          if ('value' in found) holdText(answer, String(found.value))
          return { status: 200, body: found }
        }
        const owner = keyBeforeHistory(context)
        if (owner !== undefined) return history(owner, query)
        throw new ApiError('not_found', at === undefined ? 'there is no such key' : 'there was no such key then')
      },
    }),
    endpoint({
      operationId: 'readHistory',
      method: 'GET',
      // A key may end so itself: whoever reads a key that there is not comes here.
      path: `/observe/state/{key}${HISTORY}`,
      summary: 'What became of a key, the latest first',
      description: `Of a key that ends in \`${HISTORY}\` itself, the value is shown where there is one.`,
      limit: 'client',
      parameters: [keyParameter, cursor, limitOf(MAX_ENTRIES, 100)],
      success: {
        status: 200,
        description: 'A page of its versions',
        schema: schemas.historyBody,
        example: {
          key: 'jobs/1',
          versions: [{ seq: 1_000, ts: example.time, type: 'state_written', agent: example.address, value_length: 4 }],
          next_cursor: null,
        },
      },
      errors: ['bad_request', 'not_found'],
      handle: async ({ key, query }) => history(key, query),
    }),
    endpoint({
      operationId: 'listAgents',
      method: 'GET',
      path: '/observe/agents',
      summary: 'Agents in the order of their registration',
      limit: 'client',
      parameters: [cursor, limitOf(MAX_ENTRIES, MAX_ENTRIES)],
      success: {
        status: 200,
        description: 'A page, and how many there are',
        schema: schemas.agentsBody,
        example: { agents: [exampleAgent], next_cursor: null, total: 1 },
      },
      errors: ['bad_request'],
      handle: async ({ query }) => {
        const limit = readLimit(query, MAX_ENTRIES, MAX_ENTRIES)
        const after = idOf(readCursor(query)) ?? 0
        await freshness.wait()
        const { agents, total } = await tables.agents(after, limit + 1)
        const page = agents.slice(0, limit)
        return {
          status: 200,
          body: {
            agents: page.map(toAgent),
            next_cursor: agents.length > limit ? String(page.at(-1)?.id) : null,
            total,
          },
        }
      },
    }),
    endpoint({
      operationId: 'readAgent',
      method: 'GET',
      path: '/observe/agents/{address}',
      summary: 'One agent',
      limit: 'client',
      parameters: [pathParameter('address', 'tab_…')],
      success: { status: 200, description: 'Its figures', schema: schemas.agentBody, example: exampleAgent },
      errors: ['bad_request', 'not_found'],
      handle: async ({ key: address }) => {
        await freshness.wait()
        const agent = await tables.agent(address)
        if (!agent) throw new ApiError('not_found', 'no agent has that address')
        return { status: 200, body: toAgent(agent) }
      },
    }),
    endpoint({
      operationId: 'readNetwork',
      method: 'GET',
      path: '/observe/network',
      summary: 'Who wrote to whom, and how often',
      description: 'The heaviest edges first, with the agents that they join, and the busiest others up to `limit`.',
      limit: 'client',
      parameters: [
        limitOf(MAX_EDGES, DEFAULT_EDGES),
        parameter('min_count', 'Only edges of so many messages and more', { type: 'integer', minimum: 1, default: 1 }),
        parameter('agent', 'Only edges of this agent'),
      ],
      success: {
        status: 200,
        description: 'Nodes and edges',
        schema: schemas.networkBody,
        example: {
          nodes: [{ address: example.address, messages_sent: 3, messages_received: 1 }],
          edges: [{ from: example.address, to: example.other, count: 3 }],
        },
      },
      errors: ['bad_request'],
      handle: async ({ query, answer }) => {
        const limit = readLimit(query, DEFAULT_EDGES, MAX_EDGES)
        const minCount = readLimit(query, 1, FAR, 'min_count')
        const { agent } = readEventFilter(query)
        answer.resize(Math.max(answer.bytes, HELD_OF_AN_ANSWER * EDGE_BYTES * limit))
        await freshness.wait()
        const { nodes, edges } = await tables.network({ limit, minCount, agent })
        return {
          status: 200,
          body: {
            nodes: nodes.map(({ address, sent, received }) => ({
              address,
              messages_sent: sent,
              messages_received: received,
            })),
            edges,
          },
        }
      },
    }),
    endpoint({
      operationId: 'readActivity',
      method: 'GET',
      path: '/observe/activity',
      summary: 'How many events there were, over time',
      description:
        'Buckets are whole minutes, of one agent whole hours, or longer; `from` and `to` are moved outwards to their bounds.',
      limit: 'client',
      parameters: [
        parameter('from', 'RFC 3339; unless given the first event', { type: 'string', format: 'date-time' }),
        parameter('to', 'RFC 3339, exclusive; unless given now', { type: 'string', format: 'date-time' }),
        parameter('buckets', `At most so many; anything else means ${DEFAULT_BUCKETS}`, {
          type: 'integer',
          minimum: 1,
          maximum: MAX_BUCKETS,
          default: DEFAULT_BUCKETS,
        }),
        typeParameter,
        agentParameter,
      ],
      success: {
        status: 200,
        description: 'Counts by type',
        schema: schemas.activityBody,
        example: {
          from: example.time,
          to: '2026-01-01T13:00:00.000Z',
          bucket_seconds: 60,
          buckets: [{ start: example.time, total: 3, types: { message_sent: 3 }, first_seq: 1_000 }],
        },
      },
      errors: ['bad_request'],
      handle: async ({ query }) => {
        const filter = readEventFilter(query)
        const buckets = readLimit(query, DEFAULT_BUCKETS, MAX_BUCKETS, 'buckets')
        const askedFrom = readTime(query, 'from')
        const askedTo = readTime(query, 'to')
        await freshness.wait()
        const to = askedTo ?? Math.floor(now() / 1_000) + 1
        const from = askedFrom ?? (await tables.beginning()) ?? to - 3_600
        if (from >= to) throw new ApiError('bad_request', 'from must be a time before to')
        const stretch = stretchOf({ from, to, buckets, agent: filter.agent })
        const rows = await tables.activity(stretch, filter)
        const found = Map.groupBy(rows, ({ bucket }) => bucket)
        return {
          status: 200,
          body: {
            from: timestamp(stretch.from * 1_000),
            to: timestamp(stretch.to * 1_000),
            bucket_seconds: stretch.width,
            buckets: [...found].map(([bucket, its]) => ({
              start: timestamp((stretch.from + bucket * stretch.width) * 1_000),
              total: its.reduce((sum, { count }) => sum + count, 0),
              types: Object.fromEntries(its.map(({ type, count }) => [type, count])),
              first_seq: Math.min(...its.map(({ firstSeq }) => firstSeq)),
            })),
          },
        }
      },
    }),
    endpoint({
      operationId: 'readTransparency',
      method: 'GET',
      path: '/observe/transparency',
      summary: 'What the operator of the infrastructure removed',
      description: 'Because it is illegal to host. In order; with the SHA-256 of what was removed.',
      limit: 'client',
      parameters: [cursor, limitOf(MAX_ENTRIES, MAX_ENTRIES)],
      success: {
        status: 200,
        description: 'A page, and how many there are',
        schema: schemas.transparencyBody,
        example: {
          removals: [
            {
              ts: example.time,
              action: 'state_key_removed',
              key: 'jobs/1',
              reason: 'court order 12/2026',
              performed_by: 'operator',
              content_hash: example.hash,
            },
          ],
          next_cursor: null,
          total: 1,
        },
      },
      errors: ['bad_request'],
      handle: async ({ query }) => {
        const limit = readLimit(query, MAX_ENTRIES, MAX_ENTRIES)
        const { removals: found, total } = await removals.list({
          after: idOf(readCursor(query)) ?? 0,
          limit: limit + 1,
        })
        const page = found.slice(0, limit)
        return {
          status: 200,
          body: {
            removals: page.map(({ ts, action, key, message_id, reason, performed_by, content_hash }) => ({
              ...{ ts, action, key, message_id, reason, performed_by, content_hash },
            })),
            next_cursor: found.length > limit ? String(page.at(-1)?.seq) : null,
            total,
          },
        }
      },
    }),
  ]

  function checkKey(key: string): void {
    if (Buffer.byteLength(key) > maxKeyBytes + HISTORY.length)
      throw new ApiError('bad_request', `a key has at most ${maxKeyBytes} bytes`)
  }
}

interface Redaction {
  redacted?: true
  redacted_reason?: string
}

const exampleAgent = {
  address: example.address,
  registered_at: example.time,
  messages_sent: 3,
  messages_received: 1,
  state_writes: 2,
  last_active: example.time,
}

function publicEvent({ seq, ts, type, agent, data }: LoggedEvent): object {
  return { seq, ts, type, agent, data }
}

function toAgent({ address, registeredAt, sent, received, writes, lastActive }: AgentFigures): object {
  return {
    address,
    registered_at: timestamp(registeredAt),
    messages_sent: sent,
    messages_received: received,
    state_writes: writes,
    last_active: lastActive === null ? null : timestamp(lastActive),
  }
}

function timestamp(ms: number): string {
  return new Date(ms).toISOString()
}

/** The key in a path that ends in `/history`, which was not sent as part of it. */
function keyBeforeHistory(context: ApiContext): string | undefined {
  const path = rawPath(context.env).slice('/observe/state/'.length)
  return path.endsWith(HISTORY) && path.length > HISTORY.length
    ? percentDecode(path.slice(0, -HISTORY.length), 'the key')
    : undefined
}
