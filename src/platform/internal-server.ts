/** The internal port of every process: is it alive, is it ready, its metrics, and the event log for operators. */
import { Hono } from 'hono'
import { collectDefaultMetrics, register } from 'prom-client'
import { z } from 'zod'
import { batched } from './batch.ts'
import { type HttpServer, startHttpServer } from './http-server.ts'
import type { Logger } from './logger.ts'
import { Patience } from './patience.ts'

/** Says why a part is not ready; undefined if it is. */
export type ReadinessCheck = () => Promise<string | undefined>

export interface InternalServerOptions {
  host: string
  port: number
  checks: Readonly<Record<string, ReadinessCheck>>
  logger: Logger
  /** A page of the events after `since` as JSON: at most `limit`, fewer if they are large, none at the end of the log. */
  readEvents?: (asked: { since: number; limit: number }) => Promise<readonly string[]>
}

/** Prometheus and operators' tools come again within a minute or not at all. */
const KEEP_ALIVE_MS = 75_000
const CHECK_TIMEOUT_MS = 1_000
/** Load balancers ask many times a second; once a process has been ready, the parts themselves are asked this often at most. */
const CHECK_INTERVAL_MS = 1_000
const MAX_EVENTS = 1_000
/** Pages are large, and what agents wait for comes over the same connections. */
const MAX_PAGES_AT_ONCE = 4
const MAX_PAGES_WAITING = 1_000

const wholeNumber = z
  .string()
  .regex(/^\d{1,15}$/)
  .transform(Number)
const eventsQuery = z.object({ since: wholeNumber.default(0), limit: wholeNumber.default(100) })

let collecting = false

export interface InternalServer extends HttpServer {
  /** From now on `/readyz` says no: the load balancer should send nothing more. */
  drain(): void
}

export async function startInternalServer({
  host,
  port,
  checks,
  logger,
  readEvents,
}: InternalServerOptions): Promise<InternalServer> {
  if (!collecting) collectDefaultMetrics({ prefix: 'tabulum_' })
  collecting = true
  let draining = false
  // A part that goes out later is out for all nodes: taking every one of them out of service would end what works without it.
  let hasBeenReady = false

  const app = new Hono()
  app.get('/livez', (context) => context.json({ status: 'ok' }))
  const examine = async () => {
    const entries = await Promise.all(
      Object.entries(checks).map(async ([part, check]) => [part, await outcome(check)] as const),
    )
    const parts = Object.fromEntries(entries.map(([part, problem]) => [part, problem ?? 'ok']))
    const isWhole = entries.every(([, problem]) => problem === undefined)
    hasBeenReady ||= isWhole
    return { parts, isWhole }
  }
  let examination: ReturnType<typeof examine> | undefined
  let examinedAt = 0
  app.get('/readyz', async (context) => {
    if (examination === undefined || !hasBeenReady || performance.now() - examinedAt > CHECK_INTERVAL_MS) {
      examinedAt = performance.now()
      examination = examine()
    }
    const { parts, isWhole } = await examination
    const status = draining ? 'draining' : isWhole ? 'ready' : hasBeenReady ? 'degraded' : 'starting'
    return context.json({ status, parts }, status === 'ready' || status === 'degraded' ? 200 : 503)
  })
  app.get('/metrics', async (context) =>
    context.body(await register.metrics(), 200, { 'Content-Type': register.contentType }),
  )
  if (readEvents) {
    const page = batched((asked: { since: number; limit: number }[]) => Promise.all(asked.map(readEvents)), {
      maxItems: MAX_PAGES_AT_ONCE,
      maxWaiting: MAX_PAGES_WAITING,
    })
    app.get('/events', async (context) => {
      const query = eventsQuery.safeParse(context.req.query())
      if (!query.success)
        return context.json({ error: 'bad_request', message: 'since and limit must be whole numbers' }, 400)
      const { since, limit } = query.data
      const lines = await page({ since, limit: Math.min(limit, MAX_EVENTS) })
      return context.body(lines.map((line) => `${line}\n`).join(''), 200, { 'Content-Type': 'application/x-ndjson' })
    })
  }
  app.onError((error, context) => context.json({ error: 'unavailable', message: error.message }, 503))

  const server = await startHttpServer({
    fetch: (request) => app.fetch(request),
    host,
    port,
    keepAliveMs: KEEP_ALIVE_MS,
    refusedRoute: 'internal',
    logger,
  })
  return {
    ...server,
    drain: () => {
      draining = true
    },
  }
}

async function outcome(check: ReadinessCheck): Promise<string | undefined> {
  try {
    return await new Patience().wait(
      check(),
      CHECK_TIMEOUT_MS,
      () => new Error(`no answer within ${CHECK_TIMEOUT_MS} ms`),
    )
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}
