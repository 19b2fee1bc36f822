/** The registry's tables. Rows are staged here with their credential and activated by the projector. */
import { sql } from 'kysely'
import type { Level } from '../access/tokens.ts'
import type { LoggedEvent } from '../events/event.ts'
import { batched, shared } from '../platform/batch.ts'
import { type Database, roundTrip } from '../platform/database.ts'

export interface Agent {
  address: string
  registeredAt: string
}

export interface RegisteredAgent extends Agent {
  hasWebhook: boolean
}

export interface Candidate {
  identity: string
  /** The operator itself, or the agent's. */
  operatorId: string
  tokenHash: string
}

export interface NewChallenge {
  challengeId: string
  operatorId: string
  answerHash: Buffer | undefined
  ttlMs: number
}

export interface RegistryPage {
  agents: (Agent & { seq: number })[]
  total: number
}

const HOLDERS = {
  operator: { table: 'operators', identity: 'operator_id' },
  agent: { table: 'agents', identity: 'address' },
} as const

/** Challenges that one operator may have open; a new one beyond that takes the place of its oldest. */
export const MAX_OPEN_CHALLENGES = 1_000
/** Beyond those, as many go with one statement: twice what it adds at most, so that an excess shrinks. */
const MAX_REPLACED = 1_000
const CHALLENGES_AT_ONCE = 500
const MAX_WAITING_CHALLENGES = 20_000

export class RegistryStore {
  readonly #database: Database
  /** How many agents there are. */
  readonly total: () => Promise<number>
  /** Keeps a challenge until it is taken. Returns when it expires, by the database's clock: those of nodes may differ. */
  readonly saveChallenge: (challenge: NewChallenge) => Promise<Date>

  constructor(database: Database) {
    this.#database = database
    this.saveChallenge = batched((challenges) => this.#saveChallenges(challenges), {
      maxItems: CHALLENGES_AT_ONCE,
      maxWaiting: MAX_WAITING_CHALLENGES,
    })
    this.total = shared(() => this.#total())
  }

  async stageOperator(row: { operatorId: string; lookup: Buffer; tokenHash: string }): Promise<void> {
    await roundTrip(this.#database, 'stage_operator', () =>
      this.#database
        .insertInto('operators')
        .values({ operator_id: row.operatorId, token_lookup: row.lookup, token_hash: row.tokenHash })
        .execute(),
    )
  }

  async stageAgent(row: {
    address: string
    operatorId: string
    lookup: Buffer
    tokenHash: string
    webhook: { url: string; sealedSecret: string } | undefined
  }): Promise<void> {
    await roundTrip(this.#database, 'stage_agent', () =>
      this.#database
        .insertInto('agents')
        .values({
          address: row.address,
          operator_id: row.operatorId,
          token_lookup: row.lookup,
          token_hash: row.tokenHash,
          webhook_url: row.webhook?.url ?? null,
          webhook_secret: row.webhook?.sealedSecret ?? null,
        })
        .execute(),
    )
  }

  /** The active, unrevoked holders of tokens with this look-up: none or one, but for a chance of 2^-64. */
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

  /** Agents after the place `since`, oldest first, and how many there are in all. */
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
      challenges.map(({ answerHash, ...rest }) => ({ ...rest, answerHash: answerHash?.toString('base64') ?? null })),
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

  /** Takes a challenge out: whoever asks first gets it, on whichever node. */
  async takeChallenge(challengeId: string, operatorId: string) {
    return roundTrip(this.#database, 'take_challenge', () =>
      this.#database
        .deleteFrom('challenges')
        .where('challenge_id', '=', challengeId)
        .where('operator_id', '=', operatorId)
        .returning(['answer_hash', sql<boolean>`expires_at <= clock_timestamp()`.as('is_expired')])
        .executeTakeFirst(),
    )
  }

  /** Revokes the token of an agent (by address) or an operator (by id). Returns its look-up, undefined if there is no such holder. */
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

  /** Removes expired challenges, and rows staged before `stagedBefore` whose event was never appended. Returns how many rows went. */
  async removeAbandoned(now: Date, stagedBefore: Date): Promise<number> {
    const results = [
      await this.#database.deleteFrom('challenges').where('expires_at', '<', now).execute(),
      await this.#database
        .deleteFrom('operators')
        .where('seq', 'is', null)
        .where('staged_at', '<', stagedBefore)
        .execute(),
      await this.#database
        .deleteFrom('agents')
        .where('seq', 'is', null)
        .where('staged_at', '<', stagedBefore)
        .execute(),
    ]
    return results.flat().reduce((sum, result) => sum + Number(result.numDeletedRows), 0)
  }
}

/** What a batch of events registers, as the function `project_registry` takes it. */
export function registryChanges(events: readonly LoggedEvent[]): { operators: object[]; agents: object[] } {
  return {
    operators: events.flatMap(({ seq, type, data }) =>
      type === 'operator_created' ? [{ seq, id: data.operator_id }] : [],
    ),
    agents: events.flatMap(({ seq, ts, type, data }) =>
      type === 'agent_registered' ? [{ seq, ts, address: data.address }] : [],
    ),
  }
}

function toAgent(row: { address: string; registered_at: Date | null }): Agent {
  return { address: row.address, registeredAt: row.registered_at?.toISOString() ?? '' }
}
