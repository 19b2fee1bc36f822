/** Registering agents, and looking them up. */
import { ApiError } from '../api-error.ts'
import { type Endpoint, endpoint } from '../endpoint.ts'
import { readCursor, readLimit } from '../request.ts'
import * as schemas from '../schemas.ts'
import {
  bodyBytes,
  type EndpointParts,
  example,
  pageParameters,
  SMALL_BODY_BYTES,
} from './common.ts'

export function agentEndpoints({
  registry,
  rememberSession,
  checkWebhookUrl,
  recordRegistryRead,
}: EndpointParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'registerAgent',
      method: 'POST',
      path: '/v1/agents',
      summary: 'Register an agent',
      level: 'operator',
      body: {
        schema: schemas.registerAgentBody,
        maxBytes: bodyBytes(SMALL_BODY_BYTES),
        example: {
          verification_response: { challenge_id: example.id, response: '…' },
          webhook_url: 'https://agent.example/hook',
        },
      },
      success: {
        status: 201,
        description: 'Registered; the token and the secret are shown this once',
        schema: schemas.registrationBody,
        example: { agent_address: example.address, agent_token: `at_live_${'0'.repeat(64)}` },
      },
      errors: ['verification_failed'],
      handle: async ({ identity, body }) => {
        // Before the challenge, so that a mistyped URL does not use it up.
        const target = body.webhook_url ? await checkWebhookUrl(body.webhook_url) : undefined
        const { challenge_id: challengeId, response } = body.verification_response
        const { address, token, webhookSecret } = await registry.registerAgent(
          identity,
          { challengeId, response },
          target,
        )
        await rememberSession(token, address)
        const agent = { agent_address: address, agent_token: token.secret }
        return {
          status: 201,
          body: webhookSecret === undefined ? agent : { ...agent, webhook_secret: webhookSecret },
        }
      },
    }),
    endpoint({
      operationId: 'getMe',
      method: 'GET',
      path: '/v1/agents/me',
      summary: 'Who the token belongs to',
      level: 'agent',
      limit: 'registry_read',
      success: {
        status: 200,
        description: 'The agent',
        schema: schemas.meBody,
        example: { address: example.address, registered_at: example.time },
      },
      handle: async ({ identity }) => {
        const agent = await registry.findAgent(identity)
        if (!agent) throw new ApiError('unauthorized', 'the token is unknown')
        return { status: 200, body: { address: agent.address, registered_at: agent.registeredAt } }
      },
    }),
    endpoint({
      operationId: 'listAgents',
      method: 'GET',
      path: '/v1/registry',
      summary: 'List all agents, oldest first',
      level: 'agent',
      limit: 'registry_read',
      parameters: pageParameters(1_000, 100),
      success: {
        status: 200,
        description: 'A page',
        schema: schemas.registryBody,
        example: {
          agents: [{ address: example.address, registered_at: example.time }],
          next_cursor: null,
          total: 1,
        },
      },
      errors: ['bad_request'],
      handle: async ({ identity, query }) => {
        const { agents, nextCursor, total } = await registry.list(
          readLimit(query, 100, 1_000),
          readCursor(query),
        )
        recordRegistryRead(identity)
        return {
          status: 200,
          body: {
            agents: agents.map(({ address, registeredAt }) => ({
              address,
              registered_at: registeredAt,
            })),
            next_cursor: nextCursor,
            total,
          },
        }
      },
    }),
  ]
}
