/** One event that one NATS server has lost without a word, and that server the one that leads. */
import { setTimeout as sleep } from 'node:timers/promises'
import { connect, type JetStreamManager, NatsError } from 'nats'
import type { Cluster } from '../cluster.ts'
import { type NatsServer, natsOptions } from '../servers.ts'

const STREAM = 'EVENTS'
const CURRENT_DEADLINE_MS = 60_000
const POLL_MS = 100
/** Of JetStream: the stream has no message at this place. */
const NOT_FOUND = 10_037

/**
 * Flips a bit of one event in what one server has stored, and has that server lead the stream.
 * `part`, from 0 to below 1, says how far from the log's beginning the event is. Resolves to how
 * many events it is found to lack.
 */
export async function damageAndLead(
  { nats }: Cluster,
  server: NatsServer,
  part: number,
): Promise<number> {
  const admin = await connect({
    ...natsOptions(nats.adminUrl),
    reconnect: true,
    maxReconnectAttempts: -1,
  })
  try {
    const manager = await admin.jetstreamManager()
    const last = await untilAllHave(manager)
    const seq = 1 + Math.floor(part * last)
    const { data } = await manager.streams.getMessage(STREAM, { seq })
    await server.stop()
    server.damage(Buffer.from(data).toString())
    await server.restart()
    await nats.makeLeader(STREAM, server)
    // Whoever leads is asked.
    return await manager.streams.getMessage(STREAM, { seq }).then(
      () => 0,
      (error: unknown) => {
        if (error instanceof NatsError && error.api_error?.err_code === NOT_FOUND) return 1
        throw error
      },
    )
  } finally {
    await admin.close()
  }
}

/** The place up to which all servers have stored the log, as soon as none is away. */
async function untilAllHave(manager: JetStreamManager): Promise<number> {
  const deadline = performance.now() + CURRENT_DEADLINE_MS
  for (;;) {
    const { cluster, state } = await manager.streams.info(STREAM)
    const replicas = cluster?.replicas ?? []
    const lag = Math.max(0, ...replicas.map((replica) => replica.lag ?? 0))
    const last = state.last_seq - lag
    if (replicas.every(({ current, offline }) => current && !offline) && last > 0) return last
    if (performance.now() > deadline)
      throw new Error(`replicas were not current within ${CURRENT_DEADLINE_MS} ms`)
    await sleep(POLL_MS)
  }
}
