/**
 * One HTTP/1.1 connection to a receiver, over a socket that is open and checked already.
 *
 * undici's `Client` speaks the protocol. It is given the socket once and can open no other, so whatever undici does
 * about reconnecting, nothing is sent but over the connection that was checked.
 */

import type { TLSSocket } from 'node:tls'
import { Client, type Dispatcher, errors } from 'undici'
import { DeliveryFailure } from './delivery-outcome.ts'
import { errorCode } from './error-code.ts'

export interface HttpPost {
  /** Path and query, percent-encoded, starting with `/`. */
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string | Uint8Array
}

export interface HttpConnectionOptions {
  /** The most that is read of one answer, interim answers, headers and body together, in bytes. */
  readonly maxAnswerBytes: number
  /** How long an idle connection is kept, in ms; a receiver may ask for less with `Keep-Alive`. */
  readonly idleTimeoutMs: number
}

/** The connection was closed while idle and nothing of the request was sent: it can go over another at no risk. */
export class ConnectionGone extends Error {
  override readonly name = 'ConnectionGone'
}

/** Size of the status line and headers of an answer, in bytes: what Node's own client takes. */
const MAX_HEADER_BYTES = 16_384

/**
 * Once an answer's status is in, the delivery is decided; how long its body may still take, in ms. After that it is the
 * connection that is given up, and no longer the caller's time.
 */
const MAX_BODY_MS = 1_000

export class HttpConnection {
  /** Scheme, host and port; connections of the same origin are interchangeable. */
  readonly origin: string
  readonly #socket: TLSSocket
  readonly #client: Client
  readonly #openedAt = performance.now()
  /** `socket.bytesRead` when the request on its way was sent. */
  #bytesReadBefore = 0

  constructor(origin: string, socket: TLSSocket, { maxAnswerBytes, idleTimeoutMs }: HttpConnectionOptions) {
    this.origin = origin
    this.#socket = socket
    let isUsed = false
    this.#client = new Client(origin, {
      connect: (_options, connected) => {
        // Later, because undici overlooks a request that it is told about from inside its own call.
        queueMicrotask(() => {
          if (isUsed || socket.destroyed) return connected(new ConnectionGone(), null)
          isUsed = true
          connected(null, socket)
          // Before undici's own listener, and on the count of the socket, so that no part of the protocol (interim
          // answers, chunk extensions, trailers, blank lines) is a way to be read without end.
          socket.prependListener('readable', () => {
            if (socket.bytesRead - this.#bytesReadBefore > maxAnswerBytes) {
              socket.destroy(new DeliveryFailure('answer', `more than ${maxAnswerBytes} bytes`))
            }
          })
        })
      },
      pipelining: 1,
      maxHeaderSize: MAX_HEADER_BYTES,
      // While a request is on its way, the caller's signal is the only clock.
      headersTimeout: 0,
      bodyTimeout: 0,
      keepAliveTimeout: idleTimeoutMs,
      keepAliveMaxTimeout: idleTimeoutMs,
    })
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
    // Never rejects; resolves when the socket has closed, which nobody waits for.
    void this.#client.destroy()
    this.#socket.destroy()
  }

  /**
   * POSTs, one request at a time, and returns the status of the answer once its body has been read and thrown away, or
   * given up on. Afterwards the connection is open only if it is fit for another request.
   *
   * @throws ConnectionGone if nothing was sent; DeliveryFailure with the stage `send`, `answer` or, when `signal` aborted,
   *   `timeout`; undici's InvalidArgumentError for a header or path that HTTP does not allow
   */
  async post({ path, headers, body }: HttpPost, signal: AbortSignal): Promise<number> {
    const bytesReadBefore = this.#socket.bytesRead
    this.#bytesReadBefore = bytesReadBefore
    const exchange = new Exchange(() => this.#socket.bytesRead > bytesReadBefore)
    const abort = () => exchange.end(new DeliveryFailure('timeout', 'no answer in time'))
    signal.addEventListener('abort', abort, { once: true })
    try {
      if (signal.aborted) abort()
      else this.#client.dispatch({ path, method: 'POST', headers, body }, exchange)
      return await exchange.status
    } finally {
      signal.removeEventListener('abort', abort)
      exchange.stopClock()
      if (!exchange.isComplete) this.destroy()
    }
  }
}

/** One request and its answer, as undici tells it. Whatever happens first decides; a status decides for good. */
class Exchange implements Dispatcher.DispatchHandler {
  /** Whether the answer was read to its end, which leaves the connection ready for the next request. */
  isComplete = false
  readonly #status = Promise.withResolvers<number>()
  readonly #hasAnswerBegun: () => boolean
  #finalStatus: number | undefined
  #isSent = false
  #bodyTimer: NodeJS.Timeout | undefined

  constructor(hasAnswerBegun: () => boolean) {
    this.#hasAnswerBegun = hasAnswerBegun
  }

  /** Settles as `HttpConnection.post` does. */
  get status(): Promise<number> {
    return this.#status.promise
  }

  /** Ends the exchange where it is: with its status if that is known, else with `failure`. */
  end(failure: Error): void {
    this.stopClock()
    if (this.#finalStatus === undefined) this.#status.reject(failure)
    else this.#status.resolve(this.#finalStatus)
  }

  stopClock(): void {
    clearTimeout(this.#bodyTimer)
  }

  onRequestStart(): void {
    this.#isSent = true
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number): void {
    // Interim answers (1xx, RFC 9110 section 15.2) come this way too, and count for nothing but their bytes.
    if (status < 200) return
    this.#finalStatus = status
    this.#bodyTimer = setTimeout(() => this.#status.resolve(status), MAX_BODY_MS)
  }

  onResponseData(): void {
    // Nothing in it is of use; it is read so that the connection can be used again.
  }

  onResponseEnd(): void {
    this.isComplete = true
    this.stopClock()
    // No error is made for the usual case: its stack would be a sixteenth of what a delivery costs.
    if (this.#finalStatus === undefined) this.#status.reject(new DeliveryFailure('answer', 'no status'))
    else this.#status.resolve(this.#finalStatus)
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    if (this.#isSent) this.end(failureFrom(error, this.#hasAnswerBegun()))
    // A request that undici will not take is a defect of ours, and no other connection will take it either.
    else this.end(errorCode(error) === 'UND_ERR_INVALID_ARG' ? error : new ConnectionGone())
  }
}

function failureFrom(error: Error, hasAnswerBegun: boolean): DeliveryFailure {
  if (error instanceof DeliveryFailure) return error
  const code = errorCode(error)
  if (code === 'UND_ERR_HEADERS_OVERFLOW')
    return new DeliveryFailure('answer', `headers over ${MAX_HEADER_BYTES} bytes`)
  if (error instanceof errors.HTTPParserError) return new DeliveryFailure('answer', 'not HTTP/1.1')
  // UND_ERR_SOCKET is undici's code for a connection that the other side ended in good order, too early.
  const reason = code === 'UND_ERR_SOCKET' ? 'closed by the other side' : code
  return new DeliveryFailure(hasAnswerBegun ? 'answer' : 'send', reason)
}
