/** The event log on the internal port. */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, describe, expect, it } from 'vitest'
import { startInternalServer } from '../../src/platform/internal-server.ts'
import { createLogger } from '../../src/platform/logger.ts'

let read: (asked: { since: number; limit: number }) => Promise<string[]>
const server = await startInternalServer({
  host: '127.0.0.1',
  port: 0,
  checks: { servers: {}, work: {} },
  logger: createLogger('silent', 'test'),
  readEvents: (asked) => read(asked),
})
afterAll(() => server.close())

async function events(query = ''): Promise<{ status: number; text: string }> {
  const response = await fetch(`http://127.0.0.1:${server.port}/events${query}`)
  return { status: response.status, text: await response.text() }
}

describe('/events', () => {
  it('is a page, a line an event, of what is asked for', async () => {
    const asked: unknown[] = []
    read = async (query) => {
      asked.push(query)
      return ['{"seq":1}', '{"seq":2}']
    }
    expect(await events('?since=3&limit=7')).toEqual({
      status: 200,
      text: '{"seq":1}\n{"seq":2}\n',
    })
    await events()
    await events('?limit=1000000')
    expect(asked).toEqual([
      { since: 3, limit: 7 },
      { since: 0, limit: 100 },
      { since: 0, limit: 1_000 },
    ])
  })

  it('is 503 with the reason, not empty, where the log cannot be read', async () => {
    read = async () => {
      throw new Error('the event log did not answer in time')
    }
    const { status, text } = await events()
    expect(status).toBe(503)
    expect(JSON.parse(text)).toEqual({
      error: 'unavailable',
      message: 'the event log did not answer in time',
    })
  })

  it.each(['since=x', 'since=-1', 'limit=1.5', 'limit=', 'since=1e3'])(
    'is 400 for %s',
    async (query) => {
      const { status, text } = await events(`?${query}`)
      expect(status).toBe(400)
      expect(JSON.parse(text).message).toMatch(/whole numbers/)
    },
  )

  it('reads four pages at once at most', async () => {
    let reading = 0
    let most = 0
    const four = Promise.withResolvers<void>()
    read = async () => {
      most = Math.max(most, ++reading)
      if (reading === 4) four.resolve()
      // The first is alone until the others have come.
      await Promise.race([four.promise, sleep(500)])
      reading--
      return []
    }
    const answers = await Promise.all(Array.from({ length: 20 }, () => events()))
    expect(answers.every(({ status }) => status === 200)).toBe(true)
    expect(most).toBe(4)
  })
})

describe('/readyz', () => {
  it('is 200 once all was well, however much is missing, but not where none of the servers is reached', async () => {
    const problems: Record<string, string | undefined> = { postgres: 'still starts' }
    const check = (part: string) => async () => problems[part]
    await using stack = new AsyncDisposableStack()
    const node = await startInternalServer({
      host: '127.0.0.1',
      port: 0,
      logger: createLogger('silent', 'test'),
      checks: {
        servers: { postgres: check('postgres'), redis: check('redis'), nats: check('nats') },
        work: { projector: check('projector') },
      },
    })
    stack.defer(() => node.close())
    const ready = async () => {
      const response = await fetch(`http://127.0.0.1:${node.port}/readyz`)
      return [response.status, ((await response.json()) as { status: string }).status]
    }
    const becomes = (...wanted: [number, string]) =>
      expect.poll(ready, { timeout: 30_000 }).toEqual(wanted)

    expect(await ready()).toEqual([503, 'starting'])
    problems.postgres = undefined
    expect(await ready()).toEqual([200, 'ready'])
    problems.postgres = 'out'
    await becomes(200, 'degraded')
    Object.assign(problems, { redis: 'out', projector: 'out' })
    await becomes(200, 'degraded')
    problems.nats = 'out'
    await becomes(503, 'cut_off')
    problems.redis = undefined
    await becomes(200, 'degraded')
    Object.assign(problems, { postgres: undefined, nats: undefined, projector: undefined })
    await becomes(200, 'ready')
    node.drain()
    expect(await ready()).toEqual([503, 'draining'])
  })

  it('names a server that has no room, beside which a process that starts is of use all the same', async () => {
    const problems: Record<string, string | undefined> = {
      full: 'redis is full',
      projector: 'nobody',
    }
    const check = (part: string) => async () => problems[part]
    await using stack = new AsyncDisposableStack()
    const node = await startInternalServer({
      host: '127.0.0.1',
      port: 0,
      logger: createLogger('silent', 'test'),
      checks: {
        servers: { redis: check('redis'), nats: check('nats') },
        work: { projector: check('projector') },
        room: { redis: check('full') },
      },
    })
    stack.defer(() => node.close())
    const ready = async () => {
      const response = await fetch(`http://127.0.0.1:${node.port}/readyz`)
      return { code: response.status, ...((await response.json()) as object) }
    }
    const becomes = (code: number, status: string, parts: object) =>
      expect.poll(ready, { timeout: 30_000 }).toMatchObject({ code, status, parts })
    await becomes(503, 'starting', { redis: 'redis is full', nats: 'ok', projector: 'nobody' })
    problems.projector = undefined
    await becomes(200, 'degraded', { redis: 'redis is full', projector: 'ok' })
    problems.redis = 'no answer'
    await becomes(200, 'degraded', { redis: 'no answer' })
    // What has no room is reached.
    problems.redis = undefined
    problems.nats = 'no answer'
    await becomes(200, 'degraded', { redis: 'redis is full' })
    Object.assign(problems, { nats: undefined, full: undefined })
    await becomes(200, 'ready', { redis: 'ok' })
  })

  it('answers at once while a server keeps a check waiting', async () => {
    let hold = false
    await using stack = new AsyncDisposableStack()
    let asked = Promise.withResolvers<void>()
    const node = await startInternalServer({
      host: '127.0.0.1',
      port: 0,
      logger: createLogger('silent', 'test'),
      checks: {
        servers: {
          postgres: async () => {
            if (hold) {
              asked.resolve()
              await new Promise(() => {})
            }
            return undefined
          },
          redis: async () => undefined,
        },
        work: {},
      },
    })
    stack.defer(() => node.close())
    const status = async () => (await fetch(`http://127.0.0.1:${node.port}/readyz`)).status
    expect(await status()).toBe(200)
    hold = true
    // A check is given up after a second, and begun again. Of some answers the quickest counts: the
    // machine may be busy.
    let quickest = Number.POSITIVE_INFINITY
    for (let tries = 0; tries < 20 && quickest >= 900; tries++) {
      asked = Promise.withResolvers()
      await asked.promise
      const before = performance.now()
      expect(await status()).toBe(200)
      quickest = Math.min(quickest, performance.now() - before)
    }
    expect(quickest).toBeLessThan(900)
  })
})
