/**
 * Where the observation keeps its read models: a schema of Postgres, or a SQLite database beside
 * the kernel's. Statements are written once, for both (`observation-tables.ts`); what differs is in
 * the adapters.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { RawBuilder } from 'kysely'

/** Types of the columns of rows that are given as JSON; `bytes` are hexadecimal digits there. */
export type RowTypes = Readonly<Record<string, 'integer' | 'text' | 'bytes'>>

export interface ObservationDatabase {
  /** A table of the read models. */
  table(name: string): RawBuilder<unknown>
  /** Rows that are given as one parameter, as a table named `r`. */
  rows(rows: readonly object[], types: RowTypes): RawBuilder<unknown>
  /** Runs a statement that returns rows. Throws `Unavailable`. */
  query<T>(operation: string, statement: RawBuilder<T>): Promise<T[]>
  /** The same where the changes are made, which `query` may be behind. */
  queryForChange<T>(operation: string, statement: RawBuilder<T>): Promise<T[]>
  /**
   * Moves the position by `move`, an update of one row, and makes the changes with it, or does
   * nothing. Each of them is made where `guard` holds. Returns whether it moved. Throws
   * `Unavailable`.
   */
  change(
    move: RawBuilder<unknown>,
    changes: (guard: RawBuilder<unknown>) => RawBuilder<unknown>[],
  ): Promise<boolean>
}

const SCHEMAS = new URL('../../migrations/observation/', import.meta.url)

export interface ObservationSchema {
  /**
   * The statements that make the tables, and then the indexes, which are made quicker when the
   * tables are full.
   */
  readonly tables: string
  readonly indexes: string
  /** Tells them from those of another version. */
  readonly hash: string
}

export function observationSchema(dialect: 'postgres' | 'sqlite'): ObservationSchema {
  const text = readFileSync(new URL(`${dialect}.sql`, SCHEMAS), 'utf8')
  const index = /^create index .*;$/gm
  return {
    tables: text.replaceAll(index, ''),
    indexes: (text.match(index) ?? []).join('\n'),
    hash: createHash('sha256').update(text).digest('hex'),
  }
}
