/** Lets so many pass at a time, in the order in which they came. */
export class Turnstile {
  #free: number
  /** Bounded by the requests under way. */
  readonly #waiting: (() => void)[] = []

  /** @param limit how many may be inside at once */
  constructor(limit: number) {
    this.#free = limit
  }

  /** Runs it as soon as fewer than that are inside. Returns and throws what it does. */
  async pass<T>(run: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      return await run()
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#free++
      else next()
    }
  }
}
