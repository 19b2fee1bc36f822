/** Registering operators, and the challenges with which they register agents. */
import { type Endpoint, endpoint } from '../endpoint.ts'
import * as schemas from '../schemas.ts'
import { type EndpointParts, example, SMALL_BODY_BYTES } from './common.ts'

export function operatorEndpoints({
  registry,
  rememberSession,
  termsUrl,
}: EndpointParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'registerOperator',
      method: 'POST',
      path: '/v1/operators',
      summary: 'Register an operator',
      limit: 'client',
      body: {
        schema: schemas.registerOperatorBody({ termsUrl }),
        maxBytes: SMALL_BODY_BYTES,
        example: { contact_hash: 'sha256:9f86d081884c7d65', accept_terms: true },
      },
      success: {
        status: 201,
        description: 'Registered; the key is shown this once',
        schema: schemas.operatorBody,
        example: { operator_id: example.id, api_key: `sk_live_${'0'.repeat(64)}` },
      },
      handle: async ({ body }) => {
        const { operatorId, token } = await registry.registerOperator(body.contact_hash)
        await rememberSession(token, operatorId)
        return { status: 201, body: { operator_id: operatorId, api_key: token.secret } }
      },
    }),
    endpoint({
      operationId: 'getChallenge',
      method: 'GET',
      path: '/v1/agents/verification-challenge',
      summary: 'Get a challenge to register an agent with',
      description:
        'Apply the operations in turn to the seed; the last result is the response. `reverse` (by code point), `base64_encode`, `base64_decode`, ' +
        '`hex_encode` (lower case), `sha256` (hex digest), `uppercase`, `lowercase`, `rot13` (ASCII letters), `prepend:<value>`, `append:<value>`; ' +
        'text is encoded as UTF-8. Good for one attempt.',
      level: 'operator',
      success: {
        status: 200,
        description: 'A new challenge',
        schema: schemas.challengeBody,
        example: {
          challenge_id: example.id,
          challenge_type: 'pipeline',
          challenge_data: {
            seed: '00112233445566778899aabbccddeeff',
            operations: [{ op: 'reverse' }, { op: 'append:1f2e3d' }],
          },
          expires_at: example.time,
        },
      },
      handle: async ({ identity }) => {
        const { challengeId, type, data, expiresAt } = await registry.issueChallenge(identity)
        return {
          status: 200,
          body: {
            challenge_id: challengeId,
            challenge_type: type,
            challenge_data: data,
            expires_at: expiresAt,
          },
        }
      },
    }),
  ]
}
