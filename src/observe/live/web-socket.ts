/** Events over WebSockets: one a text frame, as JSON. */
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { type WebSocket, WebSocketServer } from 'ws'
import { ApiError } from '../../api/api-error.ts'
import type { Upgrade } from '../../platform/http-server.ts'
import { WEB_SOCKET } from './encoding.ts'
import { countEnding, ENDINGS, type Ending, type LiveFeed, type WatchOptions } from './live-feed.ts'
import type { StreamTimes } from './stream-times.ts'

/**
 * Clients have nothing to say; what they do is ignored. One that says more at once is closed with
 * 1009.
 */
const MAX_MESSAGE_BYTES = 1_024
const KEY = /^[+/0-9a-z]{22}==$/i
const VERSION = '13'

/**
 * Whether a request is a whole handshake (RFC 6455, section 4.2.1). One that is not gets the answer
 * of any other request.
 */
export function isHandshake({ method, httpVersion, headers }: IncomingMessage): boolean {
  const hasBody =
    headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
  return (
    method === 'GET' &&
    httpVersion === '1.1' &&
    !hasBody &&
    headers.upgrade?.toLowerCase() === 'websocket' &&
    KEY.test(headers['sec-websocket-key'] ?? '') &&
    headers['sec-websocket-version'] === VERSION
  )
}

export class WebSockets {
  readonly #feed: LiveFeed
  readonly #times: StreamTimes
  readonly #server: WebSocketServer

  constructor(feed: LiveFeed, times: StreamTimes) {
    this.#feed = feed
    this.#times = times
    const options = {
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      maxPayload: MAX_MESSAGE_BYTES,
      // How long a client that is told that its connection is closed has to agree; then it is
      // broken off.
      closeTimeout: times.closeMs,
    }
    this.#server = new WebSocketServer(options)
    // With a listener the library leaves the answer to us.
    this.#server.on('wsClientError', () => {})
  }

  /**
   * Takes over the connection of a request that `isHandshake` and streams events to it. Throws
   * `TooManyWatchers`, `Unavailable`, and `bad_request`; the request is to be answered then.
   */
  async open(incoming: IncomingMessage, upgrade: Upgrade, asked: WatchOptions): Promise<void> {
    const watcher = await this.#feed.join(asked)
    const { socket } = upgrade
    // The client may have gone meanwhile.
    if (!socket.readable || !socket.writable) {
      watcher.leave()
      socket.destroy()
      return
    }
    const webSocket = this.#shakeHands(incoming, upgrade)
    if (!webSocket) {
      watcher.leave()
      throw new ApiError('bad_request', 'the Sec-WebSocket-Protocol header is malformed')
    }
    upgrade.take()
    // What the client sent was no WebSocket, or too much; the library closes the connection.
    webSocket.on('error', () => {})
    const end = (ending: Ending) => {
      if (webSocket.readyState !== webSocket.OPEN) return
      countEnding(ending)
      webSocket.close(ending.code, ending.reason)
    }
    const { pingMs, writeTimeoutMs, maxAgeMs } = this.#times
    let isHeard = true
    const heard = () => {
      isHeard = true
    }
    webSocket.on('pong', heard)
    const ping = setInterval(() => {
      // A ping that waits behind a write says nothing of the client; how long the write may take is
      // looked at anyway.
      if (webSocket.readyState !== webSocket.OPEN || socket.writableLength > 0) return
      if (!isHeard) return webSocket.terminate()
      isHeard = false
      webSocket.ping()
    }, pingMs)
    const age = setTimeout(end, maxAgeMs, ENDINGS.old)
    socket.on('timeout', () => end(ENDINGS.slow))
    socket.once('close', () => {
      clearInterval(ping)
      clearTimeout(age)
      watcher.leave()
    })
    watcher.start({
      encoding: WEB_SOCKET,
      end,
      write: (pieces, taken) => {
        // Nothing may follow a close frame, whoever sent it.
        if (webSocket.readyState !== webSocket.OPEN) return
        const isTaken = writeAll(socket, pieces, () => {
          if (!isTaken) {
            socket.setTimeout(0)
            heard()
          }
          taken()
        })
        // The system's buffers are full: that they have room again is a sign of life. Until then
        // Node tells when it has taken nothing for so long, up to twice that; a large event may
        // take longer in all.
        if (!isTaken) socket.setTimeout(writeTimeoutMs)
      },
    })
  }

  #shakeHands(incoming: IncomingMessage, { socket, head }: Upgrade): WebSocket | undefined {
    let opened: WebSocket | undefined
    this.#server.handleUpgrade(incoming, socket, head, (webSocket) => {
      opened = webSocket
    })
    return opened
  }
}

/**
 * Returns whether the system has taken all of it at once, and calls `taken` when it has, later;
 * never when the connection is lost.
 */
function writeAll(socket: Socket, pieces: readonly Buffer[], taken: () => void): boolean {
  socket.cork()
  for (const [index, piece] of pieces.entries()) {
    const isLast = index === pieces.length - 1
    socket.write(piece, isLast ? (error) => error || taken() : undefined)
  }
  socket.uncork()
  return socket.writableLength === 0
}
