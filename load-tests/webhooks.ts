/**
 * Pushes: AGENTS agents (20) with a webhook at RECEIVER (https://127.0.0.1:8443, see receiver.ts),
 * each sending to the next one every 2 s for DURATION (1m). In the end the receiver must have had
 * every number once, which it is asked at REPORT (RECEIVER, unless k6 knows it by another name).
 */
import { check, sleep } from 'k6'
import http from 'k6/http'
import { Counter, Trend } from 'k6/metrics'
import { ALWAYS, me, registerAgents, SHOWN, type Society, sendNumbered, settle } from './agents.ts'

const AGENTS = Number(__ENV.AGENTS ?? 20)
const RECEIVER = __ENV.RECEIVER ?? 'https://127.0.0.1:8443'
const REPORT = __ENV.REPORT ?? RECEIVER
const WAIT_S = 60

const missing = new Counter('webhooks_missing')
const repeated = new Counter('webhooks_repeated')
const settled = new Trend('webhooks_settled_after', true)

export const options = {
  setupTimeout: '30m',
  teardownTimeout: '5m',
  summaryTrendStats: SHOWN,
  // The receiver's certificate is of a private authority.
  insecureSkipTLSVerify: true,
  scenarios: {
    webhooks: { executor: 'constant-vus', vus: AGENTS, duration: __ENV.DURATION ?? '1m' },
  },
  thresholds: { ...ALWAYS, webhooks_missing: ['count==0'], webhooks_repeated: ['count==0'] },
}

interface WebhookSociety extends Society {
  readonly hooks: string
}

export function setup(): WebhookSociety {
  const hooks = Date.now().toString(36)
  return { ...registerAgents(AGENTS, (index) => `${RECEIVER}/${hooks}/${index}`), hooks }
}

export default function webhooks(society: WebhookSociety) {
  const { self, next } = me(society)
  check(sendNumbered(society, self, next), { sent: ({ status }) => status === 202 })
  sleep(2)
}

/** Waits until nothing more arrives, then counts. */
export function teardown({ hooks }: WebhookSociety) {
  const began = Date.now()
  const report = () =>
    http.get(`${REPORT}/${hooks}`).json() as { received: number; repeated: number; missing: number }
  let last = report()
  let changed = Date.now()
  while (Date.now() - changed < 5_000 && Date.now() - began < WAIT_S * 1_000) {
    sleep(0.5)
    const now = report()
    if (now.received !== last.received) changed = Date.now()
    last = now
  }
  settled.add(changed - began)
  settle(last.received)
  missing.add(last.missing)
  repeated.add(last.repeated)
}
