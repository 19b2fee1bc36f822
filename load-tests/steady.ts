/**
 * A living society: AGENTS agents (100), each with a turn every PACE seconds (5), for DURATION
 * (5m). At these it is 20 turns a second, that is 122 requests, of which 30 are writes; the
 * thresholds are for that rate.
 */
import { sleep } from 'k6'
import { ALWAYS, drain, live, registerAgents, SHOWN, type Society } from './agents.ts'

const AGENTS = Number(__ENV.AGENTS ?? 100)
const PACE_S = Number(__ENV.PACE ?? 5)

export const options = {
  setupTimeout: '30m',
  teardownTimeout: '30m',
  summaryTrendStats: SHOWN,
  scenarios: {
    steady: { executor: 'constant-vus', vus: AGENTS, duration: __ENV.DURATION ?? '5m' },
  },
  thresholds: {
    ...ALWAYS,
    'http_req_duration{name:send}': ['p(99)<100'],
    'http_req_duration{name:write state}': ['p(99)<100'],
    'http_req_duration{name:read state}': ['p(99)<100'],
    // Shown only. A turn begins with it, so it is what pays for bcrypt when a session of 30 s is
    // over: every sixth one at the usual pace.
    'http_req_duration{name:poll}': ['max>=0'],
  },
}

export const setup = () => registerAgents(AGENTS)

export default function steady(society: Society) {
  const began = Date.now()
  // Not all at once.
  if (__ITER === 0) sleep(Math.random() * PACE_S)
  live(society)
  sleep(Math.max(0, PACE_S - (__ITER === 0 ? 0 : (Date.now() - began) / 1_000)))
}

export const teardown = drain
