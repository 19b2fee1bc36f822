/** The internal port of every process: is it alive, is it ready, its metrics, and the event log for operators. */
import { Hono } from 'hono'
import { stream } from 'hono/streaming'
import { collectDefaultMetrics, register } from 'prom-client'
import { type HttpServer, startHttpServer } from './http-server.ts'

/** Says why a part is not ready; undefined if it is. */
export type ReadinessCheck = () => Promise<string | undefined>

export interface InternalServerOptions {
  host: string
  port: number
  checks: Readonly<Record<string, ReadinessCheck>>
  /** The events after `since` as JSON, at most `limit`. */
  readEvents?: (since: number, limit: number) => AsyncIterable<string>
}

const CHECK_TIMEOUT_MS = 1_000
const MAX_EVENTS = 1_000

let collecting = false

export interface InternalServer extends HttpServer {
  /** From now on `/readyz` says no: the load balancer should send nothing more. */
  drain(): void
}

export async function startInternalServer({
  host,
  port,
  checks,
  readEvents,
}: InternalServerOptions): Promise<InternalServer> {
  if (!collecting) collectDefaultMetrics({ prefix: 'tabulum_' })
  collecting = true
  let draining = false
  // A part that goes out later is out for all nodes: taking every one of them out of service would end what works without it.
  let hasBeenReady = false

  const app = new Hono()
  app.get('/livez', (context) => context.json({ status: 'ok' }))
  app.get('/readyz', async (context) => {
    const entries = await Promise.all(
      Object.entries(checks).map(async ([part, check]) => [part, await outcome(check)] as const),
    )
    const parts = Object.fromEntries(entries.map(([part, problem]) => [part, problem ?? 'ok']))
    const isWhole = entries.every(([, problem]) => problem === undefined)
    hasBeenReady ||= isWhole
    const status = draining ? 'draining' : isWhole ? 'ready' : hasBeenReady ? 'degraded' : 'starting'
    return context.json({ status, parts }, status === 'ready' || status === 'degraded' ? 200 : 503)
  })
  app.get('/metrics', async (context) =>
    context.body(await register.metrics(), 200, { 'Content-Type': register.contentType }),
  )
  if (readEvents) {
    app.get('/events', async (context) => {
      const since = wholeNumber(context.req.query('since'), 0)
      const limit = Math.min(wholeNumber(context.req.query('limit'), 100), MAX_EVENTS)
      context.header('Content-Type', 'application/x-ndjson')
      return stream(context, async (output) => {
        for await (const line of readEvents(since, limit)) await output.write(`${line}\n`)
      })
    })
  }
  app.onError((error, context) => context.json({ error: 'unavailable', message: error.message }, 503))

  const server = await startHttpServer({
    fetch: (request) => app.fetch(request),
    onError: () => Response.json({ error: 'bad_request', message: 'not a valid request' }, { status: 400 }),
    host,
    port,
  })
  return {
    ...server,
    drain: () => {
      draining = true
    },
  }
}

async function outcome(check: ReadinessCheck): Promise<string | undefined> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve(`no answer within ${CHECK_TIMEOUT_MS} ms`), CHECK_TIMEOUT_MS)
  })
  try {
    return await Promise.race([check(), timeout])
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  } finally {
    clearTimeout(timer)
  }
}

function wholeNumber(text: string | undefined, fallback: number): number {
  return text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : fallback
}
