/** The HTTP application: what every request passes through on its way to its endpoint and back. */
import type { HttpBindings } from '@hono/node-server'
import { Hono } from 'hono'
import { Counter, Histogram } from 'prom-client'
import type { Admission, BucketState, Category } from '../access/admission.ts'
import { type Level, parseAuthorization } from '../access/tokens.ts'
import type { Logger } from '../platform/logger.ts'
import type { Registry } from '../registry/registry.ts'
import { docsPage } from './docs-page.ts'
import type { ApiContext, ApiEnvironment, Endpoint } from './endpoint.ts'
import { ApiError, respondWithError, toApiError } from './errors.ts'
import { createOpenApiDocument } from './openapi.ts'
import { percentDecode, rawPath, readJson, readQuery } from './request.ts'

export interface AppParts {
  endpoints: readonly Endpoint[]
  admission: Admission
  registry: Pick<Registry, 'authenticate'>
  /** Names the client that a request comes from. */
  clientAddress: (bindings: HttpBindings) => string
  logger: Logger
  /** Where the terms are that operators accept, for the documentation. */
  termsUrl: string | undefined
}

const requests = new Counter({
  name: 'tabulum_requests_total',
  help: 'Requests answered, by route pattern and status.',
  labelNames: ['method', 'route', 'status'] as const,
})
const durations = new Histogram({
  name: 'tabulum_request_seconds',
  help: 'Time from a request to its answer, by route pattern.',
  labelNames: ['method', 'route'] as const,
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
})
const sessionLookups = new Counter({
  name: 'tabulum_session_lookups_total',
  help: 'Requests by whether their session was cached.',
  labelNames: ['result'] as const,
})

const METHODS = new Set(['GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH'])

export function createApp(parts: AppParts): Hono<ApiEnvironment> {
  const { endpoints, admission, registry, clientAddress, logger, termsUrl } = parts
  const app = new Hono<ApiEnvironment>({ getPath: (_request, options) => rawPath(options?.env as HttpBindings) })

  app.use('*', async (context, next) => {
    const start = performance.now()
    context.set('route', 'unknown')
    context.set('identity', '')
    await next()
    const route = context.get('route')
    const method = METHODS.has(context.req.method) ? context.req.method : 'other'
    const { status } = context.res
    const milliseconds = performance.now() - start
    requests.inc({ method, route, status })
    durations.observe({ method, route }, milliseconds / 1_000)
    logger.info(
      { method, route, status, ms: Math.round(milliseconds * 100) / 100, agent: context.get('identity') || undefined },
      'request',
    )
  })

  for (const [pattern, group] of Map.groupBy(endpoints, ({ path }) => path)) {
    const hasKey = pattern.endsWith('/{key}')
    const route = hasKey ? pattern.replace('{key}', '*') : pattern
    for (const endpoint of group) {
      app.on(endpoint.method, route, async (context) => {
        if (context.req.raw.method === 'HEAD') throw methodNotAllowed(group)
        context.set('route', pattern)
        await admit(context, endpoint)
        const { status, body } = await endpoint.handle({
          context,
          identity: context.get('identity'),
          key: hasKey ? percentDecode(rawPath(context.env).slice(pattern.length - '{key}'.length), 'the key') : '',
          query: readQuery(context.env),
          body: endpoint.body && (await readJson(context, endpoint.body)),
        })
        return respond(context, status, body)
      })
    }
    // `/v1/state/_capacity` and `/v1/state/` are served by the wider pattern of keys where the method differs.
    if (
      !endpoints.some(
        ({ path }) => path !== pattern && path.endsWith('/{key}') && pattern.startsWith(path.replace('{key}', '')),
      )
    ) {
      app.all(route, (context) => {
        context.set('route', pattern)
        throw methodNotAllowed(group)
      })
    }
  }

  const document = createOpenApiDocument(endpoints, termsUrl)
  const page = docsPage(document)
  app.get('/v1/openapi.json', (context) => {
    context.set('route', '/v1/openapi.json')
    return context.json(document)
  })
  app.get('/docs', (context) => {
    context.set('route', '/docs')
    return context.html(page, 200, { 'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'" })
  })
  for (const path of ['/v1/openapi.json', '/docs']) {
    app.all(path, () => {
      throw new ApiError('method_not_allowed', 'only GET is served here', { Allow: 'GET' })
    })
  }

  app.notFound((context) => respondWithError(context, new ApiError('not_found', 'there is no such route; see /docs')))
  app.onError((error, context) => {
    const apiError = toApiError(error)
    if (apiError.code === 'internal_error') logger.error({ err: error, route: context.get('route') }, 'defect')
    else if (apiError.code === 'unavailable')
      logger.warn({ route: context.get('route'), cause: describe(error) }, 'unavailable')
    return respondWithError(context, apiError)
  })
  return app

  /** Finds out who asks and takes the request from their bucket. Throws `unauthorized` and `rate_limited`. */
  async function admit(context: ApiContext, { level, limit }: Endpoint): Promise<void> {
    if (limit === 'client') {
      applyLimit(context, await admission.admitClient(clientAddress(context.env)))
      return
    }
    if (!level) return
    const { identity, bucket } = await authenticate(context, level, limit)
    context.set('identity', identity)
    if (bucket) applyLimit(context, bucket)
  }

  async function authenticate(context: ApiContext, level: Level, category: Category | undefined) {
    const token = parseAuthorization(context.req.header('authorization'), level)
    // Made where it is thrown: an error collects its stack, which costs as much as the rest of this.
    const unauthorized = () =>
      new ApiError('unauthorized', `an ${level} token is needed: Authorization: Bearer <token>`)
    if (!token) throw unauthorized()
    const admitted = await admission.admit(token, category)
    sessionLookups.inc({ result: admitted ? 'hit' : 'miss' })
    if (admitted) return { identity: admitted.session.identity, bucket: admitted.bucket }
    const identity = await registry.authenticate(token)
    const opened = identity === undefined ? undefined : await admission.open(token, { identity }, category)
    if (!opened) throw unauthorized()
    return { identity: opened.session.identity, bucket: opened.bucket }
  }
}

/** Not through the context, which collects headers in an object that costs as much as the rest of an answer. */
function respond(context: ApiContext, status: number, body: object): Response {
  const headers = { 'Content-Type': 'application/json', ...context.get('limitHeaders') }
  return new Response(JSON.stringify(body), { status, headers })
}

function applyLimit(context: ApiContext, bucket: BucketState): void {
  context.set('limitHeaders', {
    'X-RateLimit-Limit': String(bucket.limit),
    'X-RateLimit-Remaining': String(bucket.remaining),
    'X-RateLimit-Reset': String(Math.ceil(bucket.fullAtMs / 1_000)),
  })
  if (bucket.allowed) return
  const seconds = Math.max(1, Math.ceil(bucket.retryAfterMs / 1_000))
  throw new ApiError('rate_limited', `too many requests; try again in ${seconds} s`, { 'Retry-After': String(seconds) })
}

function methodNotAllowed(group: readonly Endpoint[]): ApiError {
  const allowed = group.map(({ method }) => method).join(', ')
  return new ApiError('method_not_allowed', `this path serves ${allowed}`, { Allow: allowed })
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message
}
