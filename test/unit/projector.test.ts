import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import type { LoggedEvent } from '../../src/events/event.ts'
import type { EventLog, FollowOptions } from '../../src/events/event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { type Projection, runProjector } from '../../src/projector/projector.ts'

it('tidying that takes long does not cost the lease, and is told to end', { timeout: 120_000 }, async () => {
  const stop = new AbortController()
  const renewedMeanwhile = Promise.withResolvers<void>()
  const told = Promise.withResolvers<void>()
  let isTidying = false
  let renewals = 0
  let acquired = 0
  const projection: Projection = {
    name: 'test',
    acquire: async () => ++acquired,
    renew: async () => {
      if (isTidying && ++renewals === 8) renewedMeanwhile.resolve()
    },
    apply: async () => {},
    release: async () => {},
    tidy: async (signal) => {
      isTidying = true
      await Promise.all([sleep(600_000, undefined, { signal }).catch(() => told.resolve()), renewedMeanwhile.promise])
    },
  }
  const log = {
    lastSeq: async () => 1,
    async *follow(_from: number, signal: AbortSignal) {
      yield []
      await sleep(600_000, undefined, { signal }).catch(() => {})
    },
  } as unknown as EventLog
  const logger = createLogger('silent', 'test')
  const running = runProjector({ projection, log, progress: new Progress(), logger, holder: 'test' }, stop.signal)
  await Promise.all([renewedMeanwhile.promise, told.promise])
  expect(acquired).toBe(1)
  stop.abort()
  await running
})

it('the position moves with the log where what comes is for others', { timeout: 120_000 }, async () => {
  const stop = new AbortController()
  const calls: unknown[] = []
  const projection: Projection = {
    name: 'test',
    acquire: async () => 4,
    renew: async () => {},
    apply: async (_, from, events) => void calls.push(['apply', from, events.map(({ seq }) => seq)]),
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
