/** What must hold whichever node a request meets: limits, revocation, idempotency keys; and what each request costs in round trips. */
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { type Agent, Client, messageAccepted, messagesPage, solvePipeline, stateValue } from '../support/client.ts'
import { type Cluster, type ClusterNode, type ClusterProcess, startCluster } from '../support/cluster.ts'

const START_MS = 120_000
const SESSION_TTL_MS = 2_000

let cluster: Cluster
let client: Client
/** A client for each node, past the load balancer. */
let clients: Client[]

beforeAll(async () => {
  cluster = await startCluster({
    nodes: 3,
    workers: 1,
    settings: {
      RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
      RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
      SESSION_TTL: `${SESSION_TTL_MS}ms`,
      STATE_CAPACITY_BYTES: '1000000',
    },
  })
  client = new Client(cluster.baseUrl)
  clients = cluster.nodes.map(({ url }) => new Client(url))
}, START_MS)

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
}, START_MS)

/** The same request to every node. */
function everywhere(agent: Agent, method: string, path: string, options: Parameters<Client['request']>[2] = {}) {
  return Promise.all(clients.map((each) => each.request(method, path, { token: agent.token, ...options })))
}

describe('Idempotency-Key', () => {
  it('a retry gets the first answer and sends nothing again, on whichever node', async () => {
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    const options = { headers: { 'Idempotency-Key': 'order-66' }, json: { to: two.address, content: 'once' } }
    const first = await one.request('POST', '/v1/messages', options)
    const retries = await everywhere(one, 'POST', '/v1/messages', options)
    for (const retry of retries) expect(retry.as(202, messageAccepted)).toEqual(first.as(202, messageAccepted))
    expect((await two.receiveAll()).map(({ content }) => content)).toEqual(['once'])
  })

  it('of several at the same time on all nodes one is sent, and all get its answer', async () => {
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    const options = { headers: { 'Idempotency-Key': 'race' }, json: { to: two.address, content: 'once' } }
    const answers = await everywhere(one, 'POST', '/v1/messages', options)
    expect(new Set(answers.map((answer) => answer.as(202, messageAccepted).message_id)).size).toBe(1)
    expect((await two.receiveAll()).map(({ content }) => content)).toEqual(['once'])
  })
})

describe('rate limits', () => {
  it('an agent that sprays all nodes gets its allowance and not one request more', async () => {
    const agent = await client.registerAgent()
    const start = performance.now()
    const answers = (
      await Promise.all(Array.from({ length: 40 }, () => everywhere(agent, 'GET', '/v1/messages')))
    ).flat()
    const refilled = Math.floor((performance.now() - start) / 1_000)
    const allowed = answers.filter(({ status }) => status === 200).length
    expect(allowed).toBeGreaterThanOrEqual(60)
    expect(allowed).toBeLessThanOrEqual(60 + refilled)
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(answers.length - allowed)
  })
})

describe('a revoked token', () => {
  it('is refused by every node at once', async () => {
    const agent = await client.registerAgent()
    for (const answer of await everywhere(agent, 'GET', '/v1/agents/me')) expect(answer.status).toBe(200)
    const { code, output } = await cluster.run('revoke', [agent.address])
    expect({ code, output }).toEqual({ code: 0, output: 'Revoked: no node accepts the token any more.\n' })
    for (const answer of await everywhere(agent, 'GET', '/v1/agents/me')) expect(answer.status).toBe(401)
  })

  it('is refused by every node once the sessions have run out, while Redis is out', async () => {
    const [agent, bystander] = await client.registerAgents(2)
    if (!agent || !bystander) throw new Error('two agents were asked for')
    await everywhere(agent, 'GET', '/v1/agents/me')
    await cluster.redis.kill()
    try {
      const { code, output } = await cluster.run('revoke', [agent.address])
      expect(output).toMatch(/^Revoked, but Redis is out/)
      expect(code).toBe(0)
      await sleep(SESSION_TTL_MS)
      for (const answer of await everywhere(agent, 'GET', '/v1/agents/me')) expect(answer.status).toBe(401)
    } finally {
      await cluster.redis.restart()
    }
    await vi.waitFor(
      async () => {
        for (const answer of await everywhere(agent, 'GET', '/v1/agents/me')) expect(answer.status).toBe(401)
        for (const { internalUrl } of cluster.nodes)
          expect(await (await fetch(`${internalUrl}/metrics`)).text()).toMatch(/^tabulum_redis_up 1$/m)
        for (const answer of await everywhere(bystander, 'GET', '/v1/messages')) expect(answer.status).toBe(200)
      },
      // Within the limits of the one that polls.
      { timeout: 10_000, interval: 500 },
    )
  })

  it('is that of somebody, and the command says so when it is not', async () => {
    const { code, output } = await cluster.run('revoke', ['tab_00000000000000000000'])
    expect(output).toBe('there is no agent tab_00000000000000000000\n')
    expect(code).toBe(2)
  })
})

describe('nodes that race', () => {
  it('on one key: the last event of the log is its value, on every node', async () => {
    const agents = await client.registerAgents(2)
    for (let round = 0; round < 5; round++) {
      const since = (await cluster.events()).length
      const answers = await Promise.all(
        agents.flatMap((agent, which) =>
          clients.map((each, node) =>
            each.request('PUT', '/v1/state/raced', {
              token: agent.token,
              json: { value: `${round} ${which} ${node}` },
            }),
          ),
        ),
      )
      for (const answer of answers) expect(answer.status).toBe(200)
      const written = (await cluster.events(since)).filter(({ type }) => type === 'state_written')
      expect(written).toHaveLength(answers.length)
      for (const answer of await everywhere(agents[0] as Agent, 'GET', '/v1/state/raced'))
        expect(answer.as(200, stateValue).value).toBe(written.at(-1)?.data.value)
    }
  })

  it('on one challenge: one agent is registered', async () => {
    const operator = await client.registerOperator()
    const { challenge_id, challenge_data } = await operator.challenge()
    const json = { verification_response: { challenge_id, response: solvePipeline(challenge_data) } }
    const answers = await Promise.all(
      clients.flatMap((each) => [1, 2].map(() => each.request('POST', '/v1/agents', { token: operator.token, json }))),
    )
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1)
    expect(answers.filter(({ status }) => status === 422 || status === 403 || status === 400)).toHaveLength(
      answers.length - 1,
    )
  })

  it('on one queue: each message is handed out once', async () => {
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    const contents = Array.from({ length: 30 }, (_, index) => `raced ${index}`)
    for (const content of contents) await one.send(two.address, content)
    const answers = (
      await Promise.all(Array.from({ length: 4 }, () => everywhere(two, 'GET', '/v1/messages?limit=5')))
    ).flat()
    const received = answers.flatMap((answer) => answer.as(200, messagesPage).messages.map(({ content }) => content))
    expect(received.toSorted()).toEqual(contents.toSorted())
  })

  it('on the last byte of capacity: one gets it', async () => {
    const agent = await client.registerAgent()
    const { total_bytes, used_bytes } = await agent.capacity()
    // All that is left but for less than two of what is raced for.
    const key = (index: number) => `fill/${index}`
    let left = total_bytes - used_bytes
    for (let index = 0; left > 1_200; index++) {
      const size = Math.min(left - 1_000, 100_000)
      await agent.write(key(index), 'x'.repeat(size - key(index).length))
      left -= size
    }
    const answers = await Promise.all(
      clients.flatMap((each, node) =>
        [1, 2].map((attempt) =>
          each.request('PUT', `/v1/state/last${node}${attempt}`, {
            token: agent.token,
            json: { value: 'x'.repeat(left - 6) },
          }),
        ),
      ),
    )
    expect(answers.map(({ status }) => status).toSorted()).toEqual([200, ...Array(answers.length - 1).fill(507)])
    expect((await agent.capacity()).used_bytes).toBe(total_bytes)
    for (const filled of (await agent.list('?prefix=fill/')).keys) await agent.remove(filled)
  })
})

describe('a node that dies', () => {
  /** The process that applies what is in the log to the database, and a node that is not that. */
  async function leaderAndAnother(): Promise<[ClusterProcess, ClusterNode]> {
    const members = [...cluster.workers, ...cluster.nodes]
    const leading = await Promise.all(
      members.map(async ({ internalUrl }) =>
        (await (await fetch(`${internalUrl}/metrics`)).text()).includes(
          'tabulum_projection_leading{projection="database"} 1',
        ),
      ),
    )
    const leader = members[leading.indexOf(true)]
    const node = cluster.nodes.find((candidate) => candidate !== leader)
    if (!leader || !node) throw new Error('nobody leads')
    return [leader, node]
  }
  const isInLog = (since: number, key: string) =>
    vi.waitFor(
      async () => {
        const events = await cluster.events(since)
        expect(events.some(({ type, data }) => type === 'state_written' && data.key === key)).toBe(true)
      },
      { timeout: 5_000, interval: 20 },
    )

  it('between append and apply has lost nothing but its answer', async ({ onTestFinished }) => {
    const agent = await client.registerAgent()
    const [leader, node] = await leaderAndAnother()
    const since = (await cluster.events()).length
    await leader.freeze()
    onTestFinished(() => leader.thaw())
    const unanswered = new Client(node.url).request('PUT', '/v1/state/appended', {
      token: agent.token,
      json: { value: 'and no more' },
    })
    unanswered.catch(() => {})
    await isInLog(since, 'appended')
    await node.kill()
    await leader.thaw()
    await expect(unanswered).rejects.toThrow()
    await vi.waitFor(async () => expect((await agent.read('appended')).value).toBe('and no more'), { timeout: 5_000 })
    await node.restart()
  })

  it('between apply and answer has lost nothing but its answer, and the write is made once', async ({
    onTestFinished,
  }) => {
    const agent = await client.registerAgent()
    const [leader, node] = await leaderAndAnother()
    const since = (await cluster.events()).length
    await leader.freeze()
    onTestFinished(() => leader.thaw())
    const unanswered = new Client(node.url).request('PUT', '/v1/state/applied', {
      token: agent.token,
      json: { value: 'and no more' },
    })
    unanswered.catch(() => {})
    await isInLog(since, 'applied')
    await node.freeze()
    onTestFinished(() => node.restart())
    await leader.thaw()
    // Not through the load balancer, which might ask the frozen node.
    const whole = clients[cluster.nodes.findIndex((other) => other !== node && other !== leader)]
    await vi.waitFor(
      async () => {
        const answer = await whole?.request('GET', '/v1/state/applied', { token: agent.token })
        expect(answer?.as(200, stateValue).value).toBe('and no more')
      },
      { timeout: 5_000 },
    )
    await node.kill()
    await expect(unanswered).rejects.toThrow()
    const written = (await cluster.events(since)).filter(({ data }) => data.key === 'applied')
    expect(written.filter(({ type }) => type === 'state_written')).toHaveLength(1)
  })

  it('while it writes a response that carries messages: they are visible again after the lease', {
    timeout: 60_000,
  }, async () => {
    const [one, another, two] = await client.registerAgents(3)
    if (!one || !another || !two) throw new Error('three agents were asked for')
    const [, node] = await leaderAndAnother()
    // More than the buffers of the connection hold, so that the response cannot end before somebody reads it.
    const contents = Array.from({ length: 100 }, (_, index) => `${index} ${'x'.repeat(65_000)}`)
    for (const [index, content] of contents.entries()) await (index < 50 ? one : another).send(two.address, content)
    const { hostname, port } = new URL(node.url)
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    socket.write(`GET /v1/messages?limit=100 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${two.token}\r\n\r\n`)
    await once(socket, 'readable')
    await sleep(500)
    const leasedAt = performance.now()
    expect((await two.receive()).messages).toEqual([])
    await node.kill()
    const received: string[] = []
    await vi.waitFor(
      async () => {
        received.push(...(await two.receive('?limit=100')).messages.map(({ content }) => content))
        expect(received).toHaveLength(contents.length)
      },
      { timeout: 40_000, interval: 500 },
    )
    expect(received).toEqual(contents)
    expect(performance.now() - leasedAt).toBeGreaterThan(20_000)
    socket.destroy()
    await node.restart()
  })
})

describe('what a request costs', () => {
  const REPEATS = 5
  type Cost = { redis: number; postgres: number; appends: number }
  let agent: Agent
  let other: Agent
  let node: ClusterNode

  beforeAll(async () => {
    // Sessions and limits of this node outlast the counting.
    node = await cluster.startNode({
      SESSION_TTL: '30s',
      ...Object.fromEntries(
        ['MESSAGE', 'STATE_READ', 'REGISTRY_READ'].map((name) => [`RATE_LIMIT_${name}_PER_MIN`, '1000000']),
      ),
    })
    const [first, second] = await new Client(node.url).registerAgents(2)
    if (!first || !second) throw new Error('two agents were asked for')
    agent = first
    other = second
    await agent.write('cost', 'x')
    await agent.send(other.address, 'so that the node knows the recipient')
    await other.receiveAll()
  }, START_MS)

  /** Round trips of the node so far, without those that no request makes. */
  async function counted(): Promise<Cost> {
    const text = await (await fetch(`${node.internalUrl}/metrics`)).text()
    const sum = (name: string) =>
      [...text.matchAll(new RegExp(`^${name}_count(?:\\{operation="(\\w+)"\\})? (\\d+)$`, 'gm'))]
        .filter(([, operation]) => operation !== 'check' && !operation?.startsWith('projection'))
        .reduce((total, [, , count]) => total + Number(count), 0)
    return {
      redis: sum('tabulum_redis_seconds'),
      postgres: sum('tabulum_database_seconds'),
      appends: sum('tabulum_append_seconds'),
    }
  }

  /** Of one request, on average; what it does after its answer included. */
  async function costOf(request: () => Promise<unknown>): Promise<Cost> {
    await request()
    await sleep(300)
    const before = await counted()
    for (let index = 0; index < REPEATS; index++) await request()
    await sleep(300)
    const after = await counted()
    return {
      redis: (after.redis - before.redis) / REPEATS,
      postgres: (after.postgres - before.postgres) / REPEATS,
      appends: (after.appends - before.appends) / REPEATS,
    }
  }

  // The table "Round trips" of docs/architecture.md.
  it.each<[string, () => Promise<unknown>, Cost]>([
    ['GET /v1/agents/me', () => agent.me(), { redis: 1, postgres: 0, appends: 0 }],
    ['GET /v1/registry', () => agent.registry(), { redis: 1, postgres: 1, appends: 1 }],
    ['GET /v1/state', () => agent.list(), { redis: 1, postgres: 1, appends: 0 }],
    ['GET /v1/state/{key}', () => agent.read('cost'), { redis: 1, postgres: 1, appends: 1 }],
    ['GET /v1/state/_capacity', () => agent.capacity(), { redis: 1, postgres: 1, appends: 0 }],
    ['PUT /v1/state/{key}', () => agent.write('cost', 'y'), { redis: 1, postgres: 1, appends: 1 }],
    ['POST /v1/messages', () => agent.send(other.address, 'x'), { redis: 1, postgres: 0, appends: 1 }],
    ['GET /v1/messages, of an empty queue', () => agent.receive(), { redis: 2, postgres: 0, appends: 0 }],
  ])('%s', async (_name, request, expected) => {
    // Now and then a session runs out in between, which costs more.
    await vi.waitFor(async () => expect(await costOf(request)).toEqual(expected), { timeout: 8_000 })
  })
})
