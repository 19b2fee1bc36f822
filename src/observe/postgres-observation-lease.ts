/** The lease on the read models in Postgres: by its clock, in the row of their position. */
import { type RawBuilder, sql } from 'kysely'
import { type Database, roundTrip } from '../platform/database.ts'
import type { ObservationLease } from './observer.ts'

export class PostgresObservationLease implements ObservationLease {
  readonly mine: RawBuilder<unknown>
  readonly #database: Database
  readonly #position: RawBuilder<unknown>
  readonly #holder: string

  /** @param holder a name that no other process has */
  constructor(database: Database, { schema, holder }: { schema: string; holder: string }) {
    this.#database = database
    this.#position = sql.table(`${schema}.position`)
    this.#holder = holder
    this.mine = sql`holder = ${holder}`
  }

  async take(leaseMs: number): Promise<boolean> {
    const end = sql`clock_timestamp() + ${leaseMs} * interval '1 millisecond'`
    const { rows } = await roundTrip(this.#database, 'take_observation', () =>
      // One that is further ahead than it is ever set counts for nothing: the clock was set back.
      sql`
        update ${this.#position} set holder = ${this.#holder}, lease_expires_at = ${end}
        where holder = ${this.#holder} or lease_expires_at < clock_timestamp() or lease_expires_at > ${end}
        returning 1`.execute(this.#database),
    )
    return rows.length > 0
  }

  async release(): Promise<void> {
    await roundTrip(this.#database, 'release_observation', () =>
      sql`update ${this.#position} set lease_expires_at = '-infinity' where holder = ${this.#holder}`.execute(
        this.#database,
      ),
    )
  }
}
