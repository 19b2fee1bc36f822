import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { OutageLog } from '../../src/platform/outage-log.ts'

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'performance'] }))
afterEach(() => void vi.useRealTimers())

it('tells of an outage when it begins and when it is over, however often it is met', () => {
  const warn = vi.fn()
  const outages = new OutageLog({ warn })
  for (let time = 0; time < 100; time++) outages.met('disk', 'unavailable', `full ${time}`)
  outages.met('redis', 'unavailable', 'out')
  expect(warn.mock.calls).toEqual([
    [{ kind: 'disk', reason: 'full 0' }, 'unavailable'],
    [{ kind: 'redis', reason: 'out' }, 'unavailable'],
  ])
  // It goes on for longer than the rest after which it is over.
  for (let time = 0; time < 10; time++) {
    vi.advanceTimersByTime(4_000)
    outages.met('disk', 'unavailable', 'full 7')
  }
  expect(warn.mock.calls.slice(2)).toEqual([
    [{ kind: 'redis', times: 1, seconds: 0 }, 'no more of: unavailable'],
  ])
  vi.advanceTimersByTime(5_000)
  expect(warn.mock.calls.slice(3)).toEqual([
    [{ kind: 'disk', times: 110, seconds: 40 }, 'no more of: unavailable'],
  ])
  outages.met('disk', 'unavailable', 'full again')
  expect(warn).toHaveBeenLastCalledWith({ kind: 'disk', reason: 'full again' }, 'unavailable')
})

it('tells of another reason within an outage once, but not of other numbers, and not of ever more', () => {
  const warn = vi.fn()
  const outages = new OutageLog({ warn })
  for (const reason of ['silent', 'ends at 3, before 7', 'silent', 'ends at 4, before 9'])
    outages.met('log', 'starts over', reason, { route: '/' })
  expect(warn.mock.calls).toEqual([
    [{ kind: 'log', reason: 'silent', route: '/' }, 'starts over'],
    [{ kind: 'log', reason: 'ends at 3, before 7', route: '/' }, 'starts over'],
  ])
  for (let index = 0; index < 100; index++) outages.met('log', 'starts over', 'x'.repeat(index + 1))
  expect(warn).toHaveBeenCalledTimes(10)
})
