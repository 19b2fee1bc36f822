/**
 * Tells whoever waits that there may be something new to do. Says no more: a ring that is missed is
 * made up for by looking now and then.
 */
export class Doorbell {
  readonly #listeners = new Set<() => void>()

  ring(): void {
    for (const listener of this.#listeners) listener()
  }

  /** Calls `listener` at each ring. Returns how to end that. */
  onRing(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }
}
