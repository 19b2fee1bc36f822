import { expect, it } from 'vitest'
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
  const event = (seq: number) => ({ seq, ts: new Date().toISOString() }) as LoggedEvent
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
