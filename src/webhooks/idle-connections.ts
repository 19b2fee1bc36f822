import type { HttpConnection } from './http-connection.ts'

/**
 * Open connections that no delivery is using, for the next one to the same origin: it saves the
 * look-up and two round trips. There are at most `capacity`; past that the one idle for longest is
 * closed, so that a million agents with an endpoint each cost no more sockets than this.
 */
export class IdleConnections {
  readonly #capacity: number
  /** In the order in which they fell idle. */
  readonly #all = new Set<HttpConnection>()
  readonly #byOrigin = new Map<string, Set<HttpConnection>>()

  /** @param capacity connections; 0 keeps none */
  constructor(capacity: number) {
    this.#capacity = capacity
  }

  get size(): number {
    return this.#all.size
  }

  /**
   * Takes out a connection to `origin`: the one used last, which is the least likely to be closed
   * by the receiver.
   */
  take(origin: string): HttpConnection | undefined {
    const connection = [...(this.#byOrigin.get(origin) ?? [])].at(-1)
    if (connection !== undefined) this.#remove(connection)
    return connection
  }

  /** Keeps an open connection until it is taken, closes, or has to make room. */
  put(connection: HttpConnection): void {
    this.#all.add(connection)
    const siblings = this.#byOrigin.get(connection.origin) ?? new Set()
    this.#byOrigin.set(connection.origin, siblings.add(connection))
    for (const longestIdle of this.#all) {
      if (this.#all.size <= this.#capacity) break
      this.#remove(longestIdle)
      longestIdle.destroy()
    }
  }

  /** Forgets a connection, if it is here. */
  remove(connection: HttpConnection): void {
    if (this.#all.has(connection)) this.#remove(connection)
  }

  destroyAll(): void {
    for (const connection of this.#all) connection.destroy()
    this.#all.clear()
    this.#byOrigin.clear()
  }

  #remove(connection: HttpConnection): void {
    this.#all.delete(connection)
    const siblings = this.#byOrigin.get(connection.origin)
    siblings?.delete(connection)
    if (siblings?.size === 0) this.#byOrigin.delete(connection.origin)
  }
}
