/** Times of live streams, in ms. */
export interface StreamTimes {
  /**
   * Between two pings of a WebSocket. A client from which nothing is heard until the next is gone.
   */
  readonly pingMs: number
  /** Between two comments of Server-Sent Events, by which proxies see that the connection lives. */
  readonly commentMs: number
  /** A client that takes nothing for so long, up to twice that, is dropped. */
  readonly writeTimeoutMs: number
  /** So long a stream lasts at most. */
  readonly maxAgeMs: number
  /**
   * A connection that the server has ended is broken off when the client has not closed it after so
   * long.
   */
  readonly closeMs: number
}

export const STREAM_TIMES: StreamTimes = {
  pingMs: 30_000,
  commentMs: 15_000,
  writeTimeoutMs: 10_000,
  maxAgeMs: 24 * 3_600_000,
  closeMs: 5_000,
}
