/**
 * Finds the knee: in ten steps of STEP (30s) up to AGENTS agents (300), a turn every PACE seconds
 * (3). Ends early when a tenth of the writes takes more than a second. Prints what each step saw;
 * the knee is where requests a second stop growing and p99 goes up.
 */
import { sleep } from 'k6'
import exec from 'k6/execution'
import { ALWAYS, drain, live, registerAgents, SHOWN, type Society } from './agents.ts'

const AGENTS = Number(__ENV.AGENTS ?? 300)
const PACE_S = Number(__ENV.PACE ?? 3)
const STEP_S = Number(__ENV.STEP ?? 30)
const STEPS = Array.from({ length: 10 }, (_, index) => index + 1)

export const options = {
  setupTimeout: '30m',
  teardownTimeout: '30m',
  summaryTrendStats: SHOWN,
  scenarios: {
    ramp: {
      executor: 'ramping-vus',
      startVUs: 0,
      gracefulRampDown: '30s',
      stages: STEPS.flatMap((step) => [
        { duration: '1s', target: Math.round((AGENTS * step) / STEPS.length) },
        { duration: `${STEP_S - 1}s`, target: Math.round((AGENTS * step) / STEPS.length) },
      ]),
    },
  },
  thresholds: {
    ...ALWAYS,
    'http_req_duration{name:write state}': [
      { threshold: 'p(90)<1000', abortOnFail: true, delayAbortEval: '30s' },
    ],
    // A threshold that always holds makes the summary show a step by itself.
    ...Object.fromEntries(STEPS.map((step) => [`http_req_duration{step:${step}}`, ['max>=0']])),
  },
}

export const setup = () => registerAgents(AGENTS)

export default function ramp(society: Society) {
  const began = Date.now()
  const elapsed = (began - exec.scenario.startTime) / 1_000
  exec.vu.metrics.tags.step = String(Math.min(STEPS.length, Math.floor(elapsed / STEP_S) + 1))
  live(society)
  sleep(Math.max(0, PACE_S - (Date.now() - began) / 1_000))
}

export const teardown = drain

interface Summary {
  metrics: Record<
    string,
    { values: Record<string, number>; thresholds?: Record<string, { ok: boolean }> }
  >
}

export function handleSummary({ metrics }: Summary) {
  const steps = STEPS.map((step) => {
    const {
      count = 0,
      'p(50)': median = 0,
      'p(99)': p99 = 0,
    } = metrics[`http_req_duration{step:${step}}`]?.values ?? {}
    const agents = Math.round((AGENTS * step) / STEPS.length)
    return `${String(agents).padStart(6)} agents  ${(count / STEP_S).toFixed(1).padStart(8)} requests/s  p50 ${median.toFixed(1)} ms  p99 ${p99.toFixed(1)} ms`
  })
  const others = Object.entries(metrics).flatMap(([name, { values, thresholds }]) =>
    thresholds && !name.includes('{step:')
      ? `${Object.values(thresholds).every(({ ok }) => ok) ? 'ok  ' : 'FAIL'} ${name} ${JSON.stringify(values)}`
      : [],
  )
  return { stdout: `\n${[...steps, '', ...others].join('\n')}\n` }
}
