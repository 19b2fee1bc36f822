import { describe, expect, it } from 'vitest'
import { ByteBudget, Overloaded } from '../../src/platform/byte-budget.ts'
import { Turnstile } from '../../src/platform/turnstile.ts'

const budget = () => new ByteBudget({ name: 'requests', limit: 120 })

describe('a budget of bytes', () => {
  it('comes back with what is released', () => {
    const bytes = budget()
    const [one, other] = [bytes.open('one'), bytes.open('other')]
    one.resize(50)
    other.resize(35)
    expect(bytes.held).toBe(85)
    expect(() => other.resize(36)).toThrow(Overloaded)
    expect(other.bytes).toBe(35)
    one.resize(48)
    other.resize(36)
    one.release()
    other.release()
    expect(bytes.held).toBe(0)
  })

  it('is given to a holder up to half, however many holds it has', () => {
    const bytes = budget()
    const [one, again] = [bytes.open('one'), bytes.open('one')]
    one.resize(40)
    expect(again.tryResize(21)).toBe(false)
    expect(again.tryResize(20)).toBe(true)
    one.release()
    expect(again.tryResize(60)).toBe(true)
  })

  it('has room for whoever asks for little, however many take all that they may', () => {
    const bytes = new ByteBudget({ name: 'requests', limit: 5_100 })
    const greedy = Array.from({ length: 50 }, (_, index) => bytes.open(`greedy ${index}`))
    for (let size = 1; size <= 2_550; size++) for (const hold of greedy) hold.tryResize(size)
    expect(greedy.map((hold) => hold.bytes)).toEqual(greedy.map(() => 100))
    expect(bytes.open('another').tryResize(50)).toBe(true)
  })

  it('counts nothing of a hold that is over, however often it is released', () => {
    const bytes = budget()
    const hold = bytes.open('one')
    {
      using held = hold
      held.resize(30)
    }
    hold.release()
    expect(bytes.held).toBe(0)
    expect(hold.tryResize(10)).toBe(false)
    expect(bytes.held).toBe(0)
  })
})

describe('a turnstile', () => {
  it('lets so many pass at a time, in their order, also where one fails', async () => {
    const turnstile = new Turnstile(2)
    const gates = Array.from({ length: 4 }, () => Promise.withResolvers<void>())
    const begun: number[] = []
    const results = Promise.allSettled(
      gates.map((gate, index) =>
        turnstile.pass(async () => {
          begun.push(index)
          await gate.promise
          return index
        }),
      ),
    )
    await Promise.resolve()
    expect(begun).toEqual([0, 1])
    gates[1]?.reject(new Error('failed'))
    for (const gate of gates) gate.resolve()
    expect((await results).map(({ status }) => status)).toEqual([
      'fulfilled',
      'rejected',
      'fulfilled',
      'fulfilled',
    ])
    expect(begun).toEqual([0, 1, 2, 3])
  })
})
