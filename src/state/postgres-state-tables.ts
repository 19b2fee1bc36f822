/** The state's tables: reading them, and reserving capacity in them. */
import { sql } from 'kysely'
import { batched, shared } from '../platform/batch.ts'
import { type Database, MAINTENANCE_TIMEOUT_MS, roundTrip } from '../platform/database.ts'
import { AFTER_ALL, BEFORE_ALL, endOfPrefix } from './key-order.ts'
import { toBase64 } from './state-read-model.ts'
import type { StateEntry, StateListing, StatePage, StoredUsage } from './state-store.ts'

/** Capacity for one write. */
export interface Reservation {
  id: string
  key: string
  /** Bytes of key and value that the key will have. */
  size: number
}

/** `busy`: it would fit if no node had an allotment. */
export type ReservationOutcome = 'reserved' | 'full' | 'busy'

/**
 * `absent`: there is no such key. `busy`: another delete of it is under way, or a change is being
 * applied.
 */
export type DeleteOutcome = 'begun' | 'absent' | 'busy'

/** What a node says of its allotment, all in bytes. */
export interface AllotmentRenewal {
  id: string
  /** There is no such allotment yet. */
  opening: boolean
  /** Of writes that have been applied since the last renewal. */
  settled: number
  /** Of writes of which nobody knows whether they will be. */
  lost: number
  /** What it does not give back. */
  kept: number
  wanted: number
}

/** Calls of one kind that wait for the database at most. */
const MAX_WAITING = 20_000
/**
 * For so long a delete keeps the others of its key waiting; later it is not acknowledged any more
 * (`DELETE_USABLE_MS`).
 */
export const DELETE_MS = 3_000
/** Values that one answer of the database holds at most: 32 MiB of the largest. */
const FOUND_AT_ONCE = 32

export class StateTables {
  readonly #database: Database
  readonly #capacityBytes: number
  /** Reserves capacity for a write, exactly. */
  readonly reserve: (reservation: Reservation) => Promise<ReservationOutcome>
  /**
   * Finds the key for a delete, which has until `DELETE_MS` later to be applied: so long no other
   * begins.
   */
  readonly beginDelete: (key: string) => Promise<DeleteOutcome>
  /** The entry of a key; undefined if absent. */
  readonly find: (key: string) => Promise<StateEntry | undefined>
  readonly usage: () => Promise<StoredUsage>

  constructor(database: Database, capacityBytes: number) {
    this.#database = database
    this.#capacityBytes = capacityBytes
    this.reserve = batched((reservations) => this.#reserve(reservations), {
      maxItems: 500,
      maxWaiting: MAX_WAITING,
    })
    this.beginDelete = batched((keys) => this.#beginDeletes(keys), {
      maxItems: 500,
      maxWaiting: MAX_WAITING,
    })
    this.find = batched((keys) => this.#find(keys), {
      maxItems: FOUND_AT_ONCE,
      maxWaiting: MAX_WAITING,
    })
    this.usage = shared(() => this.#usage())
  }

  async #reserve(reservations: Reservation[]): Promise<ReservationOutcome[]> {
    const requests = JSON.stringify(
      reservations.map((reservation) => ({ ...reservation, key: toBase64(reservation.key) })),
    )
    const { rows } = await roundTrip(this.#database, 'reserve_state', () =>
      sql<{ outcome: ReservationOutcome }>`
        select outcome from reserve_state_writes(${requests}::json, ${this.#capacityBytes})`.execute(
        this.#database,
      ),
    )
    return rows.map(({ outcome }) => outcome)
  }

  async #beginDeletes(keys: string[]): Promise<DeleteOutcome[]> {
    const distinct = JSON.stringify([...new Set(keys)].map(toBase64))
    const { rows } = await roundTrip(this.#database, 'begin_deletes', () =>
      // It waits for no lock, so it cannot wait for what waits for it.
      sql<{ key: Buffer; begun: boolean }>`
        with wanted as (
          select array(select decode(item, 'base64') from json_array_elements_text(${distinct}::json) item) as keys
        ), ahead as (
          -- Further ahead than it is ever set, as the clock was set back: it is as long from now as
          -- it was, and no longer.
          update state set delete_until = clock_timestamp() + ${DELETE_MS} * interval '1 millisecond'
          where key in (
            select key from state
            where key = any ((select keys from wanted)::bytea[])
              and delete_until > clock_timestamp() + ${DELETE_MS} * interval '1 millisecond'
            for update skip locked
          )
        ), begun as (
          update state set delete_until = clock_timestamp() + ${DELETE_MS} * interval '1 millisecond'
          where key in (
            select key from state
            where key = any ((select keys from wanted)::bytea[])
              and (delete_until is null or delete_until < clock_timestamp())
            for update skip locked
          )
          returning key
        )
        select key, begun.key is not null as begun from state left join begun using (key)
        where key = any ((select keys from wanted)::bytea[])`.execute(this.#database),
    )
    const found = new Map(rows.map(({ key, begun }) => [key.toString('utf8'), begun]))
    return keys.map((key) => {
      const isFree = found.get(key)
      if (isFree === undefined) return 'absent'
      // Of those that came together the first.
      found.set(key, false)
      return isFree ? 'begun' : 'busy'
    })
  }

  /**
   * Opens or renews an allotment, as `renew_state_allotment` says. Returns the bytes that it has
   * now; undefined if it is there no more.
   */
  async renewAllotment({
    id,
    opening,
    settled,
    lost,
    kept,
    wanted,
  }: AllotmentRenewal): Promise<number | undefined> {
    const { rows } = await roundTrip(this.#database, 'renew_state_allotment', () =>
      sql<{ bytes: number | null }>`
        select renew_state_allotment(${id}, ${opening}, ${settled}, ${lost}, ${kept}, ${wanted}, ${this.#capacityBytes}) as bytes`.execute(
        this.#database,
      ),
    )
    return rows[0]?.bytes ?? undefined
  }

  async #find(keys: string[]): Promise<(StateEntry | undefined)[]> {
    const distinct = JSON.stringify([...new Set(keys)].map(toBase64))
    const { rows } = await roundTrip(this.#database, 'find_state', () =>
      sql<{ key: Buffer; value: Buffer; modified_by: string; modified_at: Date }>`
        select key, value, modified_by, modified_at from state
        where key = any (array(select decode(wanted, 'base64') from json_array_elements_text(${distinct}::json) wanted))`.execute(
        this.#database,
      ),
    )
    const found = new Map(
      rows.map((row) => [
        row.key.toString('utf8'),
        {
          value: row.value.toString('utf8'),
          modifiedBy: row.modified_by,
          modifiedAt: row.modified_at.toISOString(),
        },
      ]),
    )
    return keys.map((key) => {
      const entry = found.get(key)
      return entry && { key, ...entry }
    })
  }

  /**
   * Keys with a prefix after `after` in byte order, at most `limit`, and how many have the prefix
   * in all: one snapshot. They come as one row, which costs the driver a fraction of a row each.
   */
  async page(prefix: string, after: Buffer | undefined, limit: number): Promise<StatePage> {
    const low = Buffer.from(prefix)
    const high = endOfPrefix(low)
    const { rows } = await roundTrip(this.#database, 'state_page', () =>
      sql<{ total: number; keys: string | null }>`
        select count_state_keys(${low}, ${high}) as total, (
          select string_agg(encode(key, 'hex'), ' ' order by key) from (
            select key from state
            where key >= ${low} and key > ${after ?? BEFORE_ALL} and key < ${high ?? AFTER_ALL}
            order by key limit ${limit}
          ) as page
        ) as keys`.execute(this.#database),
    )
    const [{ total, keys } = { total: 0, keys: null }] = rows
    return {
      keys: keys === null ? [] : keys.split(' ').map((key) => Buffer.from(key, 'hex')),
      total,
    }
  }

  /** As `StateReader.listings`. */
  async listings(
    prefix: string,
    after: Buffer | undefined,
    limit: number,
  ): Promise<{ keys: StateListing[]; total: number }> {
    const low = Buffer.from(prefix)
    const high = endOfPrefix(low)
    const { rows } = await roundTrip(this.#database, 'state_listings', () =>
      sql<{
        total: number
        key: Buffer | null
        modified_by: string
        modified_at: Date
        length: number
      }>`
        select total, key, modified_by, modified_at, length
        from (select count_state_keys(${low}, ${high}) as total) counted
        left join (
          select key, modified_by, modified_at, octet_length(value) as length from state
          where key >= ${low} and key > ${after ?? BEFORE_ALL} and key < ${high ?? AFTER_ALL}
          order by key limit ${limit}
        ) as page on true
        order by key`.execute(this.#database),
    )
    const keys = rows.flatMap(({ key, modified_by, modified_at, length }) =>
      key === null
        ? []
        : { key, modifiedBy: modified_by, modifiedAt: modified_at.toISOString(), length },
    )
    return { keys, total: rows[0]?.total ?? 0 }
  }

  async #usage(): Promise<StoredUsage> {
    return roundTrip(this.#database, 'state_usage', () =>
      this.#database
        .selectFrom('state_usage')
        .select(['used_bytes as usedBytes', 'key_count as keyCount'])
        .executeTakeFirstOrThrow(),
    )
  }

  /**
   * Gives back what was reserved before `before` and never used: all events until then are to have
   * been applied. What was reserved at a time that is yet to come, as the clock was set back,
   * counts from now. At most `limit` of either; returns how many there were.
   */
  async tidyReservations(before: Date, limit: number): Promise<number> {
    const ahead = await this.#restart('state_reservations', 'reserved_at', limit)
    const { rows } = await roundTrip(
      this.#database,
      'tidy_reservations',
      () =>
        sql<{ released: number }>`
          select cardinality(ids)::bigint as released, release_state(ids) from (
            select array(select id from state_reservations where reserved_at < ${before}
                         order by reserved_at limit ${limit}) as ids
          ) as abandoned where cardinality(ids) > 0`.execute(this.#database),
      MAINTENANCE_TIMEOUT_MS,
    )
    return ahead + (rows[0]?.released ?? 0)
  }

  /** As `tidyReservations`, of allotments that nobody has renewed since `before`. */
  async tidyAllotments(before: Date, limit: number): Promise<number> {
    const ahead = await this.#restart('state_allotments', 'renewed_at', limit)
    const { rows } = await roundTrip(
      this.#database,
      'tidy_allotments',
      () =>
        sql<{
          allotments: number
        }>`select release_state_allotments(${before}, ${limit}::integer) as allotments`.execute(
          this.#database,
        ),
      MAINTENANCE_TIMEOUT_MS,
    )
    return ahead + (rows[0]?.allotments ?? 0)
  }

  /** What began at a time that is yet to come begins now. */
  async #restart(
    table: 'state_reservations' | 'state_allotments',
    column: string,
    limit: number,
  ): Promise<number> {
    const [rows, begun] = [sql.table(table), sql.ref(column)]
    const { numAffectedRows } = await roundTrip(
      this.#database,
      'restart_reserved',
      () =>
        sql`update ${rows} set ${begun} = clock_timestamp() where id = any (array(
          select id from ${rows} where ${begun} > clock_timestamp() limit ${limit} for update skip locked))`.execute(
          this.#database,
        ),
      MAINTENANCE_TIMEOUT_MS,
    )
    return Number(numAffectedRows ?? 0)
  }
}
