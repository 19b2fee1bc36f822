import { expect, it, vi } from 'vitest'
import type { LoggedEvent } from '../../src/events/event.ts'
import type { EventLog, FollowOptions } from '../../src/events/event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { type Projection, runProjector } from '../../src/projector/projector.ts'

it('the position moves with the log where what comes is for others', {
  timeout: 120_000,
}, async () => {
  const stop = new AbortController()
  const calls: unknown[] = []
  const projection: Projection = {
    name: 'test',
    acquire: async () => 4,
    renew: async () => {},
    apply: async (_, from, events) =>
      void calls.push(['apply', from, events.map(({ seq }) => seq)]),
    pass: async (_, from, to) => void calls.push(['pass', from, to]),
    release: async () => {},
  }
  const event = (seq: number) =>
    ({ seq, ts: new Date().toISOString(), type: 'state_deleted' }) as LoggedEvent
  const log = {
    lastSeq: async () => 9,
    async *follow(_since: number, _signal: AbortSignal, { onPassed }: FollowOptions) {
      yield [event(6)]
      onPassed?.(6)
      yield []
      onPassed?.(9)
      yield []
      yield [event(10), event(11)]
      stop.abort()
    },
  } as unknown as EventLog
  const logger = createLogger('silent', 'test')
  const progress = new Progress()
  await runProjector({ projection, log, progress, logger, holder: 'test' }, stop.signal)
  expect(calls).toEqual([
    ['apply', 4, [6]],
    ['pass', 6, 9],
    ['apply', 9, [10, 11]],
  ])
})

it('an event that only a newer version knows is left to a process of that one', {
  timeout: 120_000,
}, async () => {
  const stop = new AbortController()
  const calls: unknown[] = []
  const projection: Projection = {
    name: 'test',
    acquire: async (_holder, _leaseMs, signal) => {
      calls.push('acquire')
      return signal.aborted ? undefined : 4
    },
    renew: async () => {},
    apply: async () => void calls.push('apply'),
    pass: async () => void calls.push('pass'),
    release: async () => void calls.push('release'),
  }
  const log = {
    lastSeq: async () => 6,
    async *follow(_since: number, signal: AbortSignal) {
      const ts = new Date().toISOString()
      yield [
        { seq: 5, ts, type: 'state_deleted' },
        { seq: 6, ts, type: 'state_praised' },
      ]
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
    },
  } as unknown as EventLog
  const logger = createLogger('silent', 'test')
  const warned = vi.spyOn(logger, 'warn')
  const options = { projection, log, progress: new Progress(), logger, holder: 'test' }
  const running = runProjector(options, stop.signal)
  await vi.waitFor(() => expect(calls).toEqual(['acquire', 'release']), { timeout: 60_000 })
  expect(JSON.stringify(warned.mock.calls)).toContain('event 6 is of the type state_praised')
  stop.abort()
  await running
  expect(calls).not.toContain('apply')
})
