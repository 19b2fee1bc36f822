/** What strangers and other operators do, an operator's agents do not pay for. */
import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { Agent, Client, message, type Operator } from '../../lab/client.ts'
import { type Cluster, type Places, startSharedCluster } from '../../lab/cluster.ts'
import { createTestAuthority, startReceiver, type TestAuthority } from '../../lab/receiver.ts'

const TEST_MS = 300_000
const UNKNOWN = 300
/**
 * More than a worker tries at once of endpoints that it does not know (WEBHOOK_CONCURRENCY, 100).
 */
const BLACK_HOLES = 200
const AT_ONCE = 8
/** docs/guarantees.md says so of a worker that has died; nobody has here. */
const FIRST_PUSH_MS = 10_000

let authority: TestAuthority
let cluster: Cluster<Places>
let client: Client
beforeAll(async () => {
  authority = await createTestAuthority()
  const lifted = {
    RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
    RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
    RATE_LIMIT_REGISTRY_READ_PER_MIN: '1000000',
  }
  const webhooks = {
    WEBHOOK_ALLOW_CIDRS: '127.0.0.1/32',
    WEBHOOK_CA_FILE: authority.caFile,
    WEBHOOK_TOTAL_TIMEOUT: '60s',
  }
  cluster = await startSharedCluster({ nodes: 1, workers: 1, settings: { ...lifted, ...webhooks } })
  client = new Client(cluster.baseUrl)
})
afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
  await authority?.[Symbol.asyncDispose]()
})

/** The sum of a counter over all processes. */
async function counted(pattern: RegExp): Promise<number> {
  let sum = 0
  for (const { internalUrl } of [...cluster.nodes, ...cluster.workers]) {
    const metrics = await (await fetch(`${internalUrl}/metrics`)).text()
    for (const [, value] of metrics.matchAll(pattern)) sum += Number(value)
  }
  return sum
}

const compared = () => counted(/^tabulum_bcrypt_seconds_count\{operation="compare"\} (\d+)$/gm)

it('tokens that nobody has cost no bcrypt, and one that somebody has does', {
  timeout: TEST_MS,
}, async () => {
  const { address, token } = await client.registerAgent()
  // Who has just registered has a session.
  await cluster.redis.wipe()
  for (const node of cluster.nodes) await node.restart()
  const stranger = new Agent(client, address, `at_live_${randomBytes(32).toString('hex')}`)
  const isServed = async () =>
    expect((await stranger.request('GET', '/v1/agents/me')).status).toBe(401)
  await vi.waitFor(isServed, { timeout: 60_000 })
  const before = await compared()
  const unknown = Array.from({ length: UNKNOWN }, (_, index) => {
    const secret = randomBytes(32).toString('hex')
    return new Agent(client, address, index % 3 === 0 ? `sk_live_${secret}` : `at_live_${secret}`)
  })
  const answers = await Promise.all(unknown.map((agent) => agent.request('GET', '/v1/agents/me')))
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([401]))
  expect(await compared()).toBe(before)
  // Nor one that is nearly somebody's.
  const almost = token.slice(0, -4) + (token.endsWith('0000') ? '1111' : '0000')
  expect((await new Agent(client, address, almost).request('GET', '/v1/agents/me')).status).toBe(
    401,
  )
  expect(await compared()).toBe(before)
  const known = new Agent(client, address, token)
  await vi.waitFor(() => known.me(), { timeout: 60_000 })
  expect(await compared()).toBeGreaterThan(before)
})

it('a new endpoint is pushed to while those of another operator answer nothing', {
  timeout: TEST_MS,
}, async () => {
  await using hole = await startReceiver({ authority, behaviour: 'black_hole' })
  await using receiver = await startReceiver({ authority })
  const sender = await client.registerAgent()
  const greedy = await client.registerOperator()
  const holes = await register(greedy, BLACK_HOLES, hole.url)
  const others = await register(await client.registerOperator(), 3, receiver.url)
  for (const { address } of holes) await sender.send(address, 'lost')
  await vi.waitFor(
    async () =>
      expect(await counted(/^tabulum_webhook_in_flight (\d+)$/gm)).toBeGreaterThanOrEqual(10),
    { timeout: 60_000 },
  )

  const waits: number[] = []
  for (const { address } of others) {
    const sentAt = performance.now()
    await sender.send(address, 'first')
    const arrived = () =>
      receiver.deliveries.some(
        ({ body }) => message.parse(JSON.parse(body.toString())).to === address,
      )
    await vi.waitFor(() => expect(arrived()).toBe(true), { timeout: 120_000, interval: 5 })
    waits.push(performance.now() - sentAt)
  }
  // A machine that is busy may hold up one or two of them.
  expect(Math.min(...waits)).toBeLessThan(FIRST_PUSH_MS)
  // And not because those that answer nothing had been found out.
  expect(await counted(/^tabulum_webhook_attempts_total\{outcome="timeout"\} (\d+)$/gm)).toBe(0)
})

async function register(operator: Operator, count: number, url: string): Promise<Agent[]> {
  const agents: Agent[] = []
  while (agents.length < count) {
    const wanted = Math.min(AT_ONCE, count - agents.length)
    const first = agents.length
    agents.push(
      ...(await Promise.all(
        Array.from({ length: wanted }, (_, index) =>
          operator.registerAgent(`${url}/${first + index}`),
        ),
      )),
    )
  }
  return agents
}
