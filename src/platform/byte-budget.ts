/**
 * How many bytes requests under way, or answers, may hold in this process.
 *
 * A holder may have as much as is left for everybody else then: half of all when alone, a third
 * each when there are two, and so on. However many hold all that they may, there is room for those
 * who ask for little.
 */
import { Counter, Gauge } from 'prom-client'

/**
 * The process holds as much as it may. Nothing of the request took effect; it may be tried again at
 * once.
 */
export class Overloaded extends Error {
  override name = 'Overloaded'
}

export interface ByteBudgetOptions {
  /** Of what, for the metrics. */
  readonly name: 'requests' | 'answers'
  /** Bytes at most. */
  readonly limit: number
}

/** The latest of each name. */
const budgets = new Map<string, ByteBudget>()

new Gauge({
  name: 'tabulum_bytes_held',
  help: 'Bytes that requests under way, or answers that clients have yet to read, hold in memory, by which.',
  labelNames: ['of'] as const,
  // Read when it is asked for: it changes several times in each request.
  collect() {
    for (const [of, { held }] of budgets) this.set({ of }, held)
  },
})
const limits = new Gauge({
  name: 'tabulum_bytes_held_limit',
  help: 'What tabulum_bytes_held may be at most.',
  labelNames: ['of'] as const,
})
const refusals = new Counter({
  name: 'tabulum_overloads_total',
  help: 'Requests refused because too many bytes were held, by all or by their agent.',
  labelNames: ['of'] as const,
})

export class ByteBudget {
  readonly #options: ByteBudgetOptions
  #held = 0
  /** Those that hold something now, so at most as many as there are requests. */
  readonly #byHolder = new Map<string, number>()

  constructor(options: ByteBudgetOptions) {
    this.#options = options
    budgets.set(options.name, this)
    limits.set({ of: options.name }, options.limit)
  }

  /** Bytes held now. */
  get held(): number {
    return this.#held
  }

  /** A hold of nothing yet. It must be released in the end. */
  open(holder: string): Hold {
    return new Hold((bytes) => this.#take(holder, bytes), this.#options.name)
  }

  #take(holder: string, bytes: number): boolean {
    if (bytes === 0) return true
    const { limit } = this.#options
    const own = (this.#byHolder.get(holder) ?? 0) + bytes
    const all = this.#held + bytes
    if (bytes > 0 && own > limit - all) return false
    this.#held = all
    if (own > 0) this.#byHolder.set(holder, own)
    else this.#byHolder.delete(holder)
    return true
  }
}

/** What one request holds. */
export class Hold implements Disposable {
  readonly #take: (bytes: number) => boolean
  readonly #of: string
  #bytes = 0
  #isReleased = false

  constructor(take: (bytes: number) => boolean, of: string) {
    this.#take = take
    this.#of = of
  }

  get bytes(): number {
    return this.#bytes
  }

  /**
   * Holds so many bytes, more or fewer than before. Returns whether it may; if not it holds what it
   * did.
   */
  tryResize(bytes: number): boolean {
    if (this.#isReleased || !this.#take(bytes - this.#bytes)) return false
    this.#bytes = bytes
    return true
  }

  /** Holds so many bytes, more or fewer than before. Throws `Overloaded` where it may not. */
  resize(bytes: number): void {
    if (this.tryResize(bytes)) return
    refusals.inc({ of: this.#of })
    throw new Overloaded(`too many bytes of ${this.#of} are held`)
  }

  /** Holds nothing any more, and never again. May be called twice. */
  release(): void {
    this.tryResize(0)
    this.#isReleased = true
  }

  [Symbol.dispose](): void {
    this.release()
  }
}
