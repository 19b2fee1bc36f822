/**
 * The observation service, put together: its read models kept up with the log, its API, its live
 * streams.
 */
import { MemoryBuckets } from '../access/memory-buckets.ts'
import { ApiError } from '../api/api-error.ts'
import { applyLimit, createApp } from '../api/app.ts'
import { clientAddressReader } from '../api/client-address.ts'
import { createOpenApiDocument } from '../api/openapi.ts'
import type { Config } from '../config.ts'
import type { EventLog } from '../events/event-log.ts'
import { inBackground } from '../platform/background.ts'
import { ByteBudget } from '../platform/byte-budget.ts'
import { startHttpServer } from '../platform/http-server.ts'
import type { Logger } from '../platform/logger.ts'
import type { ReadinessChecks } from '../platform/readiness.ts'
import type { Removals } from '../removal/removals.ts'
import type { StateReader } from '../state/state-store.ts'
import { createObservationEndpoints } from './endpoints.ts'
import { EventReader } from './event-reader.ts'
import { Freshness } from './freshness.ts'
import { TooManyWatchers } from './live/live-feed.ts'
import { asksForWebSocket, LiveStreams } from './live/live-streams.ts'
import type { ObservationDatabase } from './observation-database.ts'
import { ObservationTables } from './observation-tables.ts'
import { ObservationWriter } from './observation-writer.ts'
import { type ObservationLease, runObserver } from './observer.ts'
import { loadPage } from './page-files.ts'

/**
 * What the service stands on: the log and the kernel's stores, which it only reads, and a database
 * of its own.
 */
export interface ObservationStorage {
  readonly log: Pick<EventLog, 'read' | 'get' | 'follow' | 'lastSeq'>
  readonly state: StateReader
  readonly removals: Removals
  readonly database: ObservationDatabase
  /** Undefined where no other process keeps the read models. */
  readonly lease?: ObservationLease
  readonly checks: ReadinessChecks
  close(): Promise<void>
}

export interface Observation {
  readonly port: number
  /** Ends streams and requests under way; the storage stays open. */
  close(): Promise<void>
}

const MINUTE_MS = 60_000
/** Who finds all streams taken may ask again after this. */
const TRY_AGAIN_SECONDS = '10'
const PUBLIC_LIMITS =
  'Read-only and public: no token, from any origin. What is shown is the public event log and what follows from it.'

/** Anybody may read, from any page. */
const CORS_HEADERS = {
  'Access-Control-Allow-Origin': '*',
  'Access-Control-Allow-Methods': 'GET, OPTIONS',
  'Access-Control-Allow-Headers': 'Last-Event-ID, Content-Type, Accept',
  'Access-Control-Expose-Headers':
    'X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After',
  'Access-Control-Max-Age': '86400',
}

/** Serves on OBSERVE_PORT. Throws `CannotListen`. */
export async function startObservation(
  config: Config,
  storage: ObservationStorage,
  logger: Logger,
): Promise<Observation> {
  const { log, removals, lease } = storage
  const tables = new ObservationTables(storage.database)
  const freshness = new Freshness({
    lastSeq: () => log.lastSeq(),
    position: () => tables.position(),
  })
  const events = new EventReader({ log, tables, removals, freshness })
  const streams = new LiveStreams({
    source: events,
    maxWatchers: config.OBSERVE_MAX_STREAMS,
    logger,
  })
  const clientAddress = clientAddressReader({
    trustedProxies: config.TRUSTED_PROXIES,
    ipv6Prefix: config.RATE_LIMIT_IPV6_PREFIX,
  })
  // A process counts for itself: a load balancer sends a client to the same one (deploy/haproxy).
  const buckets = new MemoryBuckets()
  const allowance = { limit: config.RATE_LIMIT_OBSERVE_PER_MIN, periodMs: MINUTE_MS }
  const endpoints = createObservationEndpoints({
    events,
    tables,
    freshness,
    state: storage.state,
    removals,
    stream: async ({ context, query }) => {
      try {
        return await streams.answer(context.env, query)
      } catch (error) {
        if (!(error instanceof TooManyWatchers)) throw error
        throw new ApiError('too_many_connections', error.message, {
          'Retry-After': TRY_AGAIN_SECONDS,
        })
      }
    },
    maxKeyBytes: config.STATE_MAX_KEY_BYTES,
    now: Date.now,
  })
  const app = createApp({
    endpoints,
    admit: async (context, { limit }) => {
      if (limit === 'client')
        applyLimit(
          context,
          buckets.take(clientAddress(context.env), allowance),
          `${allowance.limit} requests a minute`,
        )
    },
    clientAddress,
    logger,
    document: {
      content: createOpenApiDocument(endpoints, {
        title: 'Tabulum, observed',
        description: `${PUBLIC_LIMITS}\n\nA client may ask ${config.RATE_LIMIT_OBSERVE_PER_MIN} times a minute.`,
        securitySchemes: {},
      }),
      path: '/observe/openapi.json',
      page: '/observe/docs',
    },
    files: loadPage(),
    corsHeaders: CORS_HEADERS,
    requestBytes: new ByteBudget({ name: 'requests', limit: config.REQUESTS_MAX_BYTES }),
    answerBytes: new ByteBudget({ name: 'answers', limit: config.ANSWERS_MAX_BYTES }),
  })
  const server = await startHttpServer({
    fetch: (request, bindings) => app.fetch(request, bindings),
    host: config.HOST,
    port: config.OBSERVE_PORT,
    keepAliveMs: config.HTTP_KEEP_ALIVE_TIMEOUT,
    refusedRoute: 'unknown',
    logger,
    refusalHeaders: CORS_HEADERS,
    upgrades: asksForWebSocket,
  })
  const stop = new AbortController()
  const writer = new ObservationWriter(storage.database)
  const observing = runObserver({ log, writer, freshness, lease, logger }, stop.signal)
  inBackground('observe', observing)
  return {
    port: server.port,
    close: async () => {
      await streams.close()
      await server.close()
      stop.abort()
      await observing
    },
  }
}
