/**
 * The internal port of every process: is it alive, is it ready, its metrics, and the event log for
 * operators.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Hono } from 'hono'
import { collectDefaultMetrics, register } from 'prom-client'
import { z } from 'zod'
import { inBackground } from './background.ts'
import { batched } from './batch.ts'
import { type HttpServer, startHttpServer } from './http-server.ts'
import type { Logger } from './logger.ts'
import { SilenceTimeout } from './silence-timeout.ts'

/** Says why a part is not ready; undefined if it is. */
export type ReadinessCheck = () => Promise<string | undefined>

/** What `/readyz` asks, by the names that it tells. */
export interface ReadinessChecks {
  /**
   * Whether this process reaches each of its servers. One that reaches none of them is of no use to
   * anybody.
   */
  readonly servers: Readonly<Record<string, ReadinessCheck>>
  /** Whether the work goes on that processes do for each other. */
  readonly work: Readonly<Record<string, ReadinessCheck>>
  /**
   * Whether there is room for more, by the names of the others. Where there is none that is told; a
   * process that starts then is as good as any.
   */
  readonly room?: Readonly<Record<string, ReadinessCheck>>
}

export const NO_CHECKS: ReadinessChecks = { servers: {}, work: {} }

export interface InternalServerOptions {
  host: string
  port: number
  checks: ReadinessChecks
  logger: Logger
  /** Metrics of a part that keeps its own, as text. */
  moreMetrics?: () => Promise<string>
  /**
   * A page of the events after `since` as JSON: at most `limit`, fewer if they are large, none at
   * the end of the log.
   */
  readEvents?: (asked: { since: number; limit: number }) => Promise<readonly string[]>
}

/** Prometheus and operators' tools come again within a minute or not at all. */
const KEEP_ALIVE_MS = 75_000
const CHECK_TIMEOUT_MS = 1_000
/**
 * Once a process has been ready, the parts are asked so long after each other's answer, whoever
 * asks for `/readyz` and however often: load balancers do so many times a second, and are told at
 * once. With the time for a check and two questions of HAProxy a node that is cut off is out of
 * service within 3 s.
 */
const CHECK_INTERVAL_MS = 500
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
  let draining = false
  // A server that goes out later is out for all nodes, and taking every one of them out of service
  // would end what works without it. A node that reaches none is cut off, and the others are not;
  // or nothing works anyway.
  let hasBeenReady = false

  const app = new Hono()
  app.get('/livez', (context) => context.json({ status: 'ok' }))
  let latest = { parts: {}, isWhole: false, isCutOff: false }
  const examine = async () => {
    const [servers, work, room] = await Promise.all([
      outcomes(checks.servers),
      outcomes(checks.work),
      outcomes(checks.room ?? {}),
    ])
    const problems = Object.values(servers).filter((problem) => problem !== OK)
    const isCutOff = problems.length > 0 && problems.length === Object.keys(servers).length
    const serves = isFine(servers) && isFine(work)
    const parts = { ...servers, ...work }
    for (const [part, problem] of Object.entries(room))
      if ((parts[part] ?? OK) === OK) parts[part] = problem
    latest = { parts, isWhole: serves && isFine(room), isCutOff }
    if (serves && !hasBeenReady) {
      hasBeenReady = true
      inBackground('check_readiness', keepExamining())
    }
  }
  const closed = new AbortController()
  const keepExamining = async () => {
    while (!closed.signal.aborted) {
      await sleep(CHECK_INTERVAL_MS, undefined, { ref: false })
      await examine()
    }
  }
  app.get('/readyz', async (context) => {
    if (!hasBeenReady) await examine()
    const { parts, isWhole, isCutOff } = latest
    const status = draining
      ? 'draining'
      : isWhole
        ? 'ready'
        : !hasBeenReady
          ? 'starting'
          : isCutOff
            ? 'cut_off'
            : 'degraded'
    return context.json({ status, parts }, status === 'ready' || status === 'degraded' ? 200 : 503)
  })
  app.get('/metrics', async (context) =>
    context.body(`${await register.metrics()}\n${(await moreMetrics?.()) ?? ''}`, 200, {
      'Content-Type': register.contentType,
    }),
  )
  if (readEvents) {
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
    drain: () => {
      draining = true
    },
    close: () => {
      closed.abort()
      return server.close()
    },
  }
}

const OK = 'ok'

function isFine(parts: Readonly<Record<string, string>>): boolean {
  return Object.values(parts).every((problem) => problem === OK)
}

/** Asks all at once. Never throws. */
async function outcomes(
  checks: Readonly<Record<string, ReadinessCheck>>,
): Promise<Record<string, string>> {
  const entries = Object.entries(checks).map(
    async ([part, check]) => [part, (await outcome(check)) ?? OK] as const,
  )
  return Object.fromEntries(await Promise.all(entries))
}

async function outcome(check: ReadinessCheck): Promise<string | undefined> {
  try {
    return await new SilenceTimeout().wait(
      check(),
      CHECK_TIMEOUT_MS,
      () => new Error(`no answer within ${CHECK_TIMEOUT_MS} ms`),
    )
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}
