/** What one process at a time may do, by a row of the database and its clock. */
import { type RawBuilder, sql } from 'kysely'
import { type Database, roundTrip } from './database.ts'

/**
 * Above the time for which the database lets a statement wait for a lock: a row that is locked is
 * no reason to replace connections.
 */
const TIMEOUT_MS = 5_000

export class Lease {
  readonly #database: Database
  readonly #name: string
  readonly #holder: string
  readonly #table: RawBuilder<unknown>

  /**
   * @param holder a name that no other process has
   * @param table where its row is
   */
  constructor(database: Database, name: string, holder: string, table = 'leases') {
    this.#table = sql.table(table)
    this.#database = database
    this.#name = name
    this.#holder = holder
  }

  /**
   * Takes it where nobody has had it for `vacantMs`, or prolongs it. Returns whether this process
   * has it, for `leaseMs` from now.
   */
  async take(leaseMs: number, vacantMs: number): Promise<boolean> {
    const { rows } = await roundTrip(
      this.#database,
      'take_lease',
      () =>
        sql`
          with ahead as (
            -- Further ahead than it is ever set: the clock was set back, and whoever holds it may
            -- be gone. Who is not prolongs it in time.
            update ${this.#table} set expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
            where name = ${this.#name} and holder is distinct from ${this.#holder}
              and expires_at > clock_timestamp() + ${leaseMs} * interval '1 millisecond'
          )
          update ${this.#table}
          set holder = ${this.#holder}, expires_at = clock_timestamp() + ${leaseMs} * interval '1 millisecond'
          where name = ${this.#name}
            and (holder = ${this.#holder} or expires_at < clock_timestamp() - ${vacantMs} * interval '1 millisecond')
          returning name`.execute(this.#database),
      TIMEOUT_MS,
    )
    return rows.length > 0
  }

  /** Gives it back, so that another process need not wait for its end. */
  async release(): Promise<void> {
    await roundTrip(
      this.#database,
      'release_lease',
      () =>
        sql`update ${this.#table} set holder = null, expires_at = clock_timestamp()
          where name = ${this.#name} and holder = ${this.#holder}`.execute(this.#database),
      TIMEOUT_MS,
    )
  }
}
