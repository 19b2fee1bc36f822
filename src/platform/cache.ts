/** Bounds for `LRUCache`. */

/**
 * Entries at most, for `new LRUCache`. The library's own `max` makes room for all of them when it
 * starts, which takes a start-up of 500,000 a tenth of a second and megabytes; this grows as it is
 * filled.
 */
export function atMost(entries: number): { maxSize: number; sizeCalculation: () => number } {
  return { maxSize: entries, sizeCalculation: () => 1 }
}
