/** Where the page draws agents: groups, places, and that they stay. */
import { describe, expect, it } from 'vitest'
import { Forces } from '../../src/observe/page/network/forces.ts'
import { degreesOf, type Links, toGraph } from '../../src/observe/page/network/graph.ts'
import {
  adoptColours,
  COLOURS,
  coloursOf,
  groupsOf,
  UNKNOWN,
} from '../../src/observe/page/network/groups.ts'
import {
  placeAround,
  placeInRings,
  placeNew,
  startingPlaces,
} from '../../src/observe/page/network/places.ts'

/**
 * So many circles of friends, in which each knows each, and one pair between one circle and the
 * next.
 */
function circles(many: number, size: number, alone = 0): Links {
  const one: number[] = []
  const other: number[] = []
  for (let circle = 0; circle < many; circle++) {
    for (let a = 0; a < size; a++) {
      for (let b = a + 1; b < size; b++) {
        one.push(circle * size + a)
        other.push(circle * size + b)
      }
    }
    if (circle === 0) continue
    one.push(circle * size - 1)
    other.push(circle * size)
  }
  return {
    agents: many * size + alone,
    one: Uint32Array.from(one),
    other: Uint32Array.from(other),
    weights: new Float32Array(one.length).fill(0.5),
  }
}

const distance = (places: Float32Array, a: number, b: number) =>
  Math.hypot(
    (places[2 * a] ?? Number.NaN) - (places[2 * b] ?? Number.NaN),
    (places[2 * a + 1] ?? Number.NaN) - (places[2 * b + 1] ?? Number.NaN),
  )

describe('the graph', () => {
  const node = (address: string, sent = 0, received = 0) => ({
    address,
    messages_sent: sent,
    messages_received: received,
  })

  it('has one pair for both directions, the heaviest first, and none of who writes to itself', () => {
    const graph = toGraph({
      nodes: [node('a', 9, 1), node('b', 1, 8), node('c', 2, 2)],
      edges: [
        { from: 'a', to: 'a', count: 7 },
        { from: 'c', to: 'b', count: 2 },
        { from: 'a', to: 'b', count: 2 },
        { from: 'b', to: 'a', count: 1 },
        { from: 'a', to: 'not here', count: 1 },
      ],
    })
    const pairs = Array.from(graph.one, (one, pair) => [
      one,
      graph.other[pair],
      graph.forth[pair],
      graph.back[pair],
    ])
    expect(pairs).toEqual([
      [0, 1, 2, 1],
      [1, 2, 0, 2],
    ])
    expect(graph.weights[0]).toBe(1)
    expect(graph.weights[1]).toBeLessThan(1)
    expect([...graph.pairs.slice(graph.starts[1], graph.starts[2])]).toEqual([0, 1])
    expect(graph.sizes[0]).toBe(1)
  })

  it('of nobody is empty', () => {
    const graph = toGraph({ nodes: [], edges: [] })
    expect([...groupsOf(graph)]).toEqual([])
    expect([...startingPlaces(graph, groupsOf(graph))]).toEqual([])
  })
})

describe('groups', () => {
  it('are those who talk among themselves', () => {
    const groups = groupsOf(circles(4, 12))
    for (let circle = 0; circle < 4; circle++) {
      expect(new Set(groups.slice(circle * 12, circle * 12 + 12)).size).toBe(1)
    }
    expect(new Set(groups)).toEqual(new Set([0, 1, 2, 3]))
  })

  it('keep their colours when others grow larger', () => {
    const before = Uint8Array.from([3, 3, 3, 7, 7, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN])
    const colours = coloursOf(Uint32Array.from([1, 1, 1, 2, 2, 0, 0, 0, 0]), before)
    expect([...colours.slice(0, 5)]).toEqual([3, 3, 3, 7, 7])
    expect(new Set(colours.slice(5)).size).toBe(1)
    expect([3, 7]).not.toContain(colours[5])
  })

  it('without a colour of their own share one', () => {
    const groups = Uint32Array.from({ length: COLOURS + 3 }, (_, index) => index)
    const colours = coloursOf(groups, new Uint8Array(groups.length).fill(UNKNOWN))
    expect(new Set(colours).size).toBe(COLOURS + 1)
    expect([...colours.slice(COLOURS)]).toEqual([COLOURS, COLOURS, COLOURS])
  })

  it('give a newcomer their colour', () => {
    const colours = Uint8Array.from([2, 2, 5, UNKNOWN, UNKNOWN])
    const links = {
      agents: 5,
      one: Uint32Array.from([0, 1, 2]),
      other: Uint32Array.from([3, 3, 3]),
      weights: Float32Array.from([0.4, 0.4, 0.5]),
    }
    adoptColours(links, colours)
    expect([...colours]).toEqual([2, 2, 5, 2, COLOURS])
  })
})

describe('places', () => {
  function laidOut(links: Links): Float32Array {
    const places = startingPlaces(links, groupsOf(links))
    placeAround(degreesOf(links), places, true)
    const forces = new Forces(links, places)
    for (let step = 0; step < 200; step++) forces.step()
    return places
  }

  it('are near for friends and far for others, and the same each time', () => {
    const links = circles(5, 15)
    const places = laidOut(links)
    expect(places.every(Number.isFinite)).toBe(true)
    expect(laidOut(links)).toEqual(places)
    let [near, far, nears, fars] = [0, 0, 0, 0]
    for (let a = 0; a < 75; a++) {
      for (let b = 0; b < a; b++) {
        if (Math.floor(a / 15) === Math.floor(b / 15)) {
          near += distance(places, a, b)
          nears += 1
        } else {
          far += distance(places, a, b)
          fars += 1
        }
      }
    }
    expect(near / nears).toBeLessThan(far / fars / 2)
  })

  it('come apart where forces begin at one point', () => {
    const links = circles(2, 10)
    const places = new Float32Array(40)
    const forces = new Forces(links, places)
    for (let step = 0; step < 50; step++) forces.step()
    for (let a = 0; a < 20; a++)
      for (let b = 0; b < a; b++) expect(distance(places, a, b)).toBeGreaterThan(0)
  })

  it('stay, and a newcomer comes to its neighbours', () => {
    const links = circles(4, 12)
    const old = laidOut(links)
    const newcomer = links.agents
    const grown: Links = {
      agents: links.agents + 2,
      one: Uint32Array.from([...links.one, 0, 1]),
      other: Uint32Array.from([...links.other, newcomer, newcomer]),
      weights: new Float32Array(links.weights.length + 2).fill(0.5),
    }
    const places = new Float32Array(2 * grown.agents).fill(Number.NaN)
    places.set(old)
    const isNew = placeNew(grown, places)
    placeAround(degreesOf(grown), places)
    expect([...isNew.keys()].filter((agent) => isNew[agent] === 1)).toEqual([newcomer])
    const forces = new Forces(grown, places, isNew)
    for (let step = 0; step < 40; step++) forces.step()
    expect(places.slice(0, old.length)).toEqual(old)
    expect(distance(places, newcomer, 0)).toBeLessThan(distance(places, newcomer, 30))
    // The other one talks to nobody: it is beyond those who do.
    expect(Number.isFinite(places[2 * newcomer + 2])).toBe(true)
  })

  it('of a neighbourhood are rings around the one, who talks most to it in the inner one', () => {
    const places = placeInRings(30, 4, [
      4,
      9,
      ...Array.from({ length: 30 }, (_, agent) => agent).filter(
        (agent) => agent !== 4 && agent !== 9,
      ),
    ])
    expect([places[8], places[9]]).toEqual([0, 0])
    expect(distance(places, 4, 9)).toBeCloseTo(100)
    expect(distance(places, 4, 29)).toBeCloseTo(200)
    for (let a = 0; a < 30; a++)
      for (let b = 0; b < a; b++) expect(distance(places, a, b)).toBeGreaterThan(20)
  })
})
