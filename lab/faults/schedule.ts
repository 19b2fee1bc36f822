/**
 * What is broken, when and for how long: from a seed alone, so that a run's choices can be made
 * again (but not its timing).
 */

export interface PlannedFault {
  /** Name of a fault in `faults.ts`. */
  readonly name: string
  /** Which of several is hit: from 0 to below 1. */
  readonly victim: number
  /** From its beginning to its repair, in ms. */
  readonly durationMs: number
  /** From its repair to the next one's beginning, in ms. */
  readonly calmMs: number
}

/** Long enough that service must be back, and that it is seen to stay so. */
const CALM_MS = [6_000, 9_000] as const

/**
 * As many faults as fit into a time, each name as often as any other, in an order that the seed
 * decides.
 *
 * @param random from 0 to below 1
 * @param names with the shortest and longest time that each lasts, in ms
 * @param calm the shortest and longest time after a repair, in ms
 */
export function planFaults(
  random: () => number,
  names: readonly { readonly name: string; readonly lastsMs: readonly [number, number] }[],
  forMs: number,
  calm: readonly [number, number] = CALM_MS,
): PlannedFault[] {
  const planned: PlannedFault[] = []
  if (names.length === 0) return planned
  for (let total = 0; ; ) {
    for (const { name, lastsMs } of shuffled(random, names)) {
      const durationMs = between(random, lastsMs)
      const calmMs = between(random, calm)
      total += durationMs + calmMs
      if (total > forMs && planned.length > 0) return planned
      planned.push({ name, victim: random(), durationMs, calmMs })
    }
  }
}

function between(random: () => number, [shortest, longest]: readonly [number, number]): number {
  return Math.round(shortest + random() * (longest - shortest))
}

/** Fisher and Yates, in Durstenfeld's version (1964). */
function shuffled<T>(random: () => number, items: readonly T[]): T[] {
  const result = items.slice()
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1))
    ;[result[last], result[other]] = [result[other] as T, result[last] as T]
  }
  return result
}
