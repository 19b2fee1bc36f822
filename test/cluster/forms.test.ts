/** The whole cluster on the other forms of its servers: Redis Cluster, and Postgres behind a pooler that shares connections by transaction. */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Client } from '../support/client.ts'
import { type Cluster, startCluster } from '../support/cluster.ts'
import { type RedisCluster, startPgBouncer, startRedisCluster } from '../support/servers.ts'
import { runWorkload } from './workload.ts'

const START_MS = 120_000
const WORKLOAD_MS = 120_000

let cluster: Cluster
let redis: RedisCluster

beforeAll(async () => {
  cluster = await startCluster({
    nodes: 2,
    workers: 1,
    settings: {
      RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
      RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
      RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
    },
    route: async ({ postgres }, stack) => {
      redis = stack.use(await startRedisCluster())
      const pooler = stack.use(await startPgBouncer(postgres))
      return {
        DATABASE_URL: pooler.appUrl,
        DATABASE_POOL_MODE: 'transaction',
        REDIS_URL: redis.url,
        REDIS_MODE: 'cluster',
      }
    },
  })
}, START_MS)

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
}, START_MS)

it('does all that it does, and loses nothing when a master of Redis Cluster comes back as it was before', {
  timeout: WORKLOAD_MS,
}, async ({ onTestFailed }) => {
  onTestFailed(() => console.error(cluster.output()))
  const outcome = await runWorkload(cluster.baseUrl, async () => {
    const [, second] = redis.masters
    if (second === undefined) throw new Error('there is no second master')
    const restore = second.backUp()
    await sleep(1_500)
    await second.kill()
    await sleep(1_000)
    // What a replica that lagged would come with: less than was there.
    restore()
    await second.restart()
    await sleep(6_000)
  })
  expect(outcome).toEqual({ ...outcome, lost: [], repeated: [], reordered: [], stale: [] })
  expect(outcome.sent).toBeGreaterThan(20)
  expect(Object.keys(outcome.counts).filter((name) => !/ (200|202|503|404)$/.test(name))).toEqual([])
  const { code, output } = await cluster.run('verify')
  expect(output).toMatch(/no differences/)
  expect(code).toBe(0)
})

it('takes in keys that hash to every master', async () => {
  const agents = await new Client(cluster.baseUrl).registerAgents(12)
  const [sender] = agents
  for (const agent of agents) await sender?.send(agent.address, `to ${agent.address}`)
  for (const agent of agents)
    expect((await agent.receiveAll()).map(({ content }) => content)).toEqual([`to ${agent.address}`])
})
