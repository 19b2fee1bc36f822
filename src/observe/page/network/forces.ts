/** Forces by which who talks much comes near. */
import { GOLDEN, reachOf } from './geometry.ts'
import { at, degreesOf, type Links } from './graph.ts'

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
export function scaleToRest(
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
