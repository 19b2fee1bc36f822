import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it, vi } from 'vitest'
import { OutageLog } from '../../src/platform/outage-log.ts'

it('tells of an outage when it begins and when it is over, however often it is met', async () => {
  const warn = vi.fn()
  const outages = new OutageLog({ warn }, { quietMs: 60 })
  for (let time = 0; time < 100; time++) outages.met('disk', 'unavailable', { cause: `full ${time}` })
  outages.met('redis', 'unavailable', { cause: 'out' })
  expect(warn.mock.calls).toEqual([
    [{ cause: 'full 0', kind: 'disk' }, 'unavailable'],
    [{ cause: 'out', kind: 'redis' }, 'unavailable'],
  ])
  // It goes on for longer than the rest after which it is over.
  for (let time = 0; time < 10; time++) {
    await sleep(10)
    outages.met('disk', 'unavailable', { cause: 'full' })
  }
  await vi.waitFor(() => expect(warn).toHaveBeenCalledTimes(4))
  expect(warn.mock.calls.slice(2)).toEqual([
    [{ kind: 'redis', times: 1, seconds: 0 }, 'no more of: unavailable'],
    [{ kind: 'disk', times: 110, seconds: 0 }, 'no more of: unavailable'],
  ])
  outages.met('disk', 'unavailable', { cause: 'full again' })
  expect(warn).toHaveBeenLastCalledWith({ cause: 'full again', kind: 'disk' }, 'unavailable')
})
