/**
 * How full is what a cluster stores in. Asked for when Prometheus asks, and by workers alone: all
 * would say the same.
 */
import { Gauge } from 'prom-client'

export interface Fillable {
  /** Bytes of the event log on each server that keeps a copy of it. */
  logBytes: () => Promise<number>
  /** Of the event log, beside the one that leads. */
  logReplicas: () => Promise<{ offline: number; lagEvents: number }>
  /** Of all masters of Redis together; a limit of 0 is none. */
  redisMemory: () => Promise<{ usedBytes: number; limitBytes: number }>
  stateUsage: () => Promise<{ usedBytes: number }>
  stateCapacityBytes: number
}

export function measureFill({
  logBytes,
  logReplicas,
  redisMemory,
  stateUsage,
  stateCapacityBytes,
}: Fillable): void {
  measure(
    'tabulum_log_bytes',
    'Bytes of the event log on each NATS server that keeps a copy. NATS_MAX_FILE_STORE is where it ends.',
    logBytes,
  )
  measure(
    'tabulum_log_replicas_offline',
    'NATS servers that keep a copy of the event log and are gone, have JetStream off, or do not write any more.',
    async () => (await logReplicas()).offline,
  )
  measure(
    'tabulum_log_replica_lag_events',
    'Events by which the last copy of the event log is behind.',
    async () => (await logReplicas()).lagEvents,
  )
  measure(
    'tabulum_redis_memory_bytes',
    'Memory that Redis uses.',
    async () => (await redisMemory()).usedBytes,
  )
  measure(
    'tabulum_redis_memory_limit_bytes',
    'Memory that Redis may use at most; 0 if nothing says.',
    async () => (await redisMemory()).limitBytes,
  )
  measure(
    'tabulum_state_bytes',
    'Bytes of all keys and values.',
    async () => (await stateUsage()).usedBytes,
  )
  measure('tabulum_state_capacity_bytes', 'STATE_CAPACITY_BYTES.', async () => stateCapacityBytes)
}

function measure(name: string, help: string, read: () => Promise<number>): void {
  new Gauge({
    name,
    help,
    async collect() {
      try {
        this.set(await read())
      } catch {
        // No figure, rather than the last one, of what is out. That it is out others tell.
        this.remove()
      }
    },
  })
}
