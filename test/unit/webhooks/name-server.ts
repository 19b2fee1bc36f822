/**
 * A name server on loopback, as much of one as a resolver needs: RFC 1035, one question, A and AAAA
 * records.
 */

import { createSocket } from 'node:dgram'
import type { AddressInfo } from 'node:net'
import ipaddr from 'ipaddr.js'

export type RecordType = 'A' | 'AAAA'

/**
 * Addresses; `missing` for a name that does not exist; `broken` for SERVFAIL; `silent` for no
 * answer at all.
 */
export type Answer = readonly string[] | 'missing' | 'broken' | 'silent'

export interface NameServer extends AsyncDisposable {
  /** As `address:port`, for `servers` of a resolver. */
  readonly address: string
  /** Every question that came in, as `A example.com`. */
  readonly questions: readonly string[]
}

const TYPES = new Map<number, RecordType>([
  [1, 'A'],
  [28, 'AAAA'],
])
const RESPONSE_CODE = { missing: 3, broken: 2, ok: 0 }

export async function startNameServer(
  answer: (name: string, type: RecordType) => Answer,
): Promise<NameServer> {
  const socket = createSocket('udp4')
  const questions: string[] = []
  socket.on('message', (query, sender) => {
    const { name, type, end } = questionIn(query)
    if (type === undefined) return
    questions.push(`${type} ${name}`)
    const answered = answer(name, type)
    if (answered === 'silent') return
    const records =
      typeof answered === 'string' ? [] : answered.map((address) => record(type, address))
    const code = RESPONSE_CODE[typeof answered === 'string' ? answered : 'ok']
    const header = Buffer.alloc(12)
    query.copy(header, 0, 0, 2)
    header.writeUInt16BE(0x8180 | code, 2) // an answer, recursion desired and available
    header.writeUInt16BE(1, 4)
    header.writeUInt16BE(records.length, 6)
    socket.send(
      Buffer.concat([header, query.subarray(12, end), ...records]),
      sender.port,
      sender.address,
    )
  })
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve))
  const { port } = socket.address() as AddressInfo
  return {
    address: `127.0.0.1:${port}`,
    questions,
    async [Symbol.asyncDispose]() {
      await new Promise<void>((resolve) => socket.close(() => resolve()))
    },
  }
}

function questionIn(query: Buffer): { name: string; type: RecordType | undefined; end: number } {
  const labels: string[] = []
  let at = 12
  for (let length = query.readUInt8(at); length > 0; length = query.readUInt8(at)) {
    labels.push(query.toString('latin1', at + 1, at + 1 + length))
    at += 1 + length
  }
  return {
    name: labels.join('.').toLowerCase(),
    type: TYPES.get(query.readUInt16BE(at + 1)),
    end: at + 5,
  }
}

/** A record of the name in the question, good for no time at all. */
function record(type: RecordType, address: string): Buffer {
  const data = Buffer.from(ipaddr.parse(address).toByteArray())
  const head = Buffer.alloc(12)
  head.writeUInt16BE(0xc00c, 0)
  head.writeUInt16BE(type === 'A' ? 1 : 28, 2)
  head.writeUInt16BE(1, 4)
  head.writeUInt16BE(data.length, 10)
  return Buffer.concat([head, data])
}
