/**
 * A client of the agent API for tests. Paths, headers and bodies go out byte for byte as given
 * (`fetch` and `URL` would tidy them up), and every helper checks the shape of what it gets.
 */
import { createHash } from 'node:crypto'
import {
  Agent as ConnectionPool,
  request as httpRequest,
  type IncomingHttpHeaders,
} from 'node:http'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'

const REQUEST_TIMEOUT_MS = 60_000

/**
 * How often an operator or an agent is registered anew, where the kernel says that it cannot do so
 * now.
 */
const MAX_REPEATS = 5

/** RFC 3339 in UTC, ending in `Z`. */
export const timestamp = z.iso.datetime({ offset: false })
export const address = z.string().regex(/^tab_[a-z0-9]{20}$/)
export const operatorToken = z.string().regex(/^sk_live_[0-9a-f]{64}$/)
export const agentToken = z.string().regex(/^at_live_[0-9a-f]{64}$/)

/** Strict, where answers may have fields added: an error has these two and nothing else. */
export const errorBody = z.strictObject({ error: z.string(), message: z.string().min(1) })

export const operatorCreated = z.object({ operator_id: z.uuid(), api_key: operatorToken })
export const challengeIssued = z.object({
  challenge_id: z.uuid(),
  challenge_type: z.string(),
  challenge_data: z.record(z.string(), z.unknown()),
  expires_at: timestamp,
})
export const pipelineData = z.object({
  seed: z.string().regex(/^[0-9a-f]{32}$/),
  operations: z.array(z.object({ op: z.string() })).length(8),
})
export const agentCreated = z.object({
  agent_address: address,
  agent_token: agentToken,
  webhook_secret: z
    .string()
    .regex(/^whsec_[A-Za-z0-9+/]{43}=$/)
    .optional(),
})
export const me = z.object({ address, registered_at: timestamp })
export const registryPage = z.object({
  agents: z.array(me),
  next_cursor: z.string().nullable(),
  total: z.int(),
})
export const messageAccepted = z.object({
  message_id: z.uuid(),
  from: address,
  to: address,
  timestamp,
})
export const message = messageAccepted.extend({ content: z.string() })
export const messagesPage = z.object({ messages: z.array(message), remaining: z.int().min(0) })
export const stateValue = z.object({
  key: z.string(),
  value: z.string(),
  last_modified_by: address,
  last_modified_at: timestamp,
})
export const stateWritten = z.object({
  key: z.string(),
  written_by: address,
  written_at: timestamp,
})
export const stateDeleted = z.object({
  key: z.string(),
  deleted_by: address,
  deleted_at: timestamp,
})
export const statePage = z.object({
  keys: z.array(z.string()),
  next_cursor: z.string().nullable(),
  total: z.int(),
})
export const capacity = z.object({ used_bytes: z.int(), total_bytes: z.int(), key_count: z.int() })

export type Challenge = z.infer<typeof challengeIssued>
export type Message = z.infer<typeof message>

export interface RequestOptions {
  /** Sent as `Authorization: Bearer <token>`. */
  token?: string | undefined
  headers?: Readonly<Record<string, string | string[]>>
  /** Sent as JSON, with its Content-Type. */
  json?: unknown
  /** Sent as it is, with no Content-Type but one in `headers`. */
  body?: string | Buffer
  /** Send the body chunked, without Content-Length. */
  chunked?: boolean
  /** The local address to connect from, for example 127.0.0.2. */
  from?: string
}

export class Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  readonly #request: string

  constructor(request: string, status: number, headers: IncomingHttpHeaders, body: Buffer) {
    this.#request = request
    this.status = status
    this.headers = headers
    this.body = body
  }

  /** The body as JSON; throws when it is not JSON in valid UTF-8. */
  get json(): unknown {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(this.body))
  }

  /** The code of an error, after checking that the body is an error as the contract has it. */
  get error(): string {
    if (this.headers['content-type'] !== 'application/json') {
      throw new Error(`${this} has Content-Type ${this.headers['content-type']}`)
    }
    return errorBody.parse(this.json).error
  }

  /** The body, when the status is this one and the body has this shape; throws otherwise. */
  as<T>(status: number, shape: z.ZodType<T>): T {
    if (this.status !== status) throw new Error(`${this}, expected ${status}`)
    if (!/^application\/json\b/.test(this.headers['content-type'] ?? '')) {
      throw new Error(`${this} has Content-Type ${this.headers['content-type']}`)
    }
    return shape.parse(this.json)
  }

  toString(): string {
    return `${this.#request} answered ${this.status} ${this.body.subarray(0, 300)}`
  }
}

export class Client {
  readonly #host: string
  readonly #port: string
  readonly #pool = new ConnectionPool({ keepAlive: true, maxSockets: 64 })
  /**
   * The last request on each connection: what a server leaves behind shows in the request after it.
   */
  readonly #lastRequests = new WeakMap<Duplex, string>()
  #operator: Promise<Operator> | undefined

  constructor(baseUrl: string) {
    const { hostname, port } = new URL(baseUrl)
    this.#host = hostname
    this.#port = port
  }

  async request(method: string, path: string, options: RequestOptions = {}): Promise<Answer> {
    const body = options.json === undefined ? options.body : JSON.stringify(options.json)
    const headers: Record<string, string | string[]> = {
      ...(options.json === undefined ? {} : { 'Content-Type': 'application/json' }),
      ...(options.token === undefined ? {} : { Authorization: `Bearer ${options.token}` }),
      ...(body === undefined || options.chunked
        ? {}
        : { 'Content-Length': String(Buffer.byteLength(body)) }),
      ...(options.chunked ? { 'Transfer-Encoding': 'chunked' } : {}),
      ...options.headers,
    }
    const name = `${method} ${path.length > 200 ? `${path.slice(0, 200)}…` : path}`
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    let previous: string | undefined
    const fail = (cause: Error) => {
      const after = previous === undefined ? '' : `, on a connection reused after ${previous}`
      reject(new Error(`${name} failed: ${cause.message}${after}`, { cause }))
    }
    const request = httpRequest({
      method,
      path,
      headers,
      host: this.#host,
      port: this.#port,
      agent: this.#pool,
      signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
      ...(options.from === undefined ? {} : { localAddress: options.from }),
    })
    request.once('socket', (socket) => {
      previous = this.#lastRequests.get(socket)
      this.#lastRequests.set(socket, name)
    })
    let answering = false
    request.once('response', (response) => {
      answering = true
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.once('error', fail)
      response.once('end', () =>
        resolve(
          new Answer(name, response.statusCode ?? 0, response.headers, Buffer.concat(chunks)),
        ),
      )
    })
    // An answer may come before the whole body is sent; that the rest cannot be sent then is no
    // failure.
    request.on('error', (error) => {
      if (!answering) fail(error)
    })
    request.end(body)
    return promise
  }

  async registerOperator(contactHash = 'a contact'): Promise<Operator> {
    const json = { contact_hash: contactHash, accept_terms: true }
    const answer = await untilAvailable(() => this.request('POST', '/v1/operators', { json }))
    const { operator_id, api_key } = answer.as(201, operatorCreated)
    return new Operator(this, operator_id, api_key)
  }

  /** Registers an agent, under the operator given or one that all agents of this client share. */
  async registerAgent({
    operator,
    webhookUrl,
  }: {
    operator?: Operator
    webhookUrl?: string
  } = {}): Promise<Agent> {
    this.#operator ??= this.registerOperator().catch((error: unknown) => {
      // Not kept, so that the next agent does not fail for it too.
      this.#operator = undefined
      throw error
    })
    return (operator ?? (await this.#operator)).registerAgent(webhookUrl)
  }

  registerAgents(count: number): Promise<Agent[]> {
    return Promise.all(Array.from({ length: count }, () => this.registerAgent()))
  }
}

/** Asks again while the answer is a 503 that says when to, as every client should; not for ever. */
async function untilAvailable(ask: () => Promise<Answer>): Promise<Answer> {
  for (let repeats = 0; ; repeats++) {
    const answer = await ask()
    const seconds = answer.headers['retry-after']
    if (answer.status !== 503 || seconds === undefined || repeats === MAX_REPEATS) return answer
    await sleep(Number(seconds) * 1_000)
  }
}

/** An operator with its token. */
export class Operator {
  readonly id: string
  readonly token: string
  readonly #client: Client

  constructor(client: Client, id: string, token: string) {
    this.#client = client
    this.id = id
    this.token = token
  }

  request(method: string, path: string, options: RequestOptions = {}): Promise<Answer> {
    return this.#client.request(method, path, { token: this.token, ...options })
  }

  #askForChallenge(): Promise<Answer> {
    return this.request('GET', '/v1/agents/verification-challenge')
  }

  async challenge(): Promise<Challenge> {
    return (await this.#askForChallenge()).as(200, challengeIssued)
  }

  answerChallenge(
    challengeId: unknown,
    response: unknown,
    more: Record<string, unknown> = {},
  ): Promise<Answer> {
    const json = { verification_response: { challenge_id: challengeId, response }, ...more }
    return this.request('POST', '/v1/agents', { json })
  }

  async registerAgent(webhookUrl?: string): Promise<Agent> {
    const more = webhookUrl === undefined ? {} : { webhook_url: webhookUrl }
    // With a challenge of its own each time, as one is good for one attempt.
    const answer = await untilAvailable(async () => {
      const issued = await this.#askForChallenge()
      if (issued.status === 503) return issued
      const { challenge_id, challenge_data } = issued.as(200, challengeIssued)
      return this.answerChallenge(challenge_id, solvePipeline(challenge_data), more)
    })
    const { agent_address, agent_token, webhook_secret } = answer.as(201, agentCreated)
    return new Agent(this.#client, agent_address, agent_token, webhook_secret)
  }
}

/** An agent with its token. The helpers throw unless the answer is the contract's success. */
export class Agent {
  readonly address: string
  readonly token: string
  /** Of an agent with a webhook. */
  readonly webhookSecret: string | undefined
  readonly #client: Client

  constructor(client: Client, agentAddress: string, token: string, webhookSecret?: string) {
    this.webhookSecret = webhookSecret
    this.#client = client
    this.address = agentAddress
    this.token = token
  }

  request(method: string, path: string, options: RequestOptions = {}): Promise<Answer> {
    return this.#client.request(method, path, { token: this.token, ...options })
  }

  async me() {
    return (await this.request('GET', '/v1/agents/me')).as(200, me)
  }

  async registry(query = '') {
    return (await this.request('GET', `/v1/registry${query}`)).as(200, registryPage)
  }

  trySend(to: string, content: unknown): Promise<Answer> {
    return this.request('POST', '/v1/messages', { json: { to, content } })
  }

  async send(to: string, content: string) {
    return (await this.trySend(to, content)).as(202, messageAccepted)
  }

  async receive(query = '') {
    return (await this.request('GET', `/v1/messages${query}`)).as(200, messagesPage)
  }

  /** Receives until nothing is left. */
  async receiveAll(): Promise<Message[]> {
    const all: Message[] = []
    for (;;) {
      const answer = await untilAvailable(() => this.request('GET', '/v1/messages?limit=100'))
      const { messages, remaining } = answer.as(200, messagesPage)
      all.push(...messages)
      if (remaining === 0) return all
    }
  }

  tryWrite(key: string, value: unknown): Promise<Answer> {
    return this.request('PUT', keyPath(key), { json: { value } })
  }

  async write(key: string, value: string) {
    return (await this.tryWrite(key, value)).as(200, stateWritten)
  }

  tryRead(key: string): Promise<Answer> {
    return this.request('GET', keyPath(key))
  }

  async read(key: string) {
    return (await this.tryRead(key)).as(200, stateValue)
  }

  tryRemove(key: string): Promise<Answer> {
    return this.request('DELETE', keyPath(key))
  }

  async remove(key: string) {
    return (await this.tryRemove(key)).as(200, stateDeleted)
  }

  async list(query = '') {
    return (await this.request('GET', `/v1/state${query}`)).as(200, statePage)
  }

  /** All keys with the prefix, page by page. */
  async keys(prefix = '', limit = 1_000): Promise<string[]> {
    const query = `?prefix=${percentEncode(prefix)}&limit=${limit}`
    let { keys, next_cursor } = await this.list(query)
    const all = [...keys]
    while (next_cursor !== null) {
      ;({ keys, next_cursor } = await this.list(`${query}&cursor=${percentEncode(next_cursor)}`))
      all.push(...keys)
    }
    return all
  }

  async capacity() {
    return (await this.request('GET', '/v1/state/_capacity')).as(200, capacity)
  }
}

/** Every byte but the unreserved ones of RFC 3986 as `%XX`: a `/` too. */
export function percentEncode(text: string): string {
  let encoded = ''
  for (const byte of Buffer.from(text)) {
    const character = String.fromCharCode(byte)
    encoded += /[A-Za-z0-9._~-]/.test(character)
      ? character
      : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`
  }
  return encoded
}

export function keyPath(key: string): string {
  return `/v1/state/${percentEncode(key)}`
}

/**
 * Answers a `pipeline` challenge. Written from the contract's text alone, so that it checks the
 * kernel's own notion.
 */
export function solvePipeline(data: unknown): string {
  const { seed, operations } = pipelineData.parse(data)
  return operations.reduce((text, { op }) => applyOperation(op, text), seed)
}

function applyOperation(op: string, text: string): string {
  if (op.startsWith('prepend:')) return op.slice('prepend:'.length) + text
  if (op.startsWith('append:')) return text + op.slice('append:'.length)
  switch (op) {
    case 'reverse':
      return [...text].reverse().join('')
    case 'base64_encode':
      return Buffer.from(text, 'utf8').toString('base64')
    case 'base64_decode':
      return decodeBase64(text)
    case 'hex_encode':
      return Buffer.from(text, 'utf8').toString('hex')
    case 'sha256':
      return createHash('sha256').update(text, 'utf8').digest('hex')
    case 'uppercase':
      return text.toUpperCase()
    case 'lowercase':
      return text.toLowerCase()
    case 'rot13':
      return text.replace(/[a-z]/gi, (letter) => {
        const base = letter < 'a' ? 65 : 97
        return String.fromCharCode(((letter.charCodeAt(0) - base + 13) % 26) + base)
      })
    default:
      throw new Error(`The contract has no operation ${op}`)
  }
}

/**
 * Strict: a text that is not base64 of UTF-8 has no answer, and the contract says that there always
 * is one.
 */
function decodeBase64(text: string): string {
  const bytes = Buffer.from(text, 'base64')
  if (bytes.toString('base64') !== text) throw new Error(`not base64: ${text}`)
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
}
