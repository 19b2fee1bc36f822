/** The conformance suite of the registry's port. */
import { randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Level, newAddress } from '../../src/access/tokens.ts'
import type { EventLog } from '../../src/events/event-log.ts'
import { MAX_OPEN_CHALLENGES, type RegistryStore } from '../../src/registry/registry-store.ts'
import { inParallel, inSequence } from './support.ts'

export interface RegistryHarness extends AsyncDisposable {
  readonly store: RegistryStore
  /** That the store appends to. */
  readonly log: Pick<EventLog, 'read' | 'lastSeq'>
  /** Revokes as the command does, beside the store. Returns whether there is such a holder. */
  revoke(level: Level, identity: string): Promise<boolean>
}

export const TS = '2026-01-02T03:04:05.678Z'

/** What an agent is registered with, and as who. */
export function newAgent({
  lookup = randomBytes(8),
  webhook,
  ts = TS,
}: {
  lookup?: Buffer
  webhook?: { url: string; sealedSecret: string }
  ts?: string
} = {}) {
  const [address, operatorId] = [newAddress(), randomUUID()]
  const data = { address, operator_id: operatorId, has_webhook: webhook !== undefined }
  return {
    address,
    operatorId,
    secrets: { lookup, tokenHash: `hash ${randomUUID()}`, webhook },
    event: { ts, type: 'agent_registered', agent: address, data } as const,
  }
}

export function newOperator() {
  const operatorId = randomUUID()
  const data = { operator_id: operatorId, contact_hash: 'x', accepted_terms: true } as const
  return {
    operatorId,
    token: { lookup: randomBytes(8), tokenHash: `hash ${randomUUID()}` },
    event: { ts: TS, type: 'operator_created', data } as const,
  }
}

export function describeRegistryStore(name: string, create: () => Promise<RegistryHarness>): void {
  describe(`registry store: ${name}`, () => {
    let harness: RegistryHarness
    let store: RegistryStore
    beforeAll(async () => {
      harness = await create()
      store = harness.store
    })
    afterAll(() => harness?.[Symbol.asyncDispose]())

    async function registerAgent(options: Parameters<typeof newAgent>[0] = {}) {
      const agent = newAgent(options)
      await store.registerAgent(agent.secrets, agent.event)
      return agent
    }

    async function registerOperator() {
      const operator = newOperator()
      await store.registerOperator(operator.token, operator.event)
      return operator
    }

    const end = () => harness.log.lastSeq()
    const total = async () => (await store.page(0, 1)).total

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

    describe('registering', () => {
      it('an agent: it is found as soon as that is answered, and was nobody before', async () => {
        const before = await total()
        const { address, operatorId, secrets, event } = newAgent()
        expect(await store.findByToken('agent', secrets.lookup)).toEqual([])
        expect(await store.findAgent(address)).toBeUndefined()
        await store.registerAgent(secrets, event)
        expect(await store.findByToken('agent', secrets.lookup)).toEqual([
          { identity: address, tokenHash: secrets.tokenHash, operatorId },
        ])
        expect(await store.findAgent(address)).toEqual({
          address,
          registeredAt: TS,
          hasWebhook: false,
        })
        expect(await total()).toBe(before + 1)
        expect(await store.total()).toBe(before + 1)
        expect((await all(100)).at(-1)).toBe(address)
      })

      it('an operator: its token is known as soon as that is answered', async () => {
        const { operatorId, token, event } = newOperator()
        expect(await store.findByToken('operator', token.lookup)).toEqual([])
        await store.registerOperator(token, event)
        expect(await store.findByToken('operator', token.lookup)).toEqual([
          { identity: operatorId, tokenHash: token.tokenHash, operatorId },
        ])
      })

      it('many at once: each is found, in the order of their events', async () => {
        const [before, since] = [await total(), await end()]
        const [agents, operator] = await Promise.all([
          inParallel(12, () => registerAgent()),
          registerOperator(),
        ])
        expect(await total()).toBe(before + 12)
        const events = await harness.log.read(since, 100)
        const inLog = events.flatMap(({ type, data }) =>
          type === 'agent_registered' ? [data.address] : [],
        )
        expect(inLog.toSorted()).toEqual(agents.map(({ address }) => address).toSorted())
        expect(await all(5, since)).toEqual(inLog)
        expect(await store.findByToken('operator', operator.token.lookup)).toHaveLength(1)
      })

      it('is in the log as it was given, at the place that the agent has in the pages', async () => {
        const since = await end()
        const [operator, agent] = [await registerOperator(), await registerAgent()]
        const [first, second, ...more] = await harness.log.read(since, 10)
        expect(first).toMatchObject(operator.event)
        expect(second).toMatchObject(agent.event)
        expect(more).toEqual([])
        const { agents } = await store.page(since, 10)
        expect(agents).toEqual([{ address: agent.address, registeredAt: TS, seq: second?.seq }])
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
        const { secrets } = await registerAgent()
        expect(await store.findByToken('operator', secrets.lookup)).toEqual([])
      })

      it('returns all whose look-up is the same, and nobody for one that nobody has', async () => {
        const lookup = randomBytes(8)
        const [one, two] = [await registerAgent({ lookup }), await registerAgent({ lookup })]
        const found = await store.findByToken('agent', lookup)
        expect(found.map(({ identity }) => identity).toSorted()).toEqual(
          [one.address, two.address].toSorted(),
        )
        expect(await store.findByToken('agent', randomBytes(8))).toEqual([])
      })
    })

    describe('revoking', () => {
      it('an agent: its token is unknown from then on, its address is not', async () => {
        const { address, secrets } = await registerAgent()
        const before = await total()
        expect(await harness.revoke('agent', address)).toBe(true)
        expect(await store.findByToken('agent', secrets.lookup)).toEqual([])
        expect(await store.findAgent(address)).toBeDefined()
        expect(await total()).toBe(before)
        expect(await harness.revoke('agent', address)).toBe(true)
      })

      it('an operator: its token is unknown from then on', async () => {
        const { operatorId, token } = await registerOperator()
        expect(await harness.revoke('operator', operatorId)).toBe(true)
        expect(await store.findByToken('operator', token.lookup)).toEqual([])
      })

      it('leaves others alone', async () => {
        const [revoked, other] = [await registerAgent(), await registerAgent()]
        await harness.revoke('agent', revoked.address)
        expect(await store.findByToken('agent', other.secrets.lookup)).toHaveLength(1)
      })

      it.each(['agent', 'operator'] as const)('an %s that there is not is told', async (level) => {
        for (const identity of [newAddress(), randomUUID(), '', "'; drop table agents"]) {
          expect(await harness.revoke(level, identity)).toBe(false)
        }
      })
    })

    describe('pages', () => {
      it('are oldest first and end where the agents do, whatever the limit', async () => {
        const since = await end()
        const addresses = (await inSequence(11, () => registerAgent())).map(
          ({ address }) => address,
        )
        for (const limit of [1, 3, 11, 12, 1_000])
          expect(await all(limit, since)).toEqual(addresses)
        expect(await store.page(await end(), 10)).toEqual({ agents: [], total: await total() })
        const { agents } = await store.page(since, 4)
        expect(agents).toHaveLength(4)
        expect(agents[0]).toMatchObject({ address: addresses[0], registeredAt: TS })
      })

      it('neither overlap nor skip while others register', async () => {
        const since = await end()
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
          // Lets the registrations on.
          await new Promise((resolve) => setImmediate(resolve))
        }
        done = true
        await registering
        expect(new Set(seen).size).toBe(seen.length)
        expect(seen).toEqual([...there, ...late].slice(0, seen.length))
        expect(await all(7, since)).toEqual([...there, ...late])
      })

      it('carry the number of all agents', async () => {
        await registerOperator()
        const addresses = await all(1_000)
        const last = await end()
        for (const since of [0, last - 1, last])
          expect((await store.page(since, 1)).total).toBe(addresses.length)
      })

      it('have times that never go backwards, though the clock was set back', async () => {
        const since = await end()
        const times = [
          '2031-01-01T00:00:00.001Z',
          '2030-01-01T00:00:00.000Z',
          '2031-01-01T00:00:00.002Z',
          TS,
        ]
        const agents = await inSequence(times.length, (index) =>
          registerAgent({ ts: times[index] ?? TS }),
        )
        const kept = [times[0], times[0], times[2], times[2]]
        const page = await store.page(since, 10)
        expect(page.agents.map(({ registeredAt }) => registeredAt)).toEqual(kept)
        const found = await inSequence(4, (index) => store.findAgent(agents[index]?.address ?? ''))
        expect(found.map((agent) => agent?.registeredAt)).toEqual(kept)
      })
    })

    describe('challenges', () => {
      const challenge = (
        more: { operatorId?: string; answerHash?: Buffer; ttlMs?: number } = {},
      ) => ({
        challengeId: randomUUID(),
        operatorId: more.operatorId ?? randomUUID(),
        answerHash: more.answerHash,
        ttlMs: more.ttlMs ?? 60_000,
      })

      it('are taken once', async () => {
        const row = challenge({ answerHash: randomBytes(32) })
        const expiresAt = await store.saveChallenge(row)
        expect(Math.abs(expiresAt.getTime() - (Date.now() + row.ttlMs))).toBeLessThan(30_000)
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toEqual({
          answerHash: row.answerHash,
          isExpired: false,
        })
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toBeUndefined()
      })

      it('are taken by one of many who ask at once', async () => {
        const row = challenge()
        await store.saveChallenge(row)
        const taken = await inParallel(20, () =>
          store.takeChallenge(row.challengeId, row.operatorId),
        )
        const found = taken.filter((challenge) => challenge !== undefined)
        expect(found).toEqual([{ answerHash: undefined, isExpired: false }])
      })

      it('are not taken, nor used up, by another operator', async () => {
        const row = challenge()
        await store.saveChallenge(row)
        expect(await store.takeChallenge(row.challengeId, randomUUID())).toBeUndefined()
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toBeDefined()
      })

      it('are expired by the clock of the storage, not of the node', async () => {
        const row = challenge({ ttlMs: -1 })
        await store.saveChallenge(row)
        expect(await store.takeChallenge(row.challengeId, row.operatorId)).toMatchObject({
          isExpired: true,
        })
      })

      it('that there are not are not found', async () => {
        expect(await store.takeChallenge(randomUUID(), randomUUID())).toBeUndefined()
      })

      it('of one operator are bounded: the oldest go, those of others stay', async () => {
        const other = challenge()
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
    })
  })
}
