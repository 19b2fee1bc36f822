/** The endpoints of the contract, in its order. */
import { type Endpoint, endpoint } from './endpoint.ts'
import { agentEndpoints } from './endpoints/agents.ts'
import type { EndpointParts } from './endpoints/common.ts'
import { messageEndpoints } from './endpoints/messages.ts'
import { operatorEndpoints } from './endpoints/operators.ts'
import { stateEndpoints } from './endpoints/state.ts'
import * as schemas from './schemas.ts'

export const CONTRACT_VERSION = '0.1.0'

export function createEndpoints(parts: EndpointParts): Endpoint[] {
  return [
    health(),
    ...operatorEndpoints(parts),
    ...agentEndpoints(parts),
    ...messageEndpoints(parts),
    ...stateEndpoints(parts),
  ]
}

function health(): Endpoint {
  return endpoint({
    operationId: 'getHealth',
    method: 'GET',
    path: '/v1/health',
    summary: 'Whether the kernel answers',
    success: {
      status: 200,
      description: 'It does',
      schema: schemas.healthBody,
      example: { status: 'ok', version: CONTRACT_VERSION },
    },
    handle: async () => ({ status: 200, body: { status: 'ok', version: CONTRACT_VERSION } }),
  })
}
