/** The keys that there were after an event, by what became of each. */
import { type RawBuilder, sql } from 'kysely'
import type { ObservationDatabase } from './observation-database.ts'

/** Keys that are looked at for a page, and in each round. */
const MAX_EXAMINED = 20_000
const EXAMINED_AT_ONCE = 1_000

/** A key as it was. */
export interface KeyThen {
  readonly key: Buffer
  readonly author: string | null
  /** Milliseconds since 1970. */
  readonly at: number
  readonly length: number
}

export interface KeysQuestion {
  readonly prefix: string
  /** The last key of the page before. */
  readonly after: Buffer | undefined
  readonly at: number
  readonly limit: number
}

/**
 * Keys with the prefix after `after`, as they were after the event `at`, in byte order. Where many
 * are gone or came later, fewer than `limit`; `next` is where to go on, undefined at the end.
 */
export async function keysThen(
  database: ObservationDatabase,
  { prefix, after, at, limit }: KeysQuestion,
): Promise<{ keys: KeyThen[]; next: Buffer | undefined }> {
  const versions = database.table('key_versions')
  const start = Buffer.from(prefix)
  const keys: KeyThen[] = []
  let from = after
  for (let examined = 0; ; ) {
    const round = Math.min(EXAMINED_AT_ONCE, MAX_EXAMINED - examined)
    const first = from === undefined ? sql`key >= ${start}` : sql`key > ${from} and key >= ${start}`
    const hasPrefix = (key: RawBuilder<unknown>) =>
      sql`substr(${key}, 1, ${sql.lit(start.length)}) = ${start}`
    const rows = await database.query(
      'observation_keys',
      sql<{ key: Buffer; author: string | null; at: number | null; length: number | null }>`
        with recursive examined (key, number) as (
          select key, 1 from (select key from ${versions} where ${first} order by key limit 1) as first
          union all
          select (select v.key from ${versions} as v where v.key > examined.key order by v.key limit 1), number + 1
          from examined where number < ${sql.lit(round)} and ${hasPrefix(sql`examined.key`)}
        )
        select examined.key, a.address as author, v.at, v.length from examined
        left join ${versions} as v on v.key = examined.key and v.seq = (
          select max(w.seq) from ${versions} as w where w.key = examined.key and w.seq <= ${at})
        left join ${database.table('agents')} as a on a.id = v.author
        where examined.key is not null and ${hasPrefix(sql`examined.key`)} order by number`,
    )
    examined += rows.length
    for (const { key, author, at, length } of rows) {
      from = Buffer.from(key)
      if (at === null || length === null) continue
      keys.push({ key: from, author, at, length })
      if (keys.length === limit) return { keys, next: from }
    }
    if (rows.length < round) return { keys, next: undefined }
    if (examined >= MAX_EXAMINED) return { keys, next: from }
  }
}
