/**
 * The conformance suite of the `WebhookLanes` port: the projection of the log fills them, workers
 * share them.
 */
import { randomUUID } from 'node:crypto'
import { setImmediate as nextTurn } from 'node:timers/promises'
import fc from 'fast-check'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import type { LoggedEvent, NewEvent, Routing } from '../../src/events/event.ts'
import type {
  ClaimedLane,
  LaneTurn,
  Quota,
  Standing,
  WebhookLanes,
  WebhookLanesOptions,
} from '../../src/webhooks/webhook-lanes.ts'
import { inParallel, now, sent } from './support.ts'

/** What is stored of a lane, where a test says or asks it. Times in ms from now. */
export interface StoredLane {
  operatorId: string
  lastSeq: number
  doneSeq: number
  standing: Standing
  holder: string | null
  nextMs: number | null
  restMs: number | null
}

export interface WebhookLanesHarness extends AsyncDisposable {
  /** Lanes as one more worker has them: one that has looked at no times yet. */
  open(options?: WebhookLanesOptions): WebhookLanes
  /** Appends events, and applies them. */
  append(events: readonly (NewEvent & Routing)[]): Promise<LoggedEvent[]>
  register(agent: {
    address: string
    operatorId: string
    url: string
    sealedSecret: string
  }): Promise<void>
  /** Changes what is stored of these lanes, as time or a fault may have left it. */
  alter(
    recipients: readonly string[],
    changes: Partial<Pick<StoredLane, 'standing' | 'holder' | 'nextMs' | 'restMs'>>,
  ): Promise<void>
  stored(): Promise<({ recipient: string } & StoredLane)[]>
  /** Forgets all lanes and what is in them. */
  clear(): Promise<void>
}

const LEASE_MS = 10_000
const TURN_MESSAGES = 3
const QUOTA: Quota = { total: 100, unproven: 100, slow: 100, ofOneOperator: 100 }

export function describeWebhookLanes(
  name: string,
  create: () => Promise<WebhookLanesHarness>,
): void {
  describe(`webhook lanes: ${name}`, () => {
    let harness: WebhookLanesHarness
    let lanes: WebhookLanes
    beforeAll(async () => {
      harness = await create()
      lanes = harness.open()
    })
    afterAll(() => harness[Symbol.asyncDispose]())
    beforeEach(() => harness.clear())

    /** Messages to be pushed. */
    const push = (to: string, count = 1): Promise<LoggedEvent[]> =>
      harness.append(
        Array.from({ length: count }, () => ({ via: 'webhook' as const, ...sent(to, 'x') })),
      )

    async function settle(event: LoggedEvent, how: 'delivered' | 'queued'): Promise<void> {
      if (event.type !== 'message_sent') throw new TypeError(event.type)
      const { message_id, to } = event.data
      const about = { ts: now(), agent: to, about: event.seq }
      await harness.append([
        how === 'delivered'
          ? {
              ...about,
              type: 'message_delivered',
              data: { message_id, to, delivery_method: 'push' },
            }
          : { ...about, type: 'push_failed', data: { message_id, to, reason: 'undeliverable' } },
      ])
    }

    const claim = (quota: Partial<Quota> = {}, holder = 'worker') =>
      lanes.claim(holder, LEASE_MS, { ...QUOTA, ...quota }, TURN_MESSAGES)

    async function claimOne(holder?: string): Promise<ClaimedLane> {
      const claimed = await claim({}, holder)
      expect(claimed).toHaveLength(1)
      return claimed[0] as ClaimedLane
    }

    function turnOf(lane: ClaimedLane, changes: Partial<LaneTurn> = {}): LaneTurn {
      const {
        recipient,
        claim: number,
        standing,
        doneSeq,
        retriedSeq,
        attempts,
        failures,
        openUntil,
        bucketFullAt,
      } = lane
      const turn = {
        recipient,
        claim: number,
        standing,
        doneSeq,
        retriedSeq,
        attempts,
        failures,
        openUntil,
        bucketFullAt,
      }
      return { ...turn, delay: 0, ...changes }
    }

    const places = (lane: ClaimedLane) => lane.messages.map((message) => message.seq)

    it('there are none where nothing is to be pushed', async () => {
      const to = newAddress()
      await harness.append([{ ...sent(to, 'pulled') }])
      expect(await claim()).toEqual([])
      expect(await lanes.backlog()).toMatchObject({ openCircuits: 0 })
    })

    it('give the oldest messages of an agent, in order, and what is known of its endpoint', async () => {
      const to = newAddress()
      const events = await push(to, TURN_MESSAGES + 2)
      const lane = await claimOne()
      expect(lane).toMatchObject({
        recipient: to,
        standing: 'unknown',
        pending: TURN_MESSAGES + 2,
        doneSeq: 0,
        attempts: 0,
      })
      expect(places(lane)).toEqual(events.slice(0, TURN_MESSAGES).map((event) => event.seq))
      expect(lane.messages.map(({ id }) => id)).toEqual(
        events
          .slice(0, TURN_MESSAGES)
          .map((event) => 'message_id' in event.data && event.data.message_id),
      )
      expect(lane.lastSeq).toBe(events.at(-1)?.seq)
      expect(Math.abs(lane.now - Date.now())).toBeLessThan(60_000)
    })

    it('are in one pair of hands at a time', async () => {
      const agents = await inParallel(20, async () => newAddress())
      for (const agent of agents) await push(agent)
      const claimed = (
        await inParallel(8, (index) => claim({ total: 5 }, `worker ${index}`))
      ).flat()
      expect(claimed.map(({ recipient }) => recipient).toSorted()).toEqual(agents.toSorted())
      expect(await claim()).toEqual([])
    })

    it('keep the state that a turn leaves, and wait as long as it says', async () => {
      const [event] = await push(newAddress())
      const state = {
        standing: 'slow',
        retriedSeq: event?.seq ?? 0,
        attempts: 2,
        failures: 1,
        openUntil: 1_893_456_000_123,
        bucketFullAt: 1_893_456_000_456,
      } as const
      await lanes.release(turnOf(await claimOne(), state))
      const again = await claimOne()
      expect(again).toMatchObject(state)
      await lanes.release(turnOf(again, { delay: 60_000 }))
      expect(await claim()).toEqual([])
    })

    it('rest when all is done, and wake when a message comes', async () => {
      const to = newAddress()
      await push(to)
      const lane = await claimOne()
      await lanes.release(turnOf(lane, { doneSeq: lane.lastSeq }))
      expect(await claim()).toEqual([])
      const [event] = await push(to)
      expect(places(await claimOne())).toEqual([event?.seq])
    })

    it('do not fall asleep on a message that came during the turn', async () => {
      const to = newAddress()
      await push(to)
      const lane = await claimOne()
      const [event] = await push(to)
      await lanes.release(turnOf(lane, { doneSeq: lane.lastSeq }))
      expect(places(await claimOne())).toEqual([event?.seq])
    })

    it('do not give what was done again, although the projection has yet to take it out', async () => {
      const to = newAddress()
      const [first, second] = await push(to, 2)
      await lanes.release(turnOf(await claimOne(), { doneSeq: first?.seq ?? 0 }))
      expect(places(await claimOne())).toEqual([second?.seq])
    })

    it('are another worker’s when the lease runs out, and the late one changes nothing', async () => {
      await push(newAddress())
      const [lane] = await lanes.claim('frozen', 0, QUOTA, TURN_MESSAGES)
      const next = await claimOne('next')
      await lanes.release(turnOf(lane as ClaimedLane, { doneSeq: next.lastSeq, attempts: 9 }))
      expect(await claim()).toEqual([])
      await lanes.release(turnOf(next))
      expect(await claimOne()).toMatchObject({ attempts: 0, doneSeq: 0 })
    })

    it('say when the next of them has something to do', async () => {
      expect(await lanes.due()).toBe(Number.POSITIVE_INFINITY)
      await push(newAddress())
      expect(await lanes.due()).toBeLessThanOrEqual(0)
      await lanes.release(turnOf(await claimOne(), { standing: 'slow', delay: 60_000 }))
      expect(await lanes.due()).toBeGreaterThan(30_000)
      expect(await lanes.due()).toBeLessThanOrEqual(60_000)
    })

    it('stay with a worker that prolongs its leases', async () => {
      await push(newAddress())
      const claimed = await lanes.claim('worker', 0, QUOTA, TURN_MESSAGES)
      expect(await lanes.renew('worker', claimed, LEASE_MS)).toEqual(
        new Set(claimed.map(({ recipient }) => recipient)),
      )
      expect(await claim()).toEqual([])
    })

    it('stay with nobody whose claim never reached it, whatever else it prolongs', async () => {
      const to = newAddress()
      await push(to)
      await lanes.claim('worker', 0, QUOTA, TURN_MESSAGES)
      await push(newAddress())
      const claimed = (await claim()).filter(({ recipient }) => recipient !== to)
      await harness.alter([to], { nextMs: 0, holder: 'worker' })
      await lanes.renew('worker', claimed, LEASE_MS)
      expect((await claimOne('another')).recipient).toBe(to)
    })

    it('that were given back or taken over are not prolonged, and who asks is told', async () => {
      const [gone, taken] = [newAddress(), newAddress()]
      await push(gone)
      const first = await claimOne()
      await lanes.release(turnOf(first, { delay: 60_000 }))
      await push(taken)
      const [second] = await lanes.claim('worker', 0, QUOTA, TURN_MESSAGES)
      await claimOne('another')
      expect(await lanes.renew('worker', [first, second as ClaimedLane], LEASE_MS)).toEqual(
        new Set(),
      )
      expect(await lanes.due()).toBeLessThanOrEqual(LEASE_MS)
    })

    it('whatever times are stored, as where the clock was set back: none waits for longer than it may have been put off', async () => {
      const HOUR_MS = 3_600_000
      const ahead = fc.integer({ min: -2 * HOUR_MS, max: 2 * HOUR_MS })
      await fc.assert(
        fc.asyncProperty(
          ahead,
          ahead,
          fc.constantFrom('unknown' as const, 'fast' as const, 'slow' as const, 'open' as const),
          fc.constantFrom(null, 'a worker'),
          async (nextMs, restMs, standing, holder) => {
            await harness.clear()
            const to = newAddress()
            await push(to)
            await harness.alter([to], { standing, holder, nextMs, restMs })
            const claimed = await harness.open().claim('worker', LEASE_MS, QUOTA, TURN_MESSAGES)
            const { nextMs: next, restMs: rest } = (await harness.stored())[0] as {
              nextMs: number
              restMs: number
            }
            if (claimed.length === 0) {
              expect(nextMs).toBeGreaterThan(0)
              expect(next).toBeLessThanOrEqual(120_000)
              // A worker that has it yet is given the time to say so.
              if (holder !== null && nextMs > 120_000) expect(next).toBeGreaterThan(LEASE_MS / 2)
              if (holder === null) expect(nextMs).toBeLessThanOrEqual(120_000)
            }
            if (standing === 'open') expect(rest).toBeLessThanOrEqual(300_000)
            // What is no further ahead than it may be is left as it is.
            if (restMs < 290_000) expect(rest).toBeGreaterThan(restMs - 60_000)
          },
        ),
        { numRuns: 100 },
      )
    })

    it('rest as long as the circuit is set to, be it for hours', async () => {
      const REST_MS = 6 * 3_600_000
      await push(newAddress())
      const resting = harness.open({ circuitMs: REST_MS })
      const [lane] = await resting.claim('worker', LEASE_MS, QUOTA, TURN_MESSAGES)
      const openUntil = (lane?.now ?? 0) + REST_MS
      await resting.release(turnOf(lane as ClaimedLane, { standing: 'open', openUntil }))
      const again = harness.open({ circuitMs: REST_MS })
      const [claimed] = await again.claim('worker', LEASE_MS, QUOTA, TURN_MESSAGES)
      expect(claimed?.openUntil).toBeCloseTo(openUntil, -1)
    })

    it('say whether the worker before gave them back', async () => {
      await push(newAddress(), 2)
      const first = await claimOne()
      expect(first.wasHeld).toBe(false)
      await lanes.release(turnOf(first))
      expect(
        (await lanes.claim('killed', 0, QUOTA, TURN_MESSAGES)).map(({ wasHeld }) => wasHeld),
      ).toEqual([false])
      const last = await claimOne()
      expect(last.wasHeld).toBe(true)
      await lanes.release(turnOf(last))
      expect((await claimOne()).wasHeld).toBe(false)
    })

    it('are given in kinds only as the quota says', async () => {
      const standings = ['unknown', 'fast', 'slow', 'open'] as const
      const kinds: { [recipient: string]: string } = {}
      for (const standing of standings) {
        for (let index = 0; index < 4; index++) await push(newAddress())
        for (const lane of await claim()) {
          // Half of those that are open rest still, the others are to be probed.
          const isResting = Object.values(kinds).filter((kind) => kind === 'resting').length < 2
          const kind = standing === 'open' ? (isResting ? 'resting' : 'probe') : standing
          kinds[lane.recipient] = kind
          const openUntil = standing === 'open' ? lane.now + (isResting ? 60_000 : -1) : 0
          await lanes.release(turnOf(lane, { standing, openUntil, delay: 100_000 }))
        }
      }
      // A slow one first, then a probe, and so on by turns.
      for (const [index, recipient] of Object.entries(Object.keys(kinds))) {
        const waiting =
          kinds[recipient] === 'probe' ? 59 - 2 * (Number(index) % 2) : 60 - 2 * (Number(index) % 4)
        await harness.alter([recipient], { nextMs: -1_000 * waiting })
      }
      const claimedKinds = async (quota: Partial<Quota>) =>
        Object.entries(
          Object.groupBy(
            (await claim(quota)).map(({ recipient }) => kinds[recipient] ?? ''),
            (kind) => kind,
          ),
        )
          .map(([kind, all]) => `${all?.length} ${kind}`)
          .toSorted()
      expect(await claimedKinds({ total: 8, unproven: 3, slow: 2 })).toEqual([
        '1 probe',
        '1 slow',
        '1 unknown',
        '2 resting',
        '3 fast',
      ])
      expect(await claimedKinds({ unproven: 0, slow: 0 })).toEqual(['1 fast'])
      expect(await claimedKinds({})).toEqual(['1 probe', '3 slow', '3 unknown'])
    })

    it('that may take long share the quota by how long they have waited', async () => {
      const standings = ['slow', 'open', 'open', 'slow'] as const
      const waiting: string[] = []
      for (const standing of standings) {
        const to = newAddress()
        await push(to)
        waiting.push(to)
        await lanes.release(
          turnOf(await claimOne(), {
            standing,
            openUntil: standing === 'open' ? 1 : 0,
            delay: 100_000,
          }),
        )
      }
      for (const [index, to] of waiting.entries()) {
        await harness.alter([to], { nextMs: -1_000 * (10 - index) })
      }
      const claimed: string[] = []
      for (const _ of waiting)
        claimed.push(...(await claim({ slow: 1 })).map(({ recipient }) => recipient))
      expect(claimed).toEqual(waiting)
    })

    /** Agents of one operator, each with a message that waits. */
    async function dueOf(operatorId: string, count: number): Promise<string[]> {
      const agents = Array.from({ length: count }, () => newAddress())
      for (const address of agents)
        await harness.register({ address, operatorId, url: '', sealedSecret: '' })
      await harness.append(
        agents.map((agent) => ({ via: 'webhook' as const, ...sent(agent, 'x') })),
      )
      return agents
    }
    const of = (agents: readonly string[], claimed: readonly ClaimedLane[]) =>
      claimed.filter(({ recipient }) => agents.includes(recipient)).length

    it('that have yet to be tried are given to operators by turns, whoever came first', async () => {
      const many = await dueOf(randomUUID(), 20)
      const few = await dueOf(randomUUID(), 3)
      const claimed = await claim({ unproven: 8 })
      expect([of(many, claimed), of(few, claimed)]).toEqual([5, 3])
    })

    it('that have yet to be tried leave a slot to an operator that has none, before one that has some', async () => {
      const many = await dueOf(randomUUID(), 20)
      expect(of(many, await claim({ unproven: 4, ofOneOperator: 4 }))).toBe(4)
      const others: string[] = []
      for (let index = 0; index < 3; index++) others.push(...(await dueOf(randomUUID(), 1)))
      const claimed = [
        ...(await claim({ unproven: 1 })),
        ...(await claim({ unproven: 1 })),
        ...(await claim({ unproven: 1 })),
      ]
      expect(of(others, claimed)).toBe(3)
    })

    it('that have yet to be tried are no more of one operator than it may have, until it gives some back', async () => {
      const many = await dueOf(randomUUID(), 10)
      const quota = { ofOneOperator: 4 }
      const claimed = await claim(quota)
      expect(of(many, claimed)).toBe(4)
      expect(await claim(quota)).toEqual([])
      // Another worker has slots of its own.
      expect(await claim(quota, 'another')).toHaveLength(4)
      await lanes.release(turnOf(claimed[0] as ClaimedLane, { standing: 'slow', delay: 60_000 }))
      expect(await claim(quota)).toHaveLength(1)
    })

    it('that take long do not keep the only slot from those that have yet to be tried, nor these from them', async () => {
      await dueOf(randomUUID(), 40)
      for (const lane of await claim({ unproven: 20 }))
        await lanes.release(turnOf(lane, { standing: 'slow' }))
      const kinds = new Set<string>()
      while (kinds.size < 2) {
        const [lane] = await claim({ unproven: 1, slow: 1 })
        if (lane === undefined) continue
        kinds.add(lane.standing)
        await lanes.release(turnOf(lane))
      }
      expect([...kinds].toSorted()).toEqual(['slow', 'unknown'])
    })

    it('that have yet to be tried are found among many operators, wherever the search begins', async () => {
      const agents: string[] = []
      for (let index = 0; index < 12; index++) agents.push(...(await dueOf(randomUUID(), 2)))
      const claimed: string[] = []
      for (let round = 0; round < 24; round++)
        claimed.push(
          ...(await claim({ unproven: 1, slow: 1 }, `worker ${round % 2}`)).map(
            ({ recipient }) => recipient,
          ),
        )
      // A claim may leave the only slot to one that took long.
      while (claimed.length < agents.length)
        claimed.push(...(await claim({ unproven: 2 })).map(({ recipient }) => recipient))
      expect(claimed.toSorted()).toEqual(agents.toSorted())
    })

    it('know whose they are, and where and with what to push', async () => {
      const agent = {
        address: newAddress(),
        operatorId: randomUUID(),
        url: 'https://a.example/hook',
        sealedSecret: 'sealed',
      }
      await harness.register(agent)
      await push(agent.address)
      expect(await harness.stored()).toMatchObject([
        { recipient: agent.address, operatorId: agent.operatorId },
      ])
      const { url, sealedSecret } = agent
      expect(await claimOne()).toMatchObject({ recipient: agent.address, url, sealedSecret })
    })

    it('of an agent that nobody knows have no endpoint', async () => {
      await push(newAddress())
      expect(await claimOne()).toMatchObject({ url: null, sealedSecret: null })
    })

    it('whatever waits and whatever the quota: no more of a kind than fits, and no fewer', async () => {
      const operators = Array.from({ length: 3 }, () => randomUUID())
      const agents = Array.from({ length: 14 }, (_, index) => ({
        address: newAddress(),
        operatorId: operators[index % operators.length] as string,
      }))
      for (const agent of agents) await harness.register({ ...agent, url: '', sealedSecret: '' })
      const operatorOf = (address: string) =>
        agents.find((agent) => agent.address === address)?.operatorId ?? ''
      const kind = fc.constantFrom('unknown', 'fast', 'slow', 'probe', 'resting')
      const quota = fc.record({
        total: fc.integer({ min: 0, max: 12 }),
        // With one slot for two kinds, chance decides.
        unproven: fc.integer({ min: 0, max: 10 }).filter((slots) => slots !== 1),
        slow: fc.integer({ min: 0, max: 8 }),
        ofOneOperator: fc.integer({ min: 1, max: 6 }),
      })
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.record({ kind, isReady: fc.boolean() }), { maxLength: agents.length }),
          quota,
          async (kinds, quota) => {
            await harness.clear()
            const waiting = kinds.map((lane, index) => ({
              ...lane,
              address: agents[index]?.address ?? '',
            }))
            await harness.append(
              waiting.map(({ address }) => ({ via: 'webhook' as const, ...sent(address, 'x') })),
            )
            for (const lane of waiting) {
              const standing = (
                lane.kind === 'probe' || lane.kind === 'resting' ? 'open' : lane.kind
              ) as Standing
              const restMs = lane.kind === 'resting' ? 60_000 : -60_000
              await harness.alter([lane.address], {
                standing,
                restMs,
                nextMs: lane.isReady ? -1_000 : 60_000,
              })
            }
            const claimed = new Set((await claim(quota)).map(({ recipient }) => recipient))
            expect(
              waiting.filter(({ address, isReady }) => claimed.has(address) && !isReady),
            ).toEqual([])
            const ready = (...wanted: string[]) =>
              waiting.filter((lane) => lane.isReady && wanted.includes(lane.kind))
            const taken = (...wanted: string[]) =>
              ready(...wanted).filter(({ address }) => claimed.has(address)).length
            const ofOperator = (id: string) =>
              ready('unknown').filter(({ address }) => operatorOf(address) === id)
            const untried = operators.map((id) =>
              Math.min(quota.ofOneOperator, ofOperator(id).length),
            )
            let left = quota.total
            const expected = (most: number) => {
              const count = Math.min(most, left)
              left -= count
              return count
            }
            expect(taken('resting')).toBe(expected(ready('resting').length))
            const slow = expected(
              Math.min(quota.slow, quota.unproven, ready('slow', 'probe').length),
            )
            expect(taken('slow', 'probe')).toBe(slow)
            const all = untried.reduce((sum, count) => sum + count, 0)
            expect(taken('unknown')).toBe(expected(Math.min(quota.unproven - slow, all)))
            for (const id of operators) {
              const had = ofOperator(id).filter(({ address }) => claimed.has(address)).length
              expect(had).toBeLessThanOrEqual(quota.ofOneOperator)
            }
            expect(taken('fast')).toBe(expected(ready('fast').length))
          },
        ),
        { numRuns: 60 },
      )
    })

    it('count what waits, until it is delivered or in the pull queue', async () => {
      const before = await lanes.backlog()
      const [one, two, three] = (await push(newAddress(), 3)) as [
        LoggedEvent,
        LoggedEvent,
        LoggedEvent,
      ]
      expect((await lanes.backlog()).messages).toBe(before.messages + 3)
      await settle(one, 'delivered')
      await settle(two, 'queued')
      // A second time it changes nothing.
      await settle(two, 'queued')
      expect((await lanes.backlog()).messages).toBe(before.messages + 1)
      expect(places(await claimOne())).toEqual([three.seq])
      await settle(two, 'delivered')
      await settle(three, 'delivered')
      expect((await lanes.backlog()).messages).toBe(before.messages)
    })

    it('let projector and workers go on side by side', async () => {
      const agents = await inParallel(10, async () => newAddress())
      let stop = false
      const working = inParallel(4, async (index) => {
        while (!stop) {
          const claimed = await claim({ total: 4 }, `${index} ${randomUUID()}`)
          // Lanes in the process answer at once, and must not keep it from all else.
          if (claimed.length === 0) await nextTurn()
          await Promise.all(
            claimed.map((lane) =>
              lanes.release(turnOf(lane, { doneSeq: lane.messages.at(-1)?.seq ?? lane.lastSeq })),
            ),
          )
        }
      })
      for (let round = 0; round < 20; round++) {
        await harness.append(
          agents.map((agent) => ({ via: 'webhook' as const, ...sent(agent, 'x') })),
        )
      }
      stop = true
      await working
      for (let left = 1; left > 0; ) {
        const claimed = await claim()
        left = claimed.length
        await Promise.all(
          claimed.map((lane) =>
            lanes.release(turnOf(lane, { doneSeq: lane.messages.at(-1)?.seq ?? lane.lastSeq })),
          ),
        )
      }
      const stored = await harness.stored()
      expect(stored.every(({ doneSeq, lastSeq }) => doneSeq === lastSeq)).toBe(true)
      expect(stored).toHaveLength(agents.length)
    })
  })
}
