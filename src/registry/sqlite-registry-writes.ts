/**
 * Changing the registry in SQLite: who registers, with the event and the row in one transaction;
 * challenges; and revoking.
 */
import type { Level } from '../access/tokens.ts'
import type { EventOf } from '../events/event.ts'
import type { Append } from '../events/sqlite-append.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import {
  type AgentSecrets,
  MAX_OPEN_CHALLENGES,
  type NewChallenge,
  type StoredToken,
} from './registry-store.ts'

/**
 * Challenges of its operator that a new one removes at most: more than it adds, so that they become
 * fewer.
 */
const REMOVED_AT_ONCE = 4
/** … and whose time it mends. */
const MENDED_AT_ONCE = 100

export function registryWrites({ sql }: Sqlite, append: Append) {
  return {
    registerOperator({
      token,
      event,
    }: {
      token: StoredToken
      event: EventOf<'operator_created'>
    }): void {
      const { seq } = append(event)
      sql.run`
        insert into operators (seq, operator_id, token_lookup, token_hash)
        values (${seq}, ${event.data.operator_id}, ${token.lookup}, ${token.tokenHash})`
    },

    registerAgent({
      secrets,
      event,
    }: {
      secrets: AgentSecrets
      event: EventOf<'agent_registered'>
    }): void {
      const { seq } = append(event)
      const { lookup, tokenHash, webhook } = secrets
      const { address, operator_id } = event.data
      sql.run`
        update registry_totals
        set agents = agents + 1, last_registered_at = max(last_registered_at, ${event.ts})`
      sql.run`
        insert into agents
          (seq, address, operator_id, token_lookup, token_hash, webhook_url, webhook_secret, registered_at)
        select ${seq}, ${address}, ${operator_id}, ${lookup}, ${tokenHash},
          ${webhook?.url ?? null}, ${webhook?.sealedSecret ?? null}, last_registered_at
        from registry_totals`
    },

    /** Returns when it expires, in milliseconds since 1970. */
    saveChallenge({ challengeId, operatorId, answerHash, ttlMs }: NewChallenge): number {
      const now = Date.now()
      const expiresAt = now + ttlMs
      // Later than this one, though issued before: the clock was set back since. They last from now
      // for as long as this one.
      const ahead = sql.all`
        select challenge_id from challenges where expires_at > ${expiresAt} limit ${MENDED_AT_ONCE}`
      for (const { challenge_id: id } of ahead) {
        sql.run`update challenges set expires_at = ${expiresAt} where challenge_id = ${id as string}`
      }
      // Rarely any, so they are looked up first: a statement that deletes what it looks up itself
      // costs several times that.
      const beyond = sql.all`
        select challenge_id from challenges where operator_id = ${operatorId}
        order by expires_at desc limit ${REMOVED_AT_ONCE} offset ${MAX_OPEN_CHALLENGES - 1}`
      for (const { challenge_id: id } of beyond)
        sql.run`delete from challenges where challenge_id = ${id as string}`
      sql.run`
        insert into challenges (challenge_id, operator_id, answer_hash, expires_at)
        values (${challengeId}, ${operatorId}, ${answerHash ?? null}, ${expiresAt})`
      return expiresAt
    },

    takeChallenge({ challengeId, operatorId }: { challengeId: string; operatorId: string }) {
      const row = sql.get`
        delete from challenges where challenge_id = ${challengeId} and operator_id = ${operatorId}
        returning answer_hash, expires_at`
      if (!row) return undefined
      const answerHash = (row.answer_hash ?? undefined) as Uint8Array | undefined
      return { answerHash, isExpired: (row.expires_at as number) <= Date.now() }
    },

    tidyChallenges: (limit: number): number => tidyChallenges({ sql }, limit),
  }
}
export type RegistryWrites = ReturnType<typeof registryWrites>

/** Removes challenges that have expired, at most `limit`. Returns how many there were. */
export function tidyChallenges({ sql }: Pick<Sqlite, 'sql'>, limit: number): number {
  const { changes } = sql.run`
    delete from challenges where challenge_id in (
      select challenge_id from challenges where expires_at <= ${Date.now()} order by expires_at limit ${limit})`
  return Number(changes)
}

/**
 * Revokes the token of an agent (by address) or an operator (by id). Returns whether there is such
 * a holder.
 */
export function revokeToken(
  { sql }: Sqlite,
  { level, identity }: { level: Level; identity: string },
): boolean {
  const now = new Date().toISOString()
  const { changes } =
    level === 'operator'
      ? sql.run`update operators set revoked_at = coalesce(revoked_at, ${now}) where operator_id = ${identity}`
      : sql.run`update agents set revoked_at = coalesce(revoked_at, ${now}) where address = ${identity}`
  return changes > 0
}
