/**
 * What every answer leaves behind, on whichever port and at whatever depth it was given: a count, a
 * time, a line in the log.
 */
import { Counter, Histogram } from 'prom-client'
import type { Logger } from './logger.ts'

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

const METHODS = new Set(['GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH'])

export interface Answered {
  readonly method: string
  /** Pattern of the path; `unknown` where there is none. */
  readonly route: string
  readonly status: number
  /** Unknown for what never became a request. */
  readonly milliseconds?: number
  /** Who asked. */
  readonly agent?: string | undefined
  /** Why it was refused, by a code that holds nothing of what the client sent. */
  readonly cause?: string | undefined
}

export function recordAnswer(
  logger: Logger,
  { route, status, milliseconds, agent, cause, ...asked }: Answered,
): void {
  const method = METHODS.has(asked.method) ? asked.method : 'other'
  requests.inc({ method, route, status })
  if (milliseconds !== undefined) durations.observe({ method, route }, milliseconds / 1_000)
  const ms = milliseconds === undefined ? undefined : Math.round(milliseconds * 100) / 100
  logger.info({ method, route, status, ms, agent, cause }, 'request')
}
