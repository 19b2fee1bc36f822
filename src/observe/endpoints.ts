/** The endpoints of the observation API, in the contract's order. */
import { type Endpoint, endpoint } from '../api/endpoint.ts'
import { CONTRACT_VERSION } from '../api/endpoints.ts'
import { healthBody } from '../api/schemas.ts'
import { activityEndpoints } from './endpoints/activity.ts'
import { agentEndpoints } from './endpoints/agents.ts'
import { eventEndpoints } from './endpoints/events.ts'
import type { ObservationParts } from './endpoints/parts.ts'
import { stateEndpoints } from './endpoints/state.ts'
import { transparencyEndpoints } from './endpoints/transparency.ts'

export function createObservationEndpoints(parts: ObservationParts): Endpoint[] {
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
    ...eventEndpoints(parts),
    ...stateEndpoints(parts),
    ...agentEndpoints(parts),
    ...activityEndpoints(parts),
    ...transparencyEndpoints(parts),
  ]
}
