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
import { throwAway, whenParsed } from './http-bodies.ts'
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
  const { host, port, keepAliveMs, upgrades: isUpgrade = () => false } = options
  const exchanges = new Exchanges(options)
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
    (incoming, outgoing) => exchanges.begin(incoming, outgoing),
  )
  // How Node ends a connection after its last answer. It would break one on which the rest of a
  // refused body is still coming, and the client would never see the answer.
  server.on('connection', (socket) => {
    socket.destroySoon = () => linger(socket)
  })
  server.maxConnections = MAX_CONNECTIONS
  server.on('drop', () => server.closeIdleConnections())
  server.on('checkExpectation', (incoming, outgoing) => exchanges.expect(incoming, outgoing))
  server.on('connect', (incoming, socket) => exchanges.connect(incoming, socket))
  server.on('upgrade', (incoming, _socket, head) => exchanges.upgrade(incoming, head))
  server.on('clientError', (error, socket) => exchanges.fail(error, socket))
  await listen(server, host, port)
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      exchanges.close()
      const closed = new Promise((resolve) => server.close(resolve))
      const sweep = setInterval(() => server.closeIdleConnections(), CLOSE_POLL_MS)
      await closed
      clearInterval(sweep)
    },
  }
}

interface Exchange {
  readonly incoming: IncomingMessage
  readonly outgoing: ServerResponse
}

/** Requests and their answers on all connections, and what is no request. */
class Exchanges {
  readonly #options: HttpServerOptions
  readonly #listener: ReturnType<typeof getRequestListener>
  /**
   * The latest of each connection: answers go out in the order of requests, so when its answer has,
   * all have.
   */
  readonly #latest = new WeakMap<Duplex, Exchange>()
  /** Connections on which nothing is understood any more. */
  readonly #lost = new WeakSet<Duplex>()
  /** Connections that were taken over. */
  readonly #taken = new Set<Socket>()
  #isClosing = false

  constructor(options: HttpServerOptions) {
    this.#options = options
    this.#listener = getRequestListener(
      (request, bindings) => options.fetch(request, bindings as HttpBindings),
      {
        // HTTP/1.0 may do without a Host.
        hostname: 'localhost',
        errorHandler: () => {
          this.#record(REFUSALS.invalid)
          const headers = this.#headersOf(REFUSALS.invalid)
          return new Response(bodyOf(REFUSALS.invalid), { status: 400, headers })
        },
        overrideGlobalObjects: true,
        // What a refused request still sends is thrown away by Node, within REQUEST_TIMEOUT_MS. The
        // library's own way breaks the connection after 500 ms, which on a busy machine hits the
        // client's next request.
        autoCleanupIncoming: false,
      },
    )
  }

  begin(incoming: IncomingMessage, outgoing: ServerResponse): void {
    this.#latest.set(incoming.socket, { incoming, outgoing })
    // Before Node does it, as fast as it comes.
    outgoing.once('prefinish', () => {
      if (!incoming.complete) throwAway(incoming)
    })
    // When all that came with it has been parsed: a body that is broken there is refused, whatever
    // it is for, as HAProxy does.
    whenParsed(incoming, () => this.#answer(incoming, outgoing))
  }

  /** Of a request with an expectation other than `100-continue`. */
  expect(incoming: IncomingMessage, outgoing: ServerResponse): void {
    this.#latest.set(incoming.socket, { incoming, outgoing })
    this.#refuse(incoming, outgoing, REFUSALS.expectation)
  }

  /** Of a request for a tunnel. */
  connect(incoming: IncomingMessage, socket: Duplex): void {
    socket.on('error', () => socket.destroy())
    this.#endWith(socket, judgeConnect(incoming), incoming.method)
  }

  /** Of a request for another protocol, once those before it have been answered. */
  upgrade(incoming: IncomingMessage, head: Buffer): void {
    const { socket } = incoming
    socket.on('error', () => socket.destroy())
    afterAnswer(this.#latest.get(socket)?.outgoing, () => {
      if (!socket.writable) return
      const outgoing = new ServerResponse(incoming)
      announceClose(outgoing)
      outgoing.assignSocket(socket)
      outgoing.once('finish', () => linger(socket))
      const take = () => {
        outgoing.detachSocket(socket)
        this.#taken.add(socket)
        socket.once('close', () => this.#taken.delete(socket))
      }
      upgrades.set(incoming, { socket, head, take })
      this.#answer(incoming, outgoing)
    })
  }

  /** What came is no request, or a request broke. */
  fail(error: NodeJS.ErrnoException, socket: Duplex): void {
    // Whatever else comes is an error too.
    if (this.#lost.has(socket)) return
    this.#lost.add(socket)
    const last = this.#latest.get(socket)
    if (last === undefined || last.incoming.complete)
      this.#endWith(socket, refusalOf(error.code), undefined, error.code)
    else breakOff(last, refusalOf(error.code))
  }

  /** From now on answers say that theirs is the last of the connection. */
  close(): void {
    this.#isClosing = true
    for (const socket of this.#taken) socket.destroy()
  }

  #answer(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const refusal = brokenBy(incoming)?.refusal ?? judge(incoming)
    if (refusal !== undefined) {
      this.#refuse(incoming, outgoing, refusal)
      return
    }
    if (this.#isClosing) announceClose(outgoing)
    // A backslash is not allowed in a URL, and URL parsers take it for a slash; here it is what its
    // escape is.
    incoming.url = incoming.url?.replaceAll('\\', '%5C')
    inBackground('answer_request', Promise.resolve(this.#listener(incoming, outgoing)))
  }

  #refuse({ method }: IncomingMessage, outgoing: ServerResponse, refusal: Refusal): void {
    this.#record(refusal, method)
    outgoing.writeHead(refusal.status, this.#headersOf(refusal)).end(bodyOf(refusal))
  }

  /** What is no request is answered when those before it have been, and ends the connection. */
  #endWith(socket: Duplex, refusal: Refusal, method?: string, cause?: string): void {
    afterAnswer(this.#latest.get(socket)?.outgoing, () => {
      if (!socket.writable) return
      this.#record(refusal, method, cause)
      const head = { ...this.#headersOf(refusal), Date: new Date().toUTCString() }
      const lines = [
        `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}`,
        ...Object.entries(head).map((field) => field.join(': ')),
      ]
      socket.write(`${lines.join('\r\n')}\r\n\r\n${bodyOf(refusal)}`)
      linger(socket)
    })
  }

  #headersOf(refusal: Refusal): Record<string, string> {
    return {
      'Content-Type': 'application/json',
      'Content-Length': String(Buffer.byteLength(bodyOf(refusal))),
      ...(refusal.status === 405 ? { Allow: 'GET, HEAD, POST, PUT, DELETE' } : {}),
      Connection: 'close',
      ...this.#options.refusalHeaders,
    }
  }

  #record({ status }: Refusal, method = '', cause?: string): void {
    const { logger, refusedRoute: route } = this.#options
    recordAnswer(logger, { method, route, status, cause })
  }
}

/**
 * A request whose body is broken has the answer that it has begun to get, or gets that of whoever
 * reads the body.
 */
function breakOff({ incoming, outgoing }: Exchange, refusal: Refusal): void {
  const { socket } = incoming
  const broken = new BrokenRequest(refusal)
  brokenRequests.set(incoming, broken)
  if (!outgoing.headersSent) announceClose(outgoing)
  if (incoming.listenerCount('error') > 0) incoming.emit('error', broken)
  afterAnswer(outgoing, () => linger(socket))
}

function bodyOf({ error, message }: Refusal): string {
  return JSON.stringify({ error, message })
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
