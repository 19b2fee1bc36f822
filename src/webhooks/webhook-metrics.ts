/** What a worker tells of itself, and of what waits for all workers. */
import { Counter, Gauge, Histogram } from 'prom-client'

export const attempts = new Counter({
  name: 'tabulum_webhook_attempts_total',
  help: 'Attempts to deliver: `delivered`, `rejected` (answered other than 2xx), or the stage at which there was no answer.',
  labelNames: ['outcome'] as const,
})
export const attemptSeconds = new Histogram({
  name: 'tabulum_webhook_attempt_seconds',
  help: 'Time of one attempt.',
  labelNames: ['kind'] as const,
  buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
})
export const deliverySeconds = new Histogram({
  name: 'tabulum_webhook_delivery_seconds',
  help: 'Time from the acceptance of a message to its delivery, retries included.',
  buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
})
export const fallbacks = new Counter({
  name: 'tabulum_webhook_fallbacks_total',
  help: 'Messages moved to the pull queue instead, by why.',
  labelNames: ['reason'] as const,
})
export const inFlight = new Gauge({
  name: 'tabulum_webhook_in_flight',
  help: 'Slots in use in this process; WEBHOOK_CONCURRENCY is the most.',
})
export const backlogMessages = new Gauge({
  name: 'tabulum_webhook_backlog',
  help: 'Messages that wait to be pushed, by all workers.',
})
export const backlogAge = new Gauge({
  name: 'tabulum_webhook_backlog_age_seconds',
  help: 'Age of the oldest message that waits to be pushed, retries included.',
})
export const openCircuits = new Gauge({
  name: 'tabulum_webhook_open_circuits',
  help: 'Agents whose circuit is open.',
})
