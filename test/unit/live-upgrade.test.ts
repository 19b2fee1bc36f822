/**
 * Connections that are handed over: only those that the server says, and only when somebody takes
 * them.
 */
import { once } from 'node:events'
import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import { afterEach, expect, it } from 'vitest'
import { type HttpServer, startHttpServer, upgradeOf } from '../../src/platform/http-server.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { sendRaw } from '../support/raw-http.ts'

const servers: HttpServer[] = []
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

async function start(upgrades?: () => boolean) {
  const server = await startHttpServer({
    fetch: (request, { incoming }) => {
      const upgrade = upgradeOf(incoming)
      if (!upgrade || request.url.endsWith('/refused'))
        return new Response(`upgrade: ${upgrade !== undefined}`)
      const { socket, head } = upgrade
      upgrade.take()
      socket.write(`taken ${head}`)
      // What is taken gets no answer, whoever gives one.
      return new Response(null, { headers: { 'x-hono-already-sent': 'true' } })
    },
    host: '127.0.0.1',
    port: 0,
    keepAliveMs: 60_000,
    refusedRoute: 'unit',
    logger: createLogger('fatal', 'test'),
    ...(upgrades ? { upgrades } : {}),
  })
  servers.push(server)
  return server
}

const asks = (path: string, ...fields: string[]) =>
  [`GET ${path} HTTP/1.1`, ...fields, 'Connection: Upgrade', 'Upgrade: other', '\r\n'].join('\r\n')

it('a connection is taken with what came behind the request, and is not kept when the server closes', async () => {
  const server = await start(() => true)
  const socket = connect(server.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`${asks('/', 'Host: a')}head`)
  const [part] = await once(socket, 'data')
  expect(String(part)).toBe('taken head')
  const closed = once(socket, 'close')
  await Promise.all([server.close(), closed])
})

it('one that nobody takes is answered, and closed', async () => {
  const { port } = await start(() => true)
  const socket = connect(port, '127.0.0.1')
  socket.write(asks('/refused', 'Host: a'))
  expect(await text(socket)).toMatch(/^HTTP\/1\.1 200 OK\r\n.*connection: close.*upgrade: true$/is)
})

it('a request that is no HTTP is refused before', async () => {
  const { port } = await start(() => true)
  const [answer] = await sendRaw(port, asks('/', 'Host: a', 'Host: b'))
  expect(answer?.status).toBe(400)
  expect(JSON.parse(answer?.body ?? '')).toMatchObject({ error: 'bad_request' })
})

it.each([
  ['says no', () => false],
  ['says nothing', undefined],
])('a server that %s answers it as any other', async (_, upgrades) => {
  const { port } = await start(upgrades)
  const [answer] = await sendRaw(port, asks('/', 'Host: a'))
  expect(answer).toMatchObject({
    status: 200,
    body: 'upgrade: false',
    headers: { connection: 'keep-alive' },
  })
})
