/** What places and forces both reckon with. */
import { at } from './graph.ts'

/** Golden angle: places in a spiral that fill a disc evenly, however many they are. */
export const GOLDEN = Math.PI * (3 - Math.sqrt(5))

/** How far from the middle agents are who talk to somebody. */
export function reachOf(degree: Float32Array, places: Float32Array): number {
  const distances = [...degree.keys()]
    .filter((agent) => at(degree, agent) > 0 && !Number.isNaN(places[2 * agent]))
    .map((agent) => Math.hypot(at(places, 2 * agent), at(places, 2 * agent + 1)))
    .sort((a, b) => a - b)
  return distances[Math.floor(0.98 * distances.length)] ?? 10 * Math.sqrt(degree.length)
}
