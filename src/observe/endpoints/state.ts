/** The shared state, as it is and as it was. */
import { holdText } from '../../api/answer-size.ts'
import { ApiError } from '../../api/api-error.ts'
import {
  type ApiContext,
  type ApiRequest,
  type Endpoint,
  endpoint,
  pathParameter,
} from '../../api/endpoint.ts'
import {
  percentDecode,
  type Query,
  rawPath,
  readCursor,
  readLimit,
  readText,
} from '../../api/request.ts'
import { REDACTED } from '../../removal/redaction.ts'
import { idOf, keyOf, readSeq } from '../query.ts'
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

/** How a request for the history of a key ends. */
const HISTORY = '/history'
const keyParameter = pathParameter('key', 'Percent-decoded once; it may hold `/`')

interface Redaction {
  redacted?: true
  redacted_reason?: string
}

export function stateEndpoints({
  events,
  tables,
  freshness,
  state,
  removals,
  maxKeyBytes,
}: ObservationParts): Endpoint[] {
  const listState = async ({ query }: Pick<ApiRequest<unknown>, 'query'>) => {
    const prefix = readText(query, 'prefix') ?? ''
    const limit = readLimit(query, 100, MAX_ENTRIES)
    const cursor = readCursor(query)
    const after = cursor === undefined ? undefined : keyOf(cursor)
    const at = readSeq(query, 'at')
    const { keys, next, total } = await (at === undefined
      ? listNow(prefix, after, limit)
      : listThen(prefix, after, limit, at))
    return {
      status: 200 as const,
      body: { keys, next_cursor: next?.toString('base64url') ?? null, total },
    }
  }

  const listNow = async (prefix: string, after: Buffer | undefined, limit: number) => {
    const { keys, total } = await state.listings(prefix, after, limit + 1)
    const page = keys.slice(0, limit)
    return {
      keys: page.map(({ key, modifiedBy, modifiedAt, length }) => ({
        key: key.toString('utf8'),
        last_modified_by: modifiedBy,
        last_modified_at: modifiedAt,
        value_length: length,
      })),
      next: keys.length > limit ? page.at(-1)?.key : undefined,
      total,
    }
  }

  const listThen = async (prefix: string, after: Buffer | undefined, limit: number, at: number) => {
    await freshness.wait()
    const { keys, next } = await tables.keysThen({ prefix, after, at, limit })
    return {
      keys: keys.map(({ key, author, at, length }) => ({
        key: key.toString('utf8'),
        last_modified_by: author ?? '',
        last_modified_at: timestamp(at),
        value_length: length,
      })),
      next,
      total: prefix === '' ? (await tables.totals(at)).keys : null,
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

  /** The same as of a sequence number. */
  const valueAt = async (key: string, at: number): Promise<object | undefined> => {
    await freshness.wait()
    const [version] = await tables.versions(key, at + 1, 1)
    if (version?.type === 'state_key_removed') return redactionOf(key)
    if (version?.type !== 'state_written') return undefined
    const event = await events.get(version.seq)
    if (event?.type !== 'state_written') return undefined
    const { value, written_by, redacted, redacted_reason } = event.data as typeof event.data &
      Redaction
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
    const at = readSeq(query, 'at')
    const before = idOf(readCursor(query)) ?? (at === undefined ? undefined : at + 1)
    await freshness.wait()
    const versions = await tables.versions(key, before ?? FAR, limit + 1)
    if (versions.length === 0 && readCursor(query) === undefined)
      throw new ApiError(
        'not_found',
        at === undefined ? 'there is no such key, and never was' : 'there was no such key then',
      )
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
      operationId: 'listState',
      method: 'GET',
      path: '/observe/state',
      summary: 'Keys of the shared state, in byte order',
      limit: 'client',
      parameters: [
        parameter('prefix', 'Matched byte for byte'),
        cursorParameter,
        limitOf(MAX_ENTRIES, 100),
        atParameter,
      ],
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
      parameters: [keyParameter, atParameter],
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
      handle: async ({ context, parameter: key, query, answer }) => {
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
        throw new ApiError(
          'not_found',
          at === undefined ? 'there is no such key' : 'there was no such key then',
        )
      },
    }),
    endpoint({
      operationId: 'readHistory',
      method: 'GET',
      // Not routed by itself: a key may end so, and who reads a key that there is not comes here.
      path: `/observe/state/{key}${HISTORY}`,
      summary: 'What became of a key, the latest first',
      description: `Of a key that ends in \`${HISTORY}\` itself, the value is shown where there is one.`,
      limit: 'client',
      parameters: [keyParameter, cursorParameter, limitOf(MAX_ENTRIES, 100), atParameter],
      success: {
        status: 200,
        description: 'A page of its versions',
        schema: schemas.historyBody,
        example: {
          key: 'jobs/1',
          versions: [
            {
              seq: 1_000,
              ts: example.time,
              type: 'state_written',
              agent: example.address,
              value_length: 4,
            },
          ],
          next_cursor: null,
        },
      },
      errors: ['bad_request', 'not_found'],
      handle: async ({ parameter: key, query }) => history(key, query),
    }),
  ]

  function checkKey(key: string): void {
    if (Buffer.byteLength(key) > maxKeyBytes + HISTORY.length)
      throw new ApiError('bad_request', `a key has at most ${maxKeyBytes} bytes`)
  }
}

/** The key in a path that ends in `/history`, which was not sent as part of it. */
function keyBeforeHistory(context: ApiContext): string | undefined {
  const path = rawPath(context.env).slice('/observe/state/'.length)
  return path.endsWith(HISTORY) && path.length > HISTORY.length
    ? percentDecode(path.slice(0, -HISTORY.length), 'the key')
    : undefined
}
