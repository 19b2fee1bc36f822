/** Messages are delivered by the answer that carries them, written whole, and by nothing else. */
import { connect } from 'node:net'
import { afterAll, beforeEach, expect, it, vi } from 'vitest'
import { agentAccess } from '../../src/api/agent-access.ts'
import { createApp } from '../../src/api/app.ts'
import type { EndpointParts } from '../../src/api/endpoints/common.ts'
import { createEndpoints } from '../../src/api/endpoints.ts'
import { createOpenApiDocument, describeAgentApi } from '../../src/api/openapi.ts'
import { ByteBudget } from '../../src/platform/byte-budget.ts'
import { startHttpServer } from '../../src/platform/http-server.ts'
import { createLogger } from '../../src/platform/logger.ts'

const logger = createLogger('silent', 'test')
const delivered = vi.fn(async () => {})
const undelivered = vi.fn(async () => {})
/** What the queue hands out; set by each test. */
let messages: unknown[]
const receive = vi.fn(async () => ({ messages, remaining: 0, delivered, undelivered }))
const answerBytes = new ByteBudget({ name: 'answers', limit: 200_000_000 })

const parts = {
  messaging: { receive },
  state: { write: async () => ({ writtenAt: '2026-01-01T00:00:00Z' }) },
  limits: { stateMaxKeyBytes: 2_000, stateMaxValueBytes: 1_024, messageMaxContentBytes: 1_024 },
} as unknown as EndpointParts
const clientAddress = () => '127.0.0.1'
const endpoints = createEndpoints(parts)
const app = createApp({
  endpoints,
  admit: agentAccess({
    admission: { admit: async () => ({ session: { identity: 'tab_x' } }) } as never,
    registry: { authenticate: async () => undefined },
    clientAddress,
  }),
  clientAddress,
  logger,
  document: {
    content: createOpenApiDocument(endpoints, describeAgentApi(undefined)),
    path: '/v1/openapi.json',
    page: '/docs',
  },
  requestBytes: new ByteBudget({ name: 'requests', limit: 1_000 }),
  answerBytes,
})
const server = await startHttpServer({
  fetch: (request, bindings) => app.fetch(request, bindings),
  host: '127.0.0.1',
  port: 0,
  keepAliveMs: 60_000,
  refusedRoute: 'unit',
  logger,
})
afterAll(() => server.close())

beforeEach(() => {
  vi.clearAllMocks()
  messages = [{ content: 'hello' }]
})

const url = `http://127.0.0.1:${server.port}/v1/messages`
const headers = { Authorization: `Bearer at_live_${'0'.repeat(64)}`, Connection: 'close' }

it('a 200 that has been written delivers', async () => {
  const answer = await fetch(url, { headers })
  expect([answer.status, await answer.json()]).toEqual([200, { messages, remaining: 0 }])
  await vi.waitFor(() => expect(delivered).toHaveBeenCalledOnce())
  expect(undelivered).not.toHaveBeenCalled()
  expect(answerBytes.held).toBe(0)
})

it('an answer that cannot be made gives them back, whatever is written instead', async () => {
  const toJSON = () => {
    throw new RangeError('Invalid string length')
  }
  messages = [{ toJSON }]
  expect((await fetch(url, { headers })).status).toBe(500)
  await vi.waitFor(() => expect(undelivered).toHaveBeenCalledOnce())
  expect(delivered).not.toHaveBeenCalled()
  expect(answerBytes.held).toBe(0)
})

it('an answer that may not be held gives them back, and says when to come again', async () => {
  messages = [{ content: 'x'.repeat(60_000_000) }]
  const answer = await fetch(url, { headers })
  expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
  await vi.waitFor(() => expect(undelivered).toHaveBeenCalledOnce())
  expect(delivered).not.toHaveBeenCalled()
})

it('nothing is leased while the answers of an agent hold all that they may', async () => {
  using full = answerBytes.open('tab_x')
  full.resize(100_000_000)
  expect((await fetch(url, { headers })).status).toBe(503)
  expect(receive).not.toHaveBeenCalled()
})

it('an answer to a change that is longer than most holds nothing when it has been written', async () => {
  const answer = await fetch(new URL(`/v1/state/${'%00'.repeat(2_000)}`, url), {
    method: 'PUT',
    headers: { ...headers, 'Content-Type': 'application/json' },
    body: '{"value":""}',
  })
  expect(answer.status).toBe(200)
  await vi.waitFor(() => expect(answerBytes.held).toBe(0))
})

it('a client that goes away before it has read all gets them again', async () => {
  messages = [{ content: 'x'.repeat(30_000_000) }]
  const socket = connect({ port: server.port, host: '127.0.0.1' })
  const head = Object.entries({ Host: 'a', ...headers }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  )
  socket.write(`GET /v1/messages HTTP/1.1\r\n${head.join('')}\r\n`)
  // Its first bytes, and no more: the rest does not fit into what the system buffers.
  await new Promise((resolve) => socket.once('readable', resolve))
  socket.destroy()
  await vi.waitFor(() => expect(undelivered).toHaveBeenCalledOnce(), 20_000)
  expect(delivered).not.toHaveBeenCalled()
  await vi.waitFor(() => expect(answerBytes.held).toBe(0))
})
