/** The projection that the database holds: registry, state, and the index of messages not delivered yet. */
import { sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import { messageChanges } from '../messaging/messages-of-log.ts'
import { droppedMessages } from '../messaging/queue-metrics.ts'
import { type Database, MAINTENANCE_TIMEOUT_MS, roundTrip } from '../platform/database.ts'
import { registryChanges } from '../registry/postgres-registry-tables.ts'
import { stateChanges } from '../state/postgres-state-tables.ts'
import { LeaseLost, type Projection } from './projector.ts'

const NAME = 'database'
/** A batch may hold megabytes of values; a statement of the API never waits so long for it. */
const APPLY_TIMEOUT_MS = 10_000

export class DatabaseProjection implements Projection {
  readonly name = NAME
  // Agents wait for the queues, not for the index of what is in them. What is to be pushed is in a hurry.
  readonly follows = {
    mayWait: ({ type, via }: LoggedEvent) => type.startsWith('message_') && via !== 'webhook',
  }
  readonly #database: Database
  readonly #options: { maxQueue: number }

  constructor(database: Database, options: { maxQueue: number }) {
    this.#database = database
    this.#options = options
  }

  async acquire(holder: string, leaseMs: number): Promise<number | undefined> {
    const { rows } = await roundTrip(this.#database, 'acquire_projection', () =>
      sql<{ applied_seq: number }>`
        with ahead as (
          -- Further ahead than it is ever set: the clock was set back, and whoever holds it may be gone. Who is not prolongs it in time.
          update projections set lease_expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
          where name = ${NAME} and holder <> ${holder}
            and lease_expires_at > clock_timestamp() + ${leaseMs} * interval '1 millisecond'
        )
        update projections
        set holder = ${holder}, lease_expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
        where name = ${NAME}
          and (holder = ${holder} or holder is null or lease_expires_at < clock_timestamp())
        returning applied_seq`.execute(this.#database),
    )
    return rows[0]?.applied_seq
  }

  /** Does not wait for what is being applied, which holds the row and which no other process can come between: a large batch is no silence. */
  async renew(holder: string, leaseMs: number): Promise<void> {
    const { rows } = await roundTrip(this.#database, 'renew_projection', () =>
      sql<{ is_mine: boolean }>`
        with free as (
          select name from projections where name = ${NAME} and holder = ${holder} for update skip locked
        ), renewed as (
          update projections set lease_expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
          from free where projections.name = free.name
        )
        select holder is not distinct from ${holder} as is_mine from projections where name = ${NAME}`.execute(
        this.#database,
      ),
    )
    if (rows[0]?.is_mine !== true) throw new LeaseLost()
  }

  async apply(holder: string, from: number, events: readonly LoggedEvent[]): Promise<void> {
    const last = events.at(-1)
    if (last) await this.#move(holder, from, last.seq, events)
  }

  async pass(holder: string, from: number, to: number): Promise<void> {
    await this.#move(holder, from, to, [])
  }

  async #move(holder: string, from: number, to: number, events: readonly LoggedEvent[]): Promise<void> {
    const { rows } = await roundTrip(
      this.#database,
      'apply_projection',
      () =>
        sql<{ dropped: number | null }>`
          select apply_events(
            ${holder}, ${from}, ${to},
            ${JSON.stringify(registryChanges(events))}::json,
            ${JSON.stringify(stateChanges(events))}::json,
            ${JSON.stringify(messageChanges(events))}::json,
            ${this.#options.maxQueue}
          ) as dropped`.execute(this.#database),
      APPLY_TIMEOUT_MS,
    )
    const result = rows[0]?.dropped ?? null
    if (result === null) throw new LeaseLost(`the projection is not at ${from} any more`)
    droppedMessages.inc(result)
  }

  async release(holder: string): Promise<void> {
    await roundTrip(this.#database, 'release_projection', () =>
      this.#database
        .updateTable('projections')
        .set({ holder: null })
        .where('name', '=', NAME)
        .where('holder', '=', holder)
        .execute(),
    )
  }
}

/** How far the projection is, and what time it is by the clock of its database: what was staged and reserved is dated by that. */
export async function standing(database: Database): Promise<{ appliedSeq: number; now: Date }> {
  const { rows } = await roundTrip(
    database,
    'standing',
    () =>
      sql<{ applied_seq: number; now: Date }>`
        select applied_seq, clock_timestamp() as now from projections where name = ${NAME}`.execute(database),
    MAINTENANCE_TIMEOUT_MS,
  )
  const [row] = rows
  if (row === undefined) throw new Error('the projection has no row')
  return { appliedSeq: row.applied_seq, now: row.now }
}
