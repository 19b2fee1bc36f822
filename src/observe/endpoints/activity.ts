/** What happened over time, and how much there was at a moment of it. */

import { ApiError } from '../../api/api-error.ts'
import { type Endpoint, endpoint } from '../../api/endpoint.ts'
import { readLimit } from '../../api/request.ts'
import { readAddress, readSeq, readTime, readTypes, stretchOf } from '../query.ts'
import * as schemas from '../schemas.ts'
import {
  agentParameter,
  example,
  FAR,
  type ObservationParts,
  parameter,
  seqParameter,
  timestamp,
  typeParameter,
} from './parts.ts'

const MAX_BUCKETS = 500
const DEFAULT_BUCKETS = 60

export function activityEndpoints({ tables, freshness, now }: ObservationParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'readActivity',
      method: 'GET',
      path: '/observe/activity',
      summary: 'How many events there were, over time',
      description:
        'Buckets are whole minutes, of one agent whole hours, or longer; `from` and `to` are moved outwards to their bounds.',
      limit: 'client',
      parameters: [
        parameter('from', 'RFC 3339; unless given the first event', {
          type: 'string',
          format: 'date-time',
        }),
        parameter('to', 'RFC 3339, exclusive; unless given now', {
          type: 'string',
          format: 'date-time',
        }),
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
          buckets: [
            { start: example.time, total: 3, types: { message_sent: 3 }, first_seq: 1_000 },
          ],
        },
      },
      errors: ['bad_request'],
      handle: async ({ query }) => {
        const types = readTypes(query)
        const agent = readAddress(query, 'agent')
        const buckets = readLimit(query, DEFAULT_BUCKETS, MAX_BUCKETS, 'buckets')
        const askedFrom = secondsOf(readTime(query, 'from'))
        const askedTo = secondsOf(readTime(query, 'to'))
        await freshness.wait()
        const to = askedTo ?? Math.floor(now() / 1_000) + 1
        const from = askedFrom ?? (await tables.beginning()) ?? to - 3_600
        if (from >= to) throw new ApiError('bad_request', 'from must be a time before to')
        const stretch = stretchOf({ from, to, buckets, agent })
        const rows = await tables.activity(stretch, { types, agent })
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
      operationId: 'readMoment',
      method: 'GET',
      path: '/observe/moment',
      summary: 'How much there was at a moment',
      description:
        'Give `at` or `time`, or neither for now. With `seq` as `at`, other answers are of the same moment.',
      limit: 'client',
      parameters: [
        seqParameter('at', 'After this `seq`'),
        parameter('time', 'RFC 3339: after the last event up to then', {
          type: 'string',
          format: 'date-time',
        }),
      ],
      success: {
        status: 200,
        description: 'Sums over all that had happened',
        schema: schemas.momentBody,
        example: {
          seq: 1_000,
          ts: example.time,
          agents: 12,
          keys: 30,
          events: 500,
          types: { agent_registered: 12, message_sent: 488 },
        },
      },
      errors: ['bad_request'],
      handle: async ({ query }) => {
        const at = readSeq(query, 'at')
        const time = readTime(query, 'time')
        if (at !== undefined && time !== undefined)
          throw new ApiError('bad_request', 'give at or time, not both')
        await freshness.wait()
        const moment = await tables.totals(
          time === undefined ? (at ?? FAR) : await tables.seqAt(time),
        )
        return {
          status: 200,
          body: {
            seq: moment.seq,
            ts: moment.at === null ? null : timestamp(moment.at),
            agents: moment.agents,
            keys: moment.keys,
            events: [...moment.types.values()].reduce((sum, count) => sum + count, 0),
            types: Object.fromEntries(moment.types),
          },
        }
      },
    }),
  ]
}

function secondsOf(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.floor(ms / 1_000)
}
