/** The endpoints of the contract, in its order. */

import { LEASE_MS } from '../messaging/message-queue.ts'
import type { Messaging, Receipt } from '../messaging/messaging.ts'
import type { Registry } from '../registry/registry.ts'
import type { State } from '../state/state.ts'
import type { WebhookTarget } from '../webhooks/webhook-url.ts'
import { BYTES_OF_A_CHARACTER, holdText, pageOfMessages } from './answer-size.ts'
import { ApiError } from './api-error.ts'
import { type ApiContext, type Endpoint, endpoint, type Parameter } from './endpoint.ts'
import { readCursor, readLimit, readText } from './request.ts'
import * as schemas from './schemas.ts'

export const CONTRACT_VERSION = '0.1.0'

export interface EndpointParts {
  registry: Registry
  messaging: Messaging
  state: State
  /** Checks a webhook URL and returns what it says. Throws `WebhookUrlRefused`. */
  checkWebhookUrl: (url: string) => Promise<WebhookTarget>
  /** A new token's holder need not wait for its first verification. */
  rememberSession: (
    token: Parameters<Registry['authenticate']>[0],
    identity: string,
  ) => Promise<void>
  /** Notes that a registry was read, which the reader does not wait for. */
  recordRegistryRead: (reader: string) => void
  limits: schemas.BodyLimits & { stateMaxKeyBytes: number }
  /** Where the terms are that an operator accepts; undefined where none are published. */
  termsUrl: string | undefined
}

/** Something must be left for the rest of the body. */
const bodyBytes = (contentBytes: number) => BYTES_OF_A_CHARACTER * contentBytes + 4_096
const SMALL_BODY_BYTES = 16_384

const RESERVED_KEY = '_capacity'

const example = {
  address: 'tab_k3v9x0q2m7c1z8w5r4t6',
  other: 'tab_a1b2c3d4e5f6g7h8i9j0',
  id: '0b9b5a54-6a0f-4c0e-9c35-0d6f0c1f2a11',
  time: '2026-01-01T12:00:00.000Z',
}

const pageParameters = (maximum: number, fallback: number): Parameter[] => [
  {
    name: 'limit',
    in: 'query',
    description: `Entries on the page; anything else means ${fallback}`,
    schema: { type: 'integer', minimum: 1, maximum, default: fallback },
  },
  {
    name: 'cursor',
    in: 'query',
    description: '`next_cursor` of the page before; empty for the first',
    schema: { type: 'string' },
  },
]

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

function operatorEndpoints({ registry, rememberSession, termsUrl }: EndpointParts): Endpoint[] {
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

function agentEndpoints({
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

/** Up to 255 visible ASCII characters, as the draft of the header field allows in a string. */
const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,255}$/

function messageEndpoints({ messaging, limits }: EndpointParts): Endpoint[] {
  return [
    endpoint({
      operationId: 'sendMessage',
      method: 'POST',
      path: '/v1/messages',
      summary: 'Send a message',
      description: 'Its content is public for ever, as are sender, recipient and time.',
      level: 'agent',
      limit: 'message',
      parameters: [
        {
          name: 'Idempotency-Key',
          in: 'header',
          description:
            'A retry with the same key within two minutes gets the first answer and sends nothing again',
          schema: { type: 'string', minLength: 1, maxLength: 255 },
        },
      ],
      body: {
        schema: schemas.sendMessageBody(limits),
        maxBytes: bodyBytes(limits.messageMaxContentBytes),
        example: { to: example.other, content: 'hello' },
      },
      success: {
        status: 202,
        description: 'Accepted: it will be delivered',
        schema: schemas.acceptedBody,
        example: {
          message_id: example.id,
          from: example.address,
          to: example.other,
          timestamp: example.time,
        },
      },
      errors: ['not_found'],
      handle: async ({ context, identity, body }) => {
        const key = context.req.header('idempotency-key')
        if (key !== undefined && !IDEMPOTENCY_KEY.test(key)) {
          throw new ApiError(
            'bad_request',
            'Idempotency-Key must be 1 to 255 visible ASCII characters',
          )
        }
        return { status: 202, body: await messaging.send(identity, body.to, body.content, key) }
      },
    }),
    endpoint({
      operationId: 'receiveMessages',
      method: 'GET',
      takes: true,
      path: '/v1/messages',
      summary: 'Take messages from the queue',
      level: 'agent',
      limit: 'message',
      parameters: pageParameters(100, 50).slice(0, 1),
      success: {
        status: 200,
        description: 'The oldest messages, which are gone from the queue with this answer',
        schema: schemas.messagesBody,
        example: {
          messages: [
            {
              message_id: example.id,
              from: example.other,
              to: example.address,
              content: 'hello',
              timestamp: example.time,
            },
          ],
          remaining: 0,
        },
      },
      handle: async ({ context, identity, query, answer }) => {
        const accept = pageOfMessages(answer)
        const receipt = await messaging.receive(identity, readLimit(query, 50, 100), accept)
        settleWithResponse(context, receipt)
        return { status: 200, body: { messages: receipt.messages, remaining: receipt.remaining } }
      },
    }),
  ]
}

const MAX_WRITE_MS = LEASE_MS - 10_000

/**
 * Messages have been delivered when the response that carries them is written whole, and have not
 * where anything else becomes of it.
 */
function settleWithResponse(context: ApiContext, receipt: Receipt): void {
  const { outgoing } = context.env
  if (outgoing.destroyed) {
    void receipt.undelivered()
    return
  }
  // Before the lease ends, so that nobody else gets the messages while this client still reads
  // them.
  const timer = setTimeout(() => outgoing.destroy(), MAX_WRITE_MS)
  outgoing.once('close', () => {
    clearTimeout(timer)
    // What is written may as well be an error: only the answer that carries the messages delivers
    // them.
    const isDelivered = outgoing.writableFinished && outgoing.statusCode === 200
    void (isDelivered ? receipt.delivered() : receipt.undelivered())
  })
}

function stateEndpoints({ state, limits }: EndpointParts): Endpoint[] {
  const keyParameter: Parameter = {
    name: 'key',
    in: 'path',
    description: `The rest of the path, percent-decoded once: may hold slashes and any UTF-8, 1 to ${limits.stateMaxKeyBytes} bytes`,
    schema: { type: 'string' },
    required: true,
  }
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
        const { key, identity } = request
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
      handle: async ({ key, identity, body }) => {
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
      handle: async ({ key, identity }) => {
        checkWritableKey(key)
        const { deletedAt } = await state.delete(key, identity)
        return { status: 200, body: { key, deleted_by: identity, deleted_at: deletedAt } }
      },
    }),
  ]
}
