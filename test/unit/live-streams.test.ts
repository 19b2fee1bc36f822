/**
 * Live streams over sockets: what a client sees of WebSockets and Server-Sent Events, and what
 * becomes of one that is gone or reads nothing.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { register } from 'prom-client'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { WebSocket } from 'ws'
import { toApiError } from '../../src/api/errors.ts'
import { rawPath, readQuery } from '../../src/api/request.ts'
import { TooManyWatchers } from '../../src/observe/live/live-feed.ts'
import {
  asksForWebSocket,
  LiveStreams,
  type LiveStreamsOptions,
  STREAM_PATH,
} from '../../src/observe/live/live-streams.ts'
import { type HttpServer, startHttpServer } from '../../src/platform/http-server.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { AGENT, MemoryEventSource, OTHER } from '../support/memory-event-source.ts'
import { sendRaw } from '../support/raw-http.ts'

const WAIT = { timeout: 60_000, interval: 5 }
const logger = createLogger('fatal', 'test')

const cleanUp: (() => unknown)[] = []
afterEach(async () => {
  for (const act of cleanUp.splice(0).reverse()) await act()
})

async function start(options: Partial<LiveStreamsOptions> = {}) {
  const source = new MemoryEventSource()
  const streams = new LiveStreams({ source, logger, maxWatchers: 100, flushMs: 5, ...options })
  const server = await startHttpServer({
    // What an application does with its errors.
    fetch: async (_request, bindings) => {
      try {
        if (rawPath(bindings) !== STREAM_PATH) return new Response('other')
        return await streams.answer(bindings, readQuery(bindings))
      } catch (error) {
        if (error instanceof TooManyWatchers) {
          const body = { error: 'too_many_connections', message: error.message }
          return Response.json(body, { status: 503, headers: { 'Retry-After': '5' } })
        }
        const { status, code, message, headers } = toApiError(error)
        return Response.json({ error: code, message }, { status, headers })
      }
    },
    host: '127.0.0.1',
    port: 0,
    keepAliveMs: 60_000,
    refusedRoute: 'unit',
    logger,
    upgrades: asksForWebSocket,
  })
  cleanUp.push(async () => {
    await streams.close()
    await server.close()
  })
  return { source, streams, server }
}

async function openWebSocket({ port }: HttpServer, query = '') {
  const client = new WebSocket(`ws://127.0.0.1:${port}${STREAM_PATH}${query}`)
  cleanUp.push(() => client.terminate())
  const seqs: number[] = []
  let bytes = 0
  client.on('message', (data: Buffer, isBinary) => {
    expect(isBinary).toBe(false)
    bytes += data.length
    seqs.push(JSON.parse(data.toString()).seq)
  })
  const closed = new Promise<{ code: number; reason: string }>((resolve) =>
    client.on('close', (code, reason) => resolve({ code, reason: reason.toString() })),
  )
  await once(client, 'open')
  return { client, seqs, closed, bytes: () => bytes }
}

/** What the stream of Server-Sent Events says, as it comes. */
async function openEvents({ port }: HttpServer, query = '', headers: Record<string, string> = {}) {
  const abort = new AbortController()
  cleanUp.push(() => abort.abort())
  const response = await fetch(`http://127.0.0.1:${port}${STREAM_PATH}${query}`, {
    headers: { Accept: 'text/event-stream', ...headers },
    signal: abort.signal,
  })
  let text = ''
  const ended = (async () => {
    for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) text += part
    return true
  })().catch(() => false)
  return {
    response,
    ended,
    close: () => abort.abort(),
    text: () => text,
    seqs: () =>
      [...text.matchAll(/^id: (\d+)\ndata: ([^\n]*)\n/gm)].map(([, id, data = '']) => [
        Number(id),
        JSON.parse(data).seq,
      ]),
  }
}

const twice = (seqs: number[]) => seqs.map((seq) => [seq, seq])

const handshake = (target: string, ...fields: string[]) =>
  [
    `GET ${target} HTTP/1.1`,
    'Host: a',
    'Connection: Upgrade',
    'Upgrade: websocket',
    ...fields,
    '\r\n',
  ].join('\r\n')
const KEY = 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='
const VERSION = 'Sec-WebSocket-Version: 13'

/** Streams that have been ended as too slow. */
async function dropped(): Promise<number> {
  const { values = [] } =
    (await register.getSingleMetric('tabulum_observe_streams_ended_total')?.get()) ?? {}
  return values.find(({ labels }) => labels.reason === 'slow')?.value ?? 0
}

/** A client that has opened a WebSocket and reads nothing. */
async function openDeafWebSocket({ port }: HttpServer): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  cleanUp.push(() => socket.destroy())
  socket.on('error', () => {})
  socket.write(handshake(STREAM_PATH, KEY, VERSION))
  await once(socket, 'readable')
  expect(String(socket.read())).toContain('HTTP/1.1 101 ')
  return socket
}

describe('a WebSocket', () => {
  it('gets events as they happen, from the end of the log or from a place, that pass the filter', async () => {
    const { source, server } = await start()
    const old = source.send(5)
    const live = await openWebSocket(server)
    const since = await openWebSocket(server, `?since=${old[1]}`)
    const mine = await openWebSocket(server, `?type=message_sent,state_read&agent=${OTHER}&since=0`)
    const sent = source.send(3)
    const others = source.send(2, { from: OTHER, content: 'x'.repeat(70_000) })
    await vi.waitFor(() => expect(live.seqs).toEqual([...sent, ...others]), WAIT)
    await vi.waitFor(() => expect(since.seqs).toEqual([...old.slice(2), ...sent, ...others]), WAIT)
    await vi.waitFor(() => expect(mine.seqs).toEqual(others), WAIT)
  })

  it('gets the event as the log shows it, of any length that a frame can have', async () => {
    const { source, server } = await start()
    const got: string[] = []
    const { client } = await openWebSocket(server)
    client.on('message', (data: Buffer) => got.push(data.toString()))
    const lengths = [0, 1, 5_000, 64_000, 66_000, 1_000_000]
    for (const length of lengths) source.send(1, { content: 'é'.repeat(length) })
    await vi.waitFor(() => expect(got).toHaveLength(lengths.length), WAIT)
    expect(got[0]).toMatch(
      /^\{"seq":3,"ts":"2026-01-01T00:00:00.000Z","type":"message_sent","agent":"tab_a+","data":\{/,
    )
    expect(got.map((text) => JSON.parse(text).data.content.length)).toEqual(lengths)
  })

  it('many get all of it, each once and in order', async () => {
    const { source, server } = await start({ ring: { maxEvents: 100, maxBytes: 50_000 } })
    const clients = await Promise.all(Array.from({ length: 40 }, () => openWebSocket(server)))
    const sent: number[] = []
    for (let part = 0; part < 50; part++) {
      sent.push(...source.send(40))
      if (part === 20) source.breakOff()
      await new Promise((resolve) => setImmediate(resolve))
    }
    for (const { seqs } of clients) await vi.waitFor(() => expect(seqs).toEqual(sent), WAIT)
  })

  it('that reads slowly is not dropped, and misses nothing', async () => {
    const { source, server } = await start({
      times: { writeTimeoutMs: 5_000, pingMs: 5_000 },
      ring: { maxEvents: 20, maxBytes: 1_000_000 },
    })
    const { client, seqs } = await openWebSocket(server)
    const sent = source.send(120, { content: 'x'.repeat(200_000) })
    let isOpen = true
    client.on('close', () => {
      isOpen = false
    })
    // It takes a little, and rests for less than it may.
    while (isOpen && seqs.length < sent.length) {
      client.pause()
      await new Promise((resolve) => setTimeout(resolve, 100))
      client.resume()
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    expect(seqs).toEqual(sent)
  })

  it('that takes a large event for longer than a write may stand still, and no pong meanwhile, is not dropped', async () => {
    const { source, server } = await start({ times: { writeTimeoutMs: 4_000, pingMs: 4_000 } })
    const socket = await openDeafWebSocket(server)
    const length = 16_000_000
    source.send(1, { content: 'x'.repeat(length) })
    const parts: Buffer[] = []
    let received = 0
    const begun = performance.now()
    while (received < length && !socket.closed) {
      const bytes: Buffer | null = socket.read(Math.min(50_000, Math.max(1, socket.readableLength)))
      if (bytes) {
        parts.push(bytes)
        received += bytes.length
      }
      // So that it takes some seconds in all.
      const early = begun + (12_000 * received) / length - performance.now()
      await new Promise((resolve) =>
        early > 0 ? setTimeout(resolve, early) : setImmediate(resolve),
      )
    }
    await vi.waitFor(() => {
      const rest: Buffer | null = socket.read()
      if (rest) parts.push(rest)
      const frames = Buffer.concat(parts)
      const json = frames.subarray(10, 10 + Number(frames.readBigUInt64BE(2))).toString()
      expect(JSON.parse(json).data.content).toHaveLength(length)
    }, WAIT)
  })

  it('that reads nothing is dropped with the reason, and costs little memory meanwhile', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const used = () => {
      collect()
      const { heapUsed, arrayBuffers } = process.memoryUsage()
      return heapUsed + arrayBuffers
    }
    const { source, streams, server } = await start({
      ring: { maxEvents: 1_000, maxBytes: 4_000_000 },
      times: { writeTimeoutMs: 3_000, closeMs: 60_000 },
    })
    const reader = await openWebSocket(server)
    const deaf = await openWebSocket(server)
    deaf.client.pause()
    const droppedBefore = await dropped()
    const before = used()
    const sent = source.send(1)
    for (let megabytes = 0; megabytes < 100; megabytes += 2) {
      sent.push(...source.send(20, { content: 'x'.repeat(100_000) }))
      await vi.waitFor(() => expect(reader.seqs.at(-1)).toBe(sent.at(-1)), WAIT)
      source.forget()
    }
    expect(reader.seqs).toEqual(sent)
    expect(reader.bytes()).toBeGreaterThan(100_000_000)
    // What the reader was sent is garbage only when its socket has let go of it.
    await vi.waitFor(() => expect(used() - before).toBeLessThan(20_000_000), WAIT)
    // It hears of it when it reads again, after what was on its way.
    await vi.waitFor(async () => expect(await dropped()).toBe(droppedBefore + 1), WAIT)
    deaf.client.resume()
    expect(await deaf.closed).toMatchObject({
      code: 1013,
      reason: expect.stringContaining('nothing was read'),
    })
    expect(deaf.seqs).toEqual(sent.slice(0, deaf.seqs.length))
    await vi.waitFor(() => expect(streams.size).toBe(1), WAIT)
  })

  it('that reads nothing and never does again is broken off', async () => {
    const times = { writeTimeoutMs: 100, closeMs: 100, commentMs: 300 }
    const { source, streams, server } = await start({ times })
    const deaf = await openDeafWebSocket(server)
    const droppedBefore = await dropped()
    // It is idle for longer than a write may wait.
    const other = await openEvents(server)
    await vi.waitFor(() => expect(other.text()).toContain('\n:\n'), WAIT)
    other.close()
    await vi.waitFor(() => expect(streams.size).toBe(1), WAIT)
    // More than the system keeps for a connection.
    source.send(200, { content: 'x'.repeat(100_000) })
    await vi.waitFor(() => expect(streams.size).toBe(0), WAIT)
    expect(await dropped()).toBe(droppedBefore + 1)
    expect(deaf.destroyed).toBe(false)
  })

  it('is pinged, and gone when it does not answer', async () => {
    const { streams, server } = await start({ times: { pingMs: 50 } })
    const { client } = await openWebSocket(server)
    for (let pings = 0; pings < 5; pings++) await once(client, 'ping')
    expect(streams.size).toBe(1)
    await openDeafWebSocket(server)
    await vi.waitFor(() => expect(streams.size).toBe(2), WAIT)
    await vi.waitFor(() => expect(streams.size).toBe(1), WAIT)
    expect(client.readyState).toBe(WebSocket.OPEN)
  })

  it('is closed with 1000 when it has been open for long', async () => {
    const { streams, server } = await start({ times: { maxAgeMs: 50 } })
    const { closed } = await openWebSocket(server)
    expect(await closed).toMatchObject({
      code: 1000,
      reason: expect.stringContaining('connect again'),
    })
    await vi.waitFor(() => expect(streams.size).toBe(0), WAIT)
  })

  it('is closed with 1001 when the server stops, also where it does not answer; nobody is let in any more', async () => {
    const { streams, server } = await start({ times: { closeMs: 100 } })
    const { closed } = await openWebSocket(server)
    const deaf = await openDeafWebSocket(server)
    await streams.close()
    expect(await closed).toMatchObject({ code: 1001 })
    await vi.waitFor(() => expect(streams.size).toBe(0), WAIT)
    const [refused] = await sendRaw(server.port, handshake(STREAM_PATH, KEY, VERSION))
    expect(refused?.status).toBe(503)
    deaf.destroy()
  })

  it('may say anything that is short; what is long closes it with 1009', async () => {
    const { source, server } = await start()
    const { client, seqs, closed } = await openWebSocket(server)
    client.send('x'.repeat(1_024))
    client.ping()
    await once(client, 'pong')
    const sent = source.send(1)
    await vi.waitFor(() => expect(seqs).toEqual(sent), WAIT)
    client.send('x'.repeat(1_025))
    expect(await closed).toMatchObject({ code: 1009 })
  })

  it('is one of so many at most: what is more gets 503, and a place is free again when one has gone', async () => {
    const { streams, server } = await start({ maxWatchers: 2 })
    const one = await openWebSocket(server)
    await openEvents(server)
    const [refused] = await sendRaw(server.port, handshake(STREAM_PATH, KEY, VERSION))
    expect(refused?.status).toBe(503)
    expect(refused?.headers).toMatchObject({ 'retry-after': '5', connection: 'close' })
    expect(JSON.parse(refused?.body ?? '')).toMatchObject({ error: 'too_many_connections' })
    const { response } = await openEvents(server)
    expect(response.status).toBe(503)
    one.client.close()
    await vi.waitFor(() => expect(streams.size).toBe(1), WAIT)
    await openWebSocket(server)
  })

  it.each([
    ['an unknown type', `${STREAM_PATH}?type=x`, [KEY, VERSION], /type must be/],
    ['a malformed place', `${STREAM_PATH}?since=x`, [KEY, VERSION], /since must be/],
    ['another version', STREAM_PATH, [KEY, 'Sec-WebSocket-Version: 8'], /WebSocket \(version 13\)/],
    ['no version', STREAM_PATH, [KEY], /WebSocket \(version 13\)/],
    ['no key', STREAM_PATH, [VERSION], /not valid HTTP/],
    ['a malformed key', STREAM_PATH, ['Sec-WebSocket-Key: x', VERSION], /WebSocket \(version 13\)/],
    [
      'malformed protocols',
      STREAM_PATH,
      [KEY, VERSION, 'Sec-WebSocket-Protocol: a,,b'],
      /Sec-WebSocket-Protocol/,
    ],
  ])('with %s gets 400 as JSON', async (_, target, fields, message) => {
    const { streams, server } = await start()
    const [refused] = await sendRaw(server.port, handshake(target, ...fields))
    expect(refused?.status).toBe(400)
    expect(refused?.headers['content-type']).toContain('application/json')
    expect(JSON.parse(refused?.body ?? '')).toEqual({
      error: 'bad_request',
      message: expect.stringMatching(message),
    })
    expect(streams.size).toBe(0)
  })

  it('gets 503 while the end of the log cannot be had', async () => {
    const { source, streams, server } = await start()
    source.failures.lastSeq = 1
    const [refused] = await sendRaw(server.port, handshake(STREAM_PATH, KEY, VERSION))
    expect(refused?.status).toBe(503)
    expect(streams.size).toBe(0)
  })

  it('is not opened on another path: the request is answered as any other', async () => {
    const { server } = await start()
    const [answer] = await sendRaw(server.port, handshake('/other', KEY, VERSION))
    expect(answer).toMatchObject({ status: 200, body: 'other' })
  })

  it('opens behind requests whose answers are under way, and gets what comes with it', async () => {
    const { source, server } = await start()
    const socket = connect(server.port, '127.0.0.1')
    cleanUp.push(() => socket.destroy())
    let text = ''
    socket.on('data', (part) => {
      text += part.toString('latin1')
    })
    // The ping that follows the handshake at once is answered with a pong of the same.
    const ping = '\x89\x81\0\0\0\0p'
    const request = 'GET /other HTTP/1.1\r\nHost: a\r\n\r\n'
    socket.write(request + request + handshake(STREAM_PATH, KEY, VERSION) + ping, 'latin1')
    await vi.waitFor(() => expect(text.endsWith('\r\n\r\n\x8a\x01p')).toBe(true), WAIT)
    expect(text).toMatch(/200 OK.*other.*200 OK.*other.*101 Switching/s)
    source.send(1)
    await vi.waitFor(() => expect(text).toContain('{"seq":3,'), WAIT)
  })

  it('that its owner has not ended does not keep the server from closing', async () => {
    const { server } = await start()
    const { closed } = await openWebSocket(server)
    await server.close()
    expect(await closed).toMatchObject({ code: 1006 })
  })
})

describe('Server-Sent Events', () => {
  it('say how to go on, then each event with its place', async () => {
    const { source, server } = await start()
    const old = source.send(2)
    const { response, seqs, text } = await openEvents(server, `?agent=${AGENT}`)
    expect(response.status).toBe(200)
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'text/event-stream',
      'cache-control': 'no-store',
      'x-accel-buffering': 'no',
      'access-control-allow-origin': '*',
    })
    await vi.waitFor(() => expect(text()).toBe(`retry: 2000\nid: ${old[1]}\n\n`), WAIT)
    const sent = source.send(2, { content: 'a\nb\r\n\u2028' })
    source.send(1, { from: OTHER })
    sent.push(...source.send(1))
    await vi.waitFor(() => expect(seqs()).toEqual(twice(sent)), WAIT)
    expect(text().split('\n\n')).toHaveLength(5)
  })

  it('go on after Last-Event-ID, or since', async () => {
    const { source, server } = await start()
    const sent = source.send(20)
    const since = await openEvents(server, `?since=${sent[9]}`)
    const last = await openEvents(server, `?since=${sent[2]}`, {
      'Last-Event-ID': String(sent[14]),
    })
    await vi.waitFor(() => expect(since.seqs()).toEqual(twice(sent.slice(10))), WAIT)
    await vi.waitFor(() => expect(last.seqs()).toEqual(twice(sent.slice(15))), WAIT)
    const refused = await openEvents(server, '', { 'Last-Event-ID': 'x' })
    expect(refused.response.status).toBe(400)
  })

  it('no event is missed or comes twice when a client connects again and again', async () => {
    const { source, server } = await start({ ring: { maxEvents: 30, maxBytes: 100_000 } })
    const got: number[] = []
    const sent: number[] = []
    let last: string | undefined
    for (let times = 0; times < 15; times++) {
      const stream = await openEvents(
        server,
        '',
        last === undefined ? {} : { 'Last-Event-ID': last },
      )
      // The first is told its place before there is any event.
      await vi.waitFor(() => expect(stream.text()).toContain('id: '), WAIT)
      sent.push(...source.send(times === 0 ? 0 : 25))
      await vi.waitFor(
        () => expect(got.length + stream.seqs().length).toBeGreaterThanOrEqual(sent.length - 20),
        WAIT,
      )
      stream.close()
      await stream.ended
      const whole = stream.text().slice(0, stream.text().lastIndexOf('\n\n') + 2)
      const ids = [...whole.matchAll(/^id: (\d+)\n(data: )?/gm)]
      got.push(...ids.filter(([, , data]) => data).map(([, id]) => Number(id)))
      last = ids.at(-1)?.[1]
      sent.push(...source.send(5))
    }
    const rest = await openEvents(server, '', { 'Last-Event-ID': last ?? '' })
    await vi.waitFor(() => expect([...got, ...rest.seqs().map(([seq]) => seq)]).toEqual(sent), WAIT)
  })

  it('have comments, with the place where it has moved on without an event', async () => {
    const { source, server } = await start({ times: { commentMs: 30 } })
    const { text } = await openEvents(server, `?agent=${OTHER}`)
    await vi.waitFor(() => expect(text()).toContain('\n\n:\n\n:\n\n'), WAIT)
    const [, last] = source.send(2)
    await vi.waitFor(() => expect(text()).toContain(`\n\n:\nid: ${last}\n\n:\n\n`), WAIT)
  })

  it('end when they have been open for long, and when the server stops', async () => {
    const first = await start({ times: { maxAgeMs: 50 } })
    expect(await (await openEvents(first.server)).ended).toBe(true)
    await vi.waitFor(() => expect(first.streams.size).toBe(0), WAIT)
    const second = await start()
    const { ended } = await openEvents(second.server)
    await second.streams.close()
    expect(await ended).toBe(true)
    await second.server.close()
  })

  it('end for a client that reads nothing', async () => {
    const { source, streams, server } = await start({ times: { writeTimeoutMs: 100 } })
    const droppedBefore = await dropped()
    const socket = connect(server.port, '127.0.0.1')
    cleanUp.push(() => socket.destroy())
    socket.on('error', () => {})
    socket.write(`GET ${STREAM_PATH} HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n`)
    await once(socket, 'readable')
    source.send(200, { content: 'x'.repeat(100_000) })
    await vi.waitFor(() => expect(streams.size).toBe(0), WAIT)
    expect(await dropped()).toBe(droppedBefore + 1)
  })

  it('are not for a client that does not ask for them; a HEAD is told of them', async () => {
    const { streams, server } = await start()
    const url = `http://127.0.0.1:${server.port}${STREAM_PATH}`
    const refused = await fetch(url)
    expect(refused.status).toBe(400)
    expect(await refused.json()).toMatchObject({ error: 'bad_request' })
    const head = await fetch(url, { method: 'HEAD', headers: { Accept: 'text/event-stream' } })
    expect([head.status, head.headers.get('content-type')]).toEqual([200, 'text/event-stream'])
    expect(streams.size).toBe(0)
  })
})
