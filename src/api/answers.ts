/** Answering requests, whatever becomes of the work for them, and recording how. */
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import type { Logger } from '../platform/logger.ts'
import { OutageLog } from '../platform/outage-log.ts'
import { recordAnswer } from '../platform/request-metrics.ts'
import { Unavailable } from '../platform/unavailable.ts'
import type { ApiContext } from './endpoint.ts'
import { respondWithError, toApiError } from './errors.ts'

export class Answers {
  readonly #logger: Logger
  readonly #outages: OutageLog
  readonly #headers: readonly (readonly [string, string])[]

  /** @param headers of every answer */
  constructor(logger: Logger, headers: Readonly<Record<string, string>> = {}) {
    this.#logger = logger
    this.#outages = new OutageLog(logger)
    this.#headers = Object.entries(headers)
  }

  /**
   * Answers a request, whatever `work` throws, and records the answer. Not a middleware: with one
   * handler for each route and no other, Hono does without what it puts several together with,
   * which costs as much as all else that it does.
   */
  async give(context: ApiContext, route: string, work: () => Promise<Response>): Promise<Response> {
    const start = performance.now()
    let response: Response
    try {
      response = await work()
    } catch (error) {
      response = this.refuse(error, context, route)
    }
    recordAnswer(this.#logger, {
      method: context.req.method,
      route,
      status: response.status,
      milliseconds: performance.now() - start,
      agent: context.get('identity'),
    })
    // What is written by somebody else has its headers already.
    if (response === RESPONSE_ALREADY_SENT) return response
    for (const [name, value] of this.#headers) response.headers.set(name, value)
    return response
  }

  /** The answer to a request whose work threw. What is nobody's fault but ours is logged. */
  refuse(error: unknown, context: ApiContext, route: string): Response {
    const apiError = toApiError(error)
    if (apiError.code === 'internal_error') this.#logger.error({ err: error, route }, 'defect')
    else if (apiError.code === 'unavailable')
      this.#outages.met(partOf(error), 'unavailable', describe(error), { route })
    return respondWithError(context, apiError)
  }
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
