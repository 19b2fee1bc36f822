/** Removing from a cluster that runs: through the log, as everything. */
import { setTimeout as sleep } from 'node:timers/promises'
import { messageOf } from '../events/batch.ts'
import type { EventLog } from '../events/event-log.ts'
import { POSITION_KEY } from '../messaging/queue-generations.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import type { RedisClient } from '../platform/redis.ts'
import { StartupError } from '../platform/startup-error.ts'
import { Unavailable } from '../platform/unavailable.ts'
import { standing } from '../projector/database-projection.ts'
import type { LogEraser } from './log-eraser.ts'
import { PostgresRemovals } from './postgres-removals.ts'
import type { RemovalStore } from './removal-store.ts'

/** So long the projections are waited for. */
const IN_FORCE_MS = 10_000
const POLL_MS = 50

export interface RemovalParts {
  readonly database: Database
  readonly log: EventLog
  /** Opened for messages, and to clean its file. Throws where it is out. */
  readonly redis: () => Promise<RedisClient>
  /** Undefined where nothing is erased. */
  readonly eraser: LogEraser | undefined
}

/** What no client of the servers can do anything about; docs/deploying.md says what can be done. */
const LEFT_IN_SERVERS = [
  'NATS keeps what was appended lately in its replication log as well, for two minutes or three, until it writes that anew by itself',
  'Postgres keeps the bytes of deleted values in its files until VACUUM FULL, and in its write-ahead log until that is recycled',
  'what replicas, snapshots and backups have copied is for you to find',
]

export function clusterRemovalStore({ database, log, redis, eraser }: RemovalParts): RemovalStore {
  async function positionOfQueues(): Promise<number> {
    const client = await redis()
    return Number(
      await client.run('position', (connection) => connection.hget(POSITION_KEY, 'position')),
    )
  }
  return {
    log,
    removals: new PostgresRemovals(database),
    async present(key) {
      // Before it is read, so that nothing behind it is taken for known.
      const { appliedSeq: asOf } = await standing(database)
      const row = await roundTrip(database, 'find_state', () =>
        database
          .selectFrom('state')
          .select('value')
          .where('key', '=', Buffer.from(key))
          .executeTakeFirst(),
      )
      return { value: row?.value.toString('utf8'), asOf }
    },
    async seqOf(id) {
      const row = await roundTrip(database, 'find_message', () =>
        database
          .selectFrom('queued_messages')
          .select('seq')
          .where('message_id', '=', id)
          .executeTakeFirst(),
      )
      return row?.seq
    },
    append: async (event, routing) => (await log.append(event, routing)).seq,
    async inForce({ type }, seq) {
      const deadline = performance.now() + IN_FORCE_MS
      const reached = async (what: string, position: () => Promise<number>) => {
        const problem = await lateness(seq, position, deadline)
        return problem && `${what} ${problem}`
      }
      const late = [
        await reached(
          'the projection in Postgres',
          async () => (await standing(database)).appliedSeq,
        ),
        ...(type === 'message_redacted'
          ? [await reached('the one in Redis', positionOfQueues)]
          : []),
      ].filter((reason) => reason !== undefined)
      return late.length === 0 ? undefined : late.join(', ')
    },
    async erase(seqs, reason) {
      if (eraser === undefined) throw new TypeError('nothing was to be erased')
      for (const [message, events] of Map.groupBy(seqs, messageOf))
        await eraser.erase(message, events, reason)
    },
    async cleanFiles() {
      try {
        await (await redis()).rewriteFiles()
        return LEFT_IN_SERVERS
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error)
        return [
          ...LEFT_IN_SERVERS,
          `Redis keeps small messages in its append-only file until BGREWRITEAOF (${why})`,
        ]
      }
    },
  }
}

/**
 * Resolves to undefined when a projection is at `seq`; at the deadline, of `performance.now()`, to
 * where it is instead. A server that cannot be reached is no reason to fail: the removal is in the
 * log.
 */
async function lateness(
  seq: number,
  position: () => Promise<number>,
  deadline: number,
): Promise<string | undefined> {
  for (;;) {
    let is: string
    try {
      const at = await position()
      if (at >= seq) return undefined
      is = `is at ${at}`
    } catch (error) {
      if (!(error instanceof Unavailable || error instanceof StartupError)) throw error
      is = `cannot be asked (${error.message})`
    }
    if (performance.now() > deadline) return is
    await sleep(POLL_MS)
  }
}
