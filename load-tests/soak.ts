/** The steady load for hours (DURATION, 4h): what grows, and what is lost over time? */
import { options as steady } from './steady.ts'

export { default, setup, teardown } from './steady.ts'

export const options = {
  ...steady,
  scenarios: { soak: { ...steady.scenarios.steady, duration: __ENV.DURATION ?? '4h' } },
}
