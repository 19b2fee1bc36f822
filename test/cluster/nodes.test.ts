/**
 * What must hold whichever node a request meets: limits, revocation, idempotency keys; and what
 * each request costs in round trips.
 */
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import {
  type Agent,
  type Answer,
  Client,
  messageAccepted,
  messagesPage,
  solvePipeline,
  stateValue,
} from '../../lab/client.ts'
import {
  type Cluster,
  type ClusterNode,
  type ClusterProcess,
  startCluster,
} from '../../lab/cluster.ts'
import { leaderOf } from '../../lab/faults/faults.ts'
import { LEASE_MS } from '../../src/messaging/message-queue.ts'

const START_MS = 240_000
/** Of a test that waits for what a busy machine may take long over. */
const LONG_MS = 180_000
/**
 * For what is there in a moment, on a machine that is not busy. Polled within the limits of the one
 * that asks.
 */
const SOON = { timeout: 30_000, interval: 1_000 }
const SESSION_TTL_MS = 2_000
const STATUS_OK = 'HTTP/1.1 200'
/** How often is tried again what a busy machine has spoiled. */
const TRIES = 5

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
function everywhere(
  agent: Agent,
  method: string,
  path: string,
  options: Parameters<Client['request']>[2] = {},
) {
  return Promise.all(
    clients.map((each) => each.request(method, path, { token: agent.token, ...options })),
  )
}

async function metricsOf({ internalUrl }: ClusterProcess): Promise<string> {
  return await (await fetch(`${internalUrl}/metrics`)).text()
}

/**
 * Resolves when all messages in the log are in their queues: one that was acknowledged may get
 * there a moment later.
 */
async function queuesFilled(): Promise<void> {
  const last = (await cluster.events()).findLast(({ type }) => type === 'message_sent')
  await vi.waitFor(
    async () => {
      const running = [...cluster.workers, ...cluster.nodes].filter(
        (member) => member.process.running,
      )
      const applied = (await Promise.all(running.map(metricsOf))).map((text) =>
        Number(
          /^tabulum_projection_applied_seq\{projection="queues"\} (\d+)$/m.exec(text)?.[1] ?? 0,
        ),
      )
      expect(Math.max(...applied)).toBeGreaterThanOrEqual(last?.seq ?? 0)
    },
    { timeout: 30_000, interval: 100 },
  )
}

/**
 * The contents of all that the agent has been sent: until so many have come, and what comes when it
 * asks once more.
 */
async function receiveAll(agent: Agent, count: number): Promise<string[]> {
  const received: string[] = []
  const receive = async () =>
    received.push(...(await agent.receiveAll()).map(({ content }) => content))
  await vi.waitFor(async () => {
    await receive()
    expect(received.length).toBeGreaterThanOrEqual(count)
  }, SOON)
  await vi.waitFor(receive, SOON)
  return received
}

/**
 * How often the nodes have got no answer of Redis in time. Each then goes by what it knows itself,
 * for a moment.
 */
async function unansweredByRedis(): Promise<number> {
  const texts = await Promise.all(cluster.nodes.map(metricsOf))
  const counts = texts.flatMap((text) => [
    ...text.matchAll(/^tabulum_redis_unavailable_total\{.*\} (\d+)$/gm),
  ])
  return counts.reduce((total, [, count]) => total + Number(count), 0)
}

/** What it resolves to at the first try in which the nodes had Redis all the time. */
async function withRedis<T extends { answers: Answer[] }>(run: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    const before = await unansweredByRedis()
    const result = await run()
    const isSpoiled =
      (await unansweredByRedis()) !== before || result.answers.some(({ status }) => status === 503)
    if (!isSpoiled || tries === TRIES) return result
  }
}

describe('Idempotency-Key', () => {
  it('a retry gets the first answer and sends nothing again, on whichever node', async () => {
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    const options = {
      headers: { 'Idempotency-Key': 'order-66' },
      json: { to: two.address, content: 'once' },
    }
    const first = await one.request('POST', '/v1/messages', options)
    const retries = await everywhere(one, 'POST', '/v1/messages', options)
    for (const retry of retries)
      expect(retry.as(202, messageAccepted)).toEqual(first.as(202, messageAccepted))
    expect(await receiveAll(two, 1)).toEqual(['once'])
  })

  it('of several at the same time on all nodes one is sent, and all get its answer', async () => {
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    const options = {
      headers: { 'Idempotency-Key': 'race' },
      json: { to: two.address, content: 'once' },
    }
    const answers = await everywhere(one, 'POST', '/v1/messages', options)
    expect(new Set(answers.map((answer) => answer.as(202, messageAccepted).message_id)).size).toBe(
      1,
    )
    expect(await receiveAll(two, 1)).toEqual(['once'])
  })
})

describe('rate limits', () => {
  it('an agent that sprays all nodes gets its allowance and not one request more', async () => {
    const { answers, seconds } = await withRedis(async () => {
      const agent = await client.registerAgent()
      const start = performance.now()
      const sprayed = Array.from({ length: 40 }, () => everywhere(agent, 'GET', '/v1/messages'))
      const answers = (await Promise.all(sprayed)).flat()
      return { answers, seconds: (performance.now() - start) / 1_000 }
    })
    // One a second, and each is let through up to 20 ms early.
    const refilled = Math.floor(seconds + 0.03)
    const allowed = answers.filter(({ status }) => status === 200).length
    expect(allowed).toBeGreaterThanOrEqual(60)
    expect(allowed).toBeLessThanOrEqual(60 + refilled)
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(answers.length - allowed)
  })
})

describe('a revoked token', () => {
  it('is refused by every node at once', async () => {
    const { before, revoked, answers } = await withRedis(async () => {
      const agent = await client.registerAgent()
      const before = await everywhere(agent, 'GET', '/v1/agents/me')
      const revoked = await cluster.run('revoke', [agent.address])
      const after = await everywhere(agent, 'GET', '/v1/agents/me')
      return { before, revoked, answers: after }
    })
    for (const answer of before) expect(answer.status).toBe(200)
    expect(revoked).toEqual({ code: 0, output: 'Revoked: no node accepts the token any more.\n' })
    for (const answer of answers) expect(answer.status).toBe(401)
  })

  it('is refused by every node once the sessions have run out, while Redis is out', {
    timeout: LONG_MS,
  }, async () => {
    const [agent, bystander] = await client.registerAgents(2)
    if (!agent || !bystander) throw new Error('two agents were asked for')
    await everywhere(agent, 'GET', '/v1/agents/me')
    await cluster.redis.kill()
    try {
      const { code, output } = await cluster.run('revoke', [agent.address])
      expect(output).toMatch(/^Revoked, but Redis is out/)
      expect(code).toBe(0)
      await sleep(SESSION_TTL_MS)
      for (const answer of await everywhere(agent, 'GET', '/v1/agents/me'))
        expect(answer.status).toBe(401)
    } finally {
      await cluster.redis.restart()
    }
    await vi.waitFor(async () => {
      for (const answer of await everywhere(agent, 'GET', '/v1/agents/me'))
        expect(answer.status).toBe(401)
      for (const node of cluster.nodes)
        expect(await metricsOf(node)).toMatch(/^tabulum_redis_up 1$/m)
      for (const answer of await everywhere(bystander, 'GET', '/v1/messages'))
        expect(answer.status).toBe(200)
    }, SOON)
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
      const since = (await cluster.events()).at(-1)?.seq ?? 0
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
    const json = {
      verification_response: { challenge_id, response: solvePipeline(challenge_data) },
    }
    const answers = await Promise.all(
      clients.flatMap((each) =>
        [1, 2].map(() => each.request('POST', '/v1/agents', { token: operator.token, json })),
      ),
    )
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1)
    expect(
      answers.filter(({ status }) => status === 422 || status === 403 || status === 400),
    ).toHaveLength(answers.length - 1)
  })

  it('on one queue: each message is handed out once', async () => {
    const [one, two] = await client.registerAgents(2)
    if (!one || !two) throw new Error('two agents were asked for')
    const contents = Array.from({ length: 30 }, (_, index) => `raced ${index}`)
    for (const content of contents) await one.send(two.address, content)
    await queuesFilled()
    const answers = (
      await Promise.all(
        Array.from({ length: 4 }, () => everywhere(two, 'GET', '/v1/messages?limit=5')),
      )
    ).flat()
    // What Redis was slow to lease to one is back a moment later.
    const received = answers
      .filter(({ status }) => status !== 503)
      .flatMap((answer) => answer.as(200, messagesPage).messages.map(({ content }) => content))
    const left = await receiveAll(two, contents.length - received.length)
    expect([...received, ...left].toSorted()).toEqual(contents.toSorted())
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
    expect(answers.map(({ status }) => status).toSorted()).toEqual([
      200,
      ...Array(answers.length - 1).fill(507),
    ])
    expect((await agent.capacity()).used_bytes).toBe(total_bytes)
    for (const filled of (await agent.list('?prefix=fill/')).keys) await agent.remove(filled)
  })
})

describe('a node that dies', () => {
  /** A node that does not apply the log to the database itself. */
  async function otherThanLeader(): Promise<ClusterNode> {
    const leader = await leaderOf(cluster, 'database')
    const node = cluster.nodes.find((candidate) => candidate !== leader)
    if (!node) throw new Error('there is one node only')
    return node
  }

  const writesOf = async (key: string) =>
    (await cluster.events()).filter(
      ({ type, data }) => type === 'state_written' && data.key === key,
    )

  /**
   * Has the node write a key, and runs `end` when that is in the log and cannot be applied yet: the
   * projection's row is held meanwhile.
   */
  async function whileUnapplied(node: ClusterNode, agent: Agent, end: () => Promise<void>) {
    const key = `unapplied-${randomUUID()}`
    const owner = postgres(cluster.postgres.ownerUrl, { max: 1, onnotice: () => {} })
    try {
      // In an object, as the transaction would wait for it otherwise.
      const { answer } = await owner.begin(async (holding) => {
        await holding`set local idle_in_transaction_session_timeout = 0`
        await holding`select from projections where name = 'database' for update`
        const options = { token: agent.token, json: { value: 'and no more' } }
        const answer = new Client(node.url).request('PUT', `/v1/state/${key}`, options)
        answer.catch(() => {})
        await vi.waitFor(async () => expect(await writesOf(key)).toHaveLength(1), {
          timeout: 30_000,
          interval: 50,
        })
        await end()
        return { answer }
      })
      return { key, answer }
    } finally {
      await owner.end({ timeout: 1 })
    }
  }

  /**
   * The key that the node, which ends in `run`, has written without an answer. One that has waited
   * for too long says so before: then it is done once more.
   */
  async function writtenUnanswered(
    node: ClusterNode,
    run: () => ReturnType<typeof whileUnapplied>,
  ): Promise<string> {
    for (let tries = 1; ; tries++) {
      const { key, answer } = await run()
      const answered = await answer.catch(() => undefined)
      if (answered === undefined) return key
      if (answered.status !== 503 || tries === TRIES)
        throw new Error(`not applied, and yet: ${answered}`)
      await node.restart()
    }
  }

  it('between append and apply has lost nothing but its answer', { timeout: LONG_MS }, async ({
    onTestFinished,
  }) => {
    const agent = await client.registerAgent()
    const node = await otherThanLeader()
    onTestFinished(() => node.restart())
    const key = await writtenUnanswered(node, () => whileUnapplied(node, agent, () => node.kill()))
    await vi.waitFor(async () => expect((await agent.read(key)).value).toBe('and no more'), SOON)
  })

  it('between apply and answer has lost nothing but its answer, and the write is made once', {
    timeout: LONG_MS,
  }, async ({ onTestFinished }) => {
    const agent = await client.registerAgent()
    const node = await otherThanLeader()
    onTestFinished(() => node.restart())
    // Not through the load balancer, which might ask the frozen node.
    const whole = clients[cluster.nodes.findIndex((other) => other !== node)]
    const key = await writtenUnanswered(node, async () => {
      const unapplied = await whileUnapplied(node, agent, () => node.freeze())
      await vi.waitFor(async () => {
        const answer = await whole?.request('GET', `/v1/state/${unapplied.key}`, {
          token: agent.token,
        })
        expect(answer?.as(200, stateValue).value).toBe('and no more')
      }, SOON)
      await node.kill()
      return unapplied
    })
    expect(await writesOf(key)).toHaveLength(1)
  })

  it('while it writes a response that carries messages: they are visible again after the lease', {
    timeout: LONG_MS,
  }, async ({ onTestFinished }) => {
    const [one, another, two] = await client.registerAgents(3)
    if (!one || !another || !two) throw new Error('three agents were asked for')
    const node = await otherThanLeader()
    onTestFinished(() => node.restart())
    // More than the buffers of the connection hold, so that the response cannot end before somebody
    // reads it.
    const contents = Array.from({ length: 100 }, (_, index) => `${index} ${'x'.repeat(65_000)}`)
    for (const [index, content] of contents.entries())
      await (index < 50 ? one : another).send(two.address, content)
    await queuesFilled()
    /** Asks for them, and reads no more than the beginning of the answer. */
    const begin = async () => {
      const askedAt = performance.now()
      const { hostname, port } = new URL(node.url)
      const socket = connect(Number(port), hostname)
      socket.on('error', () => {})
      onTestFinished(() => void socket.destroy())
      socket.write(
        `GET /v1/messages?limit=100 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${two.token}\r\n\r\n`,
      )
      await once(socket, 'readable')
      expect(String(socket.read(STATUS_OK.length))).toBe(STATUS_OK)
      return askedAt
    }
    const leasedAt = await vi.waitFor(begin, SOON)
    await sleep(500)
    const others = await vi.waitFor(() => two.receive(), { timeout: 15_000, interval: 1_000 })
    expect(others.messages).toEqual([])
    await node.kill()
    const received: string[] = []
    await vi.waitFor(
      async () => {
        received.push(...(await two.receive('?limit=100')).messages.map(({ content }) => content))
        expect(received).toHaveLength(contents.length)
      },
      { timeout: 90_000, interval: 1_000 },
    )
    expect(received).toEqual(contents)
    expect(performance.now() - leasedAt).toBeGreaterThan(LEASE_MS)
  })
})

describe('what a request costs', () => {
  const REPEATS = 5
  /** What the process does at its own times, as a projector or to show how it is. */
  const NOT_OF_REQUESTS = new Set([
    ...[
      'acquire_projection',
      'renew_projection',
      'apply_projection',
      'release_projection',
      'clock',
    ],
    ...[
      'acquire',
      'advance',
      'release',
      'add_messages',
      'remove_messages',
      'sweep',
      'rebuild_position',
      'rebuild_page',
    ],
    ...['check', 'memory'],
  ])
  /**
   * Asks for room that writes to come may take; where it gets none, as here, at most once a second.
   * No write waits for it.
   */
  const ALLOTMENT = 'renew_state_allotment'
  type Cost = { redis: number; postgres: number; appends: number }
  let agent: Agent
  let other: Agent
  let node: ClusterNode

  beforeAll(async () => {
    // Sessions and limits of this node outlast the counting.
    node = await cluster.startNode({
      SESSION_TTL: '30s',
      ...Object.fromEntries(
        ['MESSAGE', 'STATE_READ', 'REGISTRY_READ'].map((name) => [
          `RATE_LIMIT_${name}_PER_MIN`,
          '1000000',
        ]),
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

  /**
   * Round trips of the node so far, without those that no request makes, and how often it has asked
   * for room.
   */
  async function counted(): Promise<Cost & { allotments: number }> {
    const text = await metricsOf(node)
    const sum = (
      name: string,
      isMeant = (operation: string) => operation !== ALLOTMENT && !NOT_OF_REQUESTS.has(operation),
    ) =>
      [...text.matchAll(new RegExp(`^${name}_count(?:\\{operation="(\\w+)"\\})? (\\d+)$`, 'gm'))]
        .filter(([, operation = '']) => isMeant(operation))
        .reduce((total, [, , count]) => total + Number(count), 0)
    return {
      redis: sum('tabulum_redis_seconds'),
      postgres: sum('tabulum_database_seconds'),
      appends: sum('tabulum_append_seconds'),
      allotments: sum('tabulum_database_seconds', (operation) => operation === ALLOTMENT),
    }
  }

  /** Of one request, on average; what it does after its answer included. */
  async function costOf(request: () => Promise<unknown>): Promise<Cost> {
    await request()
    await sleep(300)
    const begun = performance.now()
    const before = await counted()
    for (let index = 0; index < REPEATS; index++) await request()
    await sleep(300)
    const after = await counted()
    expect(after.allotments - before.allotments).toBeLessThanOrEqual(
      1 + (performance.now() - begun) / 1_000,
    )
    return {
      redis: (after.redis - before.redis) / REPEATS,
      postgres: (after.postgres - before.postgres) / REPEATS,
      appends: (after.appends - before.appends) / REPEATS,
    }
  }

  // The table "Round trips" of docs/architecture.md. Appends are those that somebody waits for.
  it.each<[string, () => Promise<unknown>, Cost]>([
    ['GET /v1/agents/me', () => agent.me(), { redis: 1, postgres: 0, appends: 0 }],
    ['GET /v1/registry', () => agent.registry(), { redis: 1, postgres: 1, appends: 0 }],
    ['GET /v1/state', () => agent.list(), { redis: 1, postgres: 1, appends: 0 }],
    ['GET /v1/state/{key}', () => agent.read('cost'), { redis: 1, postgres: 1, appends: 0 }],
    ['GET /v1/state/_capacity', () => agent.capacity(), { redis: 1, postgres: 1, appends: 0 }],
    ['PUT /v1/state/{key}', () => agent.write('cost', 'y'), { redis: 1, postgres: 1, appends: 1 }],
    [
      'POST /v1/messages',
      () => agent.send(other.address, 'x'),
      { redis: 1, postgres: 0, appends: 1 },
    ],
    [
      'GET /v1/messages, of an empty queue',
      () => agent.receive(),
      { redis: 2, postgres: 0, appends: 0 },
    ],
  ])('%s', { timeout: LONG_MS }, async (_name, request, expected) => {
    // Now and then a session runs out in between, which costs more.
    await vi.waitFor(async () => expect(await costOf(request)).toEqual(expected), {
      timeout: 60_000,
    })
  })
})
