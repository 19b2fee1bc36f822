/** Who is here, and who writes to whom. */
import { HELD_OF_AN_ANSWER } from '../../api/answer-size.ts'
import { ApiError } from '../../api/api-error.ts'
import { type Endpoint, endpoint, pathParameter } from '../../api/endpoint.ts'
import { type Query, readCursor, readLimit, readText } from '../../api/request.ts'
import type { AgentFigures, AgentsQuestion } from '../observation-tables.ts'
import { agentOf, readAddress, readSeq } from '../query.ts'
import * as schemas from '../schemas.ts'
import {
  atParameter,
  cursorParameter,
  example,
  FAR,
  limitOf,
  MAX_ENTRIES,
  type ObservationParts,
  parameter,
  timestamp,
} from './parts.ts'

const SORTS = ['registered', 'newest', 'busiest'] as const
/** An address has 24. */
const MAX_BEGINNING = 24
const MAX_EDGES = 50_000
const DEFAULT_EDGES = 1_000
/** Of an edge and its nodes, as JSON. */
const EDGE_BYTES = 300

const exampleAgent = {
  address: example.address,
  registered_at: example.time,
  messages_sent: 3,
  messages_received: 1,
  state_writes: 2,
  last_active: example.time,
}

export function agentEndpoints({ tables, freshness }: ObservationParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'listAgents',
      method: 'GET',
      path: '/observe/agents',
      summary: 'Agents in the order of their registration',
      description: 'Or in another one, or those whose addresses begin so, in the order of these.',
      limit: 'client',
      parameters: [
        cursorParameter,
        limitOf(MAX_ENTRIES, MAX_ENTRIES),
        atParameter,
        parameter(
          'sort',
          'The last registered first, or those with the most messages sent and received as of now',
          {
            type: 'string',
            enum: SORTS,
            default: 'registered',
          },
        ),
        parameter('search', 'The beginning of the address'),
      ],
      success: {
        status: 200,
        description: 'A page, and how many agents there are in all',
        schema: schemas.agentsBody,
        example: { agents: [exampleAgent], next_cursor: null, total: 1 },
      },
      errors: ['bad_request'],
      handle: async ({ query }) => {
        const limit = readLimit(query, MAX_ENTRIES, MAX_ENTRIES)
        const after = agentOf(readCursor(query))
        const at = readSeq(query, 'at')
        const order = readOrder(query)
        if (order === 'busiest' && at !== undefined)
          throw new ApiError(
            'bad_request',
            'sort=busiest goes by what is now: leave at or sort out',
          )
        const beginning = readText(query, 'search') ?? ''
        if (beginning.length > MAX_BEGINNING)
          throw new ApiError('bad_request', `search must have at most ${MAX_BEGINNING} characters`)
        await freshness.wait()
        const { agents, total } = await tables.agents({
          order,
          beginning,
          after,
          limit: limit + 1,
          at,
        })
        const page = agents.slice(0, limit)
        const last = page.at(-1)
        return {
          status: 200,
          body: {
            agents: page.map(toAgent),
            next_cursor:
              agents.length > limit && last
                ? `${last.id}.${last.sent + last.received}.${last.address}`
                : null,
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
      parameters: [pathParameter('address', 'tab_…'), atParameter],
      success: {
        status: 200,
        description: 'Its figures',
        schema: schemas.agentBody,
        example: exampleAgent,
      },
      errors: ['bad_request', 'not_found'],
      handle: async ({ parameter: address, query }) => {
        const at = readSeq(query, 'at')
        await freshness.wait()
        const agent = await tables.agent(address, at)
        if (!agent)
          throw new ApiError(
            'not_found',
            at === undefined ? 'no agent has that address' : 'no agent had that address then',
          )
        return { status: 200, body: toAgent(agent) }
      },
    }),
    endpoint({
      operationId: 'readNetwork',
      method: 'GET',
      path: '/observe/network',
      summary: 'Who wrote to whom, and how often',
      description:
        'The heaviest edges first, with the agents that they join, and the busiest others up to `limit`. With `at` the heaviest then of the 200,000 ' +
        'that are the heaviest now.',
      limit: 'client',
      parameters: [
        limitOf(MAX_EDGES, DEFAULT_EDGES),
        parameter('min_count', 'Only edges of so many messages and more', {
          type: 'integer',
          minimum: 1,
          default: 1,
        }),
        parameter('agent', 'Only edges of this agent'),
        atParameter,
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
        const agent = readAddress(query, 'agent')
        const at = readSeq(query, 'at')
        answer.resize(Math.max(answer.bytes, HELD_OF_AN_ANSWER * EDGE_BYTES * limit))
        await freshness.wait()
        const { nodes, edges } = await tables.network({ limit, minCount, agent, at })
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
  ]
}

/** Throws `bad_request`. */
function readOrder(query: Query): AgentsQuestion['order'] {
  const sort = readText(query, 'sort') || 'registered'
  const order = SORTS.find((name) => name === sort)
  if (order === undefined)
    throw new ApiError('bad_request', `sort must be one of ${SORTS.join(', ')}`)
  return readText(query, 'search') ? 'address' : order
}

function toAgent({
  address,
  registeredAt,
  sent,
  received,
  writes,
  lastActive,
}: AgentFigures): object {
  return {
    address,
    registered_at: timestamp(registeredAt),
    messages_sent: sent,
    messages_received: received,
    state_writes: writes,
    last_active: lastActive === null ? null : timestamp(lastActive),
  }
}
