/** The conformance suite of the registry's tables. */
import { randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import type { LoggedEvent } from '../../src/events/event.ts'
import type { Database } from '../../src/platform/database.ts'
import { MAX_OPEN_CHALLENGES, RegistryStore } from '../../src/registry/registry-store.ts'
import { applyEvents, type DatabaseHarness, inParallel, inSequence } from './support.ts'

export function describeRegistryStore(name: string, create: () => Promise<DatabaseHarness>): void {
  describe(`registry store: ${name}`, () => {
    let harness: DatabaseHarness
    let database: Database
    let store: RegistryStore
    let seq = 0
    beforeAll(async () => {
      harness = await create()
      database = harness.database
      store = new RegistryStore(database)
    })
    afterAll(() => harness[Symbol.asyncDispose]())

    async function stageAgent(more: { lookup?: Buffer; webhook?: { url: string; sealedSecret: string } } = {}) {
      const { lookup = randomBytes(8), webhook } = more
      const row = {
        address: newAddress(),
        operatorId: randomUUID(),
        lookup,
        tokenHash: `hash ${randomUUID()}`,
        webhook,
      }
      await store.stageAgent(row)
      return row
    }

    async function stageOperator(lookup = randomBytes(8)) {
      const row = { operatorId: randomUUID(), lookup, tokenHash: `hash ${randomUUID()}` }
      await store.stageOperator(row)
      return row
    }

    /** The event that registers an agent, in the next place of the log. */
    function agentRegistered(
      { address, operatorId }: { address: string; operatorId: string },
      ts = '2026-01-02T03:04:05.678Z',
    ): LoggedEvent {
      const data = { address, operator_id: operatorId, has_webhook: false }
      return { seq: ++seq, ts, type: 'agent_registered', agent: address, data }
    }

    function operatorCreated(operatorId: string): LoggedEvent {
      const data = { operator_id: operatorId, contact_hash: 'x', accepted_terms: true } as const
      return { seq: ++seq, ts: '2026-01-02T03:04:05.678Z', type: 'operator_created', data }
    }

    const project = (...events: LoggedEvent[]) => applyEvents(database, events)

    async function registerAgent(more: Parameters<typeof stageAgent>[0] = {}) {
      const row = await stageAgent(more)
      await project(agentRegistered(row))
      return row
    }

    /** Every agent, page by page. */
    async function all(limit: number, since = 0): Promise<string[]> {
      const addresses: string[] = []
      for (let position = since; ; ) {
        const { agents } = await store.page(position, limit)
        addresses.push(...agents.map(({ address }) => address))
        const last = agents.at(-1)
        if (!last) return addresses
        position = last.seq
      }
    }

    const total = async () => (await store.page(0, 1)).total

    describe('staging and activating', () => {
      it('an agent is nobody until its event is applied', async () => {
        const before = await total()
        const row = await stageAgent()
        expect(await store.findByToken('agent', row.lookup)).toEqual([])
        expect(await store.findAgent(row.address)).toBeUndefined()
        expect(await all(100)).not.toContain(row.address)
        expect(await total()).toBe(before)
        await project(agentRegistered(row, '2026-01-02T03:04:05.678Z'))
        expect(await store.findByToken('agent', row.lookup)).toEqual([
          { identity: row.address, tokenHash: row.tokenHash, operatorId: row.operatorId },
        ])
        expect(await store.findAgent(row.address)).toEqual({
          address: row.address,
          registeredAt: '2026-01-02T03:04:05.678Z',
          hasWebhook: false,
        })
        expect(await total()).toBe(before + 1)
        expect((await all(100)).at(-1)).toBe(row.address)
      })

      it('an operator is nobody until its event is applied', async () => {
        const row = await stageOperator()
        expect(await store.findByToken('operator', row.lookup)).toEqual([])
        await project(operatorCreated(row.operatorId))
        expect(await store.findByToken('operator', row.lookup)).toEqual([
          { identity: row.operatorId, tokenHash: row.tokenHash, operatorId: row.operatorId },
        ])
      })

      it('many are activated by one batch, each in its place', async () => {
        const before = await total()
        const rows = await inParallel(12, () => stageAgent())
        const operator = await stageOperator()
        const since = seq
        await project(...rows.map((row) => agentRegistered(row)), operatorCreated(operator.operatorId))
        expect(await total()).toBe(before + 12)
        expect(await all(5, since)).toEqual(rows.map(({ address }) => address))
        expect(await store.findByToken('operator', operator.lookup)).toHaveLength(1)
      })

      it('an event whose row is not there, or was activated before, changes nothing', async () => {
        const row = await registerAgent()
        const before = await total()
        await project(
          agentRegistered(row, '2030-01-01T00:00:00.000Z'),
          agentRegistered({ address: newAddress(), operatorId: randomUUID() }),
        )
        expect(await total()).toBe(before)
        expect((await store.findAgent(row.address))?.registeredAt).toBe('2026-01-02T03:04:05.678Z')
      })

      it('knows who has a webhook', async () => {
        const webhook = { url: 'https://agent.example/hook?a=b', sealedSecret: 'sealed' }
        const [pushed, pulled] = [await registerAgent({ webhook }), await registerAgent()]
        expect((await store.findAgent(pushed.address))?.hasWebhook).toBe(true)
        expect((await store.findAgent(pulled.address))?.hasWebhook).toBe(false)
      })
    })

    describe('finding by token', () => {
      it('tells the levels apart', async () => {
        const { lookup } = await registerAgent()
        expect(await store.findByToken('operator', lookup)).toEqual([])
      })

      it('returns all whose look-up is the same, and nobody for one that nobody has', async () => {
        const lookup = randomBytes(8)
        const [one, two] = [await registerAgent({ lookup }), await registerAgent({ lookup })]
        const found = await store.findByToken('agent', lookup)
        expect(found.map(({ identity }) => identity).toSorted()).toEqual([one.address, two.address].toSorted())
        expect(await store.findByToken('agent', randomBytes(8))).toEqual([])
      })
    })

    describe('revoking', () => {
      it('an agent: its token is unknown from then on, its address is not', async () => {
        const row = await registerAgent()
        const before = await total()
        expect(await store.revoke('agent', row.address)).toEqual(row.lookup)
        expect(await store.findByToken('agent', row.lookup)).toEqual([])
        expect(await store.findAgent(row.address)).toBeDefined()
        expect(await total()).toBe(before)
        expect(await store.revoke('agent', row.address)).toEqual(row.lookup)
      })

      it('an operator: its token is unknown from then on', async () => {
        const row = await stageOperator()
        await project(operatorCreated(row.operatorId))
        expect(await store.revoke('operator', row.operatorId)).toEqual(row.lookup)
        expect(await store.findByToken('operator', row.lookup)).toEqual([])
      })

      it('of one that is staged holds when it is activated', async () => {
        const row = await stageAgent()
        await store.revoke('agent', row.address)
        await project(agentRegistered(row))
        expect(await store.findByToken('agent', row.lookup)).toEqual([])
      })

      it.each(['agent', 'operator'] as const)('an %s that there is not returns nothing', async (level) => {
        for (const identity of [newAddress(), randomUUID(), '', "'; drop table agents"]) {
          expect(await store.revoke(level, identity)).toBeUndefined()
        }
      })
    })

    describe('pages', () => {
      it('are oldest first and end where the agents do, whatever the limit', async () => {
        const since = seq
        const rows = await inSequence(11, () => registerAgent())
        const addresses = rows.map(({ address }) => address)
        for (const limit of [1, 3, 11, 12, 1_000]) expect(await all(limit, since)).toEqual(addresses)
        expect(await store.page(seq, 10)).toEqual({ agents: [], total: await total() })
        const { agents } = await store.page(since, 4)
        expect(agents).toHaveLength(4)
        expect(agents[0]).toMatchObject({ address: addresses[0], registeredAt: '2026-01-02T03:04:05.678Z' })
      })

      it('neither overlap nor skip while others register', async () => {
        const since = seq
        const there = (await inSequence(20, () => registerAgent())).map(({ address }) => address)
        let done = false
        const late: string[] = []
        const registering = (async () => {
          while (!done) late.push((await registerAgent()).address)
        })()
        const seen: string[] = []
        for (let position = since; seen.length < 30; ) {
          const { agents } = await store.page(position, 3)
          seen.push(...agents.map(({ address }) => address))
          position = agents.at(-1)?.seq ?? position
        }
        done = true
        await registering
        expect(new Set(seen).size).toBe(seen.length)
        expect(seen).toEqual([...there, ...late].slice(0, seen.length))
        expect(await all(7, since)).toEqual([...there, ...late])
      })

      it('carry the number of all agents, staged ones not counted', async () => {
        await stageAgent()
        const addresses = await all(1_000)
        for (const since of [0, seq - 1, seq]) expect((await store.page(since, 1)).total).toBe(addresses.length)
      })
    })

    describe('challenges', () => {
      const challenge = (more: { operatorId?: string; answerHash?: Buffer; ttlMs?: number } = {}) => ({
        challengeId: randomUUID(),
        operatorId: more.operatorId ?? randomUUID(),
        answerHash: more.answerHash,
        ttlMs: more.ttlMs ?? 60_000,
      })

      it('are taken once', async () => {
        const row = challenge({ answerHash: randomBytes(32) })
        await store.saveChallenge(row)
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toEqual({
          answer_hash: row.answerHash,
          is_expired: false,
        })
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toBeUndefined()
      })

      it('are taken by one of many who ask at once', async () => {
        const row = challenge()
        await store.saveChallenge(row)
        const taken = await inParallel(20, () => store.takeChallenge(row.challengeId, row.operatorId))
        expect(taken.filter((found) => found !== undefined)).toEqual([{ answer_hash: null, is_expired: false }])
      })

      it('are not taken, nor used up, by another operator', async () => {
        const row = challenge()
        await store.saveChallenge(row)
        expect(await store.takeChallenge(row.challengeId, randomUUID())).toBeUndefined()
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toBeDefined()
      })

      it('are expired by the clock of the database, not of the node', async () => {
        const row = challenge({ ttlMs: -1 })
        await store.saveChallenge(row)
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toMatchObject({ is_expired: true })
      })

      it('that there are not are not found', async () => {
        expect(await store.takeChallenge(randomUUID(), randomUUID())).toBeUndefined()
      })

      it('of one operator are bounded: the oldest go, those of others stay', async () => {
        const other = challenge({ ttlMs: 60_000 })
        await store.saveChallenge(other)
        const { operatorId } = challenge()
        const rows = Array.from({ length: MAX_OPEN_CHALLENGES + 3 }, (_, index) =>
          challenge({ operatorId, ttlMs: 3_600_000 + index * 1_000 }),
        )
        for (let at = 0; at < rows.length; at += 400)
          await Promise.all(rows.slice(at, at + 400).map((row) => store.saveChallenge(row)))
        const taken: boolean[] = []
        for (const row of [...rows.slice(0, 5), ...rows.slice(-2)])
          taken.push((await store.takeChallenge(row.challengeId, operatorId)) !== undefined)
        expect(taken).toEqual([false, false, false, true, true, true, true])
        expect(await store.takeChallenge(other.challengeId, other.operatorId)).toBeDefined()
      })

      it('go when they have expired, the others stay', async () => {
        const expired = challenge({ ttlMs: -1 })
        const valid = challenge({ ttlMs: 60_000 })
        const expiresAt = await store.saveChallenge(expired)
        await store.saveChallenge(valid)
        expect(await store.removeAbandoned(new Date(expiresAt.getTime() + 1_000), new Date(0))).toBeGreaterThanOrEqual(
          1,
        )
        expect(await store.takeChallenge(expired.challengeId, expired.operatorId)).toBeUndefined()
        expect(await store.takeChallenge(valid.challengeId, valid.operatorId)).toBeDefined()
      })
    })

    describe('what was abandoned', () => {
      it('goes when it was staged before a time and has no event; what has one stays', async () => {
        const [agent, operator] = [await stageAgent(), await stageOperator()]
        const [activeAgent, activeOperator] = [await registerAgent(), await stageOperator()]
        await project(operatorCreated(activeOperator.operatorId))
        expect(await store.removeAbandoned(new Date(0), new Date(Date.now() - 600_000))).toBe(0)
        const before = await total()
        expect(await store.removeAbandoned(new Date(0), new Date(Date.now() + 600_000))).toBeGreaterThanOrEqual(2)
        await project(agentRegistered(agent), operatorCreated(operator.operatorId))
        expect(await store.findAgent(agent.address)).toBeUndefined()
        expect(await store.findByToken('operator', operator.lookup)).toEqual([])
        expect(await store.findAgent(activeAgent.address)).toBeDefined()
        expect(await store.findByToken('operator', activeOperator.lookup)).toHaveLength(1)
        expect(await total()).toBe(before)
      })
    })
  })
}
