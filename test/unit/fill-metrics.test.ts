import { register } from 'prom-client'
import { expect, test } from 'vitest'
import { measureFill } from '../../src/maintenance/fill-metrics.ts'

test('what is stored is measured when asked for, and not at all while it cannot be', async () => {
  let isOut = false
  const unless = <T>(value: T) =>
    isOut ? Promise.reject(new Error('out')) : Promise.resolve(value)
  measureFill({
    logBytes: () => unless(1_000),
    logReplicas: () => unless({ offline: 1, lagEvents: 30 }),
    redisMemory: () => unless({ usedBytes: 20, limitBytes: 100 }),
    stateUsage: () => unless({ usedBytes: 7 }),
    stateCapacityBytes: 10,
  })
  const figures = async () =>
    (await register.metrics())
      .split('\n')
      // Other modules have metrics as well.
      .filter((line) => whole.some((figure) => line.split(' ')[0] === figure.split(' ')[0]))
  const whole = [
    'tabulum_log_bytes 1000',
    'tabulum_log_replicas_offline 1',
    'tabulum_log_replica_lag_events 30',
    'tabulum_redis_memory_bytes 20',
    'tabulum_redis_memory_limit_bytes 100',
    'tabulum_state_bytes 7',
  ]
  expect(await figures()).toEqual(whole)
  isOut = true
  expect(await figures()).toEqual([])
  isOut = false
  expect(await figures()).toEqual(whole)
})
