import { describe, expect, it } from 'vitest'
import { DeliverySlots } from '../../../src/webhooks/delivery-slots.ts'
import type { Standing } from '../../../src/webhooks/webhook-lanes.ts'

/** Those of a worker that has had little to do for a while. */
function slots(total: number) {
  let time = 0
  const all = new DeliverySlots(total, () => time)
  time = 60_000
  return {
    all,
    take: (count: number, standing: Standing) =>
      Array.from({ length: count }, () => all.take(standing)),
    /** Claim after claim, as long as there is room for one more. */
    takeSlow: () => {
      const taken: (() => void)[] = []
      while (all.quota.slow > 0) taken.push(all.take('slow'))
      return taken
    },
    pass: (ms: number) => {
      time += ms
    },
  }
}

describe('delivery slots', () => {
  it('are as many as there are, and come back', () => {
    const { all, take } = slots(10)
    const taken = take(4, 'fast')
    expect(all.inUse).toBe(4)
    expect(all.quota.total).toBe(6)
    for (const giveBack of taken) giveBack()
    expect(all.quota.total).toBe(10)
  })

  it('go to unproven lanes by half at most, and to slow ones by a quarter', () => {
    const { all, take, takeSlow } = slots(100)
    expect(all.quota).toMatchObject({ total: 100, unproven: 50 })
    expect(takeSlow()).toHaveLength(25)
    expect(all.quota).toMatchObject({ total: 75, unproven: 25, slow: 0 })
    take(25, 'unknown')
    expect(all.quota).toMatchObject({ total: 50, unproven: 0, slow: 0 })
  })

  it('leave room for another operator beside the untried lanes of one and the slow ones', () => {
    const { all, take, takeSlow } = slots(100)
    takeSlow()
    take(all.quota.ofOneOperator, 'unknown')
    expect(all.quota.unproven).toBeGreaterThan(0)
  })

  it('leave nineteen in twenty to fast lanes that need them, when the others are known to be bad', () => {
    const { all, take, takeSlow } = slots(100)
    const taken = take(60, 'fast')
    for (const giveBack of taken) giveBack()
    expect(all.quota).toMatchObject({ total: 100, unproven: 50 })
    expect(takeSlow()).toHaveLength(5)
  })

  it('leave as many to fast lanes as long as it is not known how many they need', () => {
    const all = new DeliverySlots(100, () => 0)
    for (let count = 0; count < 5; count++) {
      expect(all.quota.slow).toBeGreaterThan(0)
      all.take('slow')
    }
    expect(all.quota.slow).toBe(0)
  })

  it('forget the peak of fast lanes with time', () => {
    const { take, takeSlow, pass } = slots(100)
    for (const giveBack of take(60, 'fast')) giveBack()
    pass(30_000)
    expect(takeSlow()).toHaveLength(25)
  })

  it('are given to slow lanes a few at a time, which then do not time out all at once', () => {
    expect(slots(100).all.quota.slow).toBe(3)
    expect(slots(1_000).all.quota.slow).toBe(30)
    expect(slots(8).all.quota.slow).toBe(1)
  })

  it('count an open circuit among the slow', () => {
    const { all, take } = slots(100)
    take(25, 'open')
    expect(all.quota.slow).toBe(0)
  })

  it('let every kind have its turn where there is but one', () => {
    const { all } = slots(1)
    expect(all.quota).toEqual({ total: 1, unproven: 1, slow: 1, ofOneOperator: 1 })
    all.take('fast')
    expect(all.quota).toMatchObject({ total: 0, unproven: 0, slow: 0 })
  })
})
