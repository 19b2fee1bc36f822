/**
 * The whole cluster on the other forms of its servers: Redis Cluster, and Postgres behind a pooler
 * that shares connections by transaction.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Client } from '../../lab/client.ts'
import { type Cluster, type Places, startSharedCluster } from '../../lab/cluster.ts'
import { check } from '../../lab/faults/checker.ts'
import { observe } from '../../lab/faults/run.ts'
import { WORKLOAD_SETTINGS } from '../../lab/faults/workload.ts'
import { seededRandom } from '../../lab/random.ts'
import { type RedisCluster, startPgBouncer, startRedisCluster } from '../../lab/servers.ts'
import { receiveSoon } from '../contract/support.ts'

const START_MS = 300_000
const WORKLOAD_MS = 300_000

let cluster: Cluster<Places>
let redis: RedisCluster

beforeAll(async () => {
  cluster = await startSharedCluster({
    nodes: 2,
    workers: 1,
    settings: WORKLOAD_SETTINGS,
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
  const history = await observe(
    { cluster, random: seededRandom(1), paceMs: 60 },
    async (faults) => {
      const [, second] = redis.masters
      if (second === undefined) throw new Error('there is no second master')
      const restore = second.backUp()
      await sleep(1_500)
      const began = performance.now()
      await second.kill()
      await sleep(1_000)
      // What a replica that lagged would come with: less than was there.
      restore()
      await second.restart()
      await redis.whole()
      faults.push({
        name: 'a master restored from a copy',
        hits: ['redis'],
        began,
        repaired: performance.now(),
      })
    },
  )
  expect(check(history)).toEqual([])
  expect(
    history.operations.filter(({ kind, status }) => kind === 'send' && status === 202).length,
  ).toBeGreaterThan(20)
})

it('takes in keys that hash to every master', async () => {
  const agents = await new Client(cluster.baseUrl).registerAgents(12)
  const [sender] = agents
  for (const agent of agents) await sender?.send(agent.address, `to ${agent.address}`)
  for (const agent of agents) {
    const contents = (await receiveSoon(agent, 1)).map(({ content }) => content)
    expect(contents).toEqual([`to ${agent.address}`])
    expect((await agent.receive()).messages).toEqual([])
  }
})
