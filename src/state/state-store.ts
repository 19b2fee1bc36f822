/** The state's tables: reading them, reserving room in them, and applying the log to them. */
import { sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import { batched } from '../platform/batch.ts'
import { type Database, roundTrip } from '../platform/database.ts'

export interface StateEntry {
  key: string
  value: string
  modifiedBy: string
  modifiedAt: string
}

export interface Reservation {
  id: string
  key: string
  kind: 'write' | 'delete'
  /** Bytes of key and value that the key will have. */
  size: number
}

export type ReservationOutcome = 'reserved' | 'full' | 'absent' | 'busy'

export class StateStore {
  readonly #database: Database
  /** Takes room for a write or the turn of a delete. */
  readonly reserve: (reservation: Reservation) => Promise<ReservationOutcome>

  constructor(database: Database, capacityBytes: number) {
    this.#database = database
    this.reserve = batched((reservations) => this.#reserve(reservations, capacityBytes), {
      maxItems: 500,
      maxWaiting: 20_000,
    })
  }

  async #reserve(reservations: Reservation[], capacityBytes: number): Promise<ReservationOutcome[]> {
    const requests = JSON.stringify(
      reservations.map((reservation) => ({ ...reservation, key: toBase64(reservation.key) })),
    )
    const { rows } = await roundTrip(this.#database, 'reserve_state', () =>
      sql<{ id: string; outcome: ReservationOutcome }>`
        select id, outcome from reserve_state(${requests}::json, ${capacityBytes})`.execute(this.#database),
    )
    return rows.map(({ outcome }) => outcome)
  }

  async find(key: string): Promise<StateEntry | undefined> {
    const row = await roundTrip(this.#database, 'find_state', () =>
      this.#database
        .selectFrom('state')
        .select(['value', 'modified_by', 'modified_at'])
        .where('key', '=', Buffer.from(key))
        .executeTakeFirst(),
    )
    return (
      row && {
        key,
        value: row.value.toString('utf8'),
        modifiedBy: row.modified_by,
        modifiedAt: row.modified_at.toISOString(),
      }
    )
  }

  /** Keys with a prefix after `after` in byte order, at most `limit`, and how many have the prefix in all: one snapshot. */
  async page(prefix: string, after: Buffer | undefined, limit: number): Promise<{ keys: Buffer[]; total: number }> {
    const low = Buffer.from(prefix)
    const high = endOfPrefix(low)
    const rows = await roundTrip(this.#database, 'state_page', () =>
      this.#database
        // In FROM it is called once; as a column of a subquery, once for each row of the page.
        .selectFrom(sql<{ total: number }>`count_state_keys(${low}, ${high})`.as<'counted'>(sql`counted (total)`))
        .leftJoinLateral(
          (join) =>
            join
              .selectFrom('state')
              .select('key')
              .where('key', '>=', low)
              .$if(high !== null, (query) => query.where('key', '<', high as Buffer))
              .$if(after !== undefined, (query) => query.where('key', '>', after as Buffer))
              .orderBy('key')
              .limit(limit)
              .as('page'),
          (on) => on.onTrue(),
        )
        .select(['counted.total', 'page.key'])
        .orderBy('page.key')
        .execute(),
    )
    return { keys: rows.flatMap(({ key }) => key ?? []), total: rows[0]?.total ?? 0 }
  }

  async usage(): Promise<{ usedBytes: number; keyCount: number }> {
    return roundTrip(this.#database, 'state_usage', () =>
      this.#database
        .selectFrom('state_usage')
        .select(['used_bytes as usedBytes', 'key_count as keyCount'])
        .executeTakeFirstOrThrow(),
    )
  }

  /** Gives back what was reserved before `before` and never appended. Returns how many reservations there were. */
  async releaseAbandoned(before: Date): Promise<number> {
    const rows = await this.#database
      .selectFrom('state_reservations')
      .select('id')
      .where('reserved_at', '<', before)
      .limit(1_000)
      .execute()
    if (rows.length > 0) {
      const ids = JSON.stringify(rows.map(({ id }) => id))
      await sql`select release_state(array(select json_array_elements_text(${ids}::json)::uuid))`.execute(
        this.#database,
      )
    }
    return rows.length
  }
}

/** What a batch of events does to the state, as the function `project_state` takes it. */
export function stateChanges(events: readonly LoggedEvent[]): { finals: object[]; settled: object[] } {
  const finals = new Map<string, { key: string; value: string | null; seq: number; by: string; at: string }>()
  const settled = new Map<string, { key: string; kind: Reservation['kind']; size: number; times: number }>()
  for (const { seq, ts, type, data } of events) {
    if (type !== 'state_written' && type !== 'state_deleted') continue
    const key = toBase64(data.key)
    const written = type === 'state_written'
    const size = written ? Buffer.byteLength(data.key) + data.value_length : 0
    finals.set(key, {
      key,
      value: written ? toBase64(data.value) : null,
      seq,
      by: written ? data.written_by : data.deleted_by,
      at: ts,
    })
    const name = `${type} ${size} ${key}`
    const settlement = settled.get(name) ?? { key, kind: written ? 'write' : 'delete', size, times: 0 }
    settled.set(name, { ...settlement, times: settlement.times + 1 })
  }
  return { finals: [...finals.values()], settled: [...settled.values()] }
}

/** The first byte string after all that begin with `prefix`; null if there is none. */
function endOfPrefix(prefix: Buffer): Buffer | null {
  // UTF-8 has no byte 0xff, so the last byte can always be increased.
  const last = prefix.at(-1)
  return last === undefined ? null : Buffer.concat([prefix.subarray(0, -1), Buffer.of(last + 1)])
}

function toBase64(text: string): string {
  return Buffer.from(text).toString('base64')
}
