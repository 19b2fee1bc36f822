import { createHash } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { type Agent, Client, solvePipeline, timestamp } from '../../lab/client.ts'
import type { Event } from '../../lab/kernel.ts'
import { seededRandom } from '../../lab/random.ts'
import { ownTarget } from '../support/target.ts'
import {
  byteLength,
  eventually,
  expectRefusal,
  inParallel,
  lastSeq,
  ofType,
  queuesFilled,
  receiveSoon,
} from './support.ts'

const target = await ownTarget()
/** One whose log holds nothing but what the test that replays it has done. */
const fresh = await ownTarget()
const client = new Client(target.baseUrl)

const CHANGES = [
  'operator_created',
  'agent_registered',
  'message_sent',
  'message_delivered',
  'state_written',
  'state_deleted',
]
const READS = ['state_read', 'registry_read']

/** Events without what differs from run to run. */
const bare = (events: readonly Event[]) =>
  events.map(({ type, agent, data }) => ({ type, agent, data }))

/** Waits for this many events of the type after `since`, and checks that there are no more. */
async function awaitEvents(since: number, type: string, count: number): Promise<Event[]> {
  const events = await eventually(target, since, (all) =>
    expect(ofType(all, type)).toHaveLength(count),
  )
  return ofType(events, type)
}

describe('events', () => {
  it('are {"seq", "ts", "type", "agent", "data"}, in one total order, seq increasing', async () => {
    const agents = await client.registerAgents(4)
    await inParallel(40, (index) =>
      (agents[index % 4] as Agent).write(`order/${index % 7}`, String(index)),
    )
    const events = await target.events()
    expect(events.length).toBeGreaterThanOrEqual(45)
    for (const { ts, type } of events) {
      timestamp.parse(ts)
      expect([...CHANGES, ...READS]).toContain(type)
    }
    for (const [index, { seq }] of events.entries())
      expect(seq).toBeGreaterThan(events[index - 1]?.seq ?? 0)
  })

  it('are appended only: what was read once is read the same again', async () => {
    const before = await target.events()
    const agent = await client.registerAgent()
    await agent.write('appended', 'x')
    await agent.remove('appended')
    const after = await target.events()
    expect(after.slice(0, before.length)).toEqual(before)
    expect(after.length).toBeGreaterThan(before.length)
  })

  it('survive a restart, and seq goes on from there', async () => {
    const agent = await client.registerAgent()
    await agent.write('restart', 'before')
    const before = await target.events()
    await target.restart()
    expect((await target.events()).slice(0, before.length)).toEqual(before)
    await agent.write('restart', 'after')
    const [next] = ofType(await target.events(before.at(-1)?.seq), 'state_written')
    expect(next?.data).toMatchObject({ key: 'restart', value: 'after' })
    expect(next?.seq).toBeGreaterThan(before.at(-1)?.seq ?? Number.POSITIVE_INFINITY)
  })
})

describe('a success has one event, in the log before its response is sent', () => {
  it('operator_created: operator_id, contact_hash, accepted_terms; without agent', async () => {
    const since = await lastSeq(target)
    const operator = await client.registerOperator('someone 😀')
    expect(bare(await target.events(since))).toEqual([
      {
        type: 'operator_created',
        agent: undefined,
        data: { operator_id: operator.id, contact_hash: 'someone 😀', accepted_terms: true },
      },
    ])
    expect((await target.events(since))[0]).not.toHaveProperty('agent')
  })

  it.each([undefined, 'https://1.1.1.1/hook'])(
    'agent_registered: address, operator_id, has_webhook (webhook_url %s)',
    async (webhookUrl) => {
      const operator = await client.registerOperator()
      const since = await lastSeq(target)
      const { address } = await operator.registerAgent(webhookUrl)
      const events = await target.events(since)
      expect(events.map(({ type, data }) => ({ type, data }))).toEqual([
        {
          type: 'agent_registered',
          data: { address, operator_id: operator.id, has_webhook: webhookUrl !== undefined },
        },
      ])
      expect([undefined, address]).toContain(events[0]?.agent)
    },
  )

  it('message_sent: message_id, from, to, content, content_length', async () => {
    const [sender, recipient] = (await client.registerAgents(2)) as [Agent, Agent]
    const since = await lastSeq(target)
    const { message_id } = await sender.send(recipient.address, 'zwölf €😀\u0000')
    expect(bare(await target.events(since))).toEqual([
      {
        type: 'message_sent',
        agent: sender.address,
        data: {
          message_id,
          from: sender.address,
          to: recipient.address,
          content: 'zwölf €😀\u0000',
          content_length: byteLength('zwölf €😀\u0000'),
        },
      },
    ])
  })

  it('message_sent carries the time that the sender was told', async () => {
    const agent = await client.registerAgent()
    const since = await lastSeq(target)
    const sent = await agent.send(agent.address, 'x')
    expect((await target.events(since))[0]?.ts).toBe(sent.timestamp)
  })

  it('state_written: key, value, value_length, written_by', async () => {
    const agent = await client.registerAgent()
    const since = await lastSeq(target)
    await agent.write('log/😀\u0000', 'é\u0000')
    expect(bare(await target.events(since))).toEqual([
      {
        type: 'state_written',
        agent: agent.address,
        data: { key: 'log/😀\u0000', value: 'é\u0000', value_length: 3, written_by: agent.address },
      },
    ])
  })

  it('state_written has a value of 1 MiB that JSON escapes to 6 MiB, whole', async () => {
    const agent = await client.registerAgent()
    const since = await lastSeq(target)
    const value = '\u0001'.repeat(1_048_576)
    await agent.write('log/large', value)
    const [event] = await target.events(since)
    expect(event?.data.value === value).toBe(true)
    expect(event?.data.value_length).toBe(1_048_576)
    await agent.remove('log/large')
  })

  it('state_deleted: key, deleted_by', async () => {
    const [writer, remover] = (await client.registerAgents(2)) as [Agent, Agent]
    await writer.write('log/deleted', 'x')
    const since = await lastSeq(target)
    await remover.remove('log/deleted')
    expect(bare(await target.events(since))).toEqual([
      {
        type: 'state_deleted',
        agent: remover.address,
        data: { key: 'log/deleted', deleted_by: remover.address },
      },
    ])
  })

  it('whatever runs at the same time', async () => {
    const agents = (await client.registerAgents(5)) as Agent[]
    const since = await lastSeq(target)
    await inParallel(100, async (index) => {
      const agent = agents[index % 5] as Agent
      const content = crypto.randomUUID()
      if (index % 2 === 0) await agent.send(agent.address, content)
      else await agent.write(`log/parallel/${index}`, content)
      const own = (await target.events(since)).filter(({ data }) =>
        [data.content, data.value].includes(content),
      )
      expect(own).toHaveLength(1)
    })
  })
})

describe('a success that changes nothing the API shows has its event soon after', () => {
  it('message_delivered: message_id, to, delivery_method, once the message was pulled', async () => {
    const [sender, recipient] = (await client.registerAgents(2)) as [Agent, Agent]
    const sent = await inParallel(3, (index) => sender.send(recipient.address, String(index)))
    const since = await lastSeq(target)
    expect(await receiveSoon(recipient, 1, '?limit=1')).toHaveLength(1)
    expect(await receiveSoon(recipient, 2)).toHaveLength(2)
    const delivered = await awaitEvents(since, 'message_delivered', 3)
    expect(delivered.map(({ data }) => data)).toEqual(
      expect.arrayContaining(
        sent.map(({ message_id }) => ({
          message_id,
          to: recipient.address,
          delivery_method: 'pull',
        })),
      ),
    )
    expect(new Set(delivered.map(({ agent }) => agent))).toEqual(new Set([recipient.address]))
  })

  it('a message that is only queued has not been delivered', async () => {
    const agent = await client.registerAgent()
    const since = await lastSeq(target)
    const first = await agent.send(agent.address, 'first')
    await agent.send(agent.address, 'second')
    await receiveSoon(agent, 1, '?limit=1')
    const delivered = await awaitEvents(since, 'message_delivered', 1)
    expect(delivered[0]?.data.message_id).toBe(first.message_id)
  })

  it('an empty pull leaves no event', async () => {
    const agent = await client.registerAgent()
    const since = await lastSeq(target)
    await agent.receive()
    await agent.send(agent.address, 'x')
    await receiveSoon(agent, 1)
    await awaitEvents(since, 'message_delivered', 1)
    expect((await target.events(since)).map(({ type }) => type)).toEqual([
      'message_sent',
      'message_delivered',
    ])
  })

  it('state_read: key, read_by, found', async () => {
    const agent = await client.registerAgent()
    await agent.write('log/read\u0000', 'x')
    const since = await lastSeq(target)
    await agent.read('log/read\u0000')
    expectRefusal(await agent.tryRead('log/absent'), 404)
    const reads = await awaitEvents(since, 'state_read', 2)
    expect(bare(reads)).toEqual(
      expect.arrayContaining([
        {
          type: 'state_read',
          agent: agent.address,
          data: { key: 'log/read\u0000', read_by: agent.address, found: true },
        },
        {
          type: 'state_read',
          agent: agent.address,
          data: { key: 'log/absent', read_by: agent.address, found: false },
        },
      ]),
    )
  })

  it('registry_read: read_by', async () => {
    const agent = await client.registerAgent()
    const since = await lastSeq(target)
    await agent.registry()
    await agent.registry('?limit=1')
    const reads = await awaitEvents(since, 'registry_read', 2)
    const expected = {
      type: 'registry_read',
      agent: agent.address,
      data: { read_by: agent.address },
    }
    expect(bare(reads)).toEqual([expected, expected])
  })
})

describe('requests without an event of their own', () => {
  it('health, challenges, listings, the capacity and what an agent asks about itself', async () => {
    const operator = await client.registerOperator()
    const agent = await operator.registerAgent()
    const since = await lastSeq(target)
    await client.request('GET', '/v1/health')
    await operator.challenge()
    await agent.me()
    await agent.list()
    await agent.list('?prefix=log')
    await agent.capacity()
    await agent.receive()
    // The events that are not waited for come in order, so this one is the last of them.
    await agent.registry()
    await awaitEvents(since, 'registry_read', 1)
    expect((await target.events(since)).map(({ type }) => type)).toEqual(['registry_read'])
  })
})

describe('a refused request leaves no event', () => {
  it('of any kind', async () => {
    const operator = await client.registerOperator()
    const agent = await operator.registerAgent()
    const used = await operator.challenge()
    expectRefusal(await operator.answerChallenge(used.challenge_id, 'wrong'), 403)
    const since = await lastSeq(target)
    const json = (value: unknown) => ({ json: value })
    const body = (text: string | Buffer) => ({
      headers: { 'Content-Type': 'application/json' },
      body: text,
    })

    const refusals: [number, Promise<{ status: number }>][] = [
      [
        400,
        client.request('POST', '/v1/operators', json({ contact_hash: '', accept_terms: true })),
      ],
      [
        400,
        client.request('POST', '/v1/operators', json({ contact_hash: 'x', accept_terms: false })),
      ],
      [
        415,
        client.request('POST', '/v1/operators', {
          body: '{"contact_hash":"x","accept_terms":true}',
        }),
      ],
      [400, operator.request('POST', '/v1/agents', json({}))],
      [403, operator.answerChallenge(used.challenge_id, solvePipeline(used.challenge_data))],
      [403, operator.answerChallenge(crypto.randomUUID(), 'x')],
      [401, agent.request('POST', '/v1/agents', json({}))],
      [401, operator.request('GET', '/v1/registry')],
      [401, operator.request('GET', '/v1/state/refused')],
      [401, client.request('PUT', '/v1/state/refused', json({ value: 'x' }))],
      [
        400,
        agent.registry('?limit=1').then(() => agent.request('GET', '/v1/registry?cursor=garbage')),
      ],
      [404, agent.trySend(`tab_${'0'.repeat(20)}`, 'x')],
      [400, agent.trySend(agent.address, '')],
      [400, agent.trySend(agent.address, 'x'.repeat(65_537))],
      [400, agent.request('POST', '/v1/messages', body('{"to":'))],
      [400, agent.request('POST', '/v1/messages', body(Buffer.from([0x7b, 0xff, 0x7d])))],
      [400, agent.tryWrite('refused', 7)],
      [400, agent.tryWrite('k'.repeat(1_025), 'x')],
      [413, agent.tryWrite('refused', 'x'.repeat(1_048_577))],
      [400, agent.request('PUT', '/v1/state/%zz', json({ value: 'x' }))],
      [400, agent.request('GET', '/v1/state/%zz')],
      [400, agent.tryRead('k'.repeat(1_025))],
      [404, agent.tryRemove('refused')],
      [405, agent.request('PATCH', '/v1/state/refused', json({ value: 'x' }))],
      [405, agent.request('HEAD', '/v1/messages')],
      [405, agent.request('PATCH', '/v1/state/refused')],
      [405, agent.request('OPTIONS', '/v1/registry')],
      [404, agent.request('GET', '/v1/nothing')],
    ]
    const statuses = await Promise.all(refusals.map(async ([, answer]) => (await answer).status))
    expect(statuses).toEqual(refusals.map(([status]) => status))

    // Reads are recorded after their answers, so that another could overtake this one.
    await awaitEvents(since, 'registry_read', 1)
    await agent.tryRead('refused')
    await awaitEvents(since, 'state_read', 1)
    expect(bare(await target.events(since))).toEqual([
      { type: 'registry_read', agent: agent.address, data: { read_by: agent.address } },
      {
        type: 'state_read',
        agent: agent.address,
        data: { key: 'refused', read_by: agent.address, found: false },
      },
    ])
  })
})

describe('the log never holds a credential or a hash of one', () => {
  it('after all that was done here', async () => {
    const operator = await client.registerOperator()
    const agent = await operator.registerAgent('https://1.1.1.1/secret-path')
    await agent.write('log/credentials', 'x')
    const text = JSON.stringify(await target.events())
    expect(text).toContain(operator.id)
    expect(text).not.toMatch(/sk_live_|at_live_|\$2[aby]?\$|secret-path/)
    for (const { token } of [operator, agent]) {
      const bits = token.slice('at_live_'.length)
      for (const secret of [token, bits]) {
        for (const algorithm of ['sha256', 'sha512', 'sha1', 'md5']) {
          for (const encoding of ['hex', 'base64', 'base64url'] as const) {
            expect(text).not.toContain(createHash(algorithm).update(secret).digest(encoding))
          }
        }
      }
      expect(text).not.toContain(bits)
      expect(text).not.toContain(bits.slice(0, 16))
    }
  })
})

describe('replaying the log', () => {
  it('gives the state, the registry and the queues that the API shows, after a random workload', async () => {
    const workload = await runWorkload(fresh.baseUrl, 20_261)
    const events = await eventually(fresh, 0, (all) =>
      expect(ofType(all, 'message_delivered')).toHaveLength(workload.received.length),
    )
    const replayed = replay(events)
    const [reader] = workload.agents as [Agent, ...Agent[]]

    // Registry.
    const { agents, total } = await reader.registry('?limit=1000')
    expect(agents.map(({ address }) => address)).toEqual(replayed.registered)
    expect(total).toBe(workload.agents.length)

    // State.
    const keys = [...replayed.state.keys()].toSorted((one, two) =>
      Buffer.compare(Buffer.from(one), Buffer.from(two)),
    )
    expect(keys.length).toBeGreaterThan(5)
    expect(await reader.keys()).toEqual(keys)
    for (const key of keys) {
      const { value, last_modified_by, last_modified_at } = await reader.read(key)
      expect({ key, value, by: last_modified_by, at: last_modified_at }).toEqual({
        key,
        ...replayed.state.get(key),
      })
    }
    const bytes = keys.reduce(
      (sum, key) => sum + byteLength(key) + byteLength(replayed.state.get(key)?.value ?? ''),
      0,
    )
    expect(await reader.capacity()).toMatchObject({ used_bytes: bytes, key_count: keys.length })

    // Queues, in order, with what each message was.
    expect(replayed.sentCount).toBe(workload.sentCount)
    await queuesFilled(fresh)
    for (const agent of workload.agents) {
      expect(await agent.receiveAll()).toEqual(replayed.queues.get(agent.address) ?? [])
    }
  })
})

const KEYS = [
  'a',
  'a/b',
  'a//b',
  '..',
  'é',
  '😀',
  '\u0000',
  '\ue000',
  '%',
  '_',
  ...Array.from({ length: 20 }, (_, i) => `k${i}`),
]

/** Five agents act at random, all at the same time; whatever they do succeeds, or is a 404. */
async function runWorkload(baseUrl: string, seed: number) {
  const agents = await new Client(baseUrl).registerAgents(5)
  const received: string[] = []
  let sentCount = 0
  await Promise.all(
    agents.map(async (agent, number) => {
      const random = seededRandom(seed + number)
      const pick = <T>(from: readonly T[]) => from[Math.floor(random() * from.length)] as T
      for (let step = 0; step < 150; step++) {
        const action = random()
        if (action < 0.35)
          await agent.write(pick(KEYS), 'v'.repeat(Math.floor(random() * 200)) + step)
        else if (action < 0.5)
          expect([200, 404]).toContain((await agent.tryRemove(pick(KEYS))).status)
        else if (action < 0.6)
          expect([200, 404]).toContain((await agent.tryRead(pick(KEYS))).status)
        else if (action < 0.65) await agent.registry()
        else if (action < 0.9) {
          await agent.send(pick(agents).address, `message ${number}.${step}\u0000`)
          sentCount++
        } else {
          const { messages } = await agent.receive(`?limit=${1 + Math.floor(random() * 3)}`)
          received.push(...messages.map(({ message_id }) => message_id))
        }
      }
    }),
  )
  return { agents, received, sentCount }
}

interface QueuedMessage {
  message_id: unknown
  from: unknown
  to: unknown
  content: unknown
  timestamp: string
}

/** What the log alone says there is. */
function replay(events: readonly Event[]) {
  const state = new Map<string, { value: string; by: unknown; at: string }>()
  const queues = new Map<string, QueuedMessage[]>()
  const registered: string[] = []
  let sentCount = 0
  for (const { type, ts, data } of events) {
    const key = String(data.key)
    const to = String(data.to)
    if (type === 'agent_registered') registered.push(String(data.address))
    if (type === 'state_written')
      state.set(key, { value: String(data.value), by: data.written_by, at: ts })
    if (type === 'state_deleted') state.delete(key)
    if (type === 'message_sent') {
      const { message_id, from, content } = data
      queues.set(to, [...(queues.get(to) ?? []), { message_id, from, to, content, timestamp: ts }])
      sentCount++
    }
    if (type === 'message_delivered') {
      queues.set(
        to,
        queues.get(to)?.filter(({ message_id }) => message_id !== data.message_id) ?? [],
      )
    }
  }
  return { state, queues, registered, sentCount }
}
