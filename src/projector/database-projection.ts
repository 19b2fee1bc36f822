/**
 * The projection that the database holds: all read models, each applied by its own function there.
 */
import { sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import type { ReadModel } from '../events/read-model.ts'
import { droppedMessages } from '../messaging/queue-metrics.ts'
import { type Database, MAINTENANCE_TIMEOUT_MS, roundTrip } from '../platform/database.ts'
import { LeaseLost, type Projection } from './projector.ts'

const NAME = 'database'
/** A batch may hold megabytes of values; a statement of the API never waits so long for it. */
const APPLY_TIMEOUT_MS = 10_000

export class DatabaseProjection implements Projection {
  readonly name = NAME
  readonly follows = {
    mayWait: (event: LoggedEvent) =>
      this.#models.every(({ types, mayWait }) => !types.includes(event.type) || mayWait?.(event)),
  }
  readonly #database: Database
  readonly #models: readonly ReadModel[]

  constructor(database: Database, models: readonly ReadModel[]) {
    this.#database = database
    this.#models = models
  }

  async acquire(holder: string, leaseMs: number): Promise<number | undefined> {
    const { rows } = await roundTrip(this.#database, 'acquire_projection', () =>
      sql<{ applied_seq: number }>`
        with ahead as (
          -- Further ahead than it is ever set: the clock was set back, and whoever holds it may be
          -- gone. Who is not prolongs it in time.
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

  /**
   * Does not wait for what is being applied, which holds the row and which no other process can
   * come between: a large batch is no silence.
   */
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

  async #move(
    holder: string,
    from: number,
    to: number,
    events: readonly LoggedEvent[],
  ): Promise<void> {
    const changes = JSON.stringify(this.#changesOf(events))
    const { rows } = await roundTrip(
      this.#database,
      'apply_projection',
      () =>
        sql<{ dropped: number | null }>`
          select apply_events(${holder}, ${from}, ${to}, ${changes}::json) as dropped`.execute(
          this.#database,
        ),
      APPLY_TIMEOUT_MS,
    )
    const result = rows[0]?.dropped ?? null
    if (result === null) throw new LeaseLost(`the projection is not at ${from} any more`)
    droppedMessages.inc(result)
  }

  /** By the name of each read model that the events concern. */
  #changesOf(events: readonly LoggedEvent[]): Record<string, object> {
    const changes: Record<string, object> = {}
    for (const model of this.#models) {
      const its = events.filter(({ type }) => model.types.includes(type))
      if (its.length > 0) changes[model.name] = model.changesOf(its)
    }
    return changes
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

/**
 * How far the projection is, and what time it is by the clock of its database: what was staged and
 * reserved is dated by that.
 */
export async function standing(database: Database): Promise<{ appliedSeq: number; now: Date }> {
  const { rows } = await roundTrip(
    database,
    'standing',
    () =>
      sql<{ applied_seq: number; now: Date }>`
        select applied_seq, clock_timestamp() as now from projections where name = ${NAME}`.execute(
        database,
      ),
    MAINTENANCE_TIMEOUT_MS,
  )
  const [row] = rows
  if (row === undefined) throw new Error('the projection has no row')
  return { appliedSeq: row.applied_seq, now: row.now }
}
