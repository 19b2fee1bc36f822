/** Where agents are drawn before forces move them, and those whom forces do not move. */
import { scaleToRest } from './forces.ts'
import { GOLDEN, reachOf } from './geometry.ts'
import { at, degreesOf, type Links, pairsOf } from './graph.ts'

/**
 * Where agents begin: each group in a disc of its own, the largest in the middle. As x, y, x, y, …
 */
export function startingPlaces(links: Links, groups: Uint32Array): Float32Array {
  const members: number[][] = []
  groups.forEach((group, agent) => {
    members[group] ??= []
    members[group].push(agent)
  })
  const degree = degreesOf(links)
  const places = new Float32Array(2 * links.agents)
  let before = 0
  members.forEach((its, group) => {
    // Room for so many discs, and for what is between them.
    const distance = group === 0 ? 0 : 1.5 * Math.sqrt(before + its.length / 2)
    const [x, y] = [distance * Math.cos(group * GOLDEN), distance * Math.sin(group * GOLDEN)]
    before += its.length
    its.sort((a, b) => at(degree, b) - at(degree, a) || a - b)
    its.forEach((agent, rank) => {
      const radius = 0.8 * Math.sqrt(rank)
      places[2 * agent] = x + radius * Math.cos(rank * GOLDEN + group)
      places[2 * agent + 1] = y + radius * Math.sin(rank * GOLDEN + group)
    })
  })
  scaleToRest(links, degree, places)
  return places
}

/** Who talks to nobody is put around the others, if it has no place (`NaN`) or `anew`. */
export function placeAround(degree: Float32Array, places: Float32Array, anew = false): void {
  const reach = reachOf(degree, places)
  for (let agent = 0; agent < degree.length; agent++) {
    if (at(degree, agent) > 0 || (!anew && !Number.isNaN(places[2 * agent]))) continue
    const radius = reach * (1.12 + 0.14 * ((agent * 0.618) % 1))
    places[2 * agent] = radius * Math.cos(agent * GOLDEN)
    places[2 * agent + 1] = radius * Math.sin(agent * GOLDEN)
  }
}

/**
 * Gives a place to those who have none (`NaN`) and talk to somebody: among their neighbours. Nobody
 * else moves.
 *
 * @returns of each agent 1 where it was placed
 */
export function placeNew(links: Links, places: Float32Array): Uint8Array {
  const { agents, one, other, weights } = links
  const degree = degreesOf(links)
  const { starts, pairs } = pairsOf(agents, one, other)
  const isNew = Uint8Array.from({ length: agents }, (_, agent) =>
    Number.isNaN(places[2 * agent]) && at(degree, agent) > 0 ? 1 : 0,
  )
  const near = reachOf(degree, places) / 25
  // Newcomers who know only newcomers wait for those; who know nobody but themselves begin in the
  // middle.
  for (let round = 0; round < 4; round++) {
    const isLast = round === 3
    for (let agent = 0; agent < agents; agent++) {
      if (isNew[agent] !== 1 || !Number.isNaN(places[2 * agent])) continue
      let [x, y, sum] = [0, 0, 0]
      for (let place = at(starts, agent); place < at(starts, agent + 1); place++) {
        const pair = at(pairs, place)
        const neighbour = at(one, pair) === agent ? at(other, pair) : at(one, pair)
        if (Number.isNaN(places[2 * neighbour])) continue
        x += at(weights, pair) * at(places, 2 * neighbour)
        y += at(weights, pair) * at(places, 2 * neighbour + 1)
        sum += at(weights, pair)
      }
      if (sum === 0 && !isLast) continue
      places[2 * agent] = x / (sum || 1) + near * Math.cos(agent * GOLDEN)
      places[2 * agent + 1] = y / (sum || 1) + near * Math.sin(agent * GOLDEN)
    }
  }
  return isNew
}

/**
 * One agent in the middle, and the others around it in rings, who talks most to it nearest. The
 * order is that of `ranks`.
 */
export function placeInRings(
  agents: number,
  centre: number,
  ranks: readonly number[],
): Float32Array {
  const places = new Float32Array(2 * agents)
  let [ring, place, room] = [1, 0, 10]
  const others = ranks.filter((agent) => agent !== centre)
  others.forEach((agent, index) => {
    if (place === room) {
      ring += 1
      place = 0
      room = 10 * ring
    }
    const inRing = Math.min(room, others.length - index + place)
    const angle = (2 * Math.PI * place) / inRing - Math.PI / 2 + (ring % 2) * (Math.PI / inRing)
    places[2 * agent] = 100 * ring * Math.cos(angle)
    places[2 * agent + 1] = 100 * ring * Math.sin(angle)
    place += 1
  })
  return places
}
