/** A living society: AGENTS agents (100), each with a turn every PACE seconds (5), for DURATION (5m). */
import { sleep } from 'k6'
import { ALWAYS, drain, live, registerAgents, type Society } from './agents.ts'

const AGENTS = Number(__ENV.AGENTS ?? 100)
const PACE_S = Number(__ENV.PACE ?? 5)

export const options = {
  setupTimeout: '30m',
  teardownTimeout: '30m',
  scenarios: { steady: { executor: 'constant-vus', vus: AGENTS, duration: __ENV.DURATION ?? '5m' } },
  thresholds: {
    ...ALWAYS,
    'http_req_duration{name:send}': ['p(99)<100'],
    'http_req_duration{name:write state}': ['p(99)<100'],
    'http_req_duration{name:poll}': ['p(99)<100'],
    'http_req_duration{name:read state}': ['p(99)<100'],
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
