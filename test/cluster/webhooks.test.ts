/** Workers share what is to be pushed, and one that is killed takes nothing with it. */
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { type Agent, Client, message } from '../../lab/client.ts'
import { type Cluster, type ClusterProcess, startCluster } from '../../lab/cluster.ts'
import {
  createTestAuthority,
  type Receiver,
  startReceiver,
  type TestAuthority,
} from '../../lab/receiver.ts'
import { type NameServer, startNameServer } from '../unit/webhooks/name-server.ts'

const START_MS = 120_000
const AGENTS = 12
const ASK_NAME_SERVER = pathToFileURL(
  join(import.meta.dirname, '../support/ask-name-server.ts'),
).href
/** The leases of a killed worker run out after 10 s. */
const WITHIN = { timeout: 40_000, interval: 100 }

let authority: TestAuthority
let nameServer: NameServer
/** What it answers now, by name. */
const addresses = new Map<string, string[]>()
let cluster: Cluster
let client: Client
let sender: Agent

beforeAll(async () => {
  authority = await createTestAuthority()
  nameServer = await startNameServer((name, type) =>
    (addresses.get(name) ?? []).filter((address) => address.includes(':') === (type === 'AAAA')),
  )
  cluster = await startCluster({
    nodes: 1,
    workers: 2,
    settings: {
      RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
      RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
      RATE_LIMIT_WEBHOOK_PER_MIN: '1000000',
      NODE_OPTIONS: `--import=${ASK_NAME_SERVER}`,
      TEST_NAME_SERVER: nameServer.address,
      WEBHOOK_ALLOW_CIDRS: '127.0.0.1/32',
      WEBHOOK_CA_FILE: authority.caFile,
      WEBHOOK_CONCURRENCY: '8',
      WEBHOOK_TOTAL_TIMEOUT: '60s',
      WEBHOOK_MAX_RETRIES: '1',
    },
  })
  client = new Client(cluster.baseUrl)
  sender = await client.registerAgent()
}, START_MS)

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
  await nameServer?.[Symbol.asyncDispose]()
  await authority?.[Symbol.asyncDispose]()
}, START_MS)

/** One receiver for many agents; which of them it was for is in the message. */
async function agentsAt(receiver: Receiver): Promise<Agent[]> {
  return Promise.all(
    Array.from({ length: AGENTS }, (_, index) =>
      client.registerAgent({ webhookUrl: `${receiver.url}/${index}` }),
    ),
  )
}

async function sendToAll(agents: readonly Agent[], from: number, count: number): Promise<void> {
  for (let index = from; index < from + count; index++) {
    await Promise.all(agents.map(({ address }) => sender.send(address, String(index))))
  }
}

/** What came in, by agent, in the order of arrival. */
function received(receiver: Receiver): Map<string, string[]> {
  const messages = receiver.deliveries.map(({ body }) => message.parse(JSON.parse(body.toString())))
  return new Map(
    [...Map.groupBy(messages, ({ to }) => to)].map(([to, all]) => [
      to,
      all.map(({ content }) => content),
    ]),
  )
}

async function metric(member: ClusterProcess, name: string): Promise<number> {
  const text = await (await fetch(`${member.internalUrl}/metrics`)).text()
  return Number(new RegExp(`^${name.replace(/[{}]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1] ?? 0)
}

/** Every message to these agents is delivered, by what the log says. */
async function allDelivered(agents: readonly Agent[], count: number): Promise<void> {
  const addresses = new Set(agents.map(({ address }) => address))
  await vi.waitFor(async () => {
    const events = await cluster.events()
    const delivered = events.filter(
      ({ type, agent }) => type === 'message_delivered' && addresses.has(agent ?? ''),
    )
    expect(delivered).toHaveLength(count)
  }, WITHIN)
}

/** Each of the workers has deliveries in flight. */
async function bothDeliver(): Promise<void> {
  await vi.waitFor(async () => {
    for (const worker of cluster.workers)
      expect(await metric(worker, 'tabulum_webhook_in_flight')).toBeGreaterThan(0)
  }, WITHIN)
}

const numbered = (count: number) => Array.from({ length: count }, (_, index) => String(index))

it('two workers share the deliveries, each message once and in order', async () => {
  await using receiver = await startReceiver({ authority })
  const agents = await agentsAt(receiver)
  // A worker has less room than there are agents, and nothing is answered until both are at work.
  const bothWork = Promise.withResolvers<void>()
  receiver.behave(async () => {
    await bothWork.promise
    return { status: 200 }
  })
  await sendToAll(agents, 0, 10)
  await bothDeliver()
  bothWork.resolve()
  await allDelivered(agents, AGENTS * 10)
  for (const { address } of agents) expect(received(receiver).get(address)).toEqual(numbered(10))
  expect((await cluster.run('verify')).output).toMatch(/no differences/)
}, 240_000)

it('a worker killed with deliveries in flight: all arrive, in order, and none but those twice', async () => {
  await using receiver = await startReceiver({ authority })
  const agents = await agentsAt(receiver)
  await sendToAll(agents, 0, 3)
  await allDelivered(agents, AGENTS * 3)
  const before = receiver.deliveries.length

  receiver.behave('black_hole')
  await sendToAll(agents, 3, 3)
  // What a worker lets in of agents that were prompt so far: as many as it has slots.
  await bothDeliver()
  await vi.waitFor(() => expect(receiver.deliveries.length - before).toBe(AGENTS), WITHIN)
  const [killed, other] = cluster.workers as [ClusterProcess, ClusterProcess]
  const inFlight = await metric(killed, 'tabulum_webhook_in_flight')
  await killed.kill()
  receiver.behave({ status: 200 })
  // The connections of the other end in a failed attempt each, which it makes again.
  receiver.hangUp()
  await allDelivered(agents, AGENTS * 6)

  const contents = received(receiver)
  const repeated = agents.flatMap(({ address }) => {
    const all = contents.get(address) ?? []
    expect([...new Set(all)]).toEqual(numbered(6))
    expect(all.toSorted()).toEqual(all)
    return all.filter((text, index) => all.indexOf(text) !== index)
  })
  // One for each delivery that was in flight: those of the one that was killed, and those of the
  // other that were cut off.
  expect(repeated).toEqual(Array(AGENTS).fill('3'))
  expect(inFlight).toBeGreaterThan(0)
  expect(
    await metric(other, 'tabulum_webhook_attempts_total{outcome="delivered"}'),
  ).toBeGreaterThan(0)
  await killed.restart()
  expect((await cluster.run('verify')).output).toMatch(/no differences/)
}, 240_000)

it('a worker that stops finishes what is in flight, and repeats nothing', async () => {
  await using receiver = await startReceiver({ authority })
  const agents = await agentsAt(receiver)
  const sending = sendToAll(agents, 0, 20)
  await receiver.received(AGENTS)
  const [stopped] = cluster.workers as [ClusterProcess]
  expect(await stopped.stop()).toBe(0)
  await sending
  await allDelivered(agents, AGENTS * 20)
  for (const { address } of agents) expect(received(receiver).get(address)).toEqual(numbered(20))
  await stopped.restart()
}, 240_000)

it('Postgres frozen and a NATS server restarted meanwhile: all arrive, once and in order', async () => {
  await using receiver = await startReceiver({ authority })
  const agents = await agentsAt(receiver)
  const sent: { to: string; content: string; status: number; id: unknown }[] = []
  let isOver = false
  const sending = (async () => {
    for (let index = 0; !isOver; index++) {
      await Promise.all(
        agents.map(async ({ address: to }) => {
          const content = String(index)
          const answer = await sender.trySend(to, content)
          const { message_id: id } =
            answer.status === 202 ? (answer.json as { message_id: string }) : {}
          sent.push({ to, content, status: answer.status, id })
        }),
      )
      await sleep(50)
    }
  })()
  await receiver.received(AGENTS)
  await cluster.postgres.freeze()
  await sleep(2_000)
  await cluster.postgres.thaw()
  await cluster.nats.servers[0]?.kill()
  await sleep(1_000)
  await cluster.nats.servers[0]?.restart()
  await receiver.received(receiver.deliveries.length + AGENTS)
  isOver = true
  await sending
  const acknowledged = sent.filter(({ status }) => status === 202)
  await vi.waitFor(async () => {
    const events = await cluster.events()
    const delivered = new Set(
      events.flatMap(({ type, data }) => (type === 'message_delivered' ? data.message_id : [])),
    )
    expect(acknowledged.filter(({ id }) => !delivered.has(id))).toEqual([])
  }, WITHIN)
  for (const [to, contents] of received(receiver)) {
    expect(contents).toEqual([...new Set(contents)])
    // One that was answered 503, while the stream was without a leader, may have been sent all the
    // same.
    const unknown = sent.filter((message) => message.to === to && message.status === 503)
    const isKnown = (content: string) => !unknown.some((message) => message.content === content)
    const wanted = acknowledged.filter((message) => message.to === to).map(({ content }) => content)
    expect(contents.filter(isKnown)).toEqual(wanted)
  }
}, 240_000)

it('the pull queue has what could not be pushed, also after Redis was wiped', async () => {
  await using receiver = await startReceiver({ authority, behaviour: { status: 410 } })
  const agent = await client.registerAgent({ webhookUrl: receiver.url })
  await sender.send(agent.address, 'undeliverable')
  await vi.waitFor(async () => {
    const events = await cluster.events()
    expect(
      events.some(({ type, agent: to }) => type === 'push_failed' && to === agent.address),
    ).toBe(true)
  }, WITHIN)
  await cluster.redis.wipe()
  await vi.waitFor(async () => {
    expect((await agent.receive()).messages.map(({ content }) => content)).toEqual([
      'undeliverable',
    ])
  }, WITHIN)
}, 240_000)

it('names that come to lead to addresses that are not public, and redirects there: nothing is sent, and all comes to the pull queue', async () => {
  const answers = {
    'private.test': ['127.0.0.2'],
    'mixed.test': ['127.0.0.1', '127.0.0.2'],
    'mapped.test': ['::ffff:127.0.0.2'],
    'nat64.test': ['64:ff9b::7f00:2'],
    '6to4.test': ['2002:7f00:2::1'],
  }
  const names = Object.keys(answers)
  const certificateNames = ['127.0.0.1', '127.0.0.2', ...names]
  await using hook = await startReceiver({ authority, certificateNames })
  await using inside = await startReceiver({
    authority,
    certificateNames,
    host: '127.0.0.2',
    port: hook.port,
  })
  const redirect = { status: 307, headers: { location: inside.url } }
  await using redirecting = await startReceiver({ authority, behaviour: redirect })
  for (const name of names) addresses.set(name, ['127.0.0.1'])
  const named = await Promise.all(
    names.map((name) => client.registerAgent({ webhookUrl: hook.urlFor(name) })),
  )
  const redirected = await client.registerAgent({ webhookUrl: redirecting.url })
  await sendToAll(named, 0, 1)
  await allDelivered(named, named.length)

  for (const [name, changed] of Object.entries(answers)) addresses.set(name, changed)
  // Connections that are kept lead to where they led, which is no way in; these are over.
  hook.hangUp()
  await hook.disconnected()
  await sendToAll([...named, redirected], 1, 1)
  await Promise.all(
    [...named, redirected].map((agent) =>
      vi.waitFor(
        async () => expect((await agent.receive()).messages).toMatchObject([{ content: '1' }]),
        WITHIN,
      ),
    ),
  )
  expect(hook.deliveries).toHaveLength(named.length)
  expect(redirecting.deliveries).toHaveLength(2)
  expect([inside.connections, inside.bytesReceived]).toEqual([0, 0])
  const refused = await Promise.all(
    cluster.workers.map((worker) =>
      metric(worker, 'tabulum_webhook_attempts_total{outcome="refused_address"}'),
    ),
  )
  expect(refused.reduce((sum, count) => sum + count, 0)).toBe(named.length * 2)
}, 240_000)
