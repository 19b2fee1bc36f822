/**
 * A receiver for webhooks: takes only what was signed with its secret, and each message once.
 *
 *     npx node examples/webhook-receiver.ts --secret-file webhook-secret.txt \
 *       --key tls.key --cert tls.pem --port 8443
 *
 * The file holds the `webhook_secret` of the answer to the agent's registration. Without `--key`
 * and `--cert` it speaks plain HTTP, for a place behind a proxy that ends TLS: the kernel delivers
 * to https URLs only.
 *
 * What to take from here: verify the bytes as they came, before parsing them; keep the ids of what
 * was handled, for a delivery whose answer got lost comes again; answer 2xx only when the message
 * is safe, for then it is yours alone.
 */

import { readFileSync } from 'node:fs'
import {
  createServer as createHttpServer,
  type IncomingMessage,
  type RequestListener,
} from 'node:http'
import { createServer as createHttpsServer } from 'node:https'
import { parseArgs } from 'node:util'
import { Webhook, WebhookVerificationError } from 'standardwebhooks'

export interface Message {
  readonly message_id: string
  readonly from: string
  readonly to: string
  readonly content: string
  /** RFC 3339, UTC. */
  readonly timestamp: string
}

export interface WebhookReceiverOptions {
  /** `whsec_…` */
  readonly secret: string
  /**
   * Called once for each message. If it throws, the delivery is answered 500 and will be tried
   * again.
   */
  readonly onMessage: (message: Message) => void | Promise<void>
}

/**
 * The largest delivery, in bytes: 64 KiB of content, of which JSON may make six times as much, and
 * the rest.
 */
const MAX_BODY_BYTES = 512 * 1024

/**
 * How many ids of handled messages are kept. Beyond that the oldest are forgotten; a real receiver
 * has a table.
 */
const MAX_KNOWN_IDS = 100_000

export function createWebhookReceiver({
  secret,
  onMessage,
}: WebhookReceiverOptions): RequestListener {
  const webhook = new Webhook(secret)
  /**
   * What each message came to, by id: a repeat that comes while the first is being handled waits
   * for it.
   */
  const handled = new Map<string, Promise<void>>()

  async function handleOnce(id: string, message: Message): Promise<void> {
    const known = handled.get(id)
    if (known !== undefined) return await known
    const handling = Promise.resolve().then(() => onMessage(message))
    handled.set(id, handling)
    for (const oldest of handled.keys()) {
      if (handled.size <= MAX_KNOWN_IDS) break
      handled.delete(oldest)
    }
    try {
      await handling
    } catch (error) {
      handled.delete(id)
      throw error
    }
  }

  async function statusFor(request: IncomingMessage): Promise<number> {
    if (request.method !== 'POST') return 405
    const body = await read(request)
    if (body === undefined) return 413
    const id = header(request, 'webhook-id')
    let message: unknown
    try {
      message = webhook.verify(body, {
        'webhook-id': id,
        'webhook-timestamp': header(request, 'webhook-timestamp'),
        'webhook-signature': header(request, 'webhook-signature'),
      })
    } catch (error) {
      if (error instanceof WebhookVerificationError) return 401
      throw error
    }
    // The signature says that it comes from the kernel, and the kernel sends nothing else.
    await handleOnce(id, message as Message)
    return 204
  }

  return async (request, response) => {
    try {
      response.writeHead(await statusFor(request)).end()
    } catch (error) {
      console.error(error)
      response.writeHead(500).end()
    }
  }
}

function header(request: IncomingMessage, name: string): string {
  const value = request.headers[name]
  return typeof value === 'string' ? value : ''
}

/**
 * The body; undefined if it is too large. It is read to its end all the same, or the answer would
 * not be heard.
 */
async function read(request: IncomingMessage): Promise<Buffer | undefined> {
  let chunks: Buffer[] = []
  let length = 0
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length
    if (length > MAX_BODY_BYTES) chunks = []
    else chunks.push(chunk)
  }
  return length > MAX_BODY_BYTES ? undefined : Buffer.concat(chunks)
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      'secret-file': { type: 'string' },
      key: { type: 'string' },
      cert: { type: 'string' },
      port: { type: 'string', default: '8443' },
    },
  })
  if (values['secret-file'] === undefined) {
    console.error(
      '--secret-file is missing: a file with the webhook_secret of the answer to the registration',
    )
    process.exit(2)
  }
  const receiver = createWebhookReceiver({
    secret: readFileSync(values['secret-file'], 'utf8').trim(),
    onMessage: ({ message_id, from, content }) =>
      console.log(`${message_id} from ${from}: ${content}`),
  })
  const server =
    values.key !== undefined && values.cert !== undefined
      ? createHttpsServer(
          { key: readFileSync(values.key), cert: readFileSync(values.cert) },
          receiver,
        )
      : createHttpServer(receiver)
  server.listen(Number(values.port), () => console.log(`listening on port ${values.port}`))
}
