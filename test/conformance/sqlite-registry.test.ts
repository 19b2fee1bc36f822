/** The registry in SQLite: the suite of its port, and what it has of its own. */
import { randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { SqliteEventLog } from '../../src/events/sqlite-event-log.ts'
import { openSqlite, type Sqlite } from '../../src/platform/sqlite.ts'
import { MAX_OPEN_CHALLENGES } from '../../src/registry/registry-store.ts'
import { SqliteRegistryStore } from '../../src/registry/sqlite-registry-store.ts'
import { revokeToken } from '../../src/registry/sqlite-registry-writes.ts'
import { type FreshSqlite, openFreshSqlite } from '../support/embedded-database.ts'
import { describeRegistryStore, newAgent, newOperator } from './registry-store.ts'
import { inParallel } from './support.ts'

const HOUR_MS = 3_600_000

describeRegistryStore('SQLite', async () => {
  const sqlite = await openFreshSqlite()
  const beside = openSqlite(sqlite.file)
  return {
    store: new SqliteRegistryStore(sqlite.reader, sqlite.writer),
    log: new SqliteEventLog(sqlite.reader, sqlite.writer),
    revoke: async (level, identity) => revokeToken(beside, { level, identity }),
    async [Symbol.asyncDispose]() {
      beside.connection.close()
      await sqlite[Symbol.asyncDispose]()
    },
  }
})

describe('the registry in SQLite', () => {
  let sqlite: FreshSqlite
  /** Another connection that writes, as another process has. */
  let beside: Sqlite
  let store: SqliteRegistryStore
  beforeAll(async () => {
    sqlite = await openFreshSqlite()
    beside = openSqlite(sqlite.file)
    store = new SqliteRegistryStore(sqlite.reader, sqlite.writer)
  })
  afterAll(async () => {
    beside?.connection.close()
    await sqlite?.[Symbol.asyncDispose]()
  })

  it('has no event of a registration that failed, and no one counts it', async () => {
    const [agent, operator] = [newAgent(), newOperator()]
    await store.registerAgent(agent.secrets, agent.event)
    await store.registerOperator(operator.token, operator.event)
    const log = new SqliteEventLog(sqlite.reader, sqlite.writer)
    const [total, end] = [await store.total(), await log.lastSeq()]
    await expect(store.registerAgent(newAgent().secrets, agent.event)).rejects.toThrow(/UNIQUE/)
    await expect(store.registerOperator(newOperator().token, operator.event)).rejects.toThrow(
      /UNIQUE/,
    )
    expect(await store.total()).toBe(total)
    expect(await log.lastSeq()).toBe(end)
    expect(await store.findByToken('agent', agent.secrets.lookup)).toHaveLength(1)
  })

  it('says whose sessions a revocation beside it ends', async () => {
    const [agent, operator, other] = [newAgent(), newOperator(), newAgent()]
    await store.registerAgent(agent.secrets, agent.event)
    await store.registerAgent(other.secrets, other.event)
    await store.registerOperator(operator.token, operator.event)
    expect(await store.recentlyRevoked()).toEqual([])
    revokeToken(beside, { level: 'agent', identity: agent.address })
    revokeToken(beside, { level: 'operator', identity: operator.operatorId })
    expect(await store.recentlyRevoked()).toEqual([agent.secrets.lookup, operator.token.lookup])
    beside.sql.run`update agents set revoked_at = ${new Date(Date.now() - HOUR_MS).toISOString()}`
    expect(await store.recentlyRevoked()).toEqual([operator.token.lookup])
  })

  describe('challenges', () => {
    beforeEach(() => void beside.sql.run`delete from challenges`)

    const save = async (ttlMs: number, operatorId: string = randomUUID()) => {
      const challenge = {
        challengeId: randomUUID(),
        operatorId,
        answerHash: randomBytes(32),
        ttlMs,
      }
      await store.saveChallenge(challenge)
      return challenge
    }
    const count = () => sqlite.reader.sql.get`select count(*) as rows from challenges`?.rows
    const furthest = () =>
      sqlite.reader.sql.get`select max(expires_at) as at from challenges`?.at as number

    it('that have expired are tidied away some at a time, those that have not stay', async () => {
      await inParallel(20, () => save(60_000))
      beside.sql.run`update challenges set expires_at = ${Date.now() - 1}`
      const valid = await inParallel(10, () => save(60_000))
      expect(await sqlite.writer.run('tidyChallenges', 15)).toBe(15)
      expect(await sqlite.writer.run('tidyChallenges', 15)).toBe(5)
      expect(await sqlite.writer.run('tidyChallenges', 15)).toBe(0)
      expect(count()).toBe(10)
      for (const { challengeId, operatorId } of valid)
        expect(await store.takeChallenge(challengeId, operatorId)).toBeDefined()
    })

    it('of an operator that has too many become fewer', async () => {
      const operatorId = randomUUID()
      const more = MAX_OPEN_CHALLENGES + 30
      beside.sql.run`
        with recursive n (i) as (select 1 union all select i + 1 from n where i < ${more})
        insert into challenges select 'old ' || i, ${operatorId}, null, ${Date.now() + HOUR_MS} + i from n`
      await inParallel(10, () => save(HOUR_MS, operatorId))
      expect(count()).toBe(MAX_OPEN_CHALLENGES)
    })

    it('last no longer than their time from now on when the clock was set back', async () => {
      const before = await inParallel(30, () => save(60_000))
      beside.sql.run`update challenges set expires_at = expires_at + ${HOUR_MS}`
      const next = await save(60_000)
      expect(furthest()).toBeLessThanOrEqual(Date.now() + 60_000)
      for (const { challengeId, operatorId } of [...before, next])
        expect(await store.takeChallenge(challengeId, operatorId)).toMatchObject({
          isExpired: false,
        })
    })
  })
})
