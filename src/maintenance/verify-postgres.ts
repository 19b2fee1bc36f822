/**
 * Compares what the API reads with the log that it comes from, and tells each difference.
 *
 * The log is replayed into temporary tables of the database, a page at a time, so that memory does
 * not grow with it, and each page in a transaction of its own. The kernel goes on meanwhile. Only
 * the last stretch is replayed in the snapshot in which all is compared, so that no snapshot is
 * held for longer than that takes: one that is held for hours keeps Postgres from cleaning up.
 */
import { type Kysely, sql } from 'kysely'
import type { LoggedEvent } from '../events/event.ts'
import { type EventLog, readEvents } from '../events/event-log.ts'
import type { ColumnType, ReadModel, Replayed, Row, Value } from '../events/read-model.ts'
import type { Database, Schema } from '../platform/database.ts'
import type { Verification } from './verification.ts'

const PAGE = 1_000

/**
 * So many sequence numbers are replayed in the snapshot at most, unless the log grows as fast as it
 * is replayed: a second or two.
 */
const LAST_STRETCH = 5_000

/**
 * Replays the log up to where the database projection stands, and calls `report` with each
 * difference. `database` has to be one session: of `openPostgresSession`.
 */
export async function verifyPostgres(
  database: Database,
  log: Pick<EventLog, 'read' | 'lastSeq'>,
  models: readonly ReadModel[],
  report: (difference: string) => void,
): Promise<Verification> {
  return database.connection().execute(async (session) => {
    const replayed = models.flatMap(({ checks }) => checks.replayed)
    for (const table of replayed) await sql.raw(creation(table)).execute(session)
    let seq = 0
    let events = 0
    const replayTo = async (on: Kysely<Schema>, until: number) => {
      events += await replay(on, log, models, seq, until)
      seq = until
    }
    for (let before = Number.POSITIVE_INFINITY; ; ) {
      const position = await positionOf(session)
      const stretch = position - seq
      if (stretch <= LAST_STRETCH || stretch >= before) break
      await replayTo(session, position)
      before = stretch
    }
    await session
      .transaction()
      .setIsolationLevel('repeatable read')
      .execute(async (snapshot) => {
        await replayTo(snapshot, await positionOf(snapshot))
        for (const check of models.flatMap(({ checks }) => [
          ...checks.both,
          ...(checks.postgres ?? []),
        ])) {
          const { rows } = await sql<{ difference: string }>`${sql.raw(check)}`.execute(snapshot)
          for (const { difference } of rows) report(difference)
        }
      })
    for (const { table } of replayed) await sql.raw(`drop table ${table}`).execute(session)
    const end = await log.lastSeq()
    if (end < seq) report(`log: it ends at ${end}, the database has applied it up to ${seq}`)
    return { seq, events }
  })
}

async function positionOf(session: Kysely<Schema>): Promise<number> {
  const { applied_seq: position } = await session
    .selectFrom('projections')
    .select('applied_seq')
    .where('name', '=', 'database')
    .executeTakeFirstOrThrow()
  return position
}

/** Replays what is after `since` up to `until`. Returns how many events that was. */
async function replay(
  session: Kysely<Schema>,
  log: Pick<EventLog, 'read'>,
  models: readonly ReadModel[],
  since: number,
  until: number,
): Promise<number> {
  let page: LoggedEvent[] = []
  let count = 0
  for await (const event of readEvents(log, since)) {
    if (event.seq > until) break
    count++
    page.push(event)
    if (page.length < PAGE) continue
    await replayPage(session, models, page)
    page = []
  }
  await replayPage(session, models, page)
  return count
}

async function replayPage(
  session: Kysely<Schema>,
  models: readonly ReadModel[],
  events: readonly LoggedEvent[],
): Promise<void> {
  for (const { types, checks } of models) {
    const its = events.filter(({ type }) => types.includes(type))
    for (const replayed of checks.replayed) await replayInto(session, replayed, its)
  }
}

const POSTGRES_TYPES: Record<ColumnType, string> = {
  text: 'text',
  integer: 'bigint',
  boolean: 'boolean',
  uuid: 'uuid',
  bytes: 'bytea',
}

function creation({ table, columns }: Replayed): string {
  const [key, ...others] = Object.entries(columns).map(
    ([name, type]) => `${name} ${POSTGRES_TYPES[type]}`,
  )
  return `create temporary table ${table} (${[`${key} primary key`, ...others]})`
}

/** What a page of events makes of a row, as JSON: all of it, some columns of it, or nothing. */
interface Outcome {
  kind: 'put' | 'set' | 'remove'
  row: Record<string, unknown>
}

async function replayInto(
  session: Kysely<Schema>,
  { table, columns, changeBy }: Replayed,
  events: readonly LoggedEvent[],
): Promise<void> {
  const [key = '', ...others] = Object.keys(columns)
  const outcomes = new Map<unknown, Outcome>()
  for (const event of events) {
    const change = changeBy(event)
    if (change === undefined) continue
    if ('remove' in change) {
      const row = toJson({ [key]: change.remove })
      outcomes.set(row[key], { kind: 'remove', row })
    } else if ('put' in change) {
      const row = toJson(change.put)
      outcomes.set(row[key], { kind: 'put', row })
    } else {
      const row = toJson(change.set)
      const before = outcomes.get(row[key])
      if (before === undefined) outcomes.set(row[key], { kind: 'set', row })
      else if (before.kind !== 'remove') Object.assign(before.row, row)
    }
  }
  const by = Map.groupBy(outcomes.values(), ({ kind }) => kind)
  const names = [key, ...others]
  const rows = `json_to_recordset($rows::json) as changed (${names.map((name) => `${name} ${jsonType(columns[name])}`)})`
  const value = (name: string) =>
    columns[name] === 'bytes' ? `decode(changed.${name}, 'base64')` : `changed.${name}`
  const run = async (kind: Outcome['kind'], statement: string) => {
    const changed = by.get(kind)
    if (changed === undefined) return
    const [before = '', after = ''] = statement.split('$rows')
    const json = JSON.stringify(changed.map(({ row }) => row))
    await sql`${sql.raw(before)}${json}${sql.raw(after)}`.execute(session)
  }
  await run('remove', `delete from ${table} using ${rows} where ${table}.${key} = ${value(key)}`)
  await run(
    'put',
    `insert into ${table} (${names}) select ${names.map(value)} from ${rows}
     on conflict (${key}) do update set ${others.map((name) => `${name} = excluded.${name}`)}`,
  )
  await run(
    'set',
    `update ${table} set ${others.map((name) => `${name} = coalesce(${value(name)}, ${table}.${name})`)}
     from ${rows} where ${table}.${key} = ${value(key)}`,
  )
}

/** How a column comes in JSON. */
function jsonType(type: ColumnType = 'text'): string {
  return type === 'bytes' ? 'text' : POSTGRES_TYPES[type]
}

function toJson(row: Row): Record<string, unknown> {
  const json = (value: Value) =>
    value instanceof Uint8Array ? Buffer.from(value).toString('base64') : value
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, json(value)]))
}
