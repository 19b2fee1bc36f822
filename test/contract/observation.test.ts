/** The observation API of the contract, a sentence a test. */
import { type IncomingMessage, request } from 'node:http'
import { describe, expect, it, vi } from 'vitest'
import WebSocket from 'ws'
import { Client, keyPath } from '../../lab/client.ts'
import type { Event } from '../../lab/kernel.ts'
import { ownTarget, sharedTarget } from '../support/target.ts'
import { lastSeq } from './support.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)
const observeUrl = await target.observeUrl()
const [agent, other] = [await client.registerAgent(), await client.registerAgent()]

const WAIT = { timeout: 60_000, interval: 100 }
const ADDRESS = /^tab_[a-z0-9]{20}$/

async function observe(path: string, init: RequestInit = {}) {
  const response = await fetch(`${observeUrl}${path}`, init)
  const text = await response.text()
  return {
    status: response.status,
    headers: response.headers,
    json: (text === '' ? undefined : JSON.parse(text)) as never,
  }
}

interface Page {
  events: Event[]
  next_cursor: number
  has_more: boolean
}

async function events(query: Record<string, string | number>): Promise<Page> {
  const path = `/observe/events?${new URLSearchParams(query as Record<string, string>)}`
  // Where others have written values of megabytes, a busy machine may not have them in time:
  // whoever asks asks again.
  const { status, json } = await vi.waitFor(async () => {
    const answer = await observe(path)
    expect(answer.status).not.toBe(503)
    return answer
  }, WAIT)
  expect(status).toBe(200)
  return json
}

async function refused(
  path: string,
  status: number,
  code: string,
  init?: RequestInit,
): Promise<string> {
  const answer = await observe(path, init)
  expect(answer.status, path).toBe(status)
  expect(answer.headers.get('access-control-allow-origin')).toBe('*')
  const { error, message, ...rest } = answer.json as { error: string; message: string }
  expect({ error, rest }).toEqual({ error: code, rest: {} })
  return message
}

const typesAfter = async (seq: number) => (await target.events(seq)).map(({ type }) => type)

/** A few things that agents do, and the place before them. */
async function someEvents() {
  // What tests before this one left to receive, or have read, is in the log when this is.
  const before = await lastSeq(target)
  await other.receive()
  await other.request('GET', '/v1/registry?limit=1')
  await vi.waitFor(async () => expect(await typesAfter(before)).toContain('registry_read'), WAIT)
  const since = await lastSeq(target)
  const key = `observed/${crypto.randomUUID()}`
  await agent.write(key, 'one')
  await agent.send(other.address, 'hello')
  await other.receive()
  await other.read(key)
  await other.write(key, 'two')
  await vi.waitFor(async () => expect((await target.events(since)).length).toBe(5), WAIT)
  return { since, key, all: await target.events(since) }
}

describe('GET /observe/health', () => {
  it('says that it is up, and the version of the contract', async () => {
    expect((await observe('/observe/health')).json).toEqual({ status: 'ok', version: '0.1.0' })
  })
})

describe('every answer', () => {
  it('may be read from any origin, and OPTIONS says how', async () => {
    const answer = await fetch(`${observeUrl}/observe/events`, { method: 'OPTIONS' })
    expect(answer.status).toBe(200)
    expect(answer.headers.get('access-control-allow-methods')).toBe('GET, OPTIONS')
    expect(answer.headers.get('access-control-allow-origin')).toBe('*')
    expect((await observe('/observe/agents')).headers.get('access-control-allow-origin')).toBe('*')
  })

  it('is an error in the form of the contract where something is wrong', async () => {
    await refused('/observe/nothing', 404, 'not_found')
    await refused('/v1/health', 404, 'not_found')
    await refused('/observe/agents', 405, 'method_not_allowed', { method: 'POST', body: '{}' })
    await refused('/observe/events?since=-1', 400, 'bad_request')
    await refused('/observe/events?since=x', 400, 'bad_request')
    expect(await refused('/observe/events?type=nothing', 400, 'bad_request')).toContain(
      'message_sent',
    )
    await refused('/observe/events?agent=me', 400, 'bad_request')
    await refused('/observe/state?cursor=%21', 400, 'bad_request')
    await refused('/observe/agents?cursor=abc', 400, 'bad_request')
    await refused('/observe/activity?from=yesterday', 400, 'bad_request')
    await refused(
      '/observe/activity?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z',
      400,
      'bad_request',
    )
    await refused(`/observe/state/${'k'.repeat(1_100)}`, 400, 'bad_request')
    await refused('/observe/state/%ff', 400, 'bad_request')
  })

  it('may be read from any origin where it refuses what the application never sees, too', async () => {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    request(
      `${observeUrl}/observe/agents`,
      { headers: { Expect: 'something' }, agent: false },
      resolve,
    )
      .on('error', reject)
      .end()
    const refusal = await promise
    refusal.resume()
    expect(refusal.statusCode).toBe(417)
    expect(refusal.headers['access-control-allow-origin']).toBe('*')
  })

  it('is limited to 300 requests a minute for each client', async () => {
    const { headers } = await observe('/observe/agents')
    for (const name of ['limit', 'remaining', 'reset'])
      expect(headers.get(`x-ratelimit-${name}`)).toMatch(/^\d+$/)
  })
})

describe('GET /observe/events', () => {
  it('is the log, in its order, after `since`', async () => {
    const { since, all } = await someEvents()
    const page = await events({ since })
    expect(page.events).toEqual(all)
    expect(page).toMatchObject({ next_cursor: all.at(-1)?.seq, has_more: false })
  })

  it('is paged: `next_cursor` is the seq of the last event, `has_more` whether there are others', async () => {
    const { since, all } = await someEvents()
    const first = await events({ since, limit: 2 })
    expect(first).toEqual({ events: all.slice(0, 2), next_cursor: all[1]?.seq, has_more: true })
    const second = await events({ since: first.next_cursor, limit: 3 })
    expect(second).toEqual({ events: all.slice(2), next_cursor: all[4]?.seq, has_more: false })
    const { next_cursor: end } = second
    expect(await events({ since: end })).toEqual({ events: [], next_cursor: end, has_more: false })
    // Anything else than 1 to 1000 means 100.
    expect((await events({ since, limit: 0 })).events).toHaveLength(5)
    expect((await events({ since, limit: 1_001 })).events).toHaveLength(5)
  })

  it('may be of some types, of one agent, or both', async () => {
    const { since, all } = await someEvents()
    const ofTypes = (...types: string[]) => all.filter(({ type }) => types.includes(type))
    expect((await events({ since, type: 'state_written,message_sent' })).events).toEqual(
      ofTypes('state_written', 'message_sent'),
    )
    expect((await events({ since, agent: other.address })).events).toEqual(
      all.filter((event) => event.agent === other.address),
    )
    const both = await events({ since, agent: other.address, type: 'state_written', limit: 1 })
    const [, second] = ofTypes('state_written')
    expect(both).toEqual({ events: [second], next_cursor: second?.seq, has_more: false })
    expect(await events({ since, agent: `tab_${'0'.repeat(20)}` })).toEqual({
      events: [],
      next_cursor: since,
      has_more: false,
    })
  })

  it('goes backwards with `before`, the latest first, and up to `until`', async () => {
    const { since, all } = await someEvents()
    const end = all.at(-1)?.seq as number
    const latest = await events({ before: end + 1, limit: 2 })
    expect(latest).toEqual({ events: [all[4], all[3]], next_cursor: all[3]?.seq, has_more: true })
    const rest = await events({ before: latest.next_cursor, since, limit: 10 })
    expect(rest).toEqual({
      events: [all[2], all[1], all[0]],
      next_cursor: all[0]?.seq,
      has_more: false,
    })
    const written = await events({ before: end + 1, since, type: 'state_written' })
    expect(written.events).toEqual(all.filter(({ type }) => type === 'state_written').reverse())
    expect((await events({ since, until: all[2]?.seq as number })).events).toEqual(all.slice(0, 3))
  })
})

/** A live stream over one of its two transports. */
async function watch(transport: 'WebSocket' | 'SSE', query = '') {
  const seen: Event[] = []
  const path = `/observe/events/stream${query}`
  if (transport === 'WebSocket') {
    const socket = new WebSocket(`${observeUrl.replace('http', 'ws')}${path}`)
    socket.on('message', (data) => seen.push(JSON.parse(String(data))))
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject))
    return { seen, end: () => socket.close() }
  }
  const stop = new AbortController()
  const response = await fetch(`${observeUrl}${path}`, {
    headers: { Accept: 'text/event-stream' },
    signal: stop.signal,
  })
  expect(response.headers.get('content-type')).toBe('text/event-stream')
  expect(response.headers.get('access-control-allow-origin')).toBe('*')
  const reading = (async () => {
    let text = ''
    for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
      text += part
      const blocks = text.split('\n\n')
      text = blocks.pop() ?? ''
      for (const block of blocks) {
        const data = /^data: (.*)$/m.exec(block)?.[1]
        if (data === undefined) continue
        const event: Event = JSON.parse(data)
        expect(block).toContain(`id: ${event.seq}\n`)
        seen.push(event)
      }
    }
  })().catch(() => {})
  return {
    seen,
    end: async () => {
      stop.abort()
      await reading
    },
  }
}

describe.each(['WebSocket', 'SSE'] as const)('the live stream as %s', (transport) => {
  it('brings each event as it happens, once and in order', async () => {
    const { seen, end } = await watch(transport)
    const { all } = await someEvents()
    await vi.waitFor(
      () => expect(seen.filter(({ seq }) => seq >= (all[0]?.seq ?? 0))).toEqual(all),
      WAIT,
    )
    await end()
  })

  it('goes on after `since`, and filters', async () => {
    const { since, all } = await someEvents()
    const from = await watch(transport, `?since=${since}`)
    await vi.waitFor(() => expect(from.seen).toEqual(all), WAIT)
    await from.end()
    const filtered = await watch(
      transport,
      `?since=${since}&type=state_written&agent=${agent.address}`,
    )
    const more = await someEvents()
    await vi.waitFor(() => expect(filtered.seen).toEqual([all[0], more.all[0]]), WAIT)
    await filtered.end()
  })

  it('refuses what it does not understand', async () => {
    await refused('/observe/events/stream', 400, 'bad_request')
    await refused('/observe/events/stream?type=x', 400, 'bad_request', {
      headers: { Accept: 'text/event-stream' },
    })
  })
})

describe('the state', () => {
  it('lists keys in byte order with who wrote them when and how long they are', async () => {
    const prefix = `list/${crypto.randomUUID()}/`
    const names = ['a', 'b', 'ü', 'z/1']
    for (const name of names) await agent.write(`${prefix}${name}`, `value of ${name}`)
    const query = `prefix=${encodeURIComponent(prefix)}`
    const { json } = await observe(`/observe/state?${query}`)
    const { keys, next_cursor, total } = json as {
      keys: { key: string; value_length: number }[]
      next_cursor: null
      total: number
    }
    const sorted = names.toSorted((one, two) => Buffer.compare(Buffer.from(one), Buffer.from(two)))
    expect(keys.map(({ key }) => key)).toEqual(sorted.map((name) => `${prefix}${name}`))
    expect({ next_cursor, total }).toEqual({ next_cursor: null, total: 4 })
    expect(keys[0]).toEqual({
      key: `${prefix}a`,
      last_modified_by: agent.address,
      last_modified_at: (await agent.read(`${prefix}a`)).last_modified_at,
      value_length: 10,
    })
    const seen: string[] = []
    for (let cursor: string | null = ''; cursor !== null; ) {
      const page = (await observe(`/observe/state?${query}&limit=3&cursor=${cursor}`)).json as {
        keys: { key: string }[]
        next_cursor: string | null
        total: number
      }
      expect(page.total).toBe(4)
      seen.push(...page.keys.map(({ key }) => key))
      cursor = page.next_cursor
    }
    expect(seen).toEqual(keys.map(({ key }) => key))
  })

  it('shows a key and its value as agents read it, and 404 for one that is not there', async () => {
    const key = `value/${crypto.randomUUID()} ü%/..`
    await agent.write(key, 'opaque \u0000 value')
    const { last_modified_at } = await agent.read(key)
    expect((await observe(`/observe/${keyPath(key).replace('/v1/', '')}`)).json).toEqual({
      key,
      value: 'opaque \u0000 value',
      last_modified_by: agent.address,
      last_modified_at,
    })
    await agent.remove(key)
    await refused(`/observe/state/${encodeURIComponent(key)}`, 404, 'not_found')
  })

  it('keeps the history of a key, and its value at any place', async () => {
    const key = `history/${crypto.randomUUID()}`
    await agent.write(key, 'one')
    await other.write(key, 'three')
    await other.remove(key)
    const { json } = await observe(`/observe/state/${key}/history`)
    const { versions, next_cursor } = json as { versions: { seq: number }[]; next_cursor: null }
    expect(versions).toMatchObject([
      { type: 'state_deleted', agent: other.address, value_length: null },
      { type: 'state_written', agent: other.address, value_length: 5 },
      { type: 'state_written', agent: agent.address, value_length: 3 },
    ])
    expect(next_cursor).toBeNull()
    const [deleted, second, first] = versions.map(({ seq }) => seq)
    const at = async (seq: number | undefined) =>
      (await observe(`/observe/state/${key}?at=${seq}`)).json
    expect(await at(first)).toMatchObject({ key, value: 'one', last_modified_by: agent.address })
    expect(await at((second ?? 0) - 1)).toMatchObject({ value: 'one' })
    expect(await at(second)).toMatchObject({ value: 'three' })
    await refused(`/observe/state/${key}?at=${deleted}`, 404, 'not_found')
    await refused(`/observe/state/no/such/key/history`, 404, 'not_found')
    const page = (await observe(`/observe/state/${key}/history?limit=2`)).json as {
      next_cursor: string
    }
    const rest = (await observe(`/observe/state/${key}/history?cursor=${page.next_cursor}`)).json
    expect(rest).toMatchObject({ versions: [{ seq: first }], next_cursor: null })
    // A key that has that name itself is what was asked for.
    await agent.write(`${key}/history`, 'of its own')
    expect((await observe(`/observe/state/${key}/history`)).json).toMatchObject({
      value: 'of its own',
    })
  })
})

describe('agents', () => {
  it('are listed by registration, with their figures, which count at once', async () => {
    const newcomer = await client.registerAgent()
    const unknown = (await observe(`/observe/agents/${newcomer.address}`)).json
    expect(unknown).toEqual({
      address: newcomer.address,
      registered_at: (await newcomer.me()).registered_at,
      messages_sent: 0,
      messages_received: 0,
      state_writes: 0,
      last_active: expect.toSatisfy((value) => value === null || typeof value === 'string'),
    })
    await newcomer.send(agent.address, 'one')
    await newcomer.send(agent.address, 'two')
    await agent.send(newcomer.address, 'back')
    await newcomer.write(`figures/${newcomer.address}`, 'x')
    const its = (await observe(`/observe/agents/${newcomer.address}`)).json as {
      last_active: string
    }
    expect(its).toMatchObject({ messages_sent: 2, messages_received: 1, state_writes: 1 })
    expect(its.last_active).toMatch(/^\d{4}-.*Z$/)
    const listed: { address: string }[] = []
    for (let cursor: string | null = ''; cursor !== null; ) {
      const page = (await observe(`/observe/agents?limit=2&cursor=${cursor}`)).json as {
        agents: { address: string }[]
        next_cursor: string | null
        total: number
      }
      listed.push(...page.agents)
      cursor = page.next_cursor
    }
    const addresses = listed.map(({ address }) => address)
    expect(addresses.filter((address) => !ADDRESS.test(address))).toEqual([])
    expect(addresses.at(-1)).toBe(newcomer.address)
    expect(addresses.indexOf(agent.address)).toBeLessThan(addresses.indexOf(other.address))
    expect(listed.at(-1)).toEqual(its)
    const { total } = (await observe('/observe/agents?limit=1')).json as { total: number }
    expect(total).toBe(addresses.length)
  })

  it('that are unknown are 404', async () => {
    await refused(`/observe/agents/tab_${'0'.repeat(20)}`, 404, 'not_found')
    await refused('/observe/agents/me', 404, 'not_found')
  })

  it('that never acted were never active', async () => {
    const newcomer = await client.registerAgent()
    // Asked for by nobody: registering was its operator's doing.
    const { last_active } = (await observe(`/observe/agents/${newcomer.address}`)).json as {
      last_active: null
    }
    expect(last_active).toBeNull()
  })
})

describe('the network', () => {
  it('has an edge for who wrote to whom, and how often', async () => {
    const [one, two] = [await client.registerAgent(), await client.registerAgent()]
    for (let count = 0; count < 3; count++) await one.send(two.address, String(count))
    await two.send(one.address, 'back')
    const { nodes, edges } = (await observe(`/observe/network?limit=10000`)).json as {
      nodes: { address: string }[]
      edges: { from: string; to: string; count: number }[]
    }
    expect(edges).toContainEqual({ from: one.address, to: two.address, count: 3 })
    expect(edges).toContainEqual({ from: two.address, to: one.address, count: 1 })
    expect(nodes).toContainEqual({ address: one.address, messages_sent: 3, messages_received: 1 })
    const heavy = (await observe('/observe/network?min_count=3&limit=10000'))
      .json as typeof edges & {
      edges: typeof edges
    }
    expect(heavy.edges.every(({ count }) => count >= 3)).toBe(true)
    const its = (await observe(`/observe/network?agent=${one.address}`)).json as {
      edges: typeof edges
    }
    expect(its.edges).toEqual([
      { from: one.address, to: two.address, count: 3 },
      { from: two.address, to: one.address, count: 1 },
    ])
    const single = (await observe('/observe/network?limit=1')).json as { edges: typeof edges }
    expect(single.edges).toHaveLength(1)
  })
})

describe('the activity', () => {
  it('is counted by type in buckets, of everybody or of one agent', async () => {
    const newcomer = await client.registerAgent()
    for (let count = 0; count < 4; count++)
      await newcomer.write(`activity/${newcomer.address}`, String(count))
    const { buckets, bucket_seconds } = (
      await observe(`/observe/activity?agent=${newcomer.address}`)
    ).json as {
      buckets: { total: number; types: Record<string, number>; first_seq: number }[]
      bucket_seconds: number
    }
    expect(bucket_seconds % 3_600).toBe(0)
    const written = buckets.reduce((sum, { types }) => sum + (types.state_written ?? 0), 0)
    expect(written).toBe(4)
    const all = (await observe('/observe/activity?buckets=500&type=state_written,message_sent'))
      .json as {
      buckets: { total: number; types: Record<string, number> }[]
    }
    expect(all.buckets.length).toBeLessThanOrEqual(500)
    expect(new Set(all.buckets.flatMap(({ types }) => Object.keys(types)))).toEqual(
      new Set(['state_written', 'message_sent']),
    )
  })
})

describe('the transparency log', () => {
  it('is a list of what was removed', async () => {
    const { json } = await observe('/observe/transparency')
    expect(json).toMatchObject({ removals: expect.any(Array), total: expect.any(Number) })
  })
})

describe('limits', async () => {
  const limited = await ownTarget({}, { limits: 'default' })
  const url = await limited.observeUrl()

  it('let a client ask 300 times a minute, then say when to come again', async () => {
    const statuses = new Map<number, number>()
    let refusedAnswer: Response | undefined
    // Five come back each second: many ask at once, so that a slow machine uses them up as well.
    const ask = async () => {
      while (refusedAnswer === undefined) {
        const answer = await fetch(`${url}/observe/transparency`)
        await answer.text()
        statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1)
        if (answer.status === 429) refusedAnswer ??= answer
      }
    }
    await Promise.all(Array.from({ length: 16 }, ask))
    expect(statuses.get(200)).toBeGreaterThanOrEqual(300)
    expect(refusedAnswer?.headers.get('retry-after')).toMatch(/^[1-9]\d*$/)
    expect(refusedAnswer?.headers.get('access-control-allow-origin')).toBe('*')
    expect(await fetch(`${url}/observe/health`).then(({ status }) => status)).toBe(200)
  })
})

describe('the service', () => {
  it('describes itself', async () => {
    const document = (await observe('/observe/openapi.json')).json as {
      openapi: string
      paths: Record<string, unknown>
    }
    expect(document.openapi).toBe('3.1.0')
    expect(Object.keys(document.paths).sort()).toEqual([
      '/observe/activity',
      '/observe/agents',
      '/observe/agents/{address}',
      '/observe/events',
      '/observe/events/stream',
      '/observe/health',
      '/observe/moment',
      '/observe/network',
      '/observe/state',
      '/observe/state/{key}',
      '/observe/state/{key}/history',
      '/observe/transparency',
    ])
    const page = await fetch(`${observeUrl}/observe/docs`)
    expect(page.headers.get('content-type')).toContain('text/html')
    expect(await page.text()).toContain('/observe/openapi.json')
  })

  it('goes on where it was after a restart', async () => {
    const { since, all } = await someEvents()
    await target.restart()
    await vi.waitFor(async () => expect((await events({ since })).events).toEqual(all), WAIT)
    const its = (await observe(`/observe/agents/${agent.address}`)).json as {
      messages_sent: number
    }
    await agent.send(other.address, 'after')
    expect((await observe(`/observe/agents/${agent.address}`)).json).toMatchObject({
      messages_sent: its.messages_sent + 1,
    })
  })
})

describe('contents that take much as JSON', () => {
  it('are paged by what they take, whatever is asked, so that one gets through all of them', async () => {
    const key = `long/${crypto.randomUUID()}`
    const since = await lastSeq(target)
    for (let count = 0; count < 6; count++) await agent.write(key, '\u0000'.repeat(1_048_576))
    for (const query of ['type=state_written', `agent=${agent.address}`]) {
      let seen = 0
      let pages = 0
      for (let position = since, hasMore = true; hasMore; pages++) {
        const page = await events({
          since: position,
          ...Object.fromEntries(new URLSearchParams(query)),
        })
        seen += page.events.filter(({ data }) => data.key === key).length
        position = page.next_cursor
        hasMore = page.has_more
      }
      expect({ seen, isPaged: pages > 2 }).toEqual({ seen: 6, isPaged: true })
    }
  })
})

describe('a moment of the past', () => {
  it('is counted: agents, keys and events by type, as they were', async () => {
    const { since, key, all } = await someEvents()
    const before = await moment({ at: since })
    expect(before.seq).toBe(since)
    const [written, sent] = all as [Event, Event]
    const after = await moment()
    expect(after).toMatchObject({
      agents: before.agents,
      keys: before.keys + 1,
      events: before.events + 5,
    })
    expect(after.types.state_written).toBe((before.types.state_written ?? 0) + 2)
    expect(after.seq).toBe(all.at(-1)?.seq)
    expect(await moment({ at: sent.seq })).toMatchObject({
      seq: sent.seq,
      ts: sent.ts,
      events: before.events + 2,
      keys: before.keys + 1,
    })
    expect(await moment({ at: 0 })).toEqual({
      seq: 0,
      ts: null,
      agents: 0,
      keys: 0,
      events: 0,
      types: {},
    })
    await agent.request('DELETE', keyPath(key))
    expect(await moment()).toMatchObject({ keys: before.keys })
    expect(await moment({ time: written.ts })).toMatchObject({ seq: expect.any(Number) })
    expect((await moment({ time: written.ts })).seq).toBeGreaterThanOrEqual(written.seq)
    expect((await moment({ time: '2001-01-01T00:00:00Z' })).seq).toBe(0)
    await refused('/observe/moment?at=1&time=2026-01-01T00:00:00Z', 400, 'bad_request')
    await refused('/observe/moment?time=tuesday', 400, 'bad_request')
    await refused('/observe/moment?at=x', 400, 'bad_request')
  })

  it('shows the state, an agent, the network and a history as they were', async () => {
    const { key, all } = await someEvents()
    const [written, sent, , , rewritten] = all as [Event, Event, Event, Event, Event]
    const prefix = encodeURIComponent(key)
    const listed = async (at: number) =>
      (await observe(`/observe/state?prefix=${prefix}&at=${at}`)).json as {
        keys: { last_modified_by: string; last_modified_at: string; value_length: number }[]
        total: number | null
      }
    expect((await listed(written.seq - 1)).keys).toEqual([])
    expect(await listed(written.seq)).toEqual({
      keys: [
        { key, last_modified_by: agent.address, last_modified_at: written.ts, value_length: 3 },
      ],
      next_cursor: null,
      total: null,
    })
    expect((await listed(rewritten.seq)).keys).toMatchObject([{ last_modified_by: other.address }])
    const whole = (await observe(`/observe/state?at=${written.seq}`)).json as { total: number }
    expect(whole.total).toBe((await moment({ at: written.seq })).keys)
    const history = (
      await observe(`/observe${keyPath(key).replace('/v1', '')}/history?at=${written.seq}`)
    ).json
    expect(history).toMatchObject({ versions: [{ seq: written.seq }] })

    const figures = async (at: number) =>
      (await observe(`/observe/agents/${agent.address}?at=${at}`)).json as { messages_sent: number }
    expect((await figures(sent.seq)).messages_sent).toBe(
      (await figures(sent.seq - 1)).messages_sent + 1,
    )
    expect(await figures(all.at(-1)?.seq as number)).toEqual(
      (await observe(`/observe/agents/${agent.address}`)).json,
    )
    await refused(`/observe/agents/${agent.address}?at=1`, 404, 'not_found')
    const agents = (await observe(`/observe/agents?limit=1&at=${sent.seq}`)).json as {
      total: number
    }
    expect(agents.total).toBe((await moment({ at: sent.seq })).agents)

    const edge = async (at: number) => {
      const { edges } = (await observe(`/observe/network?agent=${agent.address}&at=${at}`))
        .json as {
        edges: { from: string; to: string; count: number }[]
      }
      return (
        edges.find(({ from, to }) => from === agent.address && to === other.address)?.count ?? 0
      )
    }
    expect(await edge(sent.seq)).toBe((await edge(sent.seq - 1)) + 1)
    for (const path of [
      '/observe/state',
      '/observe/agents',
      `/observe/agents/${agent.address}`,
      '/observe/network',
    ])
      await refused(`${path}?at=x`, 400, 'bad_request')
  })
})

describe('what the log is searched for', () => {
  const word = `Wort${crypto.randomUUID().slice(0, 8)}`

  it('is a text in the data of events, whatever the case, or the beginning of a key', async () => {
    const since = await lastSeq(target)
    const key = `${word}/a`
    await agent.write(key, 'one')
    await agent.send(other.address, `so said ${word.toUpperCase()}!`)
    await agent.send(other.address, 'nothing')
    await other.read(key)
    const isRead = ({ type, data }: Event) => type === 'state_read' && data.key === key
    await vi.waitFor(async () => expect((await target.events(since)).some(isRead)).toBe(true), WAIT)
    const types = async (query: Record<string, string | number>) =>
      (await events({ since, ...query })).events.map(({ type }) => type)
    expect(await types({ text: word.toLowerCase() })).toEqual([
      'state_written',
      'message_sent',
      'state_read',
    ])
    expect(await types({ key: word })).toEqual(['state_written', 'state_read'])
    expect(await types({ key: `${word}/a`, type: 'state_read' })).toEqual(['state_read'])
    expect(await types({ key: word.slice(1) })).toEqual([])
    expect(await types({ text: word, agent: other.address })).toEqual(['state_read'])
    expect(await types({ text: 'so said', key: word })).toEqual([])
    const back = await events({ text: word, before: (await lastSeq(target)) + 1, limit: 1 })
    expect(back).toMatchObject({ events: [{ type: 'state_read' }], has_more: true })
    const next = await events({ text: word, before: back.next_cursor, limit: 1 })
    expect(next.events).toMatchObject([{ type: 'message_sent' }])
    await refused(`/observe/events?text=${'x'.repeat(201)}`, 400, 'bad_request')
    await refused(`/observe/events?key=${'x'.repeat(1_025)}`, 400, 'bad_request')
  })

  it('is a conversation between two, from either of them', async () => {
    const third = await client.registerAgent()
    const since = await lastSeq(target)
    await agent.send(other.address, 'one')
    await agent.send(third.address, 'not this')
    await other.send(agent.address, 'two')
    const page = await events({ since, agent: agent.address, with: other.address })
    expect(page.events.map(({ data }) => data.content)).toEqual(['one', 'two'])
    expect((await events({ since, agent: other.address, with: agent.address })).events).toEqual(
      page.events,
    )
    expect((await events({ since, agent: other.address, with: third.address })).events).toEqual([])
    await refused(`/observe/events?with=${other.address}`, 400, 'bad_request')
    await refused(`/observe/events?agent=${agent.address}&with=you`, 400, 'bad_request')
  })

  it('is followed live too, from any place on', async () => {
    const since = await lastSeq(target)
    await agent.write(`${word}/live`, 'before')
    const seen: string[] = []
    const socket = new WebSocket(
      `${observeUrl.replace('http', 'ws')}/observe/events/stream?since=${since}&key=${word}/live&text=tick`,
    )
    socket.on('message', (data) => seen.push(JSON.parse(String(data)).data.value))
    await new Promise((resolve) => socket.once('open', resolve))
    await agent.write(`${word}/live`, 'tick 1')
    await agent.write(`${word}/other`, 'tick not')
    await agent.write(`${word}/live`, 'tock')
    await agent.write(`${word}/live`, 'TICK 2')
    await vi.waitFor(() => expect(seen).toHaveLength(2), WAIT)
    expect(seen).toEqual(['tick 1', 'TICK 2'])
    socket.terminate()
  })
})

describe('agents in another order', () => {
  it('are the busiest, the newest, or those whose addresses begin so', async () => {
    const newest = await client.registerAgent()
    await vi.waitFor(
      async () => expect(await addresses('sort=newest&limit=1')).toEqual([newest.address]),
      WAIT,
    )
    const all = await addresses('sort=registered')
    expect(await addresses('sort=newest')).toEqual(all.toReversed())
    expect((await addresses('sort=busiest')).toSorted()).toEqual(all.toSorted())
    const beginning = newest.address.slice(0, 10)
    expect(await addresses(`search=${beginning}`)).toContain(newest.address)
    expect(await addresses(`search=${newest.address}`)).toEqual([newest.address])
    expect(await addresses('search=tab_%25')).toEqual([])
    const first = (await observe('/observe/agents?sort=busiest&limit=1')).json as {
      next_cursor: string
    }
    expect(await addresses(`sort=busiest&cursor=${first.next_cursor}`)).toHaveLength(all.length - 1)
    await refused('/observe/agents?sort=richest', 400, 'bad_request')
    await refused('/observe/agents?sort=busiest&at=5', 400, 'bad_request')
    await refused(`/observe/agents?search=${'x'.repeat(25)}`, 400, 'bad_request')
  })

  const addresses = async (query: string) =>
    (
      (await observe(`/observe/agents?${query}`)).json as { agents: { address: string }[] }
    ).agents.map(({ address }) => address)
})

interface Moment {
  seq: number
  agents: number
  keys: number
  events: number
  types: Record<string, number>
}

async function moment(query: Record<string, string | number> = {}): Promise<Moment> {
  const { status, json } = await observe(
    `/observe/moment?${new URLSearchParams(query as Record<string, string>)}`,
  )
  expect(status).toBe(200)
  return json
}
