/** Appending to the event log in SQLite: the event and all that follows from it, in the transaction that is under way. */
import type { Sqlite } from '../platform/sqlite.ts'
import { changesOf, type LoggedEvent, type NewEvent, type Routing } from './event.ts'
import { type Appended, DEDUPLICATION_WINDOW_MS } from './event-log.ts'

/** What follows from events beside the tables. */
export interface Effects {
  /** Messages that a full queue has lost, the oldest first. */
  dropped: number
}

/** A read model that is kept in the database. */
export interface SqliteProjection {
  /** Takes in an event. Called for each, in the order of the log. */
  apply(event: LoggedEvent, effects: Effects): void
}

export type AppendResult = Appended & Effects
/** Stores an event, unless one with the same id was stored within `DEDUPLICATION_WINDOW_MS`. */
export type Append = (event: NewEvent, options?: Routing & { readonly id?: string | undefined }) => AppendResult

/** @param now the calendar, in ms since 1970, as `steadyClock` tells it */
export function createAppend(
  { sql }: Pick<Sqlite, 'sql'>,
  projections: readonly SqliteProjection[],
  now: () => number,
): Append {
  const changes = new Set(changesOf())

  /** The place of the event with this id, if it is known still. */
  function known(id: string, time: number): number | undefined {
    const row = sql.get`select seq, expires_at from event_ids where id = ${id}`
    if (!row || (row.expires_at as number) <= time) return undefined
    // Further ahead than it is ever set: the clock was set back since. It is known no longer than the window from now either.
    const latest = time + DEDUPLICATION_WINDOW_MS
    if ((row.expires_at as number) > latest) sql.run`update event_ids set expires_at = ${latest} where id = ${id}`
    return row.seq as number
  }

  return (event, { id, ...routing } = {}) => {
    const effects: Effects = { dropped: 0 }
    const time = now()
    const first = id === undefined ? undefined : known(id, time)
    if (first !== undefined) return { seq: first, duplicate: true, ...effects }
    const { ts, type, agent = null, data } = event
    const { via = null, about = null } = routing
    const { lastInsertRowid } = sql.run`
      insert into events (ts, type, agent, data, via, about)
      values (${ts}, ${type}, ${agent}, ${JSON.stringify(data)}, ${via}, ${about})`
    const seq = Number(lastInsertRowid)
    if (id !== undefined) {
      sql.run`
        insert into event_ids (id, seq, expires_at) values (${id}, ${seq}, ${time + DEDUPLICATION_WINDOW_MS})
        on conflict (id) do update set seq = excluded.seq, expires_at = excluded.expires_at`
    }
    if (changes.has(type)) {
      sql.run`update log_end set last_change_seq = ${seq}`
      for (const projection of projections) projection.apply({ seq, ...event, ...routing }, effects)
    }
    return { seq, duplicate: false, ...effects }
  }
}

/** Forgets ids that are too old to be asked for, at most `limit`. Returns how many there were. */
export function tidyEventIds({ sql }: Pick<Sqlite, 'sql'>, time: number, limit: number): number {
  const latest = time + DEDUPLICATION_WINDOW_MS
  const ahead = sql.run`
    update event_ids set expires_at = ${latest} where id in (
      select id from event_ids where expires_at > ${latest} limit ${limit})`
  const old = sql.run`
    delete from event_ids where id in (
      select id from event_ids where expires_at <= ${time} order by expires_at limit ${limit})`
  return Number(ahead.changes) + Number(old.changes)
}

/** What the event log has written for it. */
export function eventWrites(sqlite: Sqlite, append: Append, now: () => number) {
  return {
    tidyEventIds: (limit: number): number => tidyEventIds(sqlite, now(), limit),
    append: ({ event, ...options }: { event: NewEvent; id?: string | undefined } & Routing): AppendResult =>
      append(event, options),
  }
}
export type EventWrites = ReturnType<typeof eventWrites>
