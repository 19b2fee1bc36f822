/**
 * Somebody who watches the live stream of the observation as clients are told to: whenever the
 * connection ends it makes another, to the next observer, and goes on after the last `seq` that it
 * has.
 */
import { get } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { type Event, event } from './kernel.ts'

export type Transport = 'WebSocket' | 'SSE'

export interface WatcherOptions {
  readonly transport: Transport
  /** Of the observers, at least one. */
  readonly urls: readonly string[]
  /** Begins after this place. Default: 0. */
  readonly since?: number
  /** Of these types alone; all unless given. */
  readonly types?: readonly string[]
  /** Of this agent alone. */
  readonly agent?: string
}

export interface Watcher {
  /** What came, in the order in which it came. */
  readonly seen: readonly Event[]
  /** Connections that a stream began on. */
  readonly connections: number
  /** Ends it. Resolves when its connection is closed. */
  stop(): Promise<void>
}

const RECONNECT_MS = 100
/** An observer that is frozen takes connections and never answers. */
const ANSWER_TIMEOUT_MS = 5_000

/** Begins to watch, and goes on until it is stopped. */
export function startWatcher({
  transport,
  urls,
  since = 0,
  types,
  agent,
}: WatcherOptions): Watcher {
  const seen: Event[] = []
  const stop = new AbortController()
  let last = since
  let connections = 0
  const watch = transport === 'WebSocket' ? overWebSocket : overServerSentEvents
  const run = async () => {
    for (let turn = 0; !stop.signal.aborted; turn++) {
      const query = new URLSearchParams({
        ...(types && { type: types.join(',') }),
        ...(agent !== undefined && { agent }),
      })
      await watch({
        url: urls[turn % urls.length] as string,
        query,
        last,
        signal: stop.signal,
        onOpen: () => void connections++,
        onEvent: (text) => {
          const came = event.parse(JSON.parse(text))
          seen.push(came)
          last = came.seq
        },
      })
      await sleep(RECONNECT_MS, undefined, { signal: stop.signal }).catch(() => {})
    }
  }
  const running = run()
  return {
    seen,
    get connections() {
      return connections
    },
    stop: async () => {
      stop.abort()
      await running
    },
  }
}

interface Connection {
  readonly url: string
  readonly query: URLSearchParams
  /** The place to go on after. */
  readonly last: number
  readonly signal: AbortSignal
  readonly onOpen: () => void
  readonly onEvent: (json: string) => void
}

const PATH = '/observe/events/stream'

/** Resolves when the connection has ended, however that was. */
async function overWebSocket({
  url,
  query,
  last,
  signal,
  onOpen,
  onEvent,
}: Connection): Promise<void> {
  query.set('since', String(last))
  const socket = new WebSocket(`${url.replace('http', 'ws')}${PATH}?${query}`, {
    handshakeTimeout: ANSWER_TIMEOUT_MS,
  })
  const { promise, resolve } = Promise.withResolvers<void>()
  const end = () => socket.terminate()
  signal.addEventListener('abort', end, { once: true })
  socket.on('open', onOpen)
  socket.on('message', (data) => onEvent(String(data)))
  socket.on('error', () => {})
  socket.once('close', () => resolve())
  if (signal.aborted) end()
  await promise
  signal.removeEventListener('abort', end)
}

/** The same; the place is in `Last-Event-ID`, as browsers have it. */
async function overServerSentEvents({
  url,
  query,
  last,
  signal,
  onOpen,
  onEvent,
}: Connection): Promise<void> {
  const headers = { Accept: 'text/event-stream', 'Last-Event-ID': String(last) }
  const { promise, resolve } = Promise.withResolvers<void>()
  const request = get(`${url}${PATH}?${query}`, { headers, agent: false, signal }, (response) => {
    request.setTimeout(0)
    response.once('close', resolve)
    response.on('error', () => {})
    if (response.statusCode !== 200) {
      response.resume()
      return
    }
    onOpen()
    let text = ''
    response.setEncoding('utf8').on('data', (part: string) => {
      const blocks = (text + part).split('\n\n')
      text = blocks.pop() ?? ''
      for (const block of blocks) {
        const data = /^data: (.*)$/m.exec(block)?.[1]
        if (data !== undefined) onEvent(data)
      }
    })
  })
  request.setTimeout(ANSWER_TIMEOUT_MS, () => request.destroy())
  request.on('error', () => resolve())
  request.once('close', () => resolve())
  await promise
}
