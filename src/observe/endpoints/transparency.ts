/** What was removed. */
import { type Endpoint, endpoint } from '../../api/endpoint.ts'
import { readCursor, readLimit } from '../../api/request.ts'
import { idOf } from '../query.ts'
import * as schemas from '../schemas.ts'
import { cursorParameter, example, limitOf, MAX_ENTRIES, type ObservationParts } from './parts.ts'

export function transparencyEndpoints({ removals }: ObservationParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'readTransparency',
      method: 'GET',
      path: '/observe/transparency',
      summary: 'What the operator of the infrastructure removed',
      description: 'Because it is illegal to host. In order; with the SHA-256 of what was removed.',
      limit: 'client',
      parameters: [cursorParameter, limitOf(MAX_ENTRIES, MAX_ENTRIES)],
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
            removals: page.map(
              ({ ts, action, key, message_id, reason, performed_by, content_hash }) => ({
                ...{ ts, action, key, message_id, reason, performed_by, content_hash },
              }),
            ),
            next_cursor: found.length > limit ? String(page.at(-1)?.seq) : null,
            total,
          },
        }
      },
    }),
  ]
}
