/**
 * The registry's tables in Postgres. Rows are staged here with their credential and activated by
 * the projector.
 */
import { type RawBuilder, sql } from 'kysely'
import type { Level } from '../access/tokens.ts'
import type { EventData } from '../events/event.ts'
import { batched, shared } from '../platform/batch.ts'
import { type Database, MAINTENANCE_TIMEOUT_MS, roundTrip } from '../platform/database.ts'
import {
  type Agent,
  type AgentSecrets,
  type Candidate,
  MAX_OPEN_CHALLENGES,
  type NewChallenge,
  type RegisteredAgent,
  type RegistryPage,
  type StoredToken,
  type TakenChallenge,
} from './registry-store.ts'

const HOLDERS = {
  operator: { table: 'operators', identity: 'operator_id' },
  agent: { table: 'agents', identity: 'address' },
} as const

/**
 * Challenges beyond `MAX_OPEN_CHALLENGES` that one statement removes: twice what it adds at most,
 * so that an excess shrinks.
 */
const MAX_REPLACED = 1_000
const CHALLENGES_AT_ONCE = 500
const MAX_WAITING_CHALLENGES = 20_000

/** What it has in common with `RegistryStore` is told there. */
export class RegistryTables {
  readonly #database: Database
  readonly total: () => Promise<number>
  readonly saveChallenge: (challenge: NewChallenge) => Promise<Date>

  constructor(database: Database) {
    this.#database = database
    this.saveChallenge = batched((challenges) => this.#saveChallenges(challenges), {
      maxItems: CHALLENGES_AT_ONCE,
      maxWaiting: MAX_WAITING_CHALLENGES,
    })
    this.total = shared(() => this.#total())
  }

  async stageOperator(operatorId: string, { lookup, tokenHash }: StoredToken): Promise<void> {
    await roundTrip(this.#database, 'stage_operator', () =>
      this.#database
        .insertInto('operators')
        .values({ operator_id: operatorId, token_lookup: lookup, token_hash: tokenHash })
        .execute(),
    )
  }

  async stageAgent(
    { address, operator_id }: Pick<EventData['agent_registered'], 'address' | 'operator_id'>,
    { lookup, tokenHash, webhook }: AgentSecrets,
  ): Promise<void> {
    await roundTrip(this.#database, 'stage_agent', () =>
      this.#database
        .insertInto('agents')
        .values({
          address,
          operator_id,
          token_lookup: lookup,
          token_hash: tokenHash,
          webhook_url: webhook?.url ?? null,
          webhook_secret: webhook?.sealedSecret ?? null,
        })
        .execute(),
    )
  }

  async findByToken(level: Level, lookup: Buffer): Promise<Candidate[]> {
    const { table, identity } = HOLDERS[level]
    return roundTrip(this.#database, 'find_by_token', () =>
      this.#database
        .selectFrom(table)
        .select([
          sql<string>`${sql.ref(identity)}`.as('identity'),
          'operator_id as operatorId',
          'token_hash as tokenHash',
        ])
        .where('token_lookup', '=', lookup)
        .where('seq', 'is not', null)
        .where('revoked_at', 'is', null)
        .execute(),
    )
  }

  async findAgent(address: string): Promise<RegisteredAgent | undefined> {
    const row = await roundTrip(this.#database, 'find_agent', () =>
      this.#database
        .selectFrom('agents')
        .select(['address', 'registered_at', 'webhook_secret'])
        .where('address', '=', address)
        .where('seq', 'is not', null)
        .executeTakeFirst(),
    )
    return row && { ...toAgent(row), hasWebhook: row.webhook_secret !== null }
  }

  async page(since: number, limit: number): Promise<RegistryPage> {
    const rows = await roundTrip(this.#database, 'registry_page', () =>
      this.#database
        .selectFrom('registry_totals')
        .leftJoinLateral(
          (join) =>
            join
              .selectFrom('agents')
              .select(['address', 'registered_at', 'seq'])
              .where('seq', '>', since)
              .orderBy('seq')
              .limit(limit)
              .as('agent'),
          (on) => on.onTrue(),
        )
        .select(['registry_totals.agents as total', 'address', 'registered_at', 'seq'])
        .orderBy('seq')
        .execute(),
    )
    const agents = rows.flatMap(({ address, registered_at, seq }) =>
      address === null || seq === null ? [] : [{ ...toAgent({ address, registered_at }), seq }],
    )
    return { agents, total: rows[0]?.total ?? 0 }
  }

  async #total(): Promise<number> {
    const { agents } = await roundTrip(this.#database, 'registry_total', () =>
      this.#database.selectFrom('registry_totals').select('agents').executeTakeFirstOrThrow(),
    )
    return agents
  }

  async #saveChallenges(challenges: NewChallenge[]): Promise<Date[]> {
    const rows = JSON.stringify(
      challenges.map(({ answerHash, ...rest }) => ({
        ...rest,
        answerHash: answerHash?.toString('base64') ?? null,
      })),
    )
    const saved = await roundTrip(this.#database, 'save_challenges', () =>
      sql<{ challenge_id: string; expires_at: Date }>`
        with added as (
          select "challengeId", "operatorId", decode("answerHash", 'base64') as answer_hash,
            clock_timestamp() + "ttlMs" * interval '1 millisecond' as expires_at
          from json_to_recordset(${rows}::json)
            as challenge ("challengeId" uuid, "operatorId" uuid, "answerHash" text, "ttlMs" double precision)
        ), of_operator as (
          select "operatorId" as id, count(*) as added from added group by "operatorId"
        ), beyond as (
          -- This statement does not see what it adds itself.
          select oldest.challenge_id from of_operator cross join lateral (
            select challenge_id from challenges where operator_id = of_operator.id
            order by expires_at desc, challenge_id
            offset greatest(0, ${MAX_OPEN_CHALLENGES}::bigint - of_operator.added) limit ${MAX_REPLACED}::bigint
          ) as oldest
        ), replaced as (
          -- Two nodes that find the same ones do not wait for each other.
          delete from challenges where challenge_id in (
            select challenge_id from challenges where challenge_id in (select challenge_id from beyond)
            for update skip locked
          )
        )
        insert into challenges (challenge_id, operator_id, answer_hash, expires_at)
        select "challengeId", "operatorId", answer_hash, expires_at from added
        returning challenge_id, expires_at`.execute(this.#database),
    )
    const expiry = new Map(saved.rows.map((row) => [row.challenge_id, row.expires_at]))
    return challenges.map(({ challengeId }) => expiry.get(challengeId) as Date)
  }

  async takeChallenge(
    challengeId: string,
    operatorId: string,
  ): Promise<TakenChallenge | undefined> {
    const row = await roundTrip(this.#database, 'take_challenge', () =>
      this.#database
        .deleteFrom('challenges')
        .where('challenge_id', '=', challengeId)
        .where('operator_id', '=', operatorId)
        .returning(['answer_hash', sql<boolean>`expires_at <= clock_timestamp()`.as('is_expired')])
        .executeTakeFirst(),
    )
    return row && { answerHash: row.answer_hash ?? undefined, isExpired: row.is_expired }
  }

  /**
   * Revokes the token of an agent (by address) or an operator (by id), which may be staged yet.
   * Returns its look-up, undefined if there is no such holder.
   */
  async revoke(level: Level, identity: string): Promise<Buffer | undefined> {
    const holder = HOLDERS[level]
    const { rows } = await roundTrip(this.#database, 'revoke', () =>
      sql<{ token_lookup: Buffer }>`
        update ${sql.table(holder.table)} set revoked_at = coalesce(revoked_at, now())
        where ${sql.ref(holder.identity)}::text = ${identity}
        returning token_lookup`.execute(this.#database),
    )
    return rows[0]?.token_lookup
  }

  /**
   * Removes challenges that have expired. One that was issued at a time that is yet to come, as the
   * clock was set back, lasts from now for as long as it was to. At most `limit` of either; returns
   * how many there were.
   */
  async tidyChallenges(limit: number): Promise<number> {
    return this.#tidy(
      'tidy_challenges',
      sql`
        with ahead as (
          update challenges set expires_at = clock_timestamp() + (expires_at - issued_at), issued_at = clock_timestamp()
          where challenge_id = any (array(
            -- Those that are furthest ahead are the last to expire.
            select challenge_id from challenges
            where challenge_id = any (array(select challenge_id from challenges order by expires_at desc limit ${limit}))
              and issued_at > clock_timestamp()
            for update skip locked))
          returning 1
        ), expired as (
          delete from challenges where challenge_id = any (array(
            select challenge_id from challenges where expires_at <= clock_timestamp()
            order by expires_at limit ${limit} for update skip locked))
          returning 1
        )`,
      ['ahead', 'expired'],
    )
  }

  /**
   * Removes operators and agents that were staged before a time and whose event was never appended:
   * all events until then are to have been applied. Those that were staged at a time that is yet to
   * come, as the clock was set back, count from now. At most `limit` of each; returns how many
   * there were.
   */
  async tidyRegistrations(before: Date, limit: number): Promise<number> {
    let rows = 0
    for (const { table, identity } of Object.values(HOLDERS)) {
      const [holders, id] = [sql.table(table), sql.ref(identity)]
      rows += await this.#tidy(
        `tidy_${table}`,
        sql`
          with ahead as (
            update ${holders} set staged_at = clock_timestamp() where ${id} = any (array(
              select ${id} from ${holders} where seq is null and staged_at > clock_timestamp()
              limit ${limit} for update skip locked))
            returning 1
          ), abandoned as (
            delete from ${holders} where seq is null and ${id} = any (array(
              select ${id} from ${holders} where seq is null and staged_at < ${before}
              order by staged_at limit ${limit} for update skip locked))
            returning 1
          )`,
        ['ahead', 'abandoned'],
      )
    }
    return rows
  }

  /** Changes some rows in parts of one statement. Returns how many. */
  async #tidy(operation: string, parts: RawBuilder<unknown>, names: string[]): Promise<number> {
    const counts = names.map((name) => sql`(select count(*) from ${sql.table(name)})`)
    const { rows } = await roundTrip(
      this.#database,
      operation,
      () =>
        sql<{ rows: number }>`${parts} select ${sql.join(counts, sql` + `)} as rows`.execute(
          this.#database,
        ),
      MAINTENANCE_TIMEOUT_MS,
    )
    return rows[0]?.rows ?? 0
  }
}

function toAgent(row: { address: string; registered_at: Date | null }): Agent {
  return { address: row.address, registeredAt: row.registered_at?.toISOString() ?? '' }
}
