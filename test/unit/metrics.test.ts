import { Counter, Gauge, register } from 'prom-client'
import { expect, it } from 'vitest'
import { formatMetrics, metricsOfThread } from '../../src/platform/metrics.ts'

const both = new Counter({
  name: 'tabulum_test_both_total',
  help: 'b',
  labelNames: ['of'] as const,
})
const own = new Gauge({ name: 'tabulum_test_own', help: 'o' })
const process = new Gauge({ name: 'tabulum_process_test', help: 'p' })

it('what two threads count is added up, and each metric told once', async () => {
  both.inc({ of: 'one' }, 2)
  own.set(7)
  process.set(1)
  const ofThread = await metricsOfThread()
  expect(ofThread.map(({ name }) => name)).not.toContain('tabulum_process_test')
  const others = ofThread.filter(({ name }) => name === 'tabulum_test_both_total')
  const lines = (await formatMetrics(structuredClone(others))).split('\n')
  expect(lines).toContain('tabulum_test_both_total{of="one"} 4')
  expect(lines).toContain('tabulum_test_own 7')
  const types = lines.filter((line) => line.startsWith('# TYPE'))
  expect(types).toHaveLength(new Set(types).size)
  expect(types).toHaveLength((await register.getMetricsAsJSON()).length)
})

it('of one thread alone they are all that the library tells', async () => {
  // Values of others in this process change meanwhile.
  const types = (text: string) => text.split('\n').filter((line) => line.startsWith('# TYPE'))
  expect(types(await formatMetrics([])).sort()).toEqual(types(await register.metrics()).sort())
})
