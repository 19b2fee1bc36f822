/** The projection that the database holds: registry, state, and the index of messages not delivered yet. */
import { sql } from 'kysely'
import { Counter } from 'prom-client'
import type { LoggedEvent } from '../events/event.ts'
import { messageChanges } from '../messaging/messages-of-log.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { type RegistryStore, registryChanges } from '../registry/registry-store.ts'
import { type StateStore, stateChanges } from '../state/state-store.ts'
import { LeaseLost, type Projection } from './projector.ts'

const NAME = 'database'
/** A batch may hold megabytes of values; a statement of the API never waits so long for it. */
const APPLY_TIMEOUT_MS = 10_000
/** What was reserved or staged so long ago and is not in a log that has been read to its end never will be. */
const ABANDONED_MS = 60_000

const dropped = new Counter({
  name: 'tabulum_queue_dropped_total',
  help: 'Messages dropped from full pull queues, the oldest first. They stay in the event log.',
})

export class DatabaseProjection implements Projection {
  readonly name = NAME
  // Agents wait for the queues, not for the index of what is in them. What is to be pushed is in a hurry.
  readonly follows = {
    mayWait: ({ type, via }: LoggedEvent) => type.startsWith('message_') && via !== 'webhook',
  }
  readonly #database: Database
  readonly #stores: { registry: RegistryStore; state: StateStore }
  readonly #options: { maxQueue: number; exclusive: boolean }

  /** With `exclusive` this process is the only one there can be, so a lease left by a killed one is taken over at once. */
  constructor(
    database: Database,
    stores: { registry: RegistryStore; state: StateStore },
    options: { maxQueue: number; exclusive: boolean },
  ) {
    this.#database = database
    this.#stores = stores
    this.#options = options
  }

  async acquire(holder: string, leaseMs: number): Promise<number | undefined> {
    const { rows } = await roundTrip(this.#database, 'acquire_projection', () =>
      sql<{ applied_seq: number }>`
        with ahead as (
          -- Further ahead than it is ever set: the clock was set back, and whoever holds it may be gone. Who is not prolongs it in time.
          update projections set lease_expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
          where name = ${NAME} and holder <> ${holder} and not ${this.#options.exclusive}
            and lease_expires_at > clock_timestamp() + ${leaseMs} * interval '1 millisecond'
        )
        update projections
        set holder = ${holder}, lease_expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
        where name = ${NAME}
          and (holder = ${holder} or holder is null or lease_expires_at < clock_timestamp() or ${this.#options.exclusive})
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
    dropped.inc(result)
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

  /** Gives back what dead nodes left reserved and staged. Safe here alone: the whole log has just been applied. */
  async tidy(): Promise<void> {
    // The database's clock, as it was what was reserved and staged by: this process's may have jumped.
    const { rows } = await roundTrip(this.#database, 'clock', () =>
      sql<{ now: Date }>`select clock_timestamp() as now`.execute(this.#database),
    )
    const now = rows[0]?.now ?? new Date(0)
    const before = new Date(now.getTime() - ABANDONED_MS)
    await this.#stores.state.releaseAbandoned(before)
    await this.#stores.registry.removeAbandoned(now, before)
  }
}
