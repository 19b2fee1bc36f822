/**
 * A tenth of the agents, then for a minute all AGENTS (200) at once, then a tenth again: nothing
 * may be lost, and it must recover.
 */
import { sleep } from 'k6'
import { ALWAYS, drain, live, registerAgents, SHOWN, type Society } from './agents.ts'

const AGENTS = Number(__ENV.AGENTS ?? 200)
const FEW = Math.ceil(AGENTS / 10)

export const options = {
  setupTimeout: '30m',
  teardownTimeout: '30m',
  summaryTrendStats: SHOWN,
  scenarios: {
    spike: {
      executor: 'ramping-vus',
      startVUs: FEW,
      gracefulRampDown: '30s',
      stages: [
        { duration: '30s', target: FEW },
        { duration: '2s', target: AGENTS },
        { duration: '1m', target: AGENTS },
        { duration: '2s', target: FEW },
        { duration: '30s', target: FEW },
      ],
    },
  },
  thresholds: ALWAYS,
}

export const setup = () => registerAgents(AGENTS)

export default function spike(society: Society) {
  live(society)
  sleep(3)
}

export const teardown = drain
