/**
 * What still works while a part of the cluster is out, and that it comes back by itself: the table
 * in docs/architecture.md.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from 'nats'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { Agent, Client, messagesPage } from '../../lab/client.ts'
import { type Cluster, startCluster } from '../../lab/cluster.ts'
import { type NatsServer, natsOptions, redisAdmin } from '../../lab/servers.ts'

/**
 * A part that is out costs a request so long at most. Of some requests the quickest counts: the
 * machine may be busy.
 */
const OUTAGE_ANSWER_MS = 2_500
const OUTAGE_REQUESTS = 4
/**
 * For a busy machine. That service is back within 5 s the faults program judges, which knows when
 * the machine stalled.
 */
const RECOVERY_MS = 30_000
/**
 * NATS holds an election within 9 s (nats-server, maxElectionTimeout), another where the votes were
 * split, and its streams follow.
 */
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
  await vi.waitFor(async () => expectRecovered(await twoAgents()), {
    timeout: 30_000,
    interval: 250,
  })
}, START_MS)

async function expectRecovered([one, two]: readonly [Agent, Agent]): Promise<void> {
  await vi.waitFor(
    async () => {
      await one.write('recovered', 'yes')
      await one.send(two.address, 'recovered')
      expect((await two.receive()).messages.map(({ content }) => content)).toContain('recovered')
    },
    { timeout: RECOVERY_MS, interval: 100 },
  )
}

/**
 * What comes to an agent, up to a message that is to come: the queues may be filled a moment after
 * it was acknowledged.
 */
async function contentsUpTo(wanted: string, agent: Agent, query = ''): Promise<string[]> {
  const contents: string[] = []
  await vi.waitFor(
    async () => {
      contents.push(...(await agent.receive(query)).messages.map(({ content }) => content))
      expect(contents).toContain(wanted)
    },
    { timeout: RECOVERY_MS, interval: 50 },
  )
  return contents
}

async function twoAgents(): Promise<[Agent, Agent]> {
  const [one, two] = await client.registerAgents(2)
  if (!one || !two) throw new Error('two agents were asked for')
  return [one, two]
}

/** The answer is a 503 with Retry-After, and soon. */
async function expectUnavailable(call: () => ReturnType<Client['request']>): Promise<void> {
  let quickest = Number.POSITIVE_INFINITY
  for (let asked = 0; asked < OUTAGE_REQUESTS && quickest > OUTAGE_ANSWER_MS; asked++) {
    const start = performance.now()
    const answer = await call()
    expect(`${answer}`).toMatch(/answered 503/)
    expect(answer.error).toBe('unavailable')
    expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1)
    quickest = Math.min(quickest, performance.now() - start)
  }
  expect(quickest).toBeLessThan(OUTAGE_ANSWER_MS)
}

describe('Redis', () => {
  it('wiped while messages wait and more are sent: all arrive, in the order in which they were acknowledged', {
    timeout: FAULT_MS,
  }, async () => {
    const [one, two] = await twoAgents()
    const sent: string[] = []
    let number = 0
    const sendOne = async () => {
      const content = `${++number}`
      if ((await one.trySend(two.address, content)).status === 202) sent.push(content)
    }
    while (sent.length < 20) await sendOne()
    let isOver = false
    const sending = (async () => {
      while (!isOver) await sendOne()
    })()
    const received: string[] = []
    try {
      await cluster.redis.wipe()
      const deadline = performance.now() + RECOVERY_MS
      while (!received.includes('1') && performance.now() < deadline) {
        const answer = await two.request('GET', '/v1/messages')
        if (answer.status === 200)
          received.push(...answer.as(200, messagesPage).messages.map(({ content }) => content))
      }
    } finally {
      isOver = true
      await sending
    }
    received.push(...(await contentsUpTo(sent.at(-1) ?? '', two)))
    // One that was refused may have been sent.
    expect(received.filter((content) => sent.includes(content))).toEqual(sent)
  })

  it('restored from an old copy: what was delivered since is not delivered again, what was sent since is there', {
    timeout: FAULT_MS,
  }, async () => {
    const [one, two] = await twoAgents()
    for (const content of ['old 1', 'old 2', 'old 3']) await one.send(two.address, content)
    expect(await contentsUpTo('old 1', two, '?limit=1')).toEqual(['old 1'])
    // Redis writes its file once a second.
    await sleep(1_500)
    const restore = cluster.redis.backUp()
    expect(await contentsUpTo('old 2', two, '?limit=1')).toEqual(['old 2'])
    for (const content of ['new 1', 'new 2']) await one.send(two.address, content)
    await cluster.redis.kill()
    restore()
    await cluster.redis.restart()
    const received = await contentsUpTo('new 2', two, '?limit=1')
    expect(received).toEqual(['old 3', 'new 1', 'new 2'])
  })

  it('at its memory limit: processes that start then serve, as fetching is what makes room', {
    timeout: 3 * FAULT_MS,
  }, async () => {
    const [one, two] = await twoAgents()
    const admin = redisAdmin(cluster.redis.adminUrl)
    const sent = Array.from({ length: 600 }, (_, index) => `${index} ${'x'.repeat(1_000)}`)
    for (const content of sent.slice(0, 400)) await one.send(two.address, content)
    await admin.limitMemory(-100_000)
    try {
      for (const content of sent.slice(400)) await one.send(two.address, content)
      // Each waits until it is ready.
      for (const member of [...cluster.workers, ...cluster.nodes]) await member.restart()
      expect(await contentsUpTo(sent.at(-1) ?? '', two, '?limit=100')).toEqual(sent)
    } finally {
      await admin.limitMemory()
    }
  })

  it('at its memory limit: sending and receiving go on, which makes room, and all arrives once, in order', {
    timeout: 2 * FAULT_MS,
  }, async () => {
    const [one, two] = await twoAgents()
    const idle = await client.registerAgents(1)
    const sent: string[] = []
    const send = async (count: number) => {
      for (let last = sent.length + count; sent.length < last; ) {
        const content = `${sent.length} ${'x'.repeat(1_000)}`
        const start = performance.now()
        await one.send(two.address, content)
        sent.push(content)
        // Nobody waits for a projection that waits for room.
        expect(performance.now() - start).toBeLessThan(OUTAGE_ANSWER_MS)
      }
    }
    const partsOf = (node = cluster.nodes[0]) =>
      fetch(`${node?.internalUrl}/readyz`).then((answer) => answer.json()) as Promise<{
        parts: { queues: string }
      }>
    const admin = redisAdmin(cluster.redis.adminUrl)
    await send(1_000)
    const received: string[] = []
    await admin.limitMemory(100_000)
    try {
      await send(500)
      for (const agent of idle) await one.send(agent.address, 'to one that was idle')
      await vi.waitFor(
        async () => expect((await partsOf()).parts.queues).toMatch(/redis is full/),
        {
          timeout: RECOVERY_MS,
          interval: 100,
        },
      )
      // Also of agents who have no session yet.
      await twoAgents()
      const used = await admin.usedMemory()
      // The limit stays: what is fetched makes the room for what waits.
      received.push(...(await contentsUpTo(sent.at(-1) ?? '', two)))
      expect(await admin.usedMemory()).toBeLessThan(used)
      for (const agent of idle)
        expect(await contentsUpTo('to one that was idle', agent)).toHaveLength(1)
      expect((await two.receive()).messages).toEqual([])
    } finally {
      await admin.limitMemory()
    }
    expect(received).toEqual(sent)
    await vi.waitFor(async () => expect((await partsOf()).parts.queues).toBe('ok'), {
      timeout: RECOVERY_MS,
    })
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
      const wanted = 'sent while Redis was out'
      await one.send(two.address, wanted)
      await expectUnavailable(() => two.request('GET', '/v1/messages'))
      await start()
      expect(await contentsUpTo(wanted, two)).toEqual([wanted])
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
      // Every node knows the recipient, and who asks.
      for (const { url } of cluster.nodes) {
        const there = new Client(url)
        await new Agent(there, one.address, one.token).send(two.address, 'before')
        await new Agent(there, two.address, two.token).receive()
      }
      await stop()
      const wanted = 'sent while Postgres was out'
      await one.send(two.address, wanted)
      expect((await contentsUpTo(wanted, two)).filter((content) => content !== 'before')).toEqual([
        wanted,
      ])
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
      await vi.waitFor(() => one.write('nats-out', 'after'), {
        timeout: ELECTION_MS,
        interval: 100,
      })
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
    () =>
      expect(cluster.output()).toMatch(
        /the event log ends at (message )?\d+, before \d+, which it had/,
      ),
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
