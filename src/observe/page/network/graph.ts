/**
 * The network as numbers: agents and pairs of agents by index, as layout, drawing and pointing need
 * it.
 */
import type { Network } from '../api.ts'

/** Pairs of agents who wrote to each other. */
export interface Links {
  /** How many agents there are. */
  readonly agents: number
  /** Of each pair the indices of both; the heaviest pair first. */
  readonly one: Uint32Array
  readonly other: Uint32Array
  /** Of each pair how much they wrote, from above 0 to 1, on a logarithmic scale. */
  readonly weights: Float32Array
}

export interface Graph extends Links {
  readonly nodes: Network['nodes']
  readonly indexOf: ReadonlyMap<string, number>
  /** Of each pair the messages from `one` to `other`, and back. */
  readonly forth: Uint32Array
  readonly back: Uint32Array
  /** Of each agent how much it sends and receives, 0 to 1. */
  readonly sizes: Float32Array
  /** Of agent `i` its pairs are `pairs[starts[i]]` to before `pairs[starts[i + 1]]`. */
  readonly starts: Uint32Array
  readonly pairs: Uint32Array
}

/** Who writes to itself has no line for it. */
export function toGraph({ nodes, edges }: Network): Graph {
  const agents = nodes.length
  const indexOf = new Map(nodes.map(({ address }, index) => [address, index]))
  const found = new Map<number, number>()
  const names = new Float64Array(edges.length)
  const there = new Uint32Array(edges.length)
  const back = new Uint32Array(edges.length)
  for (const { from, to, count } of edges) {
    const sender = indexOf.get(from)
    const recipient = indexOf.get(to)
    if (sender === undefined || recipient === undefined || sender === recipient) continue
    const name = Math.min(sender, recipient) * agents + Math.max(sender, recipient)
    let pair = found.get(name)
    if (pair === undefined) {
      pair = found.size
      found.set(name, pair)
      names[pair] = name
    }
    const way = sender < recipient ? there : back
    way[pair] = at(way, pair) + count
  }
  // The heaviest first, and of as heavy ones who came first: sorted as numbers, which takes a tenth
  // of the time.
  const many = found.size
  const order = new Float64Array(many)
  for (let pair = 0; pair < many; pair++)
    order[pair] = (at(there, pair) + at(back, pair)) * many + (many - 1 - pair)
  order.sort().reverse()
  const sorted = Uint32Array.from(order, (place) => many - 1 - (place % many))
  const heaviest = many > 0 ? Math.floor(at(order, 0) / many) : 1
  const busiest = nodes.reduce((most, node) => Math.max(most, messagesOf(node)), 1)
  const one = sorted.map((pair) => Math.floor(at(names, pair) / agents))
  const other = sorted.map((pair) => at(names, pair) % agents)
  return {
    agents,
    nodes,
    indexOf,
    one,
    other,
    forth: sorted.map((pair) => at(there, pair)),
    back: sorted.map((pair) => at(back, pair)),
    weights: Float32Array.from(
      sorted,
      (pair) => Math.log(1 + at(there, pair) + at(back, pair)) / Math.log(1 + heaviest),
    ),
    sizes: Float32Array.from(nodes, (node) => Math.sqrt(messagesOf(node) / busiest)),
    ...pairsOf(agents, one, other),
  }
}

export const messagesOf = (node: Network['nodes'][number]) =>
  node.messages_sent + node.messages_received

/** Of each agent its pairs, as a compressed list. */
export function pairsOf(
  agents: number,
  one: Uint32Array,
  other: Uint32Array,
): Pick<Graph, 'starts' | 'pairs'> {
  const starts = new Uint32Array(agents + 1)
  for (const ends of [one, other]) for (const end of ends) starts[end + 1] = at(starts, end + 1) + 1
  for (let index = 0; index < agents; index++)
    starts[index + 1] = at(starts, index + 1) + at(starts, index)
  const pairs = new Uint32Array(2 * one.length)
  const next = starts.slice()
  for (let pair = 0; pair < one.length; pair++) {
    for (const end of [at(one, pair), at(other, pair)]) {
      pairs[at(next, end)] = pair
      next[end] = at(next, end) + 1
    }
  }
  return { starts, pairs }
}

/** A number of an array at a place that it has. */
export const at = (
  numbers: Float32Array | Float64Array | Uint32Array | Int32Array | Uint8Array,
  index: number,
): number => numbers[index] as number

/** Of each agent with how many others it talks. */
export function degreesOf({ agents, one, other }: Links): Float32Array {
  const degree = new Float32Array(agents)
  for (const ends of [one, other]) for (const end of ends) degree[end] = at(degree, end) + 1
  return degree
}
