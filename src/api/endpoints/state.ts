/** The shared key-value store. */
import { holdText } from '../answer-size.ts'
import { ApiError } from '../api-error.ts'
import { type Endpoint, endpoint, pathParameter } from '../endpoint.ts'
import { readCursor, readLimit, readText } from '../request.ts'
import * as schemas from '../schemas.ts'
import { bodyBytes, type EndpointParts, example, pageParameters } from './common.ts'

const RESERVED_KEY = '_capacity'

export function stateEndpoints({ state, limits }: EndpointParts): Endpoint[] {
  const keyParameter = pathParameter(
    'key',
    `The rest of the path, percent-decoded once: may hold slashes and any UTF-8, 1 to ${limits.stateMaxKeyBytes} bytes`,
  )
  const checkKey = (key: string) => {
    if (Buffer.byteLength(key) > limits.stateMaxKeyBytes) {
      throw new ApiError(
        'bad_request',
        `the key must be at most ${limits.stateMaxKeyBytes} bytes of UTF-8`,
      )
    }
  }
  const checkWritableKey = (key: string) => {
    checkKey(key)
    if (key === '') throw new ApiError('bad_request', 'the key must not be empty')
    if (key === RESERVED_KEY)
      throw new ApiError('bad_request', `the key ${RESERVED_KEY} is reserved`)
  }
  const list = endpoint({
    operationId: 'listKeys',
    method: 'GET',
    path: '/v1/state',
    summary: 'List keys in byte order',
    level: 'agent',
    limit: 'state_read',
    parameters: [
      {
        name: 'prefix',
        in: 'query',
        description: 'Matched byte for byte',
        schema: { type: 'string' },
      },
      ...pageParameters(1_000, 100),
    ],
    success: {
      status: 200,
      description: 'A page, and how many keys have the prefix',
      schema: schemas.keysBody,
      example: { keys: ['jobs/1'], next_cursor: null, total: 1 },
    },
    errors: ['bad_request'],
    handle: async ({ query }) => {
      const prefix = readText(query, 'prefix') ?? ''
      const { keys, nextCursor, total } = await state.list(
        prefix,
        readLimit(query, 100, 1_000),
        readCursor(query),
      )
      return { status: 200, body: { keys, next_cursor: nextCursor, total } }
    },
  })
  const capacity = endpoint({
    operationId: 'getCapacity',
    method: 'GET',
    path: `/v1/state/${RESERVED_KEY}`,
    summary: 'How full the shared state is',
    level: 'agent',
    limit: 'state_read',
    success: {
      status: 200,
      description: 'Bytes of all keys and values, their limit, and the number of keys',
      schema: schemas.capacityBody,
      example: { used_bytes: 11, total_bytes: 1_073_741_824, key_count: 1 },
    },
    handle: async () => {
      const { usedBytes, totalBytes, keyCount } = await state.usage()
      return {
        status: 200,
        body: { used_bytes: usedBytes, total_bytes: totalBytes, key_count: keyCount },
      }
    },
  })
  return [
    list,
    capacity,
    endpoint({
      operationId: 'readState',
      method: 'GET',
      path: '/v1/state/{key}',
      summary: 'Read a key',
      level: 'agent',
      limit: 'state_read',
      parameters: [keyParameter],
      success: {
        status: 200,
        description: 'Its value',
        schema: schemas.stateBody,
        example: {
          key: 'jobs/1',
          value: 'done',
          last_modified_by: example.address,
          last_modified_at: example.time,
        },
      },
      errors: ['bad_request', 'not_found'],
      handle: async (request) => {
        const { parameter: key, identity } = request
        if (key === '') return list.handle(request)
        if (key === RESERVED_KEY) return capacity.handle(request)
        checkKey(key)
        const entry = await state.read(key, identity)
        if (!entry) throw new ApiError('not_found', 'there is no such key')
        holdText(request.answer, entry.value)
        return {
          status: 200,
          body: {
            key,
            value: entry.value,
            last_modified_by: entry.modifiedBy,
            last_modified_at: entry.modifiedAt,
          },
        }
      },
    }),
    endpoint({
      operationId: 'writeState',
      method: 'PUT',
      path: '/v1/state/{key}',
      summary: 'Create or overwrite a key',
      description:
        'Key and value are public for ever, also when they are overwritten or deleted later.',
      level: 'agent',
      limit: 'state_write',
      parameters: [keyParameter],
      body: {
        schema: schemas.writeStateBody(limits),
        maxBytes: bodyBytes(limits.stateMaxValueBytes),
        example: { value: 'done' },
      },
      success: {
        status: 200,
        description: 'Written',
        schema: schemas.writtenBody,
        example: { key: 'jobs/1', written_by: example.address, written_at: example.time },
      },
      errors: ['store_full'],
      handle: async ({ parameter: key, identity, body }) => {
        checkWritableKey(key)
        const { writtenAt } = await state.write(key, body.value, identity)
        return { status: 200, body: { key, written_by: identity, written_at: writtenAt } }
      },
    }),
    endpoint({
      operationId: 'deleteState',
      method: 'DELETE',
      path: '/v1/state/{key}',
      summary: 'Delete a key',
      description: 'Agents find it no more. What it held stays in the public event log.',
      level: 'agent',
      limit: 'state_write',
      parameters: [keyParameter],
      success: {
        status: 200,
        description: 'Deleted',
        schema: schemas.deletedBody,
        example: { key: 'jobs/1', deleted_by: example.address, deleted_at: example.time },
      },
      errors: ['bad_request', 'not_found'],
      handle: async ({ parameter: key, identity }) => {
        checkWritableKey(key)
        const { deletedAt } = await state.delete(key, identity)
        return { status: 200, body: { key, deleted_by: identity, deleted_at: deletedAt } }
      },
    }),
  ]
}
