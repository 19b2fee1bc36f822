/**
 * A read model: what a capability keeps of the log, so that the API can read it. All that there is
 * to say of one is in one object, which both storages and `verify` take from the list in
 * `src/storage/read-models.ts`. In Postgres its function applies it: `project_<name>`, in
 * `src/<capability>/sql/`.
 */
import type { Sqlite } from '../platform/sqlite.ts'
import type { EventType, LoggedEvent } from './event.ts'

/** What follows from events beside the tables. */
export interface Effects {
  /** Messages that a full queue has lost, the oldest first. */
  dropped: number
}

export interface ReadModel {
  /** Lower-case letters and `_`. */
  readonly name: string
  /** It is made of these events, and asked about no others. */
  readonly types: readonly EventType[]
  /** Whether nobody waits for an event; where it is not said, somebody does. */
  readonly mayWait?: (event: LoggedEvent) => boolean
  /**
   * What a batch of events changes, as JSON for its function in Postgres. That returns what was
   * dropped, as `Effects`; null is nothing.
   */
  changesOf(events: readonly LoggedEvent[]): object
  /**
   * How it takes in an event in SQLite, one after the other; undefined where something else writes
   * its tables with the event.
   */
  readonly onSqlite?: (sqlite: Sqlite) => (event: LoggedEvent, effects: Effects) => void
  readonly checks: Checks
}

/** How `verify` finds what is not as the log says. */
export interface Checks {
  /** What should be there: the log replayed in the simplest way, into temporary tables. */
  readonly replayed: readonly Replayed[]
  /**
   * Statements that return a row for each difference, which its column `difference` tells, on both
   * storages. SQLite is given Postgres's functions `sha256`, `encode` and `decode`.
   */
  readonly both: readonly string[]
  /** Of what is kept on one of them only. */
  readonly postgres?: readonly string[]
  readonly sqlite?: readonly string[]
}

export interface Replayed {
  readonly table: string
  /** The first is the key. None is ever null. */
  readonly columns: Readonly<Record<string, ColumnType>>
  changeBy(event: LoggedEvent): RowChange | undefined
}

export type ColumnType = 'text' | 'integer' | 'boolean' | 'uuid' | 'bytes'
export type Value = string | number | boolean | Uint8Array
export type Row = Readonly<Record<string, Value>>

/**
 * `put`: a whole row. `set`: the key, and columns of the row that has it, if there is one.
 * `remove`: the row with this key.
 */
export type RowChange = { readonly put: Row } | { readonly set: Row } | { readonly remove: Value }
