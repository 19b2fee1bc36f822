import { expect, it } from 'vitest'
import { planFaults } from '../../../lab/faults/schedule.ts'
import { seededRandom } from '../../../lab/random.ts'

const NAMES = [
  { name: 'one', lastsMs: [500, 4_000] },
  { name: 'two', lastsMs: [0, 0] },
  { name: 'three', lastsMs: [2_000, 9_000] },
] as const

it('a seed decides everything, and another decides otherwise', () => {
  const plan = (seed: number) => planFaults(seededRandom(seed), NAMES, 600_000)
  expect(plan(7)).toEqual(plan(7))
  expect(plan(7)).not.toEqual(plan(8))
})

it('fits into the time, and makes each fault as often as the others', () => {
  const planned = planFaults(seededRandom(1), NAMES, 600_000)
  const total = planned.reduce((sum, { durationMs, calmMs }) => sum + durationMs + calmMs, 0)
  expect(total).toBeLessThanOrEqual(600_000)
  expect(total).toBeGreaterThan(580_000)
  const counts = NAMES.map(({ name }) => planned.filter((fault) => fault.name === name).length)
  expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1)
  for (const { name, durationMs, victim } of planned) {
    const { lastsMs } = NAMES.find((fault) => fault.name === name) ?? { lastsMs: [0, -1] }
    expect(durationMs).toBeGreaterThanOrEqual(lastsMs[0])
    expect(durationMs).toBeLessThanOrEqual(lastsMs[1])
    expect(victim >= 0 && victim < 1).toBe(true)
  }
})

it('makes one fault at least, and none of none', () => {
  expect(planFaults(seededRandom(1), NAMES, 1)).toHaveLength(1)
  expect(planFaults(seededRandom(1), [], 600_000)).toEqual([])
})
