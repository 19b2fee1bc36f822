/** An HTTP server that starts listening or says why not, and stops without dropping a request. */
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { getRequestListener, type HttpBindings } from '@hono/node-server'
import { inBackground } from './background.ts'

/** The port cannot be listened on. */
export class CannotListen extends Error {
  override name = 'CannotListen'
}

export interface HttpServerOptions {
  fetch: (request: Request, bindings: HttpBindings) => Response | Promise<Response>
  /** What to answer a request that is no valid HTTP for the application, and one that failed before it reached it. */
  onError: (error: unknown) => Response
  host: string
  port: number
}

export interface HttpServer {
  readonly port: number
  /** Takes no new connections, lets requests under way finish, and resolves when all connections are closed. */
  close(): Promise<void>
}

/** A client has so long for its request; one that dribbles it holds a connection no longer. */
const REQUEST_TIMEOUT_MS = 30_000
const HEADERS_TIMEOUT_MS = 10_000
/** Longer than a load balancer keeps an idle connection, so that it is never the server that closes one being reused. */
const KEEP_ALIVE_TIMEOUT_MS = 75_000
const MAX_HEADER_BYTES = 16_384
const CLOSE_POLL_MS = 50

export async function startHttpServer({ fetch, onError, host, port }: HttpServerOptions): Promise<HttpServer> {
  let closing = false
  const listener = getRequestListener((request, bindings) => fetch(request, bindings as HttpBindings), {
    errorHandler: onError,
    overrideGlobalObjects: true,
    // What a refused request still sends is thrown away by Node, within REQUEST_TIMEOUT_MS. The library's own way breaks the connection
    // after 500 ms, which on a busy machine hits the client's next request.
    autoCleanupIncoming: false,
  })
  const server = createServer(
    {
      requestTimeout: REQUEST_TIMEOUT_MS,
      headersTimeout: HEADERS_TIMEOUT_MS,
      keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
      maxHeaderSize: MAX_HEADER_BYTES,
      connectionsCheckingInterval: 5_000,
    },
    (incoming, outgoing) => {
      if (closing) announceClose(outgoing)
      // A backslash is not allowed in a URL, and URL parsers take it for a slash; here it is what its escape is.
      incoming.url = incoming.url?.replaceAll('\\', '%5C')
      inBackground('answer_request', Promise.resolve(listener(incoming, outgoing)))
    },
  )
  await listen(server, host, port)
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      closing = true
      const closed = new Promise((resolve) => server.close(resolve))
      const sweep = setInterval(() => server.closeIdleConnections(), CLOSE_POLL_MS)
      await closed
      clearInterval(sweep)
    },
  }
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
