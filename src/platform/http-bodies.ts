/** Reading bodies little by little, so that large ones keep nobody waiting. */
import type { IncomingMessage } from 'node:http'

/**
 * Hands on the parts of a body as they come, one of a connection in each turn of the event loop,
 * until `take` returns false. By itself Node reads from each connection as long as there is
 * something, and hundreds of large bodies at once keep everybody else waiting for seconds.
 */
export function readInTurn(incoming: IncomingMessage, take: (part: Buffer) => boolean): void {
  const onData = (part: Buffer) => {
    const isWanted = take(part)
    if (!isWanted) incoming.off('data', onData)
    // What has come whole takes no more reading.
    if (isWanted && incoming.complete) return
    incoming.pause()
    if (isWanted) setImmediate(() => incoming.resume())
  }
  incoming.on('data', onData)
}

/**
 * Of bodies that nobody wants any more so many parts, of 64 KiB, are read in a turn of the event
 * loop: it takes half a millisecond.
 */
const THROWN_AWAY_IN_A_TURN = 8
/** Those of them that wait for their turn; bounded by the connections. */
const unwanted = new Set<IncomingMessage>()

/**
 * Reads the rest of a body that is refused, so that the client sees the answer, and little of it at
 * a time: others are being served.
 */
export function throwAway(incoming: IncomingMessage): void {
  incoming.on('data', () => {
    incoming.pause()
    if (unwanted.size === 0) setImmediate(throwSomeAway)
    unwanted.add(incoming)
  })
  incoming.resume()
}

function throwSomeAway(): void {
  for (const incoming of [...unwanted.values().take(THROWN_AWAY_IN_A_TURN)]) {
    unwanted.delete(incoming)
    incoming.resume()
  }
  if (unwanted.size > 0) setImmediate(throwSomeAway)
}

/** Calls `act` when all that has arrived with a request has been parsed. */
export function whenParsed(incoming: IncomingMessage, act: () => void): void {
  // Node parses all bytes of a packet before it does anything else, but for ticks between the parts
  // of a body.
  process.nextTick(() => (incoming.complete ? act() : setImmediate(act)))
}
