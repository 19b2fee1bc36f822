/** Groups of agents who talk among themselves, and the colours of these. */
import { at, type Links, pairsOf } from './graph.ts'

const MAX_ROUNDS = 10
const MAX_LEVELS = 6

/** Groups with a colour of their own; agents of others share one. */
export const COLOURS = 10
/** Of an agent whose group is not known yet. */
export const UNKNOWN = 255

/**
 * Of each agent its group, numbered by size, the largest 0. By the Louvain method (V. Blondel and
 * others, 2008): each moves to the group where modularity grows most; then groups are taken as
 * agents, and so on.
 */
export function groupsOf({ agents, one, other, weights }: Links): Uint32Array {
  let groups = Uint32Array.from({ length: agents }, (_, index) => index)
  let graph: Weighted = { count: agents, one, other, weights, own: new Float64Array(agents) }
  for (let level = 0; level < MAX_LEVELS; level++) {
    const { moved, group, count } = regroup(graph)
    if (!moved) break
    groups = groups.map((its) => at(group, its))
    graph = merge(graph, group, count)
  }
  return bySize(groups, graph.count)
}

/** The same, where pairs of different groups weigh less: so groups do not grow into each other. */
export function parted(links: Links, groups: Uint32Array): Links {
  const { one, other, weights } = links
  return {
    ...links,
    weights: weights.map((weight, pair) =>
      groups[at(one, pair)] === groups[at(other, pair)] ? weight : BETWEEN * weight,
    ),
  }
}
const BETWEEN = 0.2

interface Weighted {
  readonly count: number
  readonly one: Uint32Array
  readonly other: Uint32Array
  readonly weights: Float32Array | Float64Array
  /** Weight within each. */
  readonly own: Float64Array
}

function regroup({ count, one, other, weights, own }: Weighted): {
  moved: boolean
  group: Uint32Array
  count: number
} {
  const { starts, pairs } = pairsOf(count, one, other)
  const group = Uint32Array.from({ length: count }, (_, index) => index)
  const degree = Float64Array.from(own, (weight) => 2 * weight)
  for (let pair = 0; pair < one.length; pair++) {
    const weight = at(weights, pair)
    degree[at(one, pair)] = at(degree, at(one, pair)) + weight
    degree[at(other, pair)] = at(degree, at(other, pair)) + weight
  }
  const total = degree.reduce((sum, its) => sum + its, 0) || 1
  const sums = degree.slice()
  const neighbours = new Uint32Array(pairs.length)
  for (let node = 0; node < count; node++) {
    for (let place = at(starts, node); place < at(starts, node + 1); place++) {
      const pair = at(pairs, place)
      neighbours[place] = at(one, pair) === node ? at(other, pair) : at(one, pair)
    }
  }
  const towards = new Float64Array(count)
  const near = new Uint32Array(count)
  let moved = false
  for (let round = 0; round < MAX_ROUNDS; round++) {
    let moves = 0
    for (let node = 0; node < count; node++) {
      const old = at(group, node)
      let many = 1
      near[0] = old
      for (let place = at(starts, node); place < at(starts, node + 1); place++) {
        const its = at(group, at(neighbours, place))
        if (towards[its] === 0 && its !== old) near[many++] = its
        towards[its] = at(towards, its) + at(weights, at(pairs, place))
      }
      const its = at(degree, node)
      sums[old] = at(sums, old) - its
      let best = old
      let most = at(towards, old) - (its * at(sums, old)) / total
      for (let place = 0; place < many; place++) {
        const candidate = at(near, place)
        const gain = at(towards, candidate) - (its * at(sums, candidate)) / total
        if (gain > most + 1e-9) {
          most = gain
          best = candidate
        }
        towards[candidate] = 0
      }
      sums[best] = at(sums, best) + its
      if (best === old) continue
      group[node] = best
      moves += 1
    }
    moved ||= moves > 0
    // The last few would go on for long, and change little.
    if (moves <= count / 100) break
  }
  const numbers = new Map<number, number>()
  for (const its of group) if (!numbers.has(its)) numbers.set(its, numbers.size)
  return { moved, group: group.map((its) => numbers.get(its) ?? 0), count: numbers.size }
}

function merge(
  { one, other, weights, own }: Weighted,
  group: Uint32Array,
  count: number,
): Weighted {
  const within = new Float64Array(count)
  own.forEach((weight, node) => {
    within[at(group, node)] = at(within, at(group, node)) + weight
  })
  const between = new Map<number, number>()
  for (let pair = 0; pair < one.length; pair++) {
    const [a, b] = [at(group, at(one, pair)), at(group, at(other, pair))]
    const name = Math.min(a, b) * count + Math.max(a, b)
    if (a === b) within[a] = at(within, a) + at(weights, pair)
    else between.set(name, (between.get(name) ?? 0) + at(weights, pair))
  }
  const names = Uint32Array.from(between.keys(), (name) => Math.floor(name / count))
  const others = Uint32Array.from(between.keys(), (name) => name % count)
  return {
    count,
    one: names,
    other: others,
    weights: Float64Array.from(between.values()),
    own: within,
  }
}

function bySize(groups: Uint32Array, count: number): Uint32Array {
  const sizes = new Uint32Array(count)
  for (const group of groups) sizes[group] = at(sizes, group) + 1
  const order = [...sizes.keys()].sort((a, b) => at(sizes, b) - at(sizes, a) || a - b)
  const numbers = new Uint32Array(count)
  order.forEach((group, number) => {
    numbers[group] = number
  })
  return groups.map((group) => at(numbers, group))
}

/**
 * Of each agent its colour, below `COLOURS` for one of a large group, else `COLOURS`. A group keeps
 * the colour that most of it had before.
 *
 * @param before colours, or `UNKNOWN`
 */
export function coloursOf(groups: Uint32Array, before: Uint8Array): Uint8Array {
  const had = Array.from({ length: COLOURS }, () => new Uint32Array(COLOURS))
  groups.forEach((group, index) => {
    const votes = had[group]
    const colour = at(before, index)
    if (votes && colour < COLOURS) votes[colour] = at(votes, colour) + 1
  })
  const free = new Set(Array.from({ length: COLOURS }, (_, colour) => colour))
  const chosen = had.map((votes) => {
    const favourite = votes.indexOf(Math.max(1, ...votes))
    if (!free.has(favourite)) return undefined
    free.delete(favourite)
    return favourite
  })
  const rest = [...free]
  const colours = chosen.map((colour) => colour ?? rest.shift() ?? COLOURS)
  return Uint8Array.from(groups, (group) => colours[group] ?? COLOURS)
}

/** The colour that most of an agent's neighbours have, for those who have none. */
export function adoptColours({ agents, one, other, weights }: Links, colours: Uint8Array): void {
  const { starts, pairs } = pairsOf(agents, one, other)
  for (let node = 0; node < agents; node++) {
    if (colours[node] !== UNKNOWN) continue
    const votes = new Float64Array(COLOURS + 1)
    for (let place = at(starts, node); place < at(starts, node + 1); place++) {
      const pair = at(pairs, place)
      const colour = at(colours, at(one, pair) === node ? at(other, pair) : at(one, pair))
      if (colour <= COLOURS) votes[colour] = at(votes, colour) + at(weights, pair)
    }
    const most = Math.max(...votes)
    colours[node] = most === 0 ? COLOURS : votes.indexOf(most)
  }
}
