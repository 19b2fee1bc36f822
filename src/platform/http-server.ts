/** An HTTP server that starts listening or says why not, and stops without dropping a request. */
import {
  createServer,
  type IncomingMessage,
  type Server,
  ServerResponse,
  STATUS_CODES,
} from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { getRequestListener, type HttpBindings } from '@hono/node-server'
import { inBackground } from './background.ts'
import {
  BrokenRequest,
  judge,
  judgeConnect,
  REFUSALS,
  type Refusal,
  refusalOf,
} from './http-refusals.ts'
import type { Logger } from './logger.ts'
import { recordAnswer } from './request-metrics.ts'

/** The port cannot be listened on. */
export class CannotListen extends Error {
  override name = 'CannotListen'
}

export interface HttpServerOptions {
  fetch: (request: Request, bindings: HttpBindings) => Response | Promise<Response>
  host: string
  port: number
  /** How long a connection is kept for the client's next request. */
  keepAliveMs: number
  /** What refused requests are counted under. */
  refusedRoute: string
  logger: Logger
  /** Of every answer that refuses what is no request. */
  refusalHeaders?: Readonly<Record<string, string>>
  /**
   * Requests that ask for another protocol and whose connection `fetch` may take over, by
   * `upgradeOf`. What it does not take is answered as any other request, as are all those for which
   * this is false: their Upgrade header means nothing. Default: none.
   */
  upgrades?: (incoming: IncomingMessage) => boolean
}

export interface HttpServer {
  readonly port: number
  /**
   * Takes no new connections, lets requests under way finish, and resolves when all connections are
   * closed. Those that were taken over are broken off: whoever took them ends them before.
   */
  close(): Promise<void>
}

/** A client has so long for its request; one that dribbles it holds a connection no longer. */
const REQUEST_TIMEOUT_MS = 30_000
const HEADERS_TIMEOUT_MS = 10_000
/** How often those times are looked at. */
const TIMEOUT_CHECK_MS = 1_000
const MAX_HEADER_BYTES = 16_384
/**
 * A connection takes some 20 KiB while it waits and a head of MAX_HEADER_BYTES at most while one
 * arrives: all of them fit into the memory of a container. When there are more, those that wait for
 * a next request make room.
 */
const MAX_CONNECTIONS = 10_000
const CLOSE_POLL_MS = 50
/**
 * A refused client may still be sending. Closed with bytes unread, a connection is reset, and its
 * answer may be lost.
 */
const LINGER_MS = 10_000

const brokenRequests = new WeakMap<IncomingMessage, BrokenRequest>()

/**
 * Why the body of a request will not come, known before anybody reads it; once somebody does, it
 * comes as an `error` of the request.
 */
export function brokenBy(incoming: IncomingMessage): BrokenRequest | undefined {
  return brokenRequests.get(incoming)
}

/** The connection of a request that asks for another protocol. */
export interface Upgrade {
  readonly socket: Socket
  /** What the client has sent behind the request. */
  readonly head: Buffer
  /** From now on the connection is the caller's, and the request gets no answer. */
  take(): void
}

const upgrades = new WeakMap<IncomingMessage, Upgrade>()

/** What a request may take over, if the server's `upgrades` said so. */
export function upgradeOf(incoming: IncomingMessage): Upgrade | undefined {
  return upgrades.get(incoming)
}

export async function startHttpServer(options: HttpServerOptions): Promise<HttpServer> {
  const {
    fetch,
    host,
    port,
    keepAliveMs,
    refusedRoute,
    logger,
    refusalHeaders,
    upgrades: isUpgrade = () => false,
  } = options
  let closing = false
  /**
   * The latest of each connection: answers go out in the order of requests, so when its answer has,
   * all have.
   */
  const exchanges = new WeakMap<Duplex, { incoming: IncomingMessage; outgoing: ServerResponse }>()
  /** Connections on which nothing is understood any more. */
  const lost = new WeakSet<Duplex>()
  const taken = new Set<Socket>()

  const record = (refusal: Refusal, method = '', cause?: string) =>
    recordAnswer(logger, { method, route: refusedRoute, status: refusal.status, cause })

  const listener = getRequestListener(
    (request, bindings) => fetch(request, bindings as HttpBindings),
    {
      // HTTP/1.0 may do without a Host.
      hostname: 'localhost',
      errorHandler: () => {
        record(REFUSALS.invalid)
        return new Response(bodyOf(REFUSALS.invalid), {
          status: 400,
          headers: { ...headersOf(REFUSALS.invalid), ...refusalHeaders },
        })
      },
      overrideGlobalObjects: true,
      // What a refused request still sends is thrown away by Node, within REQUEST_TIMEOUT_MS. The
      // library's own way breaks the connection after 500 ms, which on a busy machine hits the
      // client's next request.
      autoCleanupIncoming: false,
    },
  )
  const server = createServer(
    {
      requestTimeout: REQUEST_TIMEOUT_MS,
      headersTimeout: HEADERS_TIMEOUT_MS,
      keepAliveTimeout: keepAliveMs,
      maxHeaderSize: MAX_HEADER_BYTES,
      connectionsCheckingInterval: TIMEOUT_CHECK_MS,
      requireHostHeader: false,
      highWaterMark: 16_384,
      shouldUpgradeCallback: isUpgrade,
    },
    (incoming, outgoing) => {
      exchanges.set(incoming.socket, { incoming, outgoing })
      // Before Node does it, as fast as it comes.
      outgoing.once('prefinish', () => {
        if (!incoming.complete) throwAway(incoming)
      })
      // When all that came with it has been parsed: a body that is broken there is refused,
      // whatever it is for, as HAProxy does.
      whenParsed(incoming, () => answer(incoming, outgoing))
    },
  )
  // How Node ends a connection after its last answer. It would break one on which the rest of a
  // refused body is still coming, and the client would never see the answer.
  server.on('connection', (socket) => {
    socket.destroySoon = () => linger(socket)
  })
  server.maxConnections = MAX_CONNECTIONS
  server.on('drop', () => server.closeIdleConnections())
  server.on('checkExpectation', (incoming, outgoing) => {
    exchanges.set(incoming.socket, { incoming, outgoing })
    refuse(incoming, outgoing, REFUSALS.expectation)
  })
  server.on('connect', (incoming, socket) => {
    socket.on('error', () => socket.destroy())
    endWith(socket, judgeConnect(incoming), incoming.method)
  })
  server.on('upgrade', (incoming, _socket, head) => {
    const { socket } = incoming
    socket.on('error', () => socket.destroy())
    afterAnswer(exchanges.get(socket)?.outgoing, () => {
      if (!socket.writable) return
      const outgoing = new ServerResponse(incoming)
      announceClose(outgoing)
      outgoing.assignSocket(socket)
      outgoing.once('finish', () => linger(socket))
      const take = () => {
        outgoing.detachSocket(socket)
        taken.add(socket)
        socket.once('close', () => taken.delete(socket))
      }
      upgrades.set(incoming, { socket, head, take })
      answer(incoming, outgoing)
    })
  })
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    // Whatever else comes is an error too.
    if (lost.has(socket)) return
    lost.add(socket)
    const last = exchanges.get(socket)
    if (last === undefined || last.incoming.complete)
      endWith(socket, refusalOf(error.code), undefined, error.code)
    else breakOff(last.incoming, last.outgoing, refusalOf(error.code))
  })
  await listen(server, host, port)
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      closing = true
      for (const socket of taken) socket.destroy()
      const closed = new Promise((resolve) => server.close(resolve))
      const sweep = setInterval(() => server.closeIdleConnections(), CLOSE_POLL_MS)
      await closed
      clearInterval(sweep)
    },
  }

  function answer(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const refusal = brokenBy(incoming)?.refusal ?? judge(incoming)
    if (refusal !== undefined) {
      refuse(incoming, outgoing, refusal)
      return
    }
    if (closing) announceClose(outgoing)
    // A backslash is not allowed in a URL, and URL parsers take it for a slash; here it is what its
    // escape is.
    incoming.url = incoming.url?.replaceAll('\\', '%5C')
    inBackground('answer_request', Promise.resolve(listener(incoming, outgoing)))
  }

  function refuse({ method }: IncomingMessage, outgoing: ServerResponse, refusal: Refusal): void {
    record(refusal, method)
    outgoing
      .writeHead(refusal.status, { ...headersOf(refusal), ...refusalHeaders })
      .end(bodyOf(refusal))
  }

  /** What is no request is answered when those before it have been, and ends the connection. */
  function endWith(socket: Duplex, refusal: Refusal, method?: string, cause?: string): void {
    afterAnswer(exchanges.get(socket)?.outgoing, () => {
      if (!socket.writable) return
      record(refusal, method, cause)
      const head = Object.entries({
        ...headersOf(refusal),
        ...refusalHeaders,
        Date: new Date().toUTCString(),
      })
      const lines = [
        `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}`,
        ...head.map((field) => field.join(': ')),
      ]
      socket.write(`${lines.join('\r\n')}\r\n\r\n${bodyOf(refusal)}`)
      linger(socket)
    })
  }

  /**
   * A request whose body is broken has the answer that it has begun to get, or gets that of whoever
   * reads the body.
   */
  function breakOff(incoming: IncomingMessage, outgoing: ServerResponse, refusal: Refusal): void {
    const { socket } = incoming
    const broken = new BrokenRequest(refusal)
    brokenRequests.set(incoming, broken)
    if (!outgoing.headersSent) announceClose(outgoing)
    if (incoming.listenerCount('error') > 0) incoming.emit('error', broken)
    afterAnswer(outgoing, () => linger(socket))
  }
}

/**
 * Hands on the parts of a body as they come, one of a connection in each turn of the event loop,
 * until `take` returns false. By itself Node reads from each connection as long as there is
 * something, and hundreds of large bodies at once keep everybody else waiting for seconds.
 */
export function readInTurn(incoming: IncomingMessage, take: (part: Buffer) => boolean): void {
  const onData = (part: Buffer) => {
    const isWanted = take(part)
    if (!isWanted) incoming.off('data', onData)
    // What has come whole takes no more reading.
    if (isWanted && incoming.complete) return
    incoming.pause()
    if (isWanted) setImmediate(() => incoming.resume())
  }
  incoming.on('data', onData)
}

/**
 * Of bodies that nobody wants any more so many parts, of 64 KiB, are read in a turn of the event
 * loop: it takes half a millisecond.
 */
const THROWN_AWAY_IN_A_TURN = 8
/** Those of them that wait for their turn; bounded by the connections. */
const unwanted = new Set<IncomingMessage>()

/**
 * Reads the rest of a body that is refused, so that the client sees the answer, and little of it at
 * a time: others are being served.
 */
function throwAway(incoming: IncomingMessage): void {
  incoming.on('data', () => {
    incoming.pause()
    if (unwanted.size === 0) setImmediate(throwSomeAway)
    unwanted.add(incoming)
  })
  incoming.resume()
}

function throwSomeAway(): void {
  for (const incoming of [...unwanted.values().take(THROWN_AWAY_IN_A_TURN)]) {
    unwanted.delete(incoming)
    incoming.resume()
  }
  if (unwanted.size > 0) setImmediate(throwSomeAway)
}

function whenParsed(incoming: IncomingMessage, act: () => void): void {
  // Node parses all bytes of a packet before it does anything else, but for ticks between the parts
  // of a body.
  process.nextTick(() => (incoming.complete ? act() : setImmediate(act)))
}

function bodyOf({ error, message }: Refusal): string {
  return JSON.stringify({ error, message })
}

function headersOf(refusal: Refusal): Record<string, string> {
  return {
    'Content-Type': 'application/json',
    'Content-Length': String(Buffer.byteLength(bodyOf(refusal))),
    ...(refusal.status === 405 ? { Allow: 'GET, HEAD, POST, PUT, DELETE' } : {}),
    Connection: 'close',
  }
}

function afterAnswer(outgoing: ServerResponse | undefined, act: () => void): void {
  if (outgoing === undefined || outgoing.destroyed) act()
  else outgoing.once('close', act)
}

function linger(socket: Duplex): void {
  socket.end()
  socket.resume()
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  socket.once('close', () => clearTimeout(timer))
}

/** The client must not send another request on a connection that is about to be closed. */
function announceClose(outgoing: ServerResponse): void {
  outgoing.setHeader('Connection', 'close')
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const why = error.code === 'EADDRINUSE' ? 'another program uses it' : error.message
      reject(new CannotListen(`cannot listen on ${host} port ${port}: ${why}`))
    })
    server.listen(port, host, () => resolve())
  })
}
