/** The HTTP application: what every request passes through on its way to its endpoint and back. */
import type { HttpBindings } from '@hono/node-server'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import { Hono } from 'hono'
import type { BucketState } from '../access/admission.ts'
import type { ByteBudget, Hold } from '../platform/byte-budget.ts'
import type { Logger } from '../platform/logger.ts'
import { OutageLog } from '../platform/outage-log.ts'
import { recordAnswer } from '../platform/request-metrics.ts'
import { Unavailable } from '../platform/unavailable.ts'
import { HELD_OF_AN_ANSWER } from './answer-size.ts'
import { ApiError } from './api-error.ts'
import { readJson } from './body.ts'
import { docsPage } from './docs-page.ts'
import type { ApiContext, ApiEnvironment, Endpoint } from './endpoint.ts'
import { respondWithError, toApiError } from './errors.ts'
import type { OpenApiDocument } from './openapi.ts'
import { percentDecode, rawPath, readQuery } from './request.ts'
import { answerWithFile, type StaticFile } from './static-files.ts'

export interface AppParts {
  endpoints: readonly Endpoint[]
  /**
   * Finds out who asks and takes the request from their bucket; `applyLimit` says what of that.
   * Throws `unauthorized` and `rate_limited`.
   */
  admit: (context: ApiContext, endpoint: Endpoint) => Promise<void>
  /** Names the client that a request comes from. */
  clientAddress: (bindings: HttpBindings) => string
  logger: Logger
  /** Describes the endpoints, and where that is served: as it is, and as a page for people. */
  document: { content: OpenApiDocument; path: string; page: string }
  /** Served beside the endpoints. */
  files?: readonly StaticFile[]
  /** Of every answer. With them `OPTIONS` is answered for every path. */
  corsHeaders?: Readonly<Record<string, string>>
  /** What bodies, and what is made of them, may hold until they are answered. */
  requestBytes: ByteBudget
  /** What answers may hold until they have been written. */
  answerBytes: ByteBudget
}

/** What a pattern may end in: it takes the rest of the path. */
const PARAMETER = /\/\{\w+\}$/

/** What metrics call all files: the names of assets change from version to version. */
const FILES_ROUTE = 'page'

/** What each answer to a `GET` is taken to hold at least; most are shorter. */
const SHORT_ANSWER_BYTES = 16_384
/**
 * A client that reads a long answer so slowly is given up, so that it does not hold it for ever.
 */
const MAX_WRITE_MS = 60_000

export function createApp(parts: AppParts): Hono<ApiEnvironment> {
  const {
    endpoints,
    admit,
    clientAddress,
    logger,
    document,
    files = [],
    corsHeaders,
    requestBytes,
    answerBytes,
  } = parts
  const outages = new OutageLog(logger)
  const app = new Hono<ApiEnvironment>({
    getPath: (_request, options) => rawPath(options?.env as HttpBindings),
  })

  const groups = Map.groupBy(endpoints, ({ path }) => path)
  for (const [pattern, group] of groups) {
    const hasKey = PARAMETER.test(pattern)
    const beforeKey = pattern.replace(PARAMETER, '/')
    for (const endpoint of group) {
      app.on(endpoint.method, hasKey ? `${beforeKey}*` : pattern, (context) =>
        answered(context, pattern, async () => {
          const path = rawPath(context.env)
          // Hono's wildcard matches without the slash before it, too.
          if (hasKey && !path.startsWith(beforeKey)) throw notServed(path)
          if (context.req.raw.method === 'HEAD' && endpoint.takes) throw methodNotAllowed(group)
          await admit(context, endpoint)
          const identity = context.get('identity') ?? ''
          const holder = identity || clientAddress(context.env)
          using request = requestBytes.open(holder)
          const answer = answerBytes.open(holder)
          // Before anything is leased or read. What changes something has a short answer.
          if (endpoint.method === 'GET') answer.resize(SHORT_ANSWER_BYTES)
          holdUntilWritten(context, answer)
          const answered = await endpoint.handle({
            context,
            identity,
            key: hasKey ? percentDecode(path.slice(beforeKey.length), 'the key') : '',
            query: readQuery(context.env),
            body: endpoint.body && (await readJson(context, endpoint.body, request)),
            answer,
          })
          return answered instanceof Response
            ? answered
            : respond(context, answered.status, answered.body, answer)
        }),
      )
    }
  }

  const page = docsPage(document.content, document.path)
  app.get(document.path, (context) =>
    answered(context, document.path, async () => context.json(document.content)),
  )
  app.get(document.page, (context) =>
    answered(context, document.page, async () =>
      context.html(page, 200, {
        'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'",
      }),
    ),
  )
  for (const file of files) {
    app.get(file.path, (context) =>
      answered(context, FILES_ROUTE, async () => answerWithFile(context.req.raw, file)),
    )
  }
  if (corsHeaders)
    app.options('*', (context) => answered(context, 'options', async () => context.body(null, 200)))
  app.notFound((context) => {
    const path = rawPath(context.env)
    return answered(context, patternOf(path) ?? 'unknown', async () => {
      throw notServed(path)
    })
  })
  app.onError((error, context) => respondTo(error, context, 'unknown'))
  return app

  /**
   * Answers a request, whatever `work` throws, and records the answer. Not a middleware: with one
   * handler for each route and no other, Hono does without what it puts several together with,
   * which costs as much as all else that it does.
   */
  async function answered(
    context: ApiContext,
    route: string,
    work: () => Promise<Response>,
  ): Promise<Response> {
    const start = performance.now()
    let response: Response
    try {
      response = await work()
    } catch (error) {
      response = respondTo(error, context, route)
    }
    recordAnswer(logger, {
      method: context.req.method,
      route,
      status: response.status,
      milliseconds: performance.now() - start,
      agent: context.get('identity'),
    })
    // What is written by somebody else has its headers already.
    if (response === RESPONSE_ALREADY_SENT) return response
    for (const [name, value] of Object.entries(corsHeaders ?? {})) response.headers.set(name, value)
    return response
  }

  function respondTo(error: unknown, context: ApiContext, route: string): Response {
    const apiError = toApiError(error)
    if (apiError.code === 'internal_error') logger.error({ err: error, route }, 'defect')
    else if (apiError.code === 'unavailable')
      outages.met(partOf(error), 'unavailable', describe(error), { route })
    return respondWithError(context, apiError)
  }

  /**
   * The pattern that serves a path by some method; the keys' where another method serves a narrower
   * one, as `/v1/state/_capacity`.
   */
  function patternOf(path: string): string | undefined {
    const patterns = [
      ...groups.keys(),
      document.path,
      document.page,
      ...files.map((file) => file.path),
    ]
    const ofKeys = patterns.find(
      (pattern) => PARAMETER.test(pattern) && path.startsWith(pattern.replace(PARAMETER, '/')),
    )
    return ofKeys ?? patterns.find((pattern) => pattern === path)
  }

  function notServed(path: string): ApiError {
    const pattern = patternOf(path)
    if (pattern === undefined)
      return new ApiError('not_found', `there is no such route; see ${document.page}`)
    const group = groups.get(pattern)
    return group
      ? methodNotAllowed(group)
      : new ApiError('method_not_allowed', 'only GET is served here', { Allow: 'GET, HEAD' })
  }
}

/**
 * Not through the context, which collects headers in an object that costs as much as the rest of an
 * answer.
 */
function respond(context: ApiContext, status: number, body: object, hold: Hold): Response {
  const headers = { 'Content-Type': 'application/json', ...context.get('limitHeaders') }
  const text = JSON.stringify(body)
  const bytes = HELD_OF_AN_ANSWER * text.length
  if (bytes > SHORT_ANSWER_BYTES) {
    if (bytes > hold.bytes) hold.resize(bytes)
    const { outgoing } = context.env
    const timer = setTimeout(() => outgoing.destroy(), MAX_WRITE_MS)
    outgoing.once('close', () => clearTimeout(timer))
  }
  return new Response(text, { status, headers })
}

/**
 * The hold ends when the answer has been handed over to the system whole, or the connection is
 * gone.
 */
function holdUntilWritten({ env: { outgoing } }: ApiContext, hold: Hold): void {
  if (outgoing.destroyed) hold.release()
  else outgoing.once('close', () => hold.release())
}

/** Says in the answer what is left of a bucket. Throws `rate_limited`. */
export function applyLimit(context: ApiContext, bucket: BucketState): void {
  const seconds = Math.max(1, Math.ceil(bucket.retryAfterMs / 1_000))
  // On a 429 the time that `Retry-After` says, by this node's clock.
  const resetMs = bucket.allowed ? bucket.fullAtMs : Date.now() + seconds * 1_000
  context.set('limitHeaders', {
    'X-RateLimit-Limit': String(bucket.limit),
    'X-RateLimit-Remaining': String(bucket.remaining),
    'X-RateLimit-Reset': String(Math.ceil(resetMs / 1_000)),
  })
  if (bucket.allowed) return
  throw new ApiError('rate_limited', `too many requests; try again in ${seconds} s`, {
    'Retry-After': String(seconds),
  })
}

function methodNotAllowed(group: readonly Endpoint[]): ApiError {
  // What serves GET serves HEAD, by Hono: the same answer without its body.
  const served = ({ method, takes }: Endpoint) =>
    method === 'GET' && !takes ? ['GET', 'HEAD'] : [method]
  const allowed = group.flatMap(served).join(', ')
  return new ApiError('method_not_allowed', `this path serves ${allowed}`, { Allow: allowed })
}

/** What is out, whoever met it: an append says so of its log, which says so of the database. */
function partOf(error: unknown): string {
  if (!(error instanceof Error)) return typeof error
  return error.cause instanceof Unavailable ? partOf(error.cause) : error.name
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message
}
