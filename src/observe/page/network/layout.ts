/**
 * Where agents are drawn: groups of those who talk among themselves, and forces by which who talks
 * much comes near.
 */
import { at, type Links, pairsOf } from './graph.ts'

/** Golden angle: places in a spiral that fill a disc evenly, however many they are. */
const GOLDEN = Math.PI * (3 - Math.sqrt(5))
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

export function degreesOf({ agents, one, other }: Links): Float32Array {
  const degree = new Float32Array(agents)
  for (const ends of [one, other]) for (const end of ends) degree[end] = at(degree, end) + 1
  return degree
}

/** Repulsion of two agents is this, by their masses and through their distance. */
const REPULSION = 60
/**
 * Attraction grows by this power of the distance: at 1 groups are lumps, at 2 they can hardly be
 * told apart.
 */
const PULL = 1.5
/**
 * Who is pushed away by all the others, and talks to few, comes to rest at so many times their
 * reach.
 */
const REST = 1.2
/** Cells whose width is less than this part of their distance act as one. */
const NEAR_2 = 1.3 ** 2

/**
 * Stretches or shrinks a drawing to where its attraction and repulsion are in balance: of w·d^p for
 * each pair who talk, and k·m·m/d for each two, so s^(p+1) = k·Σmm / Σwd^(p+1).
 */
function scaleToRest(
  { one, other, weights }: Links,
  degree: Float32Array,
  places: Float32Array,
): void {
  let pull = 0
  for (let pair = 0; pair < one.length; pair++) {
    const [a, b] = [2 * at(one, pair), 2 * at(other, pair)]
    const distance = Math.hypot(
      at(places, a) - at(places, b),
      at(places, a + 1) - at(places, b + 1),
    )
    pull += at(weights, pair) * distance ** (PULL + 1)
  }
  const [sum, squares] = degree.reduce(
    ([m, m2], its) => (its > 0 ? [m + its + 1, m2 + (its + 1) ** 2] : [m, m2]),
    [0, 0],
  )
  const scale = pull > 0 ? ((REPULSION * (sum ** 2 - squares)) / 2 / pull) ** (1 / (PULL + 1)) : 10
  places.forEach((place, index) => {
    places[index] = place * scale
  })
}

/**
 * Moves agents by forces. ForceAtlas2 (M. Jacomy and others, 2014): pairs attract by distance, all
 * repel by degree, and each moves the faster the steadier its direction; repulsion by a quadtree
 * (J. Barnes and P. Hut, 1986).
 */
export class Forces {
  readonly #links: Links
  readonly #places: Float32Array
  readonly #mass: Float32Array
  readonly #moving: number[]
  readonly #everybody: number[]
  readonly #force: Float32Array
  readonly #last: Float32Array
  readonly #tree: Tree
  readonly #gravity: number
  #speed = 1

  /**
   * @param places are changed
   * @param isMoving of each agent whether it moves; all who talk to somebody, unless given
   */
  constructor(links: Links, places: Float32Array, isMoving?: Uint8Array) {
    this.#links = links
    this.#places = places
    const degree = degreesOf(links)
    this.#mass = degree.map((its) => its + 1)
    const total = degree.reduce((sum, its) => (its > 0 ? sum + its + 1 : sum), 0)
    // At distance d the others push with k·m·M/d, and gravity pulls with g·m·d.
    this.#gravity = (REPULSION * total) / (REST * Math.max(1, reachOf(degree, places))) ** 2
    this.#everybody = [...degree.keys()].filter((agent) => at(degree, agent) > 0)
    this.#moving = isMoving
      ? this.#everybody.filter((agent) => isMoving[agent] === 1)
      : this.#everybody
    this.#force = new Float32Array(places.length)
    this.#last = new Float32Array(places.length)
    this.#tree = new Tree(this.#everybody.length)
  }

  step(): void {
    const { one, other, weights } = this.#links
    const [places, force, mass] = [this.#places, this.#force, this.#mass]
    this.#last.set(force)
    force.fill(0)
    this.#tree.build(this.#everybody, places, mass)
    for (const agent of this.#moving) {
      this.#tree.repel(agent, places, mass, force)
      const x = at(places, 2 * agent)
      const y = at(places, 2 * agent + 1)
      const pull = this.#gravity * at(mass, agent)
      force[2 * agent] = at(force, 2 * agent) - x * pull
      force[2 * agent + 1] = at(force, 2 * agent + 1) - y * pull
    }
    for (let pair = 0; pair < one.length; pair++) {
      const [a, b] = [2 * at(one, pair), 2 * at(other, pair)]
      const [dx, dy] = [at(places, a) - at(places, b), at(places, a + 1) - at(places, b + 1)]
      const weight = at(weights, pair) * Math.hypot(dx, dy) ** (PULL - 1)
      const [x, y] = [weight * dx, weight * dy]
      force[a] = at(force, a) - x
      force[a + 1] = at(force, a + 1) - y
      force[b] = at(force, b) + x
      force[b + 1] = at(force, b + 1) + y
    }
    this.#move()
  }

  #move(): void {
    const [places, force, last] = [this.#places, this.#force, this.#last]
    const swings = new Float32Array(this.#moving.length)
    let swinging = 0
    let traction = 0
    this.#moving.forEach((agent, index) => {
      const [x, y] = [at(force, 2 * agent), at(force, 2 * agent + 1)]
      const [oldX, oldY] = [at(last, 2 * agent), at(last, 2 * agent + 1)]
      const mass = at(this.#mass, agent)
      const swing = mass * Math.hypot(x - oldX, y - oldY)
      swings[index] = swing
      swinging += swing
      traction += (mass * Math.hypot(x + oldX, y + oldY)) / 2
    })
    // Rises by half at most, so that a lucky step does not throw all apart.
    this.#speed = swinging === 0 ? this.#speed : Math.min(traction / swinging, this.#speed * 1.5)
    this.#moving.forEach((agent, index) => {
      const factor = (0.1 * this.#speed) / (1 + this.#speed * Math.sqrt(at(swings, index)))
      places[2 * agent] = at(places, 2 * agent) + factor * at(force, 2 * agent)
      places[2 * agent + 1] = at(places, 2 * agent + 1) + factor * at(force, 2 * agent + 1)
    })
  }
}

/** How deep a quadtree goes: beyond it agents are at one place. */
const MAX_DEPTH = 24

/** A quadtree over agents, in flat arrays that are used again. */
class Tree {
  /** Of each cell its first child of four, or 0; its agent, or -1; mass and its centre; width. */
  readonly #child: Uint32Array
  readonly #agent: Int32Array
  readonly #mass: Float64Array
  readonly #x: Float64Array
  readonly #y: Float64Array
  readonly #width: Float64Array
  readonly #stack: Int32Array
  #cells = 0

  constructor(agents: number) {
    // Each agent splits cells until it is alone: some two levels of four on average; where there is
    // no room it joins the cell.
    const room = 16 * agents + 64
    this.#child = new Uint32Array(room)
    this.#agent = new Int32Array(room)
    this.#mass = new Float64Array(room)
    this.#x = new Float64Array(room)
    this.#y = new Float64Array(room)
    this.#width = new Float64Array(room)
    this.#stack = new Int32Array(4 * MAX_DEPTH + 8)
  }

  build(agents: readonly number[], places: Float32Array, masses: Float32Array): void {
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity]
    for (const agent of agents) {
      const [x, y] = [at(places, 2 * agent), at(places, 2 * agent + 1)]
      left = Math.min(left, x)
      right = Math.max(right, x)
      top = Math.min(top, y)
      bottom = Math.max(bottom, y)
    }
    this.#cells = 0
    const width = Math.max(right - left, bottom - top, 1e-3) * 1.001
    this.#cell(width)
    for (const agent of agents) {
      this.#insert(agent, places, masses, (left + right) / 2, (top + bottom) / 2, width)
    }
    // Sums become centres.
    for (let cell = 0; cell < this.#cells; cell++) {
      const mass = at(this.#mass, cell) || 1
      this.#x[cell] = at(this.#x, cell) / mass
      this.#y[cell] = at(this.#y, cell) / mass
    }
  }

  #cell(width: number): void {
    const cell = this.#cells++
    this.#child[cell] = 0
    this.#agent[cell] = -1
    this.#mass[cell] = 0
    this.#x[cell] = 0
    this.#y[cell] = 0
    this.#width[cell] = width
  }

  #add(cell: number, mass: number, x: number, y: number): void {
    this.#mass[cell] = at(this.#mass, cell) + mass
    this.#x[cell] = at(this.#x, cell) + mass * x
    this.#y[cell] = at(this.#y, cell) + mass * y
  }

  #insert(
    agent: number,
    places: Float32Array,
    masses: Float32Array,
    x0: number,
    y0: number,
    width0: number,
  ): void {
    const [x, y, mass] = [at(places, 2 * agent), at(places, 2 * agent + 1), at(masses, agent)]
    let [cell, centreX, centreY, width] = [0, x0, y0, width0]
    for (let depth = 0; ; depth++) {
      const isEmpty = at(this.#mass, cell) === 0
      this.#add(cell, mass, x, y)
      if (isEmpty) {
        this.#agent[cell] = agent
        return
      }
      if (at(this.#child, cell) === 0) {
        if (depth >= MAX_DEPTH || this.#cells + 4 > this.#child.length) {
          this.#agent[cell] = -1
          return
        }
        const child = this.#cells
        for (let quarter = 0; quarter < 4; quarter++) this.#cell(width / 2)
        this.#child[cell] = child
        const old = at(this.#agent, cell)
        this.#agent[cell] = -1
        if (old >= 0) {
          const [oldX, oldY] = [at(places, 2 * old), at(places, 2 * old + 1)]
          const its = child + (oldX >= centreX ? 1 : 0) + (oldY >= centreY ? 2 : 0)
          this.#add(its, at(masses, old), oldX, oldY)
          this.#agent[its] = old
        }
      }
      const isRight = x >= centreX
      const isLow = y >= centreY
      cell = at(this.#child, cell) + (isRight ? 1 : 0) + (isLow ? 2 : 0)
      width /= 2
      centreX += isRight ? width / 2 : -width / 2
      centreY += isLow ? width / 2 : -width / 2
    }
  }

  /** Adds to an agent's force how the others push it away. */
  repel(agent: number, places: Float32Array, masses: Float32Array, force: Float32Array): void {
    const [x, y] = [at(places, 2 * agent), at(places, 2 * agent + 1)]
    const strength = REPULSION * at(masses, agent)
    const stack = this.#stack
    let [pushX, pushY, height] = [0, 0, 1]
    stack[0] = 0
    while (height > 0) {
      const cell = at(stack, --height)
      const mass = at(this.#mass, cell)
      if (mass === 0 || this.#agent[cell] === agent) continue
      let dx = x - at(this.#x, cell)
      let dy = y - at(this.#y, cell)
      if (dx === 0 && dy === 0) {
        // At one place: each leaves in a direction of its own.
        dx = 0.1 * Math.cos(agent * GOLDEN)
        dy = 0.1 * Math.sin(agent * GOLDEN)
      }
      const distance2 = dx * dx + dy * dy
      const child = at(this.#child, cell)
      const width = at(this.#width, cell)
      if (child !== 0 && width * width > NEAR_2 * distance2) {
        for (let quarter = 0; quarter < 4; quarter++) stack[height++] = child + quarter
        continue
      }
      const push = (strength * mass) / Math.max(distance2, 1e-2)
      pushX += dx * push
      pushY += dy * push
    }
    force[2 * agent] = at(force, 2 * agent) + pushX
    force[2 * agent + 1] = at(force, 2 * agent + 1) + pushY
  }
}

/** How far from the middle agents are who talk to somebody. */
export function reachOf(degree: Float32Array, places: Float32Array): number {
  const distances = [...degree.keys()]
    .filter((agent) => at(degree, agent) > 0 && !Number.isNaN(places[2 * agent]))
    .map((agent) => Math.hypot(at(places, 2 * agent), at(places, 2 * agent + 1)))
    .sort((a, b) => a - b)
  return distances[Math.floor(0.98 * distances.length)] ?? 10 * Math.sqrt(degree.length)
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
