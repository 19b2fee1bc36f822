/** The conformance suite of the observation's read models: whatever batches the log comes in, they are what it says. */
import { describe, expect, it } from 'vitest'
import { seededRandom } from '../../lab/random.ts'
import { newAddress } from '../../src/access/tokens.ts'
import type { EventType, LoggedEvent, NewEvent } from '../../src/events/event.ts'
import { ALL_TYPES, SPANS } from '../../src/observe/changes.ts'
import type { ObservationDatabase } from '../../src/observe/observation-database.ts'
import { ObservationTables, spanFor } from '../../src/observe/observation-tables.ts'
import { type VerifiedObservation, verifyObservation } from '../../src/observe/verify-observation.ts'
import { deleted, keyRemoved, read, registryRead, sent, written } from './support.ts'

export interface ObservationHarness extends AsyncDisposable {
  readonly database: ObservationDatabase
  /** The same tables, in a session of its own. */
  readonly verified: VerifiedObservation
  /** Runs a statement on them. */
  execute(statement: string): Promise<void>
}

const BEGINNING = Date.UTC(2026, 0, 1)
const ALL = { after: 0, until: Number.MAX_SAFE_INTEGER, isBackwards: false }

/** A society of some agents, of which each does this and that; numbers leave gaps as in a cluster. */
function society(seed: number, count: number): LoggedEvent[] {
  const random = seededRandom(seed)
  const pick = <T>(all: readonly T[]) => all[Math.floor(random() * all.length)] as T
  const agents: string[] = []
  const events: LoggedEvent[] = []
  let at = BEGINNING
  let seq = 1_000
  const add = (event: NewEvent) => {
    // Clocks of nodes differ: now and then one is behind.
    at += Math.floor(random() * 40_000) - 5_000
    seq += random() < 0.8 ? 1 : 1_000
    events.push({ ...event, ts: new Date(at).toISOString(), seq })
  }
  const register = () => {
    const address = newAddress()
    agents.push(address)
    const data = { address, operator_id: 'someone', has_webhook: false }
    add({ ts: '', type: 'agent_registered', agent: address, data })
  }
  register()
  while (events.length < count) {
    const chance = random()
    const agent = pick(agents)
    const key = `key/${Math.floor(random() * 5)} \0ü`
    if (chance < 0.05) register()
    else if (chance < 0.4) add(sent(pick(agents), 'hello', agent))
    else if (chance < 0.5) {
      const to = pick(agents)
      const method = random() < 0.5 ? 'pull' : 'push'
      add({
        ts: '',
        type: 'message_delivered',
        agent: to,
        data: { message_id: 'm', to, delivery_method: method },
      })
    } else if (chance < 0.7) add(written(key, 'x'.repeat(Math.floor(random() * 9)), agent))
    else if (chance < 0.75) add(deleted(key, agent))
    else if (chance < 0.77) add(keyRemoved(key))
    else if (chance < 0.9) add(read(key, agent))
    else add(registryRead(agent))
  }
  return events
}

const logOf = (events: readonly LoggedEvent[]) => ({
  read: async (since: number, limit: number) => events.filter(({ seq }) => seq > since).slice(0, limit),
})

export function describeObservation(name: string, create: () => Promise<ObservationHarness>): void {
  describe(`read models of the observation: ${name}`, () => {
    async function filled(seed: number, count: number) {
      const harness = await create()
      const tables = new ObservationTables(harness.database)
      const events = society(seed, count)
      const random = seededRandom(seed)
      let position = 0
      for (let from = 0; from < events.length; ) {
        const batch = events.slice(from, from + 1 + Math.floor(random() * 90))
        expect(await tables.apply(position, batch)).toBe(true)
        position = batch.at(-1)?.seq as number
        from += batch.length
      }
      const differences = async () => {
        const found: string[] = []
        await verifyObservation(harness.verified, logOf(events), (difference) => found.push(difference))
        return found
      }
      return { harness, tables, events, differences }
    }

    it.each([1, 2])('are what a replay of the log gives, in whatever batches (%i)', async (seed) => {
      const { harness, tables, events, differences } = await filled(seed, 800)
      await using _ = harness
      expect(await differences()).toEqual([])
      expect(await tables.position()).toEqual({
        seq: events.at(-1)?.seq,
        agents: events.filter(({ type }) => type === 'agent_registered').length,
      })
    })

    it('verify tells of each row that is not as the log says', async () => {
      const { harness, differences } = await filled(3, 200)
      await using _ = harness
      for (const change of [
        'update agents set messages_sent = messages_sent + 1 where id = (select min(id) from agents)',
        'update agents set last_active = 1 where id = (select max(id) from agents)',
        'update position set agents = agents + 1',
        'delete from edges where count = (select max(count) from edges)',
        'update events set type = 9 where seq = (select max(seq) from events where type = 3)',
        'delete from events where seq = (select min(seq) from events)',
        'update activity set count = count + 1 where agent = 0 and span = 60 and first_seq = (select min(seq) from events)',
        'delete from activity where agent <> 0 and first_seq = (select max(first_seq) from activity where agent <> 0)',
        'update key_versions set length = 99 where seq = (select max(seq) from key_versions where length is not null)',
      ]) {
        const before = (await differences()).length
        await harness.execute(change)
        expect((await differences()).length, change).toBeGreaterThan(before)
      }
    })

    it('apply nothing where the position is another', async () => {
      const { harness, tables, events, differences } = await filled(4, 100)
      await using _ = harness
      expect(await tables.apply(0, events)).toBe(false)
      expect(await differences()).toEqual([])
    })

    it('find the events of a type, of an agent, and of both, forwards and backwards, page by page', async () => {
      const { harness, tables, events } = await filled(5, 600)
      await using _ = harness
      const busiest = events.find(({ type }) => type === 'message_sent')?.agent as string
      const rare = new Set<EventType>(['state_key_removed', 'state_deleted'])
      for (const filter of [{}, { types: rare }, { agent: busiest }, { agent: busiest, types: rare }]) {
        const wanted = events
          .filter(({ type }) => filter.types?.has(type) ?? true)
          .filter(({ agent }) => filter.agent === undefined || agent === filter.agent)
          .map(({ seq }) => seq)
        expect(await tables.seqs(filter, ALL, 1_000)).toEqual(wanted)
        const pages: number[] = []
        for (let until = ALL.until; ; ) {
          const page = await tables.seqs(filter, { after: 0, until, isBackwards: true }, 7)
          pages.push(...page)
          if (page.length < 7) break
          until = (page.at(-1) as number) - 1
        }
        expect(pages.reverse()).toEqual(wanted)
        const middle = wanted[Math.floor(wanted.length / 2)] as number
        expect(await tables.seqs(filter, { ...ALL, after: middle, until: wanted.at(-2) as number }, 1_000)).toEqual(
          wanted.filter((seq) => seq > middle && seq <= (wanted.at(-2) as number)),
        )
      }
      expect(await tables.seqs({ agent: newAddress() }, ALL, 10)).toEqual([])
    })

    it('list agents by their registration, and tell of one', async () => {
      const { harness, tables, events } = await filled(6, 300)
      await using _ = harness
      const registered = events.flatMap(({ type, data }) => (type === 'agent_registered' ? [data.address] : []))
      const seen: string[] = []
      for (let after = 0; ; ) {
        const { agents, total } = await tables.agents(after, 3)
        expect(total).toBe(registered.length)
        seen.push(...agents.map(({ address }) => address))
        if (agents.length < 3) break
        after = agents.at(-1)?.id as number
      }
      expect(seen).toEqual(registered)
      const [first = ''] = registered
      const its = (type: EventType) => events.filter((event) => event.type === type && event.agent === first).length
      expect(await tables.agent(first)).toMatchObject({
        address: first,
        sent: its('message_sent'),
        writes: its('state_written'),
        received: events.filter(({ type, data }) => type === 'message_sent' && data.to === first).length,
      })
      expect(await tables.agent('nobody')).toBeUndefined()
    })

    it('tell who wrote to whom, the heaviest first, of everybody and of one', async () => {
      const { harness, tables, events } = await filled(7, 600)
      await using _ = harness
      const counts = new Map<string, number>()
      for (const { type, data } of events) {
        if (type !== 'message_sent') continue
        const edge = `${data.from} ${data.to}`
        counts.set(edge, (counts.get(edge) ?? 0) + 1)
      }
      const all = await tables.network({ minCount: 1, limit: 10_000 })
      expect(Object.fromEntries(all.edges.map(({ from, to, count }) => [`${from} ${to}`, count]))).toEqual(
        Object.fromEntries(counts),
      )
      expect(all.nodes).toHaveLength(events.filter(({ type }) => type === 'agent_registered').length)
      expect(all.edges.map(({ count }) => count)).toEqual(
        all.edges.map(({ count }) => count).toSorted((one, other) => other - one),
      )
      const heaviest = await tables.network({ minCount: 1, limit: 4 })
      expect(heaviest.edges.map(({ count }) => count)).toEqual(all.edges.slice(0, 4).map(({ count }) => count))
      const few = await tables.network({ minCount: 3, limit: 10_000 })
      expect(few.edges).toEqual(all.edges.filter(({ count }) => count >= 3))
      const agent = all.edges[0]?.from as string
      const its = await tables.network({ minCount: 1, limit: 10_000, agent })
      expect(new Set(its.edges.map(({ from, to }) => `${from} ${to}`))).toEqual(
        new Set([...counts.keys()].filter((edge) => edge.split(' ').includes(agent))),
      )
    })

    it('tell of the activity in any stretch, of everybody and of one', async () => {
      const { harness, tables, events } = await filled(8, 600)
      await using _ = harness
      const agent = events[0]?.agent as string
      for (const [whose, seconds] of [
        [undefined, 60],
        [undefined, 900],
        [agent, 3_600],
      ] as const) {
        const span = spanFor(seconds, whose)
        const width = Math.ceil(seconds / span) * span
        const from = Math.floor(BEGINNING / 1_000 / span) * span - width
        const to = from + width * 2_000
        const rows = await tables.activity(
          { from, to, width, span },
          { types: new Set(ALL_TYPES), ...(whose !== undefined && { agent: whose }) },
        )
        const wanted = new Map<string, number>()
        for (const event of events) {
          if (whose !== undefined && event.agent !== whose) continue
          const name = `${Math.floor((Date.parse(event.ts) / 1_000 - from) / width)} ${event.type}`
          wanted.set(name, (wanted.get(name) ?? 0) + 1)
        }
        expect(Object.fromEntries(rows.map(({ bucket, type, count }) => [`${bucket} ${type}`, count]))).toEqual(
          Object.fromEntries(wanted),
        )
      }
      const first = Math.min(...events.map(({ ts }) => Date.parse(ts)))
      expect(await tables.beginning()).toBe(Math.floor(first / 1_000 / SPANS[0]) * SPANS[0])
    })

    it('keep what became of a key', async () => {
      const { harness, tables, events } = await filled(9, 400)
      await using _ = harness
      const key = 'key/0 \0ü'
      const wanted = events
        .flatMap((event) =>
          (event.type === 'state_written' || event.type === 'state_deleted' || event.type === 'state_key_removed') &&
          event.data.key === key
            ? [{ seq: event.seq, type: event.type, author: event.agent ?? null, at: Date.parse(event.ts) }]
            : [],
        )
        .reverse()
      const versions = await tables.versions(key, Number.MAX_SAFE_INTEGER, 1_000)
      expect(versions.map(({ length, ...version }) => version)).toEqual(wanted)
      expect(await tables.versions(key, wanted[1]?.seq as number, 1)).toMatchObject([wanted[2]])
      expect(await tables.versions('no such key', Number.MAX_SAFE_INTEGER, 10)).toEqual([])
    })
  })
}
