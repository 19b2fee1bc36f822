/** Who wrote to whom the most: now, and as it was after an event. */
import { type RawBuilder, sql } from 'kysely'
import type { ObservationDatabase } from './observation-database.ts'

/** Edges that are looked at for those that were the heaviest at a moment. */
const MAX_EXAMINED = 200_000
/**
 * Looked at in the first round, beside twice as many as are wanted; in each of the next ones four
 * times as many.
 */
const LEAST_EXAMINED = 1_000

export interface EdgeRow {
  sender: number
  recipient: number
  count: number
}

export interface EdgesQuestion {
  /** Only edges of this agent. */
  readonly id: number | undefined
  readonly minCount: number
  readonly limit: number
}

/** The heaviest edges now, by agents' ids. Throws `Unavailable`. */
export function heaviestEdges(
  database: ObservationDatabase,
  { id, minCount, limit }: EdgesQuestion,
): Promise<EdgeRow[]> {
  const heaviest = (condition: RawBuilder<unknown>) => sql`
    select sender, recipient, count from (
      select sender, recipient, count from ${database.table('edges')}
      where count >= ${minCount}${condition} order by count desc limit ${limit}
    ) as heaviest`
  const its =
    id === undefined
      ? heaviest(sql``)
      : sql`${heaviest(sql` and sender = ${id}`)} union ${heaviest(sql` and recipient = ${id}`)}`
  return database.query(
    'observation_network',
    sql<EdgeRow>`
      select sender, recipient, count from (${its}) as edges order by count desc, sender, recipient limit ${limit}`,
  )
}

/**
 * Those after the event `at`. An edge only grows: none that is lighter now than the lightest that
 * was found was heavier then. Throws `Unavailable`.
 */
export async function heaviestEdgesThen(
  database: ObservationDatabase,
  { id, minCount, limit }: EdgesQuestion,
  at: number,
): Promise<EdgeRow[]> {
  const messages = database.table('messages')
  for (let examined = LEAST_EXAMINED + 2 * limit; ; examined *= 4) {
    const most = Math.min(examined, MAX_EXAMINED)
    const now = await heaviestEdges(database, { id, minCount, limit: most })
    const then = await database.query(
      'observation_network',
      sql<EdgeRow>`
        select sender, recipient, count from (
          select r.sender, r.recipient, (
            select nth from ${messages} as m
            where m.sender = r.sender and m.recipient = r.recipient and m.seq <= ${at} order by m.seq desc limit 1
          ) as count from ${database.rows(now, { sender: 'integer', recipient: 'integer' })}
        ) as edges
        where count >= ${minCount} order by count desc, sender, recipient limit ${limit}`,
    )
    const isAll = now.length < most || most === MAX_EXAMINED
    const lightest = then[limit - 1]?.count
    if (isAll || (lightest !== undefined && lightest >= (now.at(-1)?.count ?? 0))) return then
  }
}
