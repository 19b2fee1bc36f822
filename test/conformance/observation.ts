/**
 * The conformance suite of the observation's read models: whatever batches the log comes in, they
 * are what it says.
 */
import { describe, expect, it } from 'vitest'
import { seededRandom } from '../../lab/random.ts'
import { newAddress } from '../../src/access/tokens.ts'
import type { EventType, LoggedEvent, NewEvent } from '../../src/events/event.ts'
import { ALL_TYPES, SPANS } from '../../src/observe/changes.ts'
import type { ObservationDatabase } from '../../src/observe/observation-database.ts'
import {
  type AgentFigures,
  type AgentsQuestion,
  ObservationTables,
  spanFor,
} from '../../src/observe/observation-tables.ts'
import { ObservationWriter } from '../../src/observe/observation-writer.ts'
import {
  type VerifiedObservation,
  verifyObservation,
} from '../../src/observe/verify-observation.ts'
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

/**
 * A society of some agents, of which each does this and that; numbers leave gaps as in a cluster.
 */
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
  read: async (since: number, limit: number) =>
    events.filter(({ seq }) => seq > since).slice(0, limit),
})

export function describeObservation(name: string, create: () => Promise<ObservationHarness>): void {
  describe(`read models of the observation: ${name}`, () => {
    async function filled(seed: number, count: number) {
      const harness = await create()
      const tables = new ObservationTables(harness.database)
      const writer = new ObservationWriter(harness.database)
      const events = society(seed, count)
      const random = seededRandom(seed)
      let position = 0
      for (let from = 0; from < events.length; ) {
        const batch = events.slice(from, from + 1 + Math.floor(random() * 90))
        expect(await writer.apply(position, batch)).toBe(true)
        position = batch.at(-1)?.seq as number
        from += batch.length
      }
      const differences = async () => {
        const found: string[] = []
        await verifyObservation(harness.verified, logOf(events), (difference) =>
          found.push(difference),
        )
        return found
      }
      return { harness, tables, writer, events, differences }
    }

    it.each([1, 2])(
      'are what a replay of the log gives, in whatever batches (%i)',
      async (seed) => {
        const { harness, tables, events, differences } = await filled(seed, 800)
        await using _ = harness
        expect(await differences()).toEqual([])
        expect(await tables.position()).toBe(events.at(-1)?.seq)
      },
    )

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
        'update events set at = at + 1 where seq = (select max(seq) from events where type = 2)',
        'update events set nth = nth + 1 where seq = (select max(seq) from events where type = 9)',
        'update events set agent_nth = 99 where seq = (select min(seq) from events where agent_nth is not null)',
        'update events set keys = 99 where seq = (select max(seq) from events where keys is not null)',
        'update position set keys = keys + 1',
        'delete from messages where seq = (select min(seq) from messages)',
        'update messages set received = received + 1 where seq = (select max(seq) from messages)',
        'update totals set count = count + 1 where type = 3',
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
      const { harness, writer, events, differences } = await filled(4, 100)
      await using _ = harness
      expect(await writer.apply(0, events)).toBe(false)
      expect(await differences()).toEqual([])
    })

    it('find the events of a type, of an agent, and of both, forwards and backwards, page by page', async () => {
      const { harness, tables, events } = await filled(5, 600)
      await using _ = harness
      const busiest = events.find(({ type }) => type === 'message_sent')?.agent as string
      const rare = new Set<EventType>(['state_key_removed', 'state_deleted'])
      for (const filter of [
        {},
        { types: rare },
        { agent: busiest },
        { agent: busiest, types: rare },
      ]) {
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
        expect(
          await tables.seqs(
            filter,
            { ...ALL, after: middle, until: wanted.at(-2) as number },
            1_000,
          ),
        ).toEqual(wanted.filter((seq) => seq > middle && seq <= (wanted.at(-2) as number)))
      }
      expect(await tables.seqs({ agent: newAddress() }, ALL, 10)).toEqual([])
    })

    it('list agents by their registration, and tell of one', async () => {
      const { harness, tables, events } = await filled(6, 300)
      await using _ = harness
      const registered = events.flatMap(({ type, data }) =>
        type === 'agent_registered' ? [data.address] : [],
      )
      const list = async (question: Pick<AgentsQuestion, 'order' | 'beginning'>) => {
        const all: AgentFigures[] = []
        for (let after: AgentsQuestion['after']; ; ) {
          const { agents, total } = await tables.agents({ ...question, after, limit: 3 })
          expect(total).toBe(registered.length)
          all.push(...agents)
          const last = agents.at(-1)
          if (agents.length < 3 || !last) return all
          after = { id: last.id, busy: last.sent + last.received, address: last.address }
        }
      }
      const addresses = (agents: readonly AgentFigures[]) => agents.map(({ address }) => address)
      expect(addresses(await list({ order: 'registered' }))).toEqual(registered)
      expect(addresses(await list({ order: 'newest' }))).toEqual(registered.toReversed())
      const busiest = await list({ order: 'busiest' })
      expect(addresses(busiest).sort()).toEqual(registered.toSorted())
      const counts = busiest.map(({ sent, received }) => sent + received)
      expect(counts).toEqual(counts.toSorted((one, other) => other - one))
      expect(addresses(await list({ order: 'address' }))).toEqual(registered.toSorted())
      for (const beginning of [
        'tab_',
        registered[0]?.slice(0, 5) as string,
        registered[0] as string,
        'tab_-',
        'x',
        '%',
      ])
        expect(addresses(await list({ order: 'address', beginning }))).toEqual(
          registered.filter((address) => address.startsWith(beginning)).sort(),
        )
      const [first = ''] = registered
      const its = (type: EventType) =>
        events.filter((event) => event.type === type && event.agent === first).length
      expect(await tables.agent(first)).toMatchObject({
        address: first,
        sent: its('message_sent'),
        writes: its('state_written'),
        received: events.filter(({ type, data }) => type === 'message_sent' && data.to === first)
          .length,
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
      expect(
        Object.fromEntries(all.edges.map(({ from, to, count }) => [`${from} ${to}`, count])),
      ).toEqual(Object.fromEntries(counts))
      expect(all.nodes).toHaveLength(
        events.filter(({ type }) => type === 'agent_registered').length,
      )
      expect(all.edges.map(({ count }) => count)).toEqual(
        all.edges.map(({ count }) => count).toSorted((one, other) => other - one),
      )
      const heaviest = await tables.network({ minCount: 1, limit: 4 })
      expect(heaviest.edges.map(({ count }) => count)).toEqual(
        all.edges.slice(0, 4).map(({ count }) => count),
      )
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
        expect(
          Object.fromEntries(rows.map(({ bucket, type, count }) => [`${bucket} ${type}`, count])),
        ).toEqual(Object.fromEntries(wanted))
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
          (event.type === 'state_written' ||
            event.type === 'state_deleted' ||
            event.type === 'state_key_removed') &&
          event.data.key === key
            ? [
                {
                  seq: event.seq,
                  type: event.type,
                  author: event.agent ?? null,
                  at: Date.parse(event.ts),
                },
              ]
            : [],
        )
        .reverse()
      const versions = await tables.versions(key, Number.MAX_SAFE_INTEGER, 1_000)
      expect(versions.map(({ length, ...version }) => version)).toEqual(wanted)
      expect(await tables.versions(key, wanted[1]?.seq as number, 1)).toMatchObject([wanted[2]])
      expect(await tables.versions('no such key', Number.MAX_SAFE_INTEGER, 10)).toEqual([])
    })

    it('tell how it was after any event, as if the log had ended there', async () => {
      const { harness, tables, events } = await filled(10, 500)
      await using _ = harness
      for (const length of [1, 2, 60, 250, 499, 500]) {
        const had = events.slice(0, length)
        const at = (had.at(-1)?.seq ?? 0) + (length === 60 ? 0.5 : 0)
        const place = Math.floor(at)
        await using other = await create()
        const then = new ObservationTables(other.database)
        expect(await new ObservationWriter(other.database).apply(0, had)).toBe(true)

        expect(await tables.totals(place)).toEqual(await then.totals(Number.MAX_SAFE_INTEGER))
        const figures = await then.agents({ order: 'registered', limit: 1_000 })
        // Times of clocks that differ: then it is the last deed's, now the latest.
        const withoutTime = ({ agents, total }: typeof figures) => ({
          total,
          agents: agents.map(({ lastActive, ...rest }) => ({
            ...rest,
            hasActed: lastActive !== null,
          })),
        })
        expect(
          withoutTime(await tables.agents({ order: 'registered', limit: 1_000, at: place })),
        ).toEqual(withoutTime(figures))
        const address = figures.agents.at(-1)?.address ?? ''
        expect(await tables.agent(address, place)).toMatchObject({
          sent: figures.agents.at(-1)?.sent,
        })

        const network = { minCount: 1, limit: 10_000 }
        const edges = async (its: ObservationTables, options: Parameters<typeof its.network>[0]) =>
          (await its.network(options)).edges
            .map(({ from, to, count }) => `${from} ${to} ${count}`)
            .sort()
        expect(await edges(tables, { ...network, at: place })).toEqual(await edges(then, network))
        expect(await edges(tables, { ...network, agent: address, at: place })).toEqual(
          await edges(then, { ...network, agent: address }),
        )
        const counts = async (its: ObservationTables, at?: number) =>
          (await its.network({ minCount: 2, limit: 5, at })).edges.map(({ count }) => count)
        expect(await counts(tables, place)).toEqual(await counts(then))

        const keys = new Map<string, number | undefined>()
        for (const { type, data } of had) {
          if (type === 'state_written') keys.set(data.key, data.value_length)
          else if (type === 'state_deleted' || type === 'state_key_removed') keys.delete(data.key)
        }
        const { keys: found, next } = await tables.keysThen({
          prefix: '',
          after: undefined,
          at: place,
          limit: 100,
        })
        expect(next).toBeUndefined()
        expect(found.map(({ key, length }) => [key.toString(), length])).toEqual([...keys].sort())
        expect(await tables.totals(place)).toMatchObject({ keys: keys.size })
      }
      expect(await tables.totals(0)).toEqual({
        seq: 0,
        at: null,
        agents: 0,
        keys: 0,
        types: new Map(),
      })
      expect(await tables.agents({ order: 'registered', limit: 10, at: 0 })).toEqual({
        agents: [],
        total: 0,
      })
      expect(await tables.network({ minCount: 1, limit: 10, at: 0 })).toEqual({
        nodes: [],
        edges: [],
      })
    })

    it('list the keys of a moment page by page, below a prefix', async () => {
      const { harness, tables, writer, events } = await filled(11, 50)
      await using _ = harness
      const author = events[0]?.agent as string
      const last = events.at(-1)?.seq as number
      const names = ['a', 'b/1', 'b/2', 'b/3', 'b0', 'b\u00ff', 'c']
      const at = new Date(BEGINNING).toISOString()
      const made = names.map((key, index) => ({
        ...written(key, 'v', author),
        ts: at,
        seq: last + 1 + index,
      }))
      const gone = { ...deleted('b/2', author), ts: at, seq: last + 100 }
      expect(await writer.apply(last, [...made, gone])).toBe(true)
      const list = async (prefix: string, place: number) => {
        const pages: string[] = []
        for (let after: Buffer | undefined; ; ) {
          const { keys, next } = await tables.keysThen({ prefix, after, at: place, limit: 2 })
          pages.push(...keys.map(({ key }) => key.toString()))
          if (next === undefined) return pages
          after = next
        }
      }
      expect(await list('b/', last + 50)).toEqual(['b/1', 'b/2', 'b/3'])
      expect(await list('b/', last + 100)).toEqual(['b/1', 'b/3'])
      expect(await list('b/', last + 2)).toEqual(['b/1'])
      expect(await list('b', last + 50)).toEqual(['b/1', 'b/2', 'b/3', 'b0', 'b\u00ff'])
      expect(await list('nothing', last + 50)).toEqual([])
    })

    it('tell which event was the last at a time', async () => {
      const { harness, tables, writer, events } = await filled(12, 10)
      await using _ = harness
      const author = events[0]?.agent as string
      const last = events.at(-1)?.seq as number
      const start = Date.parse(events.at(-1)?.ts as string) + 3_600_000
      const later = [0, 1_000, 1_500, 61_000, 7_200_000].map((ms, index) => ({
        ...registryRead(author),
        ts: new Date(start + ms).toISOString(),
        seq: last + 1 + index,
      }))
      expect(await writer.apply(last, later)).toBe(true)
      for (const [ms, seq] of [
        [-1, last],
        [0, last + 1],
        [999, last + 1],
        [1_499, last + 2],
        [1_500, last + 3],
        [60_999, last + 3],
        [61_000, last + 4],
        [3_600_000, last + 4],
        [7_200_000, last + 5],
        [86_400_000, last + 5],
      ] as const)
        expect(await tables.seqAt(start + ms), `${ms} ms`).toBe(seq)
      expect(await tables.seqAt(0)).toBe(0)
    })

    it('find the messages between two agents', async () => {
      const { harness, tables, events } = await filled(13, 500)
      await using _ = harness
      const [[one, other] = ['', '']] = events.flatMap(({ type, data }) =>
        type === 'message_sent' ? [[data.from, data.to] as const] : [],
      )
      const wanted = events.flatMap(({ type, data, seq }) =>
        type === 'message_sent' &&
        [`${one} ${other}`, `${other} ${one}`].includes(`${data.from} ${data.to}`)
          ? [seq]
          : [],
      )
      expect(await tables.seqs({ agent: one, with: other }, ALL, 1_000)).toEqual(wanted)
      expect(
        await tables.seqs({ agent: other, with: one }, { ...ALL, isBackwards: true }, 1),
      ).toEqual(wanted.slice(-1))
      expect(
        await tables.seqs(
          { agent: one, with: other, types: new Set<EventType>(['state_read']) },
          ALL,
          9,
        ),
      ).toEqual([])
      expect(await tables.seqs({ agent: one, with: newAddress() }, ALL, 9)).toEqual([])
    })
  })
}
