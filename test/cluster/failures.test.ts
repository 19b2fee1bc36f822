/** What still works while a part of the cluster is out, and that it comes back by itself: the table in docs/architecture.md. */
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from 'nats'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { type Agent, Client } from '../support/client.ts'
import { type Cluster, startCluster } from '../support/cluster.ts'
import { type NatsServer, natsOptions } from '../support/servers.ts'

/** A part that is out costs a request so long at most; the machine may be busy. */
const OUTAGE_ANSWER_MS = 2_500
/** From a part's return to service, and some for a busy machine. */
const RECOVERY_MS = 6_000
/** NATS holds an election within 9 s (nats-server, maxElectionTimeout), another where the votes were split, and its streams follow. */
const ELECTION_MS = 30_000
const START_MS = 120_000
const FAULT_MS = 120_000

const LIFTED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
}

let cluster: Cluster
let client: Client

beforeAll(async () => {
  cluster = await startCluster({ nodes: 2, workers: 2, settings: LIFTED })
  client = new Client(cluster.baseUrl)
}, START_MS)

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
}, START_MS)

/** A test begins with a cluster that is over the one before; a NATS election takes up to 9 s. */
beforeEach(async ({ onTestFailed }) => {
  onTestFailed(() => console.error(cluster.output()))
  await vi.waitFor(async () => expectRecovered(await twoAgents()), { timeout: 30_000, interval: 250 })
}, START_MS)

async function expectRecovered(agents: readonly [Agent, Agent], since = performance.now()): Promise<void> {
  const [one, two] = agents
  await vi.waitFor(
    async () => {
      await one.write('recovered', 'yes')
      await one.send(two.address, 'recovered')
      expect((await two.receive()).messages.map(({ content }) => content)).toContain('recovered')
    },
    { timeout: RECOVERY_MS, interval: 100 },
  )
  expect(performance.now() - since).toBeLessThan(RECOVERY_MS)
}

async function twoAgents(): Promise<[Agent, Agent]> {
  const [one, two] = await client.registerAgents(2)
  if (!one || !two) throw new Error('two agents were asked for')
  return [one, two]
}

/** Milliseconds until the answer, which must be a 503 with Retry-After. */
async function expectUnavailable(call: () => ReturnType<Client['request']>): Promise<void> {
  const start = performance.now()
  const answer = await call()
  expect(`${answer}`).toMatch(/answered 503/)
  expect(answer.error).toBe('unavailable')
  expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1)
  expect(performance.now() - start).toBeLessThan(OUTAGE_ANSWER_MS)
}

describe('Redis', () => {
  it('restored from an old copy: what was delivered since is not delivered again, what was sent since is there', {
    timeout: FAULT_MS,
  }, async () => {
    const [one, two] = await twoAgents()
    for (const content of ['old 1', 'old 2', 'old 3']) await one.send(two.address, content)
    const receiveOne = async () => (await two.receive('?limit=1')).messages.map(({ content }) => content)
    expect(await receiveOne()).toEqual(['old 1'])
    // Redis writes its file once a second.
    await sleep(1_500)
    const restore = cluster.redis.backUp()
    expect(await receiveOne()).toEqual(['old 2'])
    for (const content of ['new 1', 'new 2']) await one.send(two.address, content)
    await cluster.redis.kill()
    restore()
    await cluster.redis.restart()
    const received: string[] = []
    await vi.waitFor(
      async () => {
        received.push(...(await receiveOne()))
        expect(received).toContain('new 2')
      },
      { timeout: RECOVERY_MS, interval: 50 },
    )
    expect(received).toEqual(['old 3', 'new 1', 'new 2'])
  })

  for (const [how, stop, start] of [
    ['stopped', () => cluster.redis.kill(), () => cluster.redis.restart()],
    ['frozen', () => cluster.redis.freeze(), () => cluster.redis.thaw()],
  ] as const) {
    it(`${how}: state, registry and sending work, receiving is 503, and comes back by itself`, {
      timeout: FAULT_MS,
    }, async () => {
      const agents = await twoAgents()
      const [one, two] = agents
      await one.write('redis-out', 'before')
      await stop()
      await one.write('redis-out', 'during')
      expect((await two.read('redis-out')).value).toBe('during')
      expect((await one.registry('?limit=1')).agents).toHaveLength(1)
      await one.send(two.address, 'sent while Redis was out')
      await expectUnavailable(() => two.request('GET', '/v1/messages'))
      await start()
      await vi.waitFor(
        async () => {
          const { messages } = await two.receive()
          expect(messages.map(({ content }) => content)).toEqual(['sent while Redis was out'])
        },
        { timeout: RECOVERY_MS, interval: 100 },
      )
      await expectRecovered(agents)
    })
  }
})

describe('Postgres', () => {
  for (const [how, stop, start] of [
    ['stopped', () => cluster.postgres.kill(), () => cluster.postgres.restart()],
    ['frozen', () => cluster.postgres.freeze(), () => cluster.postgres.thaw()],
  ] as const) {
    it(`${how}: agents with sessions send and receive, state and registry are 503, and come back by themselves`, {
      timeout: FAULT_MS,
    }, async () => {
      const agents = await twoAgents()
      const [one, two] = agents
      // Every node knows the recipient.
      for (let index = 0; index < 8; index++) await one.send(two.address, 'before')
      await two.receiveAll()
      await stop()
      await one.send(two.address, 'sent while Postgres was out')
      expect((await two.receive()).messages.map(({ content }) => content)).toEqual(['sent while Postgres was out'])
      await expectUnavailable(() => one.tryRead('postgres-out'))
      await expectUnavailable(() => one.tryWrite('postgres-out', 'x'))
      await expectUnavailable(() => one.request('GET', '/v1/registry'))
      await start()
      await expectRecovered(agents)
    })
  }
})

describe('NATS', () => {
  for (const [how, stop, start] of [
    ['stopped', (server: NatsServer) => server.kill(), (server: NatsServer) => server.restart()],
    ['frozen', (server: NatsServer) => server.freeze(), (server: NatsServer) => server.thaw()],
  ] as const) {
    it(`two of three ${how}: reading works, what changes something is 503, and it comes back by itself`, {
      timeout: FAULT_MS,
    }, async () => {
      const agents = await twoAgents()
      const [one, two] = agents
      await one.write('nats-out', 'before')
      const [first, second] = cluster.nats.servers
      if (!first || !second) throw new Error('there are three servers')
      await Promise.all([stop(first), stop(second)])
      await sleep(2_000)
      await expectUnavailable(() => one.trySend(two.address, 'x'))
      await expectUnavailable(() => one.tryWrite('nats-out', 'x'))
      await expect(cluster.events()).rejects.toThrow('The event log answered 503')
      expect((await one.read('nats-out')).value).toBe('before')
      expect((await one.registry('?limit=1')).agents).toHaveLength(1)
      await Promise.all([start(first), start(second)])
      await vi.waitFor(() => one.write('nats-out', 'after'), { timeout: ELECTION_MS, interval: 100 })
      await expectRecovered(agents)
    })
  }
})

it('a log that is older than what has been applied: nothing is acknowledged, and the projector says why', {
  timeout: FAULT_MS,
}, async () => {
  await using cluster = await startCluster({ nodes: 1, workers: 1, settings: LIFTED })
  const [one, two] = (await new Client(cluster.baseUrl).registerAgents(2)) as [Agent, Agent]
  for (let index = 0; index < 20; index++) await one.write(`before/${index}`, 'x')
  const admin = await connect(natsOptions(cluster.nats.adminUrl))
  const manager = await admin.jetstreamManager()
  const { config } = await manager.streams.info('EVENTS')
  await manager.streams.delete('EVENTS')
  await manager.streams.add(config)
  await admin.close()
  await vi.waitFor(
    () => expect(cluster.output()).toMatch(/the event log ends at \d+, before \d+, which has been applied/),
    {
      timeout: RECOVERY_MS,
      interval: 100,
    },
  )
  await expectUnavailable(() => one.tryWrite('after', 'x'))
  await expectUnavailable(() => one.trySend(two.address, 'x'))
  // Rather than a log that ends too early.
  await expect(cluster.events()).rejects.toThrow('The event log answered 503')
  expect((await one.read('before/0')).value).toBe('x')
  expect((await one.tryRead('after')).status).toBe(404)
})
