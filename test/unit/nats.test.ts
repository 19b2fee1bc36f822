import { expect, it, vi } from 'vitest'
import { endWith } from '../../src/platform/nats.ts'

it('a process whose connection is closed for good ends, and says why', async () => {
  const logger = { fatal: vi.fn() }
  const exit = vi.fn()
  const err = new Error('maximum connections exceeded')
  await endWith({ closed: async () => err }, logger, exit)
  expect(logger.fatal).toHaveBeenCalledWith({ err }, expect.stringContaining('closed for good'))
  expect(exit).toHaveBeenCalledWith(1)
})

it('one that this program has closed ends nothing', async () => {
  const logger = { fatal: vi.fn() }
  const exit = vi.fn()
  await endWith({ closed: async () => undefined }, logger, exit)
  expect([logger.fatal.mock.calls, exit.mock.calls]).toEqual([[], []])
})
