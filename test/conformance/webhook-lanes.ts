/** The conformance suite of the webhook lanes: the projector fills them, workers share them. */
import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { sql } from 'kysely'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import type { LoggedEvent } from '../../src/events/event.ts'
import { type ClaimedLane, type LaneTurn, type Room, WebhookLanes } from '../../src/webhooks/webhook-lanes.ts'
import { applyEvents, type DatabaseHarness, inParallel, now, sent } from './support.ts'

const LEASE_MS = 10_000
const TURN_MESSAGES = 3
const ROOM: Room = { total: 100, unproven: 100, doubtful: 100, ofOneOperator: 100 }

export function describeWebhookLanes(name: string, create: () => Promise<DatabaseHarness>): void {
  describe(`webhook lanes: ${name}`, () => {
    let harness: DatabaseHarness
    let lanes: WebhookLanes
    let seq = 0
    beforeAll(async () => {
      harness = await create()
      lanes = new WebhookLanes(harness.database)
    })
    afterAll(() => harness[Symbol.asyncDispose]())
    beforeEach(() => sql`delete from webhook_lanes`.execute(harness.database))

    /** Messages to be pushed, applied as the projector does. */
    async function push(to: string, count = 1): Promise<LoggedEvent[]> {
      const events = Array.from({ length: count }, () => ({ seq: ++seq, via: 'webhook' as const, ...sent(to, 'x') }))
      await applyEvents(harness.database, events)
      return events
    }

    async function settle(event: LoggedEvent, how: 'delivered' | 'queued'): Promise<void> {
      if (event.type !== 'message_sent') throw new TypeError(event.type)
      const { message_id, to } = event.data
      const about = { seq: ++seq, ts: now(), agent: to, about: event.seq }
      await applyEvents(harness.database, [
        how === 'delivered'
          ? { ...about, type: 'message_delivered', data: { message_id, to, delivery_method: 'push' } }
          : { ...about, type: 'message_queued', data: { message_id, to, reason: 'undeliverable' } },
      ])
    }

    const claim = (room: Partial<Room> = {}, holder = 'worker') =>
      lanes.claim(holder, LEASE_MS, { ...ROOM, ...room }, TURN_MESSAGES)

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
      await applyEvents(harness.database, [{ seq: ++seq, via: 'queue', ...sent(to, 'pulled') }])
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
        events.slice(0, TURN_MESSAGES).map((event) => 'message_id' in event.data && event.data.message_id),
      )
      expect(lane.lastSeq).toBe(events.at(-1)?.seq)
      expect(Math.abs(lane.now - Date.now())).toBeLessThan(60_000)
    })

    it('are in one pair of hands at a time', async () => {
      const agents = await inParallel(20, async () => newAddress())
      for (const agent of agents) await push(agent)
      const claimed = (await inParallel(8, (index) => claim({ total: 5 }, `worker ${index}`))).flat()
      expect(claimed.map(({ recipient }) => recipient).toSorted()).toEqual(agents.toSorted())
      expect(await claim()).toEqual([])
    })

    it('keep the state that a turn leaves, and wait as long as it says', async () => {
      const [event] = await push(newAddress())
      const state = {
        standing: 'doubtful',
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
      const [lane] = await lanes.claim('frozen', 0, ROOM, TURN_MESSAGES)
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
      await lanes.release(turnOf(await claimOne(), { standing: 'doubtful', delay: 60_000 }))
      expect(await lanes.due()).toBeGreaterThan(30_000)
      expect(await lanes.due()).toBeLessThanOrEqual(60_000)
    })

    it('stay with a worker that prolongs its leases', async () => {
      await push(newAddress())
      const claimed = await lanes.claim('worker', 0, ROOM, TURN_MESSAGES)
      expect(await lanes.renew('worker', claimed, LEASE_MS)).toEqual(new Set(claimed.map(({ recipient }) => recipient)))
      expect(await claim()).toEqual([])
    })

    it('stay with nobody whose claim never reached it, whatever else it prolongs', async () => {
      const to = newAddress()
      await push(to)
      await lanes.claim('worker', 0, ROOM, TURN_MESSAGES)
      await push(newAddress())
      const claimed = (await claim()).filter(({ recipient }) => recipient !== to)
      await sql`update webhook_lanes set next_at = clock_timestamp(), holder = 'worker' where recipient = ${to}`.execute(
        harness.database,
      )
      await lanes.renew('worker', claimed, LEASE_MS)
      expect((await claimOne('another')).recipient).toBe(to)
    })

    it('that were given back or taken over are not prolonged, and who asks is told', async () => {
      const [gone, taken] = [newAddress(), newAddress()]
      await push(gone)
      const first = await claimOne()
      await lanes.release(turnOf(first, { delay: 60_000 }))
      await push(taken)
      const [second] = await lanes.claim('worker', 0, ROOM, TURN_MESSAGES)
      await claimOne('another')
      expect(await lanes.renew('worker', [first, second as ClaimedLane], LEASE_MS)).toEqual(new Set())
      expect(await lanes.due()).toBeLessThanOrEqual(LEASE_MS)
    })

    it('whatever times are stored, as where the clock was set back: none waits for longer than it may have been put off', async () => {
      const HOUR_MS = 3_600_000
      const ahead = fc.integer({ min: -2 * HOUR_MS, max: 2 * HOUR_MS })
      await fc.assert(
        fc.asyncProperty(
          ahead,
          ahead,
          fc.constantFrom('unknown' as const, 'prompt' as const, 'doubtful' as const, 'open' as const),
          fc.constantFrom(null, 'a worker'),
          async (nextMs, restMs, standing, holder) => {
            await sql`delete from webhook_lanes`.execute(harness.database)
            await push(newAddress())
            await sql`
              update webhook_lanes set standing = ${standing}, holder = ${holder},
                next_at = clock_timestamp() + ${nextMs} * interval '1 millisecond',
                open_until = clock_timestamp() + ${restMs} * interval '1 millisecond'`.execute(harness.database)
            const times = async () => {
              const { rows } = await sql<{ next: number; rest: number }>`
                select extract(epoch from next_at - clock_timestamp())::float8 * 1000 as next,
                       extract(epoch from open_until - clock_timestamp())::float8 * 1000 as rest
                from webhook_lanes`.execute(harness.database)
              return rows[0] as { next: number; rest: number }
            }
            // One that has looked at no times yet.
            const claimed = await new WebhookLanes(harness.database).claim('worker', LEASE_MS, ROOM, TURN_MESSAGES)
            const { next, rest } = await times()
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
      const resting = new WebhookLanes(harness.database, { circuitMs: REST_MS })
      const [lane] = await resting.claim('worker', LEASE_MS, ROOM, TURN_MESSAGES)
      const openUntil = (lane?.now ?? 0) + REST_MS
      await resting.release(turnOf(lane as ClaimedLane, { standing: 'open', openUntil }))
      // One that has looked at no times yet.
      const again = new WebhookLanes(harness.database, { circuitMs: REST_MS })
      const [claimed] = await again.claim('worker', LEASE_MS, ROOM, TURN_MESSAGES)
      expect(claimed?.openUntil).toBeCloseTo(openUntil, -1)
    })

    it('say whether the worker before gave them back', async () => {
      await push(newAddress(), 2)
      const first = await claimOne()
      expect(first.wasHeld).toBe(false)
      await lanes.release(turnOf(first))
      expect((await lanes.claim('killed', 0, ROOM, TURN_MESSAGES)).map(({ wasHeld }) => wasHeld)).toEqual([false])
      const last = await claimOne()
      expect(last.wasHeld).toBe(true)
      await lanes.release(turnOf(last))
      expect((await claimOne()).wasHeld).toBe(false)
    })

    it('are given in kinds only as there is room', async () => {
      const standings = ['unknown', 'prompt', 'doubtful', 'open'] as const
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
      // A doubtful one first, then a probe, and so on by turns.
      for (const [index, recipient] of Object.entries(Object.keys(kinds))) {
        const waiting = kinds[recipient] === 'probe' ? 59 - 2 * (Number(index) % 2) : 60 - 2 * (Number(index) % 4)
        await sql`
          update webhook_lanes set next_at = clock_timestamp() - ${waiting} * interval '1 second'
          where recipient = ${recipient}`.execute(harness.database)
      }
      const claimedKinds = async (room: Partial<Room>) =>
        Object.entries(
          Object.groupBy(
            (await claim(room)).map(({ recipient }) => kinds[recipient] ?? ''),
            (kind) => kind,
          ),
        )
          .map(([kind, all]) => `${all?.length} ${kind}`)
          .toSorted()
      expect(await claimedKinds({ total: 8, unproven: 3, doubtful: 2 })).toEqual([
        '1 doubtful',
        '1 probe',
        '1 unknown',
        '2 resting',
        '3 prompt',
      ])
      expect(await claimedKinds({ unproven: 0, doubtful: 0 })).toEqual(['1 prompt'])
      expect(await claimedKinds({})).toEqual(['1 probe', '3 doubtful', '3 unknown'])
    })

    it('share what room there is for those that may take long by how long they have waited', async () => {
      const standings = ['doubtful', 'open', 'open', 'doubtful'] as const
      const waiting: string[] = []
      for (const standing of standings) {
        const to = newAddress()
        await push(to)
        waiting.push(to)
        await lanes.release(
          turnOf(await claimOne(), { standing, openUntil: standing === 'open' ? 1 : 0, delay: 100_000 }),
        )
      }
      for (const [index, to] of waiting.entries()) {
        await sql`
          update webhook_lanes set next_at = clock_timestamp() - ${10 - index} * interval '1 second'
          where recipient = ${to}`.execute(harness.database)
      }
      const claimed: string[] = []
      for (const _ of waiting) claimed.push(...(await claim({ doubtful: 1 })).map(({ recipient }) => recipient))
      expect(claimed).toEqual(waiting)
    })

    /** Agents of one operator, each with a message that waits. */
    async function dueOf(operatorId: string, count: number): Promise<string[]> {
      const agents = Array.from({ length: count }, () => newAddress())
      for (const agent of agents) await push(agent)
      await sql`update webhook_lanes set operator_id = ${operatorId} where recipient in (${sql.join(agents)})`.execute(
        harness.database,
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
      const room = { ofOneOperator: 4 }
      const claimed = await claim(room)
      expect(of(many, claimed)).toBe(4)
      expect(await claim(room)).toEqual([])
      // Another worker has slots of its own.
      expect(await claim(room, 'another')).toHaveLength(4)
      await lanes.release(turnOf(claimed[0] as ClaimedLane, { standing: 'doubtful', delay: 60_000 }))
      expect(await claim(room)).toHaveLength(1)
    })

    it('that take long do not keep the only slot from those that have yet to be tried, nor these from them', async () => {
      await dueOf(randomUUID(), 40)
      for (const lane of await claim({ unproven: 20 })) await lanes.release(turnOf(lane, { standing: 'doubtful' }))
      const kinds = new Set<string>()
      while (kinds.size < 2) {
        const [lane] = await claim({ unproven: 1, doubtful: 1 })
        if (lane === undefined) continue
        kinds.add(lane.standing)
        await lanes.release(turnOf(lane))
      }
      expect([...kinds].toSorted()).toEqual(['doubtful', 'unknown'])
    })

    it('that have yet to be tried are found among many operators, wherever the search begins', async () => {
      const agents: string[] = []
      for (let index = 0; index < 12; index++) agents.push(...(await dueOf(randomUUID(), 2)))
      const claimed: string[] = []
      for (let round = 0; round < 24; round++)
        claimed.push(
          ...(await claim({ unproven: 1, doubtful: 1 }, `worker ${round % 2}`)).map(({ recipient }) => recipient),
        )
      // A claim may leave the only slot to one that took long.
      while (claimed.length < agents.length)
        claimed.push(...(await claim({ unproven: 2 })).map(({ recipient }) => recipient))
      expect(claimed.toSorted()).toEqual(agents.toSorted())
    })

    it('know whose they are', async () => {
      const operatorId = randomUUID()
      const to = newAddress()
      await sql`insert into agents (address, operator_id, token_lookup, token_hash)
        values (${to}, ${operatorId}, ${Buffer.from(to)}, '')`.execute(harness.database)
      await push(to)
      const { rows } = await sql`select operator_id from webhook_lanes where recipient = ${to}`.execute(
        harness.database,
      )
      expect(rows).toEqual([{ operator_id: operatorId }])
    })

    it('count what waits, until it is delivered or in the pull queue', async () => {
      const before = await lanes.backlog()
      const [one, two, three] = (await push(newAddress(), 3)) as [LoggedEvent, LoggedEvent, LoggedEvent]
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
          await Promise.all(
            claimed.map((lane) => lanes.release(turnOf(lane, { doneSeq: lane.messages.at(-1)?.seq ?? lane.lastSeq }))),
          )
        }
      })
      for (let round = 0; round < 20; round++) {
        const events = agents.map((agent) => ({ seq: ++seq, via: 'webhook' as const, ...sent(agent, 'x') }))
        await applyEvents(harness.database, events)
      }
      stop = true
      await working
      for (let left = 1; left > 0; ) {
        const claimed = await claim()
        left = claimed.length
        await Promise.all(
          claimed.map((lane) => lanes.release(turnOf(lane, { doneSeq: lane.messages.at(-1)?.seq ?? lane.lastSeq }))),
        )
      }
      const { rows } = await sql<{
        done_seq: number
        last_seq: number
      }>`select done_seq, last_seq from webhook_lanes`.execute(harness.database)
      expect(rows.every((row) => row.done_seq === row.last_seq)).toBe(true)
      expect(rows).toHaveLength(agents.length)
    })
  })
}
