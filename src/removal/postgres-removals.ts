/** The transparency log in a table of Postgres. */
import { sql } from 'kysely'
import { type Database, roundTrip } from '../platform/database.ts'
import {
  byId,
  inParts,
  type Removal,
  type RemovalPage,
  type RemovalRow,
  type Removals,
  toRemoval,
} from './removals.ts'

export class PostgresRemovals implements Removals {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  async list({ after = 0, limit }: { after?: number; limit: number }): Promise<RemovalPage> {
    const rows = await roundTrip(this.#database, 'list_removals', () =>
      this.#database
        .selectFrom('removals')
        .selectAll()
        .where('seq', '>', after)
        .orderBy('seq')
        .limit(limit)
        .execute(),
    )
    const { total } = await roundTrip(this.#database, 'count_removals', () =>
      this.#database
        .selectFrom('removals')
        .select(({ fn }) => fn.countAll<number>().as('total'))
        .executeTakeFirstOrThrow(),
    )
    return { removals: rows.map(toRemoval), total }
  }

  async ofMessages(ids: readonly string[]): Promise<Map<string, Removal>> {
    const found = inParts(ids).map((part) =>
      roundTrip(this.#database, 'removals_of_messages', () =>
        sql<RemovalRow>`
          select * from removals
          where message_id = any (array(select json_array_elements_text(${JSON.stringify(part)}::json)))
          order by seq`.execute(this.#database),
      ),
    )
    return byId((await Promise.all(found)).flatMap(({ rows }) => rows.map(toRemoval)))
  }

  async ofKeys(keys: readonly string[]): Promise<Map<string, Removal>> {
    const found = inParts(keys).map((part) => {
      const asked = JSON.stringify(part.map((key) => Buffer.from(key).toString('base64')))
      return roundTrip(this.#database, 'removals_of_keys', () =>
        sql<RemovalRow>`
          select latest.* from json_array_elements_text(${asked}::json) as asked (key)
          cross join lateral (
            select * from removals r where r.key = decode(asked.key, 'base64') order by seq desc limit 1) as latest`.execute(
          this.#database,
        ),
      )
    })
    return byId((await Promise.all(found)).flatMap(({ rows }) => rows.map(toRemoval)))
  }
}
