/** The load balancer in front of the observation service: who gets where, and that streams last. */
import { type EventEmitter, once } from 'node:events'
import { readFileSync } from 'node:fs'
import {
  createServer,
  type IncomingMessage,
  type RequestOptions,
  request,
  type ServerResponse,
} from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test, vi } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { errorBody } from '../../lab/client.ts'
import { DEPLOY } from '../../lab/servers/deploy.ts'
import { type HaproxyOptions, type HaproxyServer, startHaproxy } from '../../lab/servers/haproxy.ts'
import { STREAM_TIMES } from '../../src/observe/live/stream-times.ts'
import { sendRaw } from '../support/raw-http.ts'

/** For what comes at once, on a machine that may be busy. */
const SOON = { timeout: 60_000, interval: 20 }
/** In the place of those in deploy/: of a connection on which nothing happens. */
const IDLE_MS = 2_000
/** How often something happens on a stream that lives. */
const BEAT_MS = 200
/** Beats of a stream that has lived for several times `IDLE_MS`. */
const MANY = (3 * IDLE_MS) / BEAT_MS

/**
 * A process of the observation service that answers with its name, and streams beats, by either
 * way.
 */
interface Observer extends AsyncDisposable {
  readonly host: string
  readonly port: number
  readonly internalPort: number
  readonly requests: IncomingMessage[]
  /** Connections of Server-Sent Events at the moment. */
  readonly streams: Set<ServerResponse>
  ready: boolean
}

async function startObserver(name: string): Promise<Observer> {
  const observer = {
    requests: [] as IncomingMessage[],
    streams: new Set<ServerResponse>(),
    ready: true,
  }
  const server = createServer((incoming, outgoing) => {
    observer.requests.push(incoming)
    if (incoming.url === '/deadly') return void incoming.socket.destroy()
    if (incoming.headers.accept !== 'text/event-stream') return void outgoing.end(name)
    outgoing.writeHead(200, { 'Content-Type': 'text/event-stream' }).write(`data: ${name}\n\n`)
    observer.streams.add(outgoing)
    const beat = setInterval(() => incoming.url !== '/silent' && outgoing.write(':\n\n'), BEAT_MS)
    outgoing.once('close', () => {
      clearInterval(beat)
      observer.streams.delete(outgoing)
    })
  })
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', (socket, incoming) => {
    observer.requests.push(incoming)
    socket.send(name)
    const beat = setInterval(() => incoming.url !== '/silent' && socket.ping(), BEAT_MS)
    socket.once('close', () => clearInterval(beat))
  })
  const internal = createServer(
    (_, outgoing) => void outgoing.writeHead(observer.ready ? 200 : 503).end(),
  )
  const servers = [server, internal]
  for (const each of servers) await once(each.listen(0, '127.0.0.1'), 'listening')
  const [port, internalPort] = servers.map((each) => (each.address() as AddressInfo).port) as [
    number,
    number,
  ]
  return Object.assign(observer, {
    host: '127.0.0.1',
    port,
    internalPort,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets.clients) socket.terminate()
      for (const each of servers) {
        each.closeAllConnections()
        if (each.listening) await new Promise((resolve) => each.close(resolve))
      }
    },
  })
}

/** All of them taken into use. */
async function balance(
  options: HaproxyOptions & { observers: readonly Observer[] },
): Promise<HaproxyServer> {
  const haproxy = await startHaproxy(options)
  const areUp = options.observers.map(() => 'UP')
  await vi.waitFor(
    async () => expect((await haproxy.observers()).map(({ status }) => status)).toEqual(areUp),
    SOON,
  )
  return haproxy
}

async function ask(url: string, options: RequestOptions = {}): Promise<IncomingMessage> {
  const outgoing = request(url, { agent: false, timeout: SOON.timeout, ...options })
  outgoing.once('timeout', () => outgoing.destroy(new Error('no answer')))
  outgoing.end()
  const [incoming] = (await once(outgoing, 'response')) as [IncomingMessage]
  return incoming
}

/** The name of the process that answers a client with this address. */
const servedTo = async (haproxy: HaproxyServer, localAddress: string) =>
  await text(await ask(haproxy.observeUrl, { localAddress }))

/** Whether in order or not. */
async function closed(stream: IncomingMessage | WebSocket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const emitter: EventEmitter = stream
  emitter.on('error', () => {}).once('close', resolve)
  await promise
}

const EVENT_STREAM = { headers: { Accept: 'text/event-stream' } }
const CLIENTS = Array.from({ length: 16 }, (_, index) => `127.0.1.${index + 1}`)

/** The configuration with all times of streams as short as a test can wait for. */
function withShortTimes(configuration: string): string {
  return configuration.replace(/timeout (client|server|tunnel) \d+s/g, `timeout $1 ${IDLE_MS}ms`)
}

test('sends one client to one process, and only those of a process that is gone to another', async () => {
  await using one = await startObserver('one')
  await using two = await startObserver('two')
  await using haproxy = await balance({ nodes: [], observers: [one, two] })
  const places = async () =>
    new Map(
      await Promise.all(CLIENTS.map(async (it) => [it, await servedTo(haproxy, it)] as const)),
    )
  const first = await places()
  expect(new Set(first.values())).toEqual(new Set(['one', 'two']))
  for (let round = 0; round < 5; round++) expect(await places()).toEqual(first)

  one.ready = false
  await vi.waitFor(async () => expect((await haproxy.observers())[0]?.status).toBe('DOWN'), SOON)
  expect(new Set((await places()).values())).toEqual(new Set(['two']))
  one.ready = true
  await vi.waitFor(async () => expect((await haproxy.observers())[0]?.status).toBe('UP'), SOON)
  expect(await places()).toEqual(first)
})

test('tells clients apart behind another proxy, where it is told to', async () => {
  const deploying = readFileSync(join(import.meta.dirname, '../../docs/deploying.md'), 'utf8')
  const [, line = ''] =
    /in the place of `balance source`:\s+`(balance [^`]+)`/.exec(deploying) ?? []
  await using one = await startObserver('one')
  await using two = await startObserver('two')
  const edit = (configuration: string) =>
    configuration.replace(/^( {2})balance source$/m, `$1${line}`)
  await using haproxy = await balance({ nodes: [], observers: [one, two], edit })
  const places = async () =>
    await Promise.all(
      CLIENTS.map(async (client, index) => {
        // The last is what the proxy wrote; what stands before it is the client's own.
        const headers = { 'X-Forwarded-For': `203.0.113.${index}, ${client}` }
        return await text(await ask(haproxy.observeUrl, { headers }))
      }),
    )
  const first = await places()
  expect(new Set(first)).toEqual(new Set(['one', 'two']))
  expect(await places()).toEqual(first)
  const own = { 'X-Forwarded-For': `198.51.100.7, ${CLIENTS[0]}` }
  expect(await text(await ask(haproxy.observeUrl, { headers: own }))).toBe(first[0])
})

test('tries another process where one is gone and it is not known yet', async () => {
  await using one = await startObserver('one')
  await using two = await startObserver('two')
  await using haproxy = await balance({ nodes: [], observers: [one, two] })
  await one[Symbol.asyncDispose]()
  expect(new Set(await Promise.all(CLIENTS.map((client) => servedTo(haproxy, client))))).toEqual(
    new Set(['two']),
  )
})

test("appends the client's address to what the client says", async () => {
  await using one = await startObserver('one')
  await using haproxy = await balance({ nodes: [], observers: [one] })
  const [localAddress = ''] = CLIENTS
  await ask(haproxy.observeUrl, { localAddress, headers: { 'X-Forwarded-For': '203.0.113.7' } })
  const webSocket = new WebSocket(haproxy.observeUrl, { localAddress })
  await once(webSocket, 'message')
  webSocket.terminate()
  const said = one.requests.map(({ headersDistinct }) =>
    headersDistinct['x-forwarded-for']?.join(', '),
  )
  expect(said).toEqual([`203.0.113.7, ${localAddress}`, localAddress])
})

test('has times that are far above those between two signs of life of a stream', () => {
  const configuration = readFileSync(join(DEPLOY, 'haproxy', 'haproxy.cfg'), 'utf8')
  const seconds = (name: string) =>
    [...configuration.matchAll(new RegExp(`^  timeout ${name} (\\d+)s$`, 'gm'))].map(([, value]) =>
      Number(value),
    )
  for (const [name, signOfLifeMs] of [
    ['tunnel', STREAM_TIMES.pingMs],
    ['client', STREAM_TIMES.commentMs],
    ['server', STREAM_TIMES.commentMs],
  ] as const) {
    expect(seconds(name), name).toHaveLength(1)
    expect(Math.min(...seconds(name)) * 1_000, name).toBeGreaterThan(2 * signOfLifeMs)
  }
})

test('lets Server-Sent Events go on for as long as something comes, and no longer', async () => {
  await using one = await startObserver('one')
  await using haproxy = await balance({ nodes: [], observers: [one], edit: withShortTimes })
  const living = await ask(haproxy.observeUrl, EVENT_STREAM)
  const silent = await ask(`${haproxy.observeUrl}/silent`, EVENT_STREAM)
  const isCut = closed(silent)
  silent.resume()
  let comments = 0
  for await (const chunk of living) {
    comments += String(chunk).split(':\n\n').length - 1
    if (comments >= MANY) break
  }
  await isCut
  expect(comments).toBeGreaterThanOrEqual(MANY)
})

test('lets a WebSocket go on for as long as something comes, and no longer', async () => {
  await using one = await startObserver('one')
  await using haproxy = await balance({ nodes: [], observers: [one], edit: withShortTimes })
  const living = new WebSocket(haproxy.observeUrl)
  const silent = new WebSocket(`${haproxy.observeUrl}/silent`)
  const isCut = closed(silent)
  let pings = 0
  const many = Promise.withResolvers<void>()
  living.on('ping', () => {
    pings++
    if (pings >= MANY) many.resolve()
  })
  living.once('close', () => many.reject(new Error(`closed after ${pings} pings`)))
  expect(String((await once(living, 'message'))[0])).toBe('one')
  await many.promise
  await isCut
  living.terminate()
})

test('tells the service at once that a client has gone', async () => {
  await using one = await startObserver('one')
  await using haproxy = await balance({ nodes: [], observers: [one] })
  // On which nothing is ever sent that could fail.
  const stream = await ask(`${haproxy.observeUrl}/silent`, EVENT_STREAM)
  await vi.waitFor(() => expect(one.streams.size).toBe(1), SOON)
  stream.destroy()
  // A minute is what a connection may be silent for.
  await vi.waitFor(() => expect(one.streams.size).toBe(0), { timeout: 30_000, interval: 20 })
})

test('answers 503 while there is no process, in a form that any page may read, and agents are served', async () => {
  await using node = await startObserver('a node')
  await using haproxy = await startHaproxy({ nodes: [node] })
  const answer = await ask(`${haproxy.observeUrl}/observe/events`)
  expect(answer.statusCode).toBe(503)
  expect(answer.headers).toMatchObject({ 'retry-after': '1', 'access-control-allow-origin': '*' })
  expect(errorBody.parse(JSON.parse(await text(answer))).error).toBe('unavailable')
  await vi.waitFor(async () => expect(await text(await ask(haproxy.url))).toBe('a node'), SOON)
  expect((await ask(haproxy.url)).headers).not.toHaveProperty('access-control-allow-origin')
})

test('answers 503 where a process dies over a request, which it has once', async () => {
  await using one = await startObserver('one')
  await using haproxy = await balance({ nodes: [], observers: [one] })
  const answer = await ask(`${haproxy.observeUrl}/deadly`)
  expect([answer.statusCode, errorBody.parse(JSON.parse(await text(answer))).error]).toEqual([
    503,
    'unavailable',
  ])
  expect(one.requests).toHaveLength(1)
})

test.each(['GET / HTTP/1.2', 'GET / HTTP/2.0', 'PRI * HTTP/2.0'])(
  'refuses what is not HTTP/1: %s',
  async (line) => {
    await using one = await startObserver('one')
    await using haproxy = await balance({ nodes: [], observers: [one] })
    const [answer] = await sendRaw(haproxy.observePort, `${line}\r\nHost: any\r\n\r\n`)
    expect(answer?.status).toBe(400)
    expect(one.requests).toEqual([])
  },
)

test('leaves agents the connections that are theirs, however many watch', async () => {
  const most = 3
  await using one = await startObserver('one')
  await using node = await startObserver('a node')
  await using haproxy = await balance({
    nodes: [node],
    observers: [one],
    settings: { HAPROXY_OBSERVE_CONNECTIONS: String(most) },
  })
  const streams: IncomingMessage[] = []
  for (let count = 0; count < most; count++)
    streams.push(await ask(haproxy.observeUrl, EVENT_STREAM))
  const more = ask(haproxy.observeUrl)
  // The answer to an agent comes after what was asked before it; that the other waits nothing tells
  // but that it has not come.
  await vi.waitFor(async () => expect(await text(await ask(haproxy.url))).toBe('a node'), SOON)
  expect(await Promise.race([more, sleep(IDLE_MS, 'waits')])).toBe('waits')
  streams[0]?.destroy()
  expect(await text(await more)).toBe('one')
  for (const stream of streams) stream.destroy()
})
