/**
 * Appending to the event log in SQLite: the event and all that follows from it, in the transaction
 * that is under way.
 */
import type { Sqlite } from '../platform/sqlite.ts'
import type { EventType, LoggedEvent, NewEvent, Routing } from './event.ts'
import { type Appended, DEDUPLICATION_WINDOW_MS } from './event-log.ts'
import type { Effects, ReadModel } from './read-model.ts'

export type AppendResult = Appended & Effects
/** Stores an event, unless one with the same id was stored within `DEDUPLICATION_WINDOW_MS`. */
export type Append = (
  event: NewEvent,
  options?: Routing & { readonly id?: string | undefined },
) => AppendResult

/** @param now the calendar, in ms since 1970, as `steadyClock` tells it */
export function createAppend(
  sqlite: Sqlite,
  models: readonly Pick<ReadModel, 'types' | 'onSqlite'>[],
  now: () => number,
): Append {
  const { sql } = sqlite
  const appliers = new Map<EventType, ((event: LoggedEvent, effects: Effects) => void)[]>()
  for (const { types, onSqlite } of models) {
    const apply = onSqlite?.(sqlite)
    if (apply) for (const type of types) appliers.set(type, [...(appliers.get(type) ?? []), apply])
  }

  /** The sequence number of the event with this id, if it is known still. */
  function known(id: string, time: number): number | undefined {
    const row = sql.get`select seq, expires_at from event_ids where id = ${id}`
    if (!row || (row.expires_at as number) <= time) return undefined
    // Further ahead than it is ever set: the clock was set back since. It is known no longer than
    // the window from now either.
    const latest = time + DEDUPLICATION_WINDOW_MS
    if ((row.expires_at as number) > latest)
      sql.run`update event_ids set expires_at = ${latest} where id = ${id}`
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
    const logged = { seq, ...event, ...routing }
    for (const apply of appliers.get(type) ?? []) apply(logged, effects)
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
    append: ({
      event,
      ...options
    }: { event: NewEvent; id?: string | undefined } & Routing): AppendResult =>
      append(event, options),
  }
}
export type EventWrites = ReturnType<typeof eventWrites>
