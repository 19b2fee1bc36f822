import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { OutageLog } from '../../src/platform/outage-log.ts'

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'performance'] }))
afterEach(() => void vi.useRealTimers())

it('tells of an outage when it begins and when it is over, however often it is met', () => {
  const warn = vi.fn()
  const outages = new OutageLog({ warn })
  for (let time = 0; time < 100; time++) outages.met('disk', 'unavailable', { cause: `full ${time}` })
  outages.met('redis', 'unavailable', { cause: 'out' })
  expect(warn.mock.calls).toEqual([
    [{ cause: 'full 0', kind: 'disk' }, 'unavailable'],
    [{ cause: 'out', kind: 'redis' }, 'unavailable'],
  ])
  // It goes on for longer than the rest after which it is over.
  for (let time = 0; time < 10; time++) {
    vi.advanceTimersByTime(4_000)
    outages.met('disk', 'unavailable', { cause: 'full' })
  }
  expect(warn.mock.calls.slice(2)).toEqual([[{ kind: 'redis', times: 1, seconds: 0 }, 'no more of: unavailable']])
  vi.advanceTimersByTime(5_000)
  expect(warn.mock.calls.slice(3)).toEqual([[{ kind: 'disk', times: 110, seconds: 40 }, 'no more of: unavailable']])
  outages.met('disk', 'unavailable', { cause: 'full again' })
  expect(warn).toHaveBeenLastCalledWith({ cause: 'full again', kind: 'disk' }, 'unavailable')
})
