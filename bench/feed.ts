/**
 * The live streams alone: how late events are on the wire, with a thousand made-up events a second
 * and so many watchers of one process.
 */
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { readQuery } from '../src/api/request.ts'
import type { LoggedEvent } from '../src/events/event.ts'
import { asksForWebSocket, LiveStreams } from '../src/observe/live/live-streams.ts'
import type { EventSource } from '../src/observe/live/source.ts'
import { startHttpServer } from '../src/platform/http-server.ts'
import { createLogger } from '../src/platform/logger.ts'
import { cpuTimes } from './load.ts'

const RATE = 1_000
const EVERY_MS = 10
const WARM_UP_MS = 2_000
/** Watchers whose events are parsed and timed; the others' bytes are only taken. */
const TIMED = 5
const WRITER = 'tab_00000000000000000000'
const VALUE = 'x'.repeat(100)

export interface Watched {
  late: number[]
  bytes: number
}

/** By the number of watchers. They are another process, on the same processors. */
export async function benchFeed(numbers: readonly number[], seconds: number) {
  const rows: Record<string, Record<string, number>> = {}
  const logger = createLogger('error', 'bench')
  for (const number of numbers) {
    const streams = new LiveStreams({ source: new MadeUpSource(), logger, maxWatchers: number })
    const server = await startHttpServer({
      fetch: (_request, bindings) => streams.answer(bindings, readQuery(bindings)),
      host: '127.0.0.1',
      port: 0,
      keepAliveMs: 60_000,
      refusedRoute: 'bench',
      logger,
      upgrades: asksForWebSocket,
    })
    const watchers = fork(join(import.meta.dirname, 'feed-watchers.ts'), [
      `127.0.0.1:${server.port}`,
      ...[number, Math.min(TIMED, number), WARM_UP_MS, seconds * 1_000].map(String),
    ])
    await once(watchers, 'message')
    const pids = { server: () => [process.pid] }
    await sleep(WARM_UP_MS)
    const before = cpuTimes(pids).server ?? 0
    const [{ late, bytes }] = (await once(watchers, 'message')) as [Watched]
    const cpu = (cpuTimes(pids).server ?? 0) - before
    await streams.close()
    await server.close()
    const sorted = late.toSorted((one, other) => one - other)
    rows[`${number} watchers`] = {
      'events a second': Math.round(late.length / Math.min(TIMED, number) / seconds),
      'late, p50 ms': sorted[Math.floor(0.5 * sorted.length)] ?? Number.NaN,
      'late, p99 ms': sorted[Math.floor(0.99 * sorted.length)] ?? Number.NaN,
      'cores of the server': Number((cpu / seconds / 1_000).toFixed(2)),
      'MB a second': Number((bytes / seconds / 1_000_000).toFixed(1)),
    }
  }
  return rows
}

/** So many events a second, each as old as it is when it is handed over. */
class MadeUpSource implements EventSource {
  #seq = 1_000

  async *follow(_since: number, signal: AbortSignal): AsyncGenerator<LoggedEvent[]> {
    const begin = performance.now()
    for (let made = 0; !signal.aborted; ) {
      const due = Math.floor(((performance.now() - begin) * RATE) / 1_000)
      const events = Array.from({ length: due - made }, () => this.#event())
      made = due
      yield events
      await sleep(EVERY_MS)
    }
  }

  #event(): LoggedEvent {
    const data = {
      key: `k/${this.#seq % 100}`,
      value: VALUE,
      value_length: VALUE.length,
      written_by: WRITER,
    }
    return {
      seq: ++this.#seq,
      ts: new Date().toISOString(),
      type: 'state_written',
      agent: WRITER,
      data,
    }
  }

  async read(since: number) {
    return { events: [], through: Math.max(since, this.#seq) }
  }

  async redact(events: readonly LoggedEvent[]) {
    return events
  }

  async lastSeq() {
    return this.#seq
  }
}

/** A WebSocket that reads and looks at nothing. */
export function takeOnly(host: string, onBytes: (count: number) => void) {
  const [name = '', port] = host.split(':')
  const socket = connect(Number(port), name)
  socket.write(
    `GET /observe/events/stream HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`,
  )
  socket.on('data', ({ length }) => onBytes(length))
  socket.on('error', () => socket.destroy())
  return socket
}

/** Opens them, tells that it has, and then what it saw. */
export async function watch(
  host: string,
  number: number,
  timed: number,
  warmUpMs: number,
  ms: number,
): Promise<void> {
  const tell = (what: 'open' | Watched) => process.send?.(what)
  const late: number[] = []
  let bytes = 0
  let isMeasured = false
  const sockets = Array.from({ length: timed }, () => {
    const socket = new WebSocket(`ws://${host}/observe/events/stream`)
    socket.on('message', (data) => {
      if (isMeasured) late.push(Date.now() - Date.parse(JSON.parse(String(data)).ts))
    })
    return socket
  })
  const takers = Array.from({ length: number - timed }, () =>
    takeOnly(host, (count) => (bytes += isMeasured ? count : 0)),
  )
  await Promise.all([
    ...sockets.map((socket) => once(socket, 'open')),
    ...takers.map((socket) => once(socket, 'data')),
  ])
  tell('open')
  await sleep(warmUpMs)
  isMeasured = true
  await sleep(ms)
  isMeasured = false
  tell({ late, bytes } satisfies Watched)
  for (const socket of sockets) socket.terminate()
  for (const socket of takers) socket.destroy()
  process.disconnect?.()
}
