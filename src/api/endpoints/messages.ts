/** Sending messages, and taking them from the queue. */
import { LEASE_MS } from '../../messaging/message-queue.ts'
import type { Receipt } from '../../messaging/messaging.ts'
import { pageOfMessages } from '../answer-size.ts'
import { ApiError } from '../api-error.ts'
import { type ApiContext, type Endpoint, endpoint } from '../endpoint.ts'
import { readLimit } from '../request.ts'
import * as schemas from '../schemas.ts'
import { bodyBytes, type EndpointParts, example, pageParameters } from './common.ts'

/** Up to 255 visible ASCII characters, as the draft of the header field allows in a string. */
const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,255}$/

export function messageEndpoints({ messaging, limits }: EndpointParts): Endpoint[] {
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
