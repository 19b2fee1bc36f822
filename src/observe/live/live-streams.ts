/** What answers `GET /observe/events/stream`: a WebSocket, or Server-Sent Events. */
import type { IncomingMessage } from 'node:http'
import type { HttpBindings } from '@hono/node-server'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import { ApiError } from '../../api/api-error.ts'
import { type Query, rawPath } from '../../api/request.ts'
import { upgradeOf } from '../../platform/http-server.ts'
import { parseSeq, readEventFilter, readSeq } from '../query.ts'
import { LiveFeed, type LiveFeedOptions } from './live-feed.ts'
import { openEventStream, SSE_HEADERS } from './server-sent-events.ts'
import { STREAM_TIMES, type StreamTimes } from './stream-times.ts'
import { isHandshake, WebSockets } from './web-socket.ts'

export const STREAM_PATH = '/observe/events/stream'

/** Whether the connection of a request is to be handed over: for `upgrades` of the HTTP server. */
export function asksForWebSocket(incoming: IncomingMessage): boolean {
  return rawPath({ incoming }) === STREAM_PATH && isHandshake(incoming)
}

export interface LiveStreamsOptions extends LiveFeedOptions {
  readonly times?: Partial<StreamTimes>
}

export class LiveStreams {
  readonly #feed: LiveFeed
  readonly #times: StreamTimes
  readonly #webSockets: WebSockets

  constructor({ times, ...options }: LiveStreamsOptions) {
    this.#feed = new LiveFeed(options)
    this.#times = { ...STREAM_TIMES, ...times }
    this.#webSockets = new WebSockets(this.#feed, this.#times)
  }

  /** Streams open now. */
  get size(): number {
    return this.#feed.size
  }

  /**
   * Answers a request for the stream; resolves when the stream has begun. Throws `bad_request`,
   * `TooManyWatchers` (503, with `Retry-After`) and `Unavailable`; the request is to be answered
   * then, one for a WebSocket as any other.
   */
  async answer({ incoming, outgoing }: HttpBindings, query: Query): Promise<Response> {
    const filter = readEventFilter(query)
    const since = readSeq(query, 'since')
    const upgrade = upgradeOf(incoming)
    if (upgrade) {
      await this.#webSockets.open(incoming, upgrade, { filter, since })
      return RESPONSE_ALREADY_SENT
    }
    if (!incoming.headers.accept?.toLowerCase().includes('text/event-stream')) {
      throw new ApiError(
        'bad_request',
        'open a WebSocket (version 13) here, or ask for Server-Sent Events: Accept: text/event-stream',
      )
    }
    const last = parseSeq(incoming.headers['last-event-id']?.toString(), 'the header Last-Event-ID')
    if (incoming.method === 'HEAD') return new Response(null, { headers: SSE_HEADERS })
    if (!('assignSocket' in outgoing)) throw new Error('streams are served over HTTP/1.1')
    await openEventStream(this.#feed, outgoing, { filter, since: last ?? since }, this.#times)
    return RESPONSE_ALREADY_SENT
  }

  /**
   * Ends all streams and resolves when their connections are closed, some seconds later at most. To
   * be called before the server's `close`.
   */
  close(): Promise<void> {
    return this.#feed.close()
  }
}
