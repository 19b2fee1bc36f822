/**
 * What is refused before an application sees it: that it is answered whole, counted and logged, and
 * takes no answer from anybody else.
 */
import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import { register } from 'prom-client'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { REFUSALS, type Refusal } from '../../src/platform/http-refusals.ts'
import { startHttpServer } from '../../src/platform/http-server.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { sendRaw } from '../support/raw-http.ts'
import { expectAnswers, MENDED } from '../support/raw-requests.ts'

const ROUTE = 'unit'
const HEAD = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'

/** What the application does with a request; set by each test. */
let answer: () => Promise<Response>
const logged: object[] = []
const logger = createLogger('info', 'test')
logger.info = (line: object) => void logged.push(line)
const server = await startHttpServer({
  fetch: (_request, { incoming }) => {
    incoming.on('error', (error) => broken.resolve(error))
    return answer()
  },
  host: '127.0.0.1',
  port: 0,
  keepAliveMs: 60_000,
  refusedRoute: ROUTE,
  logger,
})
afterAll(() => server.close())
let broken: PromiseWithResolvers<Error>

beforeEach(() => {
  answer = async () => new Response('served')
  broken = Promise.withResolvers()
  logged.length = 0
})

async function counted(status: number): Promise<number> {
  const metric = z.object({
    values: z.array(
      z.object({
        value: z.number(),
        labels: z.record(z.string(), z.union([z.string(), z.number()])),
      }),
    ),
  })
  const { values } = metric.parse(await register.getSingleMetric('tabulum_requests_total')?.get())
  const ours = values.filter(({ labels }) => labels.route === ROUTE && labels.status === status)
  return ours.reduce((sum, { value }) => sum + value, 0)
}

const REFUSED: [string, string, Refusal][] = [
  ['what the parser refuses', 'no\r\n\r\n', REFUSALS.invalid],
  ['what is parsed and yet no HTTP', 'GET / HTTP/1.1\r\n\r\n', REFUSALS.invalid],
  [
    'a head that is too large',
    `GET / HTTP/1.1\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`,
    REFUSALS.largeHead,
  ],
  ['an expectation', 'GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n', REFUSALS.expectation],
  ['CONNECT', 'CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n', REFUSALS.noResource],
]

describe('a refusal', () => {
  it.each(REFUSED)(
    'of %s is whole, closes the connection, is counted and logged',
    async (_, bytes, refusal) => {
      const before = await counted(refusal.status)
      const [first] = await sendRaw(server.port, bytes)
      expect(JSON.parse(first?.body ?? '')).toEqual({
        error: refusal.error,
        message: refusal.message,
      })
      expect(first?.status).toBe(refusal.status)
      expect(first?.headers).toMatchObject({
        'content-type': 'application/json',
        'content-length': String(Buffer.byteLength(first?.body ?? '')),
        connection: 'close',
      })
      expect(await counted(refusal.status)).toBe(before + 1)
      expect(logged).toEqual([expect.objectContaining({ route: ROUTE, status: refusal.status })])
      expect(JSON.stringify(logged)).not.toContain('xxx')
    },
  )

  it.each(REFUSED)('of %s ends the connection by itself', async (_, bytes, { status }) => {
    const socket = connect(server.port, '127.0.0.1')
    socket.write(bytes)
    expect(await text(socket)).toContain(`HTTP/1.1 ${status} `)
  })

  it('is not told to a client that sends nothing after its answer', async () => {
    const socket = connect(server.port, '127.0.0.1')
    socket.end('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    expect((await text(socket)).match(/HTTP\/1\.1/g)).toHaveLength(1)
    expect(logged).toEqual([])
  })

  it.each(MENDED)('is for $what', (rawCase) => expectAnswers(server.port, rawCase))
})

describe('an answer', () => {
  it('that is under way comes whole, whatever else comes on its connection', async () => {
    const begun = Promise.withResolvers<void>()
    const rest = Promise.withResolvers<void>()
    answer = async () => {
      const body = new ReadableStream<Uint8Array>({
        async start(controller) {
          controller.enqueue(Buffer.from('first '))
          begun.resolve()
          await rest.promise
          controller.enqueue(Buffer.from('last'))
          controller.close()
        },
      })
      return new Response(body, { headers: { 'Content-Length': '10' } })
    }
    const socket = connect(server.port, '127.0.0.1')
    socket.write(HEAD)
    await begun.promise
    socket.write('\x01no\r\n\r\n')
    // Every further byte is an error of its own.
    for (let again = 0; again < 5; again++) socket.write('\x01no\r\n\r\n')
    const answers = text(socket)
    // The server has met the error once a request on another connection is answered after it.
    answer = async () => new Response('other')
    await sendRaw(server.port, HEAD)
    rest.resolve()
    const [, first, second, third] = (await answers).split('HTTP/1.1 ')
    expect(first).toMatch(/^200 .*first last$/s)
    expect(second).toMatch(/^400 .*not valid HTTP/s)
    expect(third).toBeUndefined()
  })

  it('to a request whose body breaks later is what its reader makes of it', async () => {
    const seen = Promise.withResolvers<void>()
    answer = async () => {
      seen.resolve()
      return new Response(String(await broken.promise), { status: 400 })
    }
    const socket = connect(server.port, '127.0.0.1')
    socket.write('POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n')
    await seen.promise
    socket.write('zz\r\n')
    const told = await text(socket)
    expect(told).toMatch(/^HTTP\/1\.1 400 /)
    expect(told.toLowerCase()).toContain('connection: close')
    expect(told).toContain(REFUSALS.invalid.message)
  })

  it('is given to nobody whose body is broken from the start', async () => {
    answer = () => Promise.reject(new Error('the application was asked'))
    const bytes = 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}zz\r\n'
    expect((await sendRaw(server.port, bytes))[0]?.status).toBe(400)
  })
})
