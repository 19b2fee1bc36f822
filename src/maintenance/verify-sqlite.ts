/**
 * Compares what the API reads from the embedded database with the log in it, and tells each
 * difference.
 *
 * All of it is one snapshot, which keeps nobody from writing. The log is replayed into temporary
 * tables, so memory does not grow with it.
 */
import { hash } from 'node:crypto'
import type { EventType, LoggedEvent } from '../events/event.ts'
import type { ColumnType, ReadModel, Replayed, Row, Value } from '../events/read-model.ts'
import { toEvent } from '../events/sqlite-event-log.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import type { Verification } from './verification.ts'

/**
 * Calls `report` with each difference. `sqlite` is a connection that nothing else uses; it may be
 * one that only reads.
 */
export function verifySqlite(
  { connection, sql }: Sqlite,
  models: readonly ReadModel[],
  report: (difference: string) => void,
): Verification {
  likePostgres(connection)
  const replayed = models.flatMap(({ checks }) => checks.replayed)
  for (const table of replayed) connection.exec(creation(table))
  const replays = replaysOf(connection, models)
  connection.exec('begin')
  try {
    let seq = 0
    let events = 0
    for (const row of sql.iterate`select * from events order by seq`) {
      const event = toEvent(row)
      for (const replay of replays.get(event.type) ?? []) replay(event)
      seq = event.seq
      events++
    }
    for (const check of models.flatMap(({ checks }) => [
      ...checks.both,
      ...(checks.sqlite ?? []),
    ])) {
      for (const { difference } of connection.prepare(check).iterate()) report(String(difference))
    }
    return { seq, events }
  } finally {
    connection.exec('rollback')
    for (const { table } of replayed) connection.exec(`drop table ${table}`)
  }
}

/** Functions of Postgres that checks use. */
function likePostgres(connection: Sqlite['connection']): void {
  const options = { deterministic: true }
  connection.function('sha256', options, (value) => hash('sha256', value as Uint8Array, 'buffer'))
  connection.function('encode', options, (value, format) => {
    const bytes = Buffer.from(value as Uint8Array)
    // Keys are UTF-8, which can be read as it is.
    return format === 'escape' ? bytes.toString('utf8') : bytes.toString(format as BufferEncoding)
  })
  connection.function('decode', options, (text, format) =>
    Buffer.from(text as string, format as BufferEncoding),
  )
}

const SQLITE_TYPES: Record<ColumnType, string> = {
  text: 'text',
  integer: 'integer',
  boolean: 'integer',
  uuid: 'text',
  bytes: 'blob',
}

function creation({ table, columns }: Replayed): string {
  const [key, ...others] = Object.entries(columns).map(
    ([name, type]) => `${name} ${SQLITE_TYPES[type]}`,
  )
  return `create temporary table ${table} (${[`${key} primary key`, ...others]}) without rowid`
}

/** For each type of event, what it does to the temporary tables. */
function replaysOf(connection: Sqlite['connection'], models: readonly ReadModel[]) {
  const replays = new Map<EventType, ((event: LoggedEvent) => void)[]>()
  for (const { types, checks } of models) {
    for (const replayed of checks.replayed) {
      const replay = replayInto(connection, replayed)
      for (const type of types) replays.set(type, [...(replays.get(type) ?? []), replay])
    }
  }
  return replays
}

function replayInto(connection: Sqlite['connection'], { table, columns, changeBy }: Replayed) {
  const [key = '', ...others] = Object.keys(columns)
  const put = connection.prepare(
    `insert or replace into ${table} values (${[key, ...others].map(() => '?')})`,
  )
  const set = connection.prepare(
    `update ${table} set ${others.map((name) => `${name} = coalesce(?, ${name})`)} where ${key} = ?`,
  )
  const remove = connection.prepare(`delete from ${table} where ${key} = ?`)
  const valuesOf = (row: Row, names: readonly string[]) => names.map((name) => toSqlite(row[name]))
  return (event: LoggedEvent): void => {
    const change = changeBy(event)
    if (change === undefined) return
    if ('put' in change) put.run(...valuesOf(change.put, [key, ...others]))
    else if ('set' in change) set.run(...valuesOf(change.set, [...others, key]))
    else remove.run(toSqlite(change.remove))
  }
}

function toSqlite(value: Value | undefined) {
  return typeof value === 'boolean' ? Number(value) : (value ?? null)
}
