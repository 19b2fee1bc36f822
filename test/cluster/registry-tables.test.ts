/**
 * The registry's tables in Postgres: staging, activating what is staged, and what was abandoned.
 */
import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { sql } from 'kysely'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import type { NewEvent } from '../../src/events/event.ts'
import type { Database } from '../../src/platform/database.ts'
import { RegistryTables } from '../../src/registry/postgres-registry-tables.ts'
import { newAgent, newOperator, TS } from '../conformance/registry-store.ts'
import { inParallel } from '../conformance/support.ts'
import { applyEvents, type FreshPostgres, openFreshPostgres } from './support.ts'

const HOUR_MS = 3_600_000
/** Of a machine that is busy. */
const SLACK_MS = 30_000
/** What random times are made from: the same in every run, but for FUZZ_SEED=<integer>. */
const SEED = Number(process.env.FUZZ_SEED ?? 20_260_101)

let fresh: FreshPostgres
let database: Database
let tables: RegistryTables
let seq = 0
beforeAll(async () => {
  fresh = await openFreshPostgres()
  database = fresh.database
  tables = new RegistryTables(database)
})
afterAll(() => fresh?.[Symbol.asyncDispose]())

async function stageAgent(options: Parameters<typeof newAgent>[0] = {}) {
  const agent = newAgent(options)
  await tables.stageAgent(agent.event.data, agent.secrets)
  return agent
}

async function stageOperator() {
  const operator = newOperator()
  await tables.stageOperator(operator.operatorId, operator.token)
  return operator
}

/** Applies events, in the next places of the log. */
const project = (...events: NewEvent[]) =>
  applyEvents(
    database,
    events.map((event) => ({ seq: ++seq, ...event })),
  )

async function registerAgent() {
  const agent = await stageAgent()
  await project(agent.event)
  return agent
}

const total = () => tables.total()
const addresses = async (since = 0) =>
  (await tables.page(since, 1_000)).agents.map(({ address }) => address)

describe('staging and activating', () => {
  it('an agent is nobody until its event is applied', async () => {
    const before = await total()
    const { address, operatorId, secrets, event } = await stageAgent()
    expect(await tables.findByToken('agent', secrets.lookup)).toEqual([])
    expect(await tables.findAgent(address)).toBeUndefined()
    expect(await addresses()).not.toContain(address)
    expect(await total()).toBe(before)
    await project(event)
    expect(await tables.findByToken('agent', secrets.lookup)).toEqual([
      { identity: address, tokenHash: secrets.tokenHash, operatorId },
    ])
    expect(await tables.findAgent(address)).toEqual({
      address,
      registeredAt: TS,
      hasWebhook: false,
    })
    expect(await total()).toBe(before + 1)
    expect((await addresses()).at(-1)).toBe(address)
  })

  it('an operator is nobody until its event is applied', async () => {
    const { operatorId, token, event } = await stageOperator()
    expect(await tables.findByToken('operator', token.lookup)).toEqual([])
    await project(event)
    expect(await tables.findByToken('operator', token.lookup)).toEqual([
      { identity: operatorId, tokenHash: token.tokenHash, operatorId },
    ])
  })

  it('many are activated by one batch, each in its place', async () => {
    const before = await total()
    const agents = await inParallel(12, () => stageAgent())
    const operator = await stageOperator()
    const since = seq
    await project(...agents.map(({ event }) => event), operator.event)
    expect(await total()).toBe(before + 12)
    expect(await addresses(since)).toEqual(agents.map(({ address }) => address))
    expect(await tables.findByToken('operator', operator.token.lookup)).toHaveLength(1)
  })

  it('an event whose row is not there, or was activated before, changes nothing', async () => {
    const agent = await registerAgent()
    const before = await total()
    await project({ ...agent.event, ts: '2030-01-01T00:00:00.000Z' }, newAgent().event)
    expect(await total()).toBe(before)
    expect((await tables.findAgent(agent.address))?.registeredAt).toBe(TS)
  })

  it('pages carry the number of all agents, staged ones not counted', async () => {
    await stageAgent()
    const { length } = await addresses()
    for (const since of [0, seq - 1, seq]) expect((await tables.page(since, 1)).total).toBe(length)
  })
})

describe('revoking', () => {
  it('returns the look-up of the token, as often as it is asked for', async () => {
    const [agent, operator] = [await registerAgent(), await stageOperator()]
    await project(operator.event)
    for (let times = 0; times < 2; times++) {
      expect(await tables.revoke('agent', agent.address)).toEqual(agent.secrets.lookup)
      expect(await tables.revoke('operator', operator.operatorId)).toEqual(operator.token.lookup)
    }
    expect(await tables.revoke('agent', newAddress())).toBeUndefined()
    expect(await tables.revoke('operator', randomUUID())).toBeUndefined()
  })

  it('of one that is staged holds when it is activated', async () => {
    const { address, secrets, event } = await stageAgent()
    await tables.revoke('agent', address)
    await project(event)
    expect(await tables.findByToken('agent', secrets.lookup)).toEqual([])
  })
})

describe('what was abandoned', () => {
  it('goes when it was staged before a time and has no event, some at a time; what has one stays', async () => {
    const [agent, operator] = [await stageAgent(), await stageOperator()]
    await stageAgent()
    const [activeAgent, activeOperator] = [await registerAgent(), await stageOperator()]
    await project(activeOperator.event)
    expect(await tables.tidyRegistrations(new Date(Date.now() - 600_000), 1_000)).toBe(0)
    const before = await total()
    const past = new Date(Date.now() + 600_000)
    expect(await tables.tidyRegistrations(past, 1)).toBe(2)
    expect(await tables.tidyRegistrations(past, 1_000)).toBeGreaterThanOrEqual(1)
    expect(await tables.tidyRegistrations(past, 1_000)).toBe(0)
    await project(agent.event, operator.event)
    expect(await tables.findAgent(agent.address)).toBeUndefined()
    expect(await tables.findByToken('operator', operator.token.lookup)).toEqual([])
    expect(await tables.findAgent(activeAgent.address)).toBeDefined()
    expect(await tables.findByToken('operator', activeOperator.token.lookup)).toHaveLength(1)
    expect(await total()).toBe(before)
  })

  it('is kept for its time from now at most, whatever time it was staged at', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: -2 * HOUR_MS, max: 1_000 * HOUR_MS }), async (aheadMs) => {
        while ((await tables.tidyRegistrations(new Date(Date.now() + 600_000), 1_000)) > 0);
        await stageAgent()
        await stageOperator()
        const moved = sql`${aheadMs}::float8 * interval '1 millisecond'`
        for (const table of ['agents', 'operators'])
          await sql`update ${sql.table(table)} set staged_at = staged_at + ${moved} where seq is null`.execute(
            database,
          )
        // Half an hour is their time here.
        await tables.tidyRegistrations(new Date(Date.now() - HOUR_MS / 2), 1_000)
        const { rows } = await sql<{ latest: Date | null; kinds: number }>`
          select max(staged_at) as latest, count(*) as kinds from (
            select staged_at from agents where seq is null
            union all select staged_at from operators where seq is null
          ) as staged`.execute(database)
        if (Math.abs(aheadMs + HOUR_MS / 2) > SLACK_MS)
          expect(rows[0]?.kinds).toBe(aheadMs < -HOUR_MS / 2 ? 0 : 2)
        expect(rows[0]?.latest?.getTime() ?? 0).toBeLessThanOrEqual(Date.now() + SLACK_MS)
      }),
      { seed: SEED, numRuns: 40, endOnFailure: true },
    )
  })
})

describe('challenges', () => {
  const challenge = (ttlMs: number) => ({
    challengeId: randomUUID(),
    operatorId: randomUUID(),
    answerHash: undefined,
    ttlMs,
  })
  const count = async () => {
    const { rows } = await sql<{ count: number }>`select count(*) as count from challenges`.execute(
      database,
    )
    return rows[0]?.count ?? 0
  }

  it('go when they have expired, some at a time; the others stay', async () => {
    const expired = Array.from({ length: 5 }, () => challenge(-1))
    for (const row of expired) await tables.saveChallenge(row)
    const valid = challenge(60_000)
    await tables.saveChallenge(valid)
    const before = await count()
    expect(await tables.tidyChallenges(2)).toBe(2)
    expect(await count()).toBe(before - 2)
    while ((await tables.tidyChallenges(2)) > 0);
    for (const { challengeId, operatorId } of expired)
      expect(await tables.takeChallenge(challengeId, operatorId)).toBeUndefined()
    expect(await tables.takeChallenge(valid.challengeId, valid.operatorId)).toBeDefined()
  })

  it('last for their time from now at most, whatever the clock was set to since', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 60_000, max: HOUR_MS }),
        fc.integer({ min: -2 * HOUR_MS, max: 1_000 * HOUR_MS }),
        async (ttlMs, aheadMs) => {
          const row = challenge(ttlMs)
          await tables.saveChallenge(row)
          const moved = sql`${aheadMs}::float8 * interval '1 millisecond'`
          await sql`update challenges set issued_at = issued_at + ${moved}, expires_at = expires_at + ${moved}
            where challenge_id = ${row.challengeId}`.execute(database)
          while ((await tables.tidyChallenges(1_000)) > 0);
          const { rows } = await sql<{ left: number }>`
            select extract(epoch from expires_at - clock_timestamp())::float8 * 1000 as left
            from challenges where challenge_id = ${row.challengeId}`.execute(database)
          const taken = await tables.takeChallenge(row.challengeId, row.operatorId)
          if (Math.abs(ttlMs + aheadMs) < SLACK_MS) return
          if (ttlMs + aheadMs < 0) expect(taken).toBeUndefined()
          else {
            expect(taken).toMatchObject({ isExpired: false })
            const left = Math.min(ttlMs, ttlMs + aheadMs)
            // To the microsecond, as the two times are read one after the other.
            expect(rows[0]?.left).toBeLessThanOrEqual(left + 10)
            expect(rows[0]?.left).toBeGreaterThan(left - SLACK_MS)
          }
        },
      ),
      { seed: SEED, numRuns: 40, endOnFailure: true },
    )
  })
})
