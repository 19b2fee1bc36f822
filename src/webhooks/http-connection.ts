/**
 * One HTTP/1.1 connection to a receiver, over a socket that is open and checked already.
 *
 * Node's client speaks the protocol. Its agent is given the socket once and can open no other, so
 * nothing is sent but over the connection that was checked. (undici's, which is quicker, takes no
 * `100 Continue` that it has not asked for.)
 */

import { Agent, type ClientRequest, type IncomingMessage, request as startRequest } from 'node:http'
import type { TLSSocket } from 'node:tls'
import { DeliveryFailure } from './delivery-outcome.ts'
import { errorCode } from './error-code.ts'

export interface HttpPost {
  /** Path and query, percent-encoded, starting with `/`. */
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string | Uint8Array
}

/** The part of an answer that matters. */
export interface HttpAnswer {
  readonly status: number
  /** As the receiver wrote it. */
  readonly retryAfter: string | undefined
}

export interface HttpConnectionOptions {
  /** The most that is read of one answer, interim answers, headers and body together, in bytes. */
  readonly maxAnswerBytes: number
  /** How long an idle connection is kept, in ms; a receiver may ask for less with `Keep-Alive`. */
  readonly idleTimeoutMs: number
}

/**
 * The connection was closed while idle and nothing of the request was sent: it can go over another
 * at no risk.
 */
export class ConnectionGone extends Error {
  override readonly name = 'ConnectionGone'
}

/**
 * Size of the status line and headers of an answer, in bytes: what Node's client takes by default.
 */
const MAX_HEADER_BYTES = 16_384

/**
 * Interim answers (1xx) to one request. An honest receiver sends one or two, or one every few
 * seconds (RFC 2518 section 10.1 says 20) while it works.
 */
const MAX_INTERIM_ANSWERS = 100

/**
 * Once an answer's status is in, the delivery is decided; how long its body may still take, in ms.
 * After that it is the connection that is given up, and no longer the caller's time.
 */
const MAX_BODY_MS = 1_000

export class HttpConnection {
  /** Scheme, host and port; connections of the same origin are interchangeable. */
  readonly origin: string
  readonly #host: string
  readonly #socket: TLSSocket
  readonly #agent: OneSocketAgent
  readonly #openedAt = performance.now()
  readonly #maxAnswerBytes: number
  #exchange: Exchange | undefined

  constructor(
    origin: string,
    socket: TLSSocket,
    { maxAnswerBytes, idleTimeoutMs }: HttpConnectionOptions,
  ) {
    this.origin = origin
    this.#host = new URL(origin).host
    this.#socket = socket
    this.#maxAnswerBytes = maxAnswerBytes
    this.#agent = new OneSocketAgent(socket, idleTimeoutMs, () => this.#exchange?.complete())
    // Before Node's own listener, and on the count of the socket, so that no part of the protocol
    // (interim answers, chunk extensions, trailers, blank lines) is a way to be read without end.
    socket.on('data', () => this.#checkBytes())
  }

  get ageMs(): number {
    return performance.now() - this.#openedAt
  }

  /** Whether another request may be tried on this connection. */
  get isOpen(): boolean {
    return !this.#socket.destroyed
  }

  /** Calls back once, when the connection has closed, whoever closed it. */
  onClose(closed: () => void): void {
    this.#socket.once('close', closed)
  }

  /** Ends the connection at once, and with it the request on its way, if there is one. */
  destroy(): void {
    this.#socket.destroy()
  }

  /**
   * POSTs, one request at a time, and returns the answer once its body has been read and thrown
   * away, or given up on. Afterwards the connection is open only if it is fit for another request.
   *
   * @throws ConnectionGone if nothing was sent; DeliveryFailure with the stage `send`, `answer` or,
   *   when `signal` aborted, `timeout`; Node's TypeError for a header or path that HTTP does not
   *   allow
   */
  async post({ path, headers, body }: HttpPost, signal: AbortSignal): Promise<HttpAnswer> {
    if (this.#socket.destroyed) throw new ConnectionGone()
    const exchange = new Exchange(this.#socket)
    this.#exchange = exchange
    const abort = () => exchange.end(new DeliveryFailure('timeout', 'no answer in time'))
    signal.addEventListener('abort', abort, { once: true })
    let isFit = false
    try {
      if (signal.aborted) abort()
      else {
        const request = startRequest({
          agent: this.#agent,
          method: 'POST',
          path,
          headers: { ...headers, host: this.#host },
          maxHeaderSize: MAX_HEADER_BYTES,
        })
        exchange.follow(request)
        request.end(body)
      }
      const answer = await exchange.answer
      isFit = exchange.isComplete
      return answer
    } finally {
      signal.removeEventListener('abort', abort)
      exchange.stopClock()
      this.#exchange = undefined
      // Nor after a failure, though an answer may have been read to its end behind it.
      if (!isFit) this.destroy()
    }
  }

  #checkBytes(): void {
    // What nobody has asked for must not be taken for the answer to the next request.
    if (this.#exchange === undefined) this.destroy()
    else if (this.#exchange.bytesRead > this.#maxAnswerBytes) {
      this.#socket.destroy(new DeliveryFailure('answer', `more than ${this.#maxAnswerBytes} bytes`))
    }
  }
}

/** Hands out its socket, once; between requests the socket is kept as long as it may be idle. */
class OneSocketAgent extends Agent {
  readonly #socket: TLSSocket
  readonly #onIdle: () => void
  #isUsed = false

  constructor(socket: TLSSocket, idleTimeoutMs: number, onIdle: () => void) {
    super({ keepAlive: true, maxSockets: 1, maxFreeSockets: 1, timeout: idleTimeoutMs })
    this.#socket = socket
    this.#onIdle = onIdle
  }

  override createConnection(
    _options: unknown,
    created: Parameters<Agent['createConnection']>[1],
  ): TLSSocket | undefined {
    if (!this.#isUsed && !this.#socket.destroyed) {
      this.#isUsed = true
      return this.#socket
    }
    created?.(new ConnectionGone(), this.#socket)
    return undefined
  }

  /**
   * Called when an answer has been read to its end, and left the connection fit for another
   * request.
   */
  override keepSocketAlive(socket: TLSSocket): boolean {
    const isKept = super.keepSocketAlive(socket) as unknown as boolean
    if (isKept) this.#onIdle()
    return isKept
  }
}

/** One request and its answer. Whatever happens first decides; a status decides for good. */
class Exchange {
  /**
   * Whether the answer was read to its end, which leaves the connection ready for the next request.
   */
  isComplete = false
  readonly #socket: TLSSocket
  readonly #bytesReadBefore: number
  readonly #bytesWrittenBefore: number
  readonly #answer = Promise.withResolvers<HttpAnswer>()
  #final: HttpAnswer | undefined
  #interimAnswers = 0
  #bodyTimer: NodeJS.Timeout | undefined

  constructor(socket: TLSSocket) {
    this.#socket = socket
    this.#bytesReadBefore = socket.bytesRead
    this.#bytesWrittenBefore = socket.bytesWritten
  }

  /** Settles as `HttpConnection.post` does. */
  get answer(): Promise<HttpAnswer> {
    return this.#answer.promise
  }

  /** What has come back so far. */
  get bytesRead(): number {
    return this.#socket.bytesRead - this.#bytesReadBefore
  }

  follow(request: ClientRequest): void {
    // Any of them may come, asked for or not, and means nothing here (RFC 9110 section 15.2).
    const onInterim = () => {
      this.#interimAnswers++
      if (this.#interimAnswers <= MAX_INTERIM_ANSWERS) return
      this.end(new DeliveryFailure('answer', `more than ${MAX_INTERIM_ANSWERS} interim answers`))
    }
    request.on('information', onInterim)
    request.on('upgrade', (_response, socket) => {
      socket.destroy()
      this.#refuseSwitch()
    })
    request.on('response', (response) => this.#onResponse(response))
    request.on('error', (error) => this.end(this.#failureFrom(error)))
    request.on('close', () =>
      this.end(new DeliveryFailure(this.#stage, 'closed by the other side')),
    )
  }

  #refuseSwitch(): void {
    this.end(new DeliveryFailure('answer', 'switched to another protocol unasked'))
  }

  #onResponse(response: IncomingMessage): void {
    const status = response.statusCode ?? 0
    if (status < 200) {
      this.#refuseSwitch()
      return
    }
    const final = { status, retryAfter: response.headers['retry-after'] }
    this.#final = final
    this.#bodyTimer = setTimeout(() => this.#answer.resolve(final), MAX_BODY_MS)
    // Nothing in it is of use; it is read so that the connection can be used again. What breaks it
    // off changes nothing.
    response.on('error', () => {}).resume()
  }

  /** The answer was read to its end. */
  complete(): void {
    this.isComplete = this.#final !== undefined
    this.end(new DeliveryFailure('answer', 'no status'))
  }

  /** Ends the exchange where it is: with its answer if that is known, else with `failure`. */
  end(failure: Error): void {
    this.stopClock()
    if (this.#final === undefined) this.#answer.reject(failure)
    else this.#answer.resolve(this.#final)
  }

  stopClock(): void {
    clearTimeout(this.#bodyTimer)
  }

  get #stage(): 'answer' | 'send' {
    return this.bytesRead > 0 ? 'answer' : 'send'
  }

  #failureFrom(error: Error): Error {
    if (error instanceof DeliveryFailure) return error
    if (this.#socket.bytesWritten === this.#bytesWrittenBefore) return new ConnectionGone()
    const code = errorCode(error)
    if (code === 'HPE_HEADER_OVERFLOW')
      return new DeliveryFailure('answer', `headers over ${MAX_HEADER_BYTES} bytes`)
    if (code.startsWith('HPE_')) return new DeliveryFailure('answer', 'not HTTP/1.1')
    // Node's own error for a connection that the other side ended in good order, too early, has the
    // code of a reset.
    const isHangUp = code === 'ECONNRESET' && !('syscall' in error)
    return new DeliveryFailure(this.#stage, isHangUp ? 'closed by the other side' : code)
  }
}
