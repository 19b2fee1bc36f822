/** Does all of it work at all? Five agents for half a minute. */
import { sleep } from 'k6'
import { ALWAYS, drain, live, registerAgents, SHOWN, type Society } from './agents.ts'

const AGENTS = 5

export const options = {
  setupTimeout: '2m',
  teardownTimeout: '2m',
  summaryTrendStats: SHOWN,
  scenarios: { smoke: { executor: 'constant-vus', vus: AGENTS, duration: '30s' } },
  thresholds: ALWAYS,
}

export const setup = () => registerAgents(AGENTS)

export default function smoke(society: Society) {
  live(society)
  sleep(3)
}

export const teardown = drain
