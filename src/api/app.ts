/** The HTTP application: what every request passes through on its way to its endpoint and back. */
import type { HttpBindings } from '@hono/node-server'
import { Hono } from 'hono'
import type { BucketState } from '../access/admission.ts'
import type { ByteBudget, Hold } from '../platform/byte-budget.ts'
import type { Logger } from '../platform/logger.ts'
import { HELD_OF_AN_ANSWER } from './answer-size.ts'
import { Answers } from './answers.ts'
import { ApiError } from './api-error.ts'
import { readJson } from './body.ts'
import { docsPage } from './docs-page.ts'
import type { ApiContext, ApiEnvironment, Endpoint } from './endpoint.ts'
import type { OpenApiDocument } from './openapi.ts'
import { percentDecode, rawPath, readQuery } from './request.ts'
import { PARAMETER, parameterOf, Routes } from './routes.ts'
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

/** A page of ours, which runs nothing. */
const PAGE_HEADERS = {
  'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'",
}
/** What metrics call all files: the names of assets change from version to version. */
const FILES_ROUTE = 'page'

/** What each answer to a `GET` is taken to hold at least; most are shorter. */
const SHORT_ANSWER_BYTES = 16_384
/**
 * A client that reads a long answer so slowly is given up, so that it does not hold it for ever.
 */
const MAX_WRITE_MS = 60_000

export function createApp(parts: AppParts): Hono<ApiEnvironment> {
  const { endpoints, document, files = [], corsHeaders } = parts
  const app = new Hono<ApiEnvironment>({
    getPath: (_request, options) => rawPath(options?.env as HttpBindings),
  })
  const answers = new Answers(parts.logger, corsHeaders)
  const routes = new Routes(endpoints, document.page, [
    document.path,
    document.page,
    ...files.map((file) => file.path),
  ])

  // Exact paths first: Hono's wildcard matches without the slash before it, too.
  for (const endpoint of endpoints.toSorted(
    (one, other) => parametersOf(one) - parametersOf(other),
  )) {
    const { method, path } = endpoint
    const beforeParameter = PARAMETER.test(path) ? path.replace(PARAMETER, '/') : undefined
    const served = { ...parts, endpoint, beforeParameter, routes }
    app.on(method, beforeParameter === undefined ? path : `${beforeParameter}*`, (context) =>
      answers.give(context, path, () => serve(context, served)),
    )
  }
  const page = docsPage(document.content, document.path)
  app.get(document.path, (context) =>
    answers.give(context, document.path, async () => context.json(document.content)),
  )
  app.get(document.page, (context) =>
    answers.give(context, document.page, async () => context.html(page, 200, PAGE_HEADERS)),
  )
  for (const file of files) {
    app.get(file.path, (context) =>
      answers.give(context, FILES_ROUTE, async () => answerWithFile(context.req.raw, file)),
    )
  }
  if (corsHeaders) {
    app.options('*', (context) =>
      answers.give(context, 'options', async () => context.body(null, 200)),
    )
  }
  app.notFound((context) => {
    const path = rawPath(context.env)
    return answers.give(context, routes.patternOf(path) ?? 'unknown', async () => {
      throw routes.notServed(path)
    })
  })
  app.onError((error, context) => answers.refuse(error, context, 'unknown'))
  return app
}

function parametersOf({ path }: Endpoint): number {
  return PARAMETER.test(path) ? 1 : 0
}

/** An endpoint, and what each request to it needs. */
interface Served
  extends Pick<AppParts, 'admit' | 'clientAddress' | 'requestBytes' | 'answerBytes'> {
  readonly endpoint: Endpoint
  /** The path without its parameter, where it has one. */
  readonly beforeParameter: string | undefined
  readonly routes: Routes
}

/** One request, from who asks to the answer. Throws what becomes an answer in `toApiError`. */
async function serve(context: ApiContext, served: Served): Promise<Response> {
  const { endpoint, beforeParameter, routes, admit, clientAddress, requestBytes, answerBytes } =
    served
  const path = rawPath(context.env)
  if (beforeParameter !== undefined && !path.startsWith(beforeParameter))
    throw routes.notServed(path)
  if (context.req.raw.method === 'HEAD' && endpoint.takes) throw routes.notServed(endpoint.path)
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
    parameter:
      beforeParameter === undefined
        ? ''
        : percentDecode(path.slice(beforeParameter.length), `the ${parameterOf(endpoint.path)}`),
    query: readQuery(context.env),
    body: endpoint.body && (await readJson(context, endpoint.body, request)),
    answer,
  })
  return answered instanceof Response
    ? answered
    : respond(context, answered.status, answered.body, answer)
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

/**
 * Says in the answer what is left of a bucket. Throws `rate_limited`.
 *
 * @param what it limits, in words
 */
export function applyLimit(context: ApiContext, bucket: BucketState, what: string): void {
  const seconds = Math.max(1, Math.ceil(bucket.retryAfterMs / 1_000))
  // On a 429 the time that `Retry-After` says, by this node's clock.
  const resetMs = bucket.allowed ? bucket.fullAtMs : Date.now() + seconds * 1_000
  context.set('limitHeaders', {
    'X-RateLimit-Limit': String(bucket.limit),
    'X-RateLimit-Remaining': String(bucket.remaining),
    'X-RateLimit-Reset': String(Math.ceil(resetMs / 1_000)),
  })
  if (bucket.allowed) return
  throw new ApiError('rate_limited', `over the limit of ${what}; try again in ${seconds} s`, {
    'Retry-After': String(seconds),
  })
}
