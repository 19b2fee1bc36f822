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
    take: (count: number, standing: Standing) => Array.from({ length: count }, () => all.take(standing)),
    /** Claim after claim, as long as there is room for one more. */
    takeDoubtful: () => {
      const taken: (() => void)[] = []
      while (all.room.doubtful > 0) taken.push(all.take('doubtful'))
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
    const taken = take(4, 'prompt')
    expect(all.inUse).toBe(4)
    expect(all.room.total).toBe(6)
    for (const giveBack of taken) giveBack()
    expect(all.room.total).toBe(10)
  })

  it('go to unproven lanes by half at most, and to doubtful ones by a quarter', () => {
    const { all, take, takeDoubtful } = slots(100)
    expect(all.room).toMatchObject({ total: 100, unproven: 50 })
    expect(takeDoubtful()).toHaveLength(25)
    expect(all.room).toMatchObject({ total: 75, unproven: 25, doubtful: 0 })
    take(25, 'unknown')
    expect(all.room).toMatchObject({ total: 50, unproven: 0, doubtful: 0 })
  })

  it('leave room for another operator beside the untried lanes of one and the doubtful ones', () => {
    const { all, take, takeDoubtful } = slots(100)
    takeDoubtful()
    take(all.room.ofOneOperator, 'unknown')
    expect(all.room.unproven).toBeGreaterThan(0)
  })

  it('leave nineteen in twenty to prompt lanes that need them, when the others are known to be bad', () => {
    const { all, take, takeDoubtful } = slots(100)
    const taken = take(60, 'prompt')
    for (const giveBack of taken) giveBack()
    expect(all.room).toMatchObject({ total: 100, unproven: 50 })
    expect(takeDoubtful()).toHaveLength(5)
  })

  it('leave as many to prompt lanes as long as it is not known how many they need', () => {
    const all = new DeliverySlots(100, () => 0)
    for (let count = 0; count < 5; count++) {
      expect(all.room.doubtful).toBeGreaterThan(0)
      all.take('doubtful')
    }
    expect(all.room.doubtful).toBe(0)
  })

  it('forget the peak of prompt lanes with time', () => {
    const { take, takeDoubtful, pass } = slots(100)
    for (const giveBack of take(60, 'prompt')) giveBack()
    pass(30_000)
    expect(takeDoubtful()).toHaveLength(25)
  })

  it('are given to doubtful lanes a few at a time, which then do not time out all at once', () => {
    expect(slots(100).all.room.doubtful).toBe(3)
    expect(slots(1_000).all.room.doubtful).toBe(30)
    expect(slots(8).all.room.doubtful).toBe(1)
  })

  it('count an open circuit among the doubtful', () => {
    const { all, take } = slots(100)
    take(25, 'open')
    expect(all.room.doubtful).toBe(0)
  })

  it('let every kind have its turn where there is but one', () => {
    const { all } = slots(1)
    expect(all.room).toEqual({ total: 1, unproven: 1, doubtful: 1, ofOneOperator: 1 })
    all.take('prompt')
    expect(all.room).toMatchObject({ total: 0, unproven: 0, doubtful: 0 })
  })
})
