/**
 * How events go over the wire. Their JSON is made once for everybody; what stands around it is made
 * for each write.
 */
import { formatEvent, type LoggedEvent } from '../../events/event.ts'

/** An event as every observer sees it, in UTF-8. */
export interface EncodedEvent {
  readonly seq: number
  readonly json: Buffer
}

export interface Encoding {
  readonly name: 'web_socket' | 'sse'
  /** The bytes of some events, in pieces that are to be written one after the other. */
  compose(events: readonly EncodedEvent[]): readonly Buffer[]
}

/**
 * Events that are written at once: until they have so many bytes, so one event may exceed it. A
 * watcher has one such write under way at most, and this is what it holds in memory.
 */
export const WRITE_BYTES = 65_536

export function encodeEvent(event: LoggedEvent): EncodedEvent {
  return { seq: event.seq, json: Buffer.from(formatEvent(event)) }
}

/** Text frames of a WebSocket server (RFC 6455, section 5.2): whole, and not masked. */
export const WEB_SOCKET: Encoding = {
  name: 'web_socket',
  compose: (events) => join(events, ({ json }) => frameHead(json.length)),
}

const SSE_END = Buffer.from('\n\n')

/** Server-Sent Events. JSON has no line breaks. */
export const SERVER_SENT_EVENTS: Encoding = {
  name: 'sse',
  compose: (events) => join(events, ({ seq }) => Buffer.from(`id: ${seq}\ndata: `), SSE_END),
}

function join(
  events: readonly EncodedEvent[],
  headOf: (event: EncodedEvent) => Buffer,
  end?: Buffer,
): Buffer[] {
  const pieces: Buffer[] = []
  let size = 0
  for (const event of events) {
    pieces.push(headOf(event), event.json)
    size += event.json.length
    if (end) pieces.push(end)
  }
  // A large event is not copied: all who are to get it share its bytes.
  return size <= WRITE_BYTES ? [Buffer.concat(pieces)] : pieces
}

const FINAL_TEXT = 0x81
const LENGTH_IN_2_BYTES = 126
const LENGTH_IN_8_BYTES = 127

function frameHead(length: number): Buffer {
  if (length < LENGTH_IN_2_BYTES) return Buffer.from([FINAL_TEXT, length])
  if (length < 65_536) {
    const head = Buffer.from([FINAL_TEXT, LENGTH_IN_2_BYTES, 0, 0])
    head.writeUInt16BE(length, 2)
    return head
  }
  const head = Buffer.alloc(10)
  head[0] = FINAL_TEXT
  head[1] = LENGTH_IN_8_BYTES
  head.writeUIntBE(length, 4, 6)
  return head
}
