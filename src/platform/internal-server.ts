/**
 * The internal port of every process: is it alive, is it ready, its metrics, and the event log for
 * operators.
 */
import { Hono } from 'hono'
import { collectDefaultMetrics, register } from 'prom-client'
import { z } from 'zod'
import { batched } from './batch.ts'
import { type HttpServer, startHttpServer } from './http-server.ts'
import type { Logger } from './logger.ts'
import { formatMetrics, type Metrics } from './metrics.ts'
import { Readiness, type ReadinessChecks } from './readiness.ts'

export interface InternalServerOptions {
  host: string
  port: number
  checks: ReadinessChecks
  logger: Logger
  /** Metrics of a thread that keeps its own. */
  moreMetrics?: () => Promise<Metrics>
  /**
   * A page of the events after `since` as JSON: at most `limit`, fewer if they are large, none at
   * the end of the log.
   */
  readEvents?: (asked: { since: number; limit: number }) => Promise<readonly string[]>
}

/** Prometheus and operators' tools come again within a minute or not at all. */
const KEEP_ALIVE_MS = 75_000
const MAX_EVENTS = 1_000
/** Pages are large, and what agents wait for comes over the same connections. */
const MAX_PAGES_AT_ONCE = 4
const MAX_PAGES_WAITING = 1_000

const wholeNumber = z
  .string()
  .regex(/^\d{1,15}$/)
  .transform(Number)
const eventsQuery = z.object({ since: wholeNumber.default(0), limit: wholeNumber.default(100) })

/**
 * How often the delay of the event loop is sampled. At the default of 10 ms that is most of what an
 * idle process does.
 */
const EVENT_LOOP_PRECISION_MS = 100

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
  moreMetrics,
  readEvents,
}: InternalServerOptions): Promise<InternalServer> {
  if (!collecting)
    collectDefaultMetrics({
      prefix: 'tabulum_',
      eventLoopMonitoringPrecision: EVENT_LOOP_PRECISION_MS,
    })
  collecting = true
  const readiness = new Readiness(checks)
  const app = new Hono()
  app.get('/livez', (context) => context.json({ status: 'ok' }))
  app.get('/readyz', async (context) => {
    const { status, parts } = await readiness.now()
    return context.json({ status, parts }, status === 'ready' || status === 'degraded' ? 200 : 503)
  })
  app.get('/metrics', async (context) =>
    context.body(await formatMetrics((await moreMetrics?.()) ?? []), 200, {
      'Content-Type': register.contentType,
    }),
  )
  if (readEvents) serveEvents(app, readEvents)
  app.onError((error, context) =>
    context.json({ error: 'unavailable', message: error.message }, 503),
  )

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
    drain: () => readiness.drain(),
    close: () => {
      readiness.close()
      return server.close()
    },
  }
}

function serveEvents(
  app: Hono,
  readEvents: NonNullable<InternalServerOptions['readEvents']>,
): void {
  const page = batched(
    (asked: { since: number; limit: number }[]) => Promise.all(asked.map(readEvents)),
    {
      maxItems: MAX_PAGES_AT_ONCE,
      maxWaiting: MAX_PAGES_WAITING,
    },
  )
  app.get('/events', async (context) => {
    const query = eventsQuery.safeParse(context.req.query())
    if (!query.success)
      return context.json(
        { error: 'bad_request', message: 'since and limit must be whole numbers' },
        400,
      )
    const { since, limit } = query.data
    const lines = await page({ since, limit: Math.min(limit, MAX_EVENTS) })
    return context.body(lines.map((line) => `${line}\n`).join(''), 200, {
      'Content-Type': 'application/x-ndjson',
    })
  })
}
