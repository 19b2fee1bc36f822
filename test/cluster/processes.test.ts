/**
 * No error of a server ends a process of the kernel, and what a server refused for a while comes
 * back by itself.
 */
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Agent, Client } from '../../lab/client.ts'
import { type Cluster, type ClusterProcess, startCluster } from '../../lab/cluster.ts'
import { startTcpProxy, type TcpProxy } from '../../lab/tcp-proxy.ts'

const START_MS = 120_000
const TEST_MS = 180_000
/** For a busy machine; the promise is 5 s. */
const RECOVERY_MS = 30_000
const RESTARTS = 6
const WRITERS = 8

const LIFTED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
}

let cluster: Cluster
let one: Agent
let two: Agent

beforeAll(async () => {
  cluster = await startCluster({ nodes: 2, workers: 1, settings: LIFTED })
  ;[one, two] = (await new Client(cluster.baseUrl).registerAgents(2)) as [Agent, Agent]
}, START_MS)

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
}, START_MS)

/**
 * Remembers which processes run, and says afterwards that they are the same, and have heard of
 * everything that went wrong.
 */
function watchProcesses(): () => Promise<void> {
  const members: readonly ClusterProcess[] = [...cluster.nodes, ...cluster.workers]
  const before = members.map(({ pid }) => pid)
  return async () => {
    expect(
      members.map(({ process, name }) => (process.running ? process.pid : `${name} has ended`)),
    ).toEqual(before)
    for (const { internalUrl } of members) {
      const metrics = await (await fetch(`${internalUrl}/metrics`)).text()
      expect(metrics).toMatch(/^tabulum_unhandled_rejections_total 0$/m)
      expect(metrics).not.toMatch(/reason="defect"/)
    }
  }
}

/**
 * Agents that write, read and ask for pages until they are told to stop; returns the statuses that
 * they got.
 */
function load(): { stop(): Promise<ReadonlySet<number>> } {
  const statuses = new Set<number>()
  let isOver = false
  const working = Array.from({ length: WRITERS }, async (_, index) => {
    while (!isOver) {
      statuses.add((await one.tryWrite(`load/${index}`, 'x'.repeat(100))).status)
      statuses.add((await two.tryRead(`load/${index}`)).status)
      statuses.add((await two.request('GET', '/v1/registry')).status)
    }
  })
  return {
    async stop() {
      isOver = true
      await Promise.all(working)
      return statuses
    },
  }
}

async function works(client: Agent = one): Promise<void> {
  await vi.waitFor(
    async () => {
      await client.write('works', 'yes')
      expect((await client.read('works')).value).toBe('yes')
      await client.send(two.address, 'works')
      expect((await two.receive()).messages.map(({ content }) => content)).toContain('works')
    },
    { timeout: RECOVERY_MS, interval: 100 },
  )
}

/** Every node answers for itself, so that none hides behind another. */
async function allWork(): Promise<void> {
  for (const { url } of cluster.nodes)
    await works(new Agent(new Client(url), one.address, one.token))
}

it('Postgres restarted again and again under load: no process ends, no rejection is unheard, all is 200, 404 or 503', {
  timeout: TEST_MS * 2,
}, async ({ onTestFailed }) => {
  onTestFailed(() => console.error(cluster.output()))
  await allWork()
  const unharmed = watchProcesses()
  const agents = load()
  for (let restart = 0; restart < RESTARTS; restart++) {
    await cluster.postgres.restart()
    await works()
  }
  const statuses = await agents.stop()
  expect([...statuses].filter((status) => ![200, 404, 503].includes(status))).toEqual([])
  await allWork()
  await unharmed()
})

it('nothing that the driver of Postgres asks by itself on a new connection can fail unheard', {
  timeout: TEST_MS,
}, async ({ onTestFailed }) => {
  onTestFailed(() => console.error(cluster.output()))
  await allWork()
  const unharmed = watchProcesses()
  const superuser = postgres(cluster.postgres.superuserUrl, {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  })
  try {
    // Which it asks for the types of arrays, unless it is told not to.
    await superuser.unsafe('revoke select on pg_catalog.pg_type from public')
    await superuser.unsafe(
      `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tabulum'`,
    )
    await allWork()
    await unharmed()
  } finally {
    await superuser.unsafe('grant select on pg_catalog.pg_type to public')
    await superuser.end()
  }
})

describe('a server that refuses the password for a while: 503 until it is the right one again, then all is well', {
  timeout: TEST_MS,
}, () => {
  it('Postgres', async ({ onTestFailed }) => {
    onTestFailed(() => console.error(cluster.output()))
    const unharmed = watchProcesses()
    const agents = load()
    try {
      await cluster.postgres.setAppPassword('another')
      await vi.waitFor(async () => expect((await one.tryWrite('refused', 'x')).status).toBe(503), {
        timeout: RECOVERY_MS,
      })
      expect((await two.tryRead('refused')).status).toBe(503)
    } finally {
      await cluster.postgres.setAppPassword()
    }
    await allWork()
    expect(
      [...(await agents.stop())].filter((status) => ![200, 404, 503].includes(status)),
    ).toEqual([])
    await unharmed()
  })

  it('Redis', async ({ onTestFailed }) => {
    onTestFailed(() => console.error(cluster.output()))
    const unharmed = watchProcesses()
    try {
      await cluster.redis.setKernelPassword('another')
      await vi.waitFor(
        async () => expect((await two.request('GET', '/v1/messages')).status).toBe(503),
        {
          timeout: RECOVERY_MS,
        },
      )
    } finally {
      await cluster.redis.setKernelPassword()
    }
    await allWork()
    await unharmed()
  })

  it('Redis that takes away the right to every command, on connections that stay', async ({
    onTestFailed,
  }) => {
    onTestFailed(() => console.error(cluster.output()))
    const unharmed = watchProcesses()
    const admin = new Redis(cluster.redis.adminUrl)
    const lines = (await admin.call('ACL', 'LIST')) as string[]
    const rules =
      lines
        .find((line) => line.startsWith('user kernel '))
        ?.split(' ')
        .slice(2) ?? []
    try {
      await admin.call('ACL', 'SETUSER', 'kernel', '-@all')
      for (let asked = 0; asked < 8; asked++) {
        expect((await two.request('GET', '/v1/messages')).status).toBe(503)
        expect((await two.tryRead('works')).status).toBe(200)
      }
    } finally {
      await admin.call('ACL', 'SETUSER', 'kernel', 'reset', ...rules)
      admin.disconnect()
    }
    await allWork()
    await unharmed()
  })

  it('NATS, for long enough that every server has refused more than once', async ({
    onTestFailed,
  }) => {
    onTestFailed(() => console.error(cluster.output()))
    const unharmed = watchProcesses()
    await cluster.nats.setKernelPassword('another')
    try {
      await vi.waitFor(async () => expect((await one.tryWrite('refused', 'x')).status).toBe(503), {
        timeout: RECOVERY_MS,
      })
      // The client tries each server ten times a second; three answers of 503 take over three
      // seconds.
      for (let asked = 0; asked < 3; asked++)
        expect((await one.trySend(two.address, 'refused')).status).toBe(503)
    } finally {
      await cluster.nats.setKernelPassword()
    }
    await allWork()
    await unharmed()
  })
})

it('a deadlock that Postgres reports is 503, and nothing ends', { timeout: TEST_MS }, async ({
  onTestFailed,
}) => {
  onTestFailed(() => console.error(cluster.output()))
  const unharmed = watchProcesses()
  const superuser = postgres(cluster.postgres.superuserUrl, { max: 1, onnotice: () => {} })
  try {
    await superuser.unsafe(`
      create function deadlock() returns trigger language plpgsql as $$ begin
        raise exception 'deadlock detected' using errcode = '40P01';
      end $$;
      create trigger deadlock before update on state_usage for each row execute function deadlock()`)
    const agents = load()
    await vi.waitFor(
      async () => {
        const answer = await one.tryWrite('deadlocked', 'x'.repeat(1_000))
        expect(answer.status).toBe(503)
        expect(answer.headers['retry-after']).toBeDefined()
      },
      { timeout: RECOVERY_MS },
    )
    expect(
      [...(await agents.stop())].filter((status) => ![200, 404, 503].includes(status)),
    ).toEqual([])
  } finally {
    await superuser.unsafe('drop trigger deadlock on state_usage; drop function deadlock()')
    await superuser.end()
  }
  await allWork()
  await unharmed()
})

describe('a node with a network of its own', { timeout: TEST_MS }, () => {
  /** Proxies to all servers, and the settings by which a node goes through them. */
  async function network(stack: AsyncDisposableStack) {
    const through = async (url: string): Promise<[TcpProxy, string]> => {
      const proxy = stack.use(await startTcpProxy(Number(new URL(url).port)))
      return [proxy, Object.assign(new URL(url), { port: String(proxy.port) }).href]
    }
    const [postgresProxy, databaseUrl] = await through(cluster.postgres.appUrl)
    const [redisProxy, redisUrl] = await through(cluster.redis.url)
    const nats = await Promise.all(cluster.nats.url.split(',').map(through))
    return {
      postgres: postgresProxy,
      redis: redisProxy,
      nats: nats.map(([proxy]) => proxy),
      all: [postgresProxy, redisProxy, ...nats.map(([proxy]) => proxy)],
      settings: {
        DATABASE_URL: databaseUrl,
        REDIS_URL: redisUrl,
        NATS_URL: nats.map(([, url]) => url).join(','),
      },
    }
  }
  const readiness = async (node: ClusterProcess) => {
    const response = await fetch(`${node.internalUrl}/readyz`)
    return { code: response.status, status: ((await response.json()) as { status: string }).status }
  }

  for (const how of ['cut', 'hold'] as const) {
    it(`waits for Postgres at its start; is out of service where it reaches no server (${how}), and not where it reaches one`, async ({
      onTestFailed,
    }) => {
      onTestFailed(() => console.error(cluster.output()))
      await using stack = new AsyncDisposableStack()
      const proxies = await network(stack)
      proxies.postgres.cut()
      const waits = () => cluster.output().split('cannot start yet').length
      const before = waits()
      const starting = cluster.startNode(proxies.settings)
      await vi.waitFor(() => expect(waits()).toBeGreaterThan(before), {
        timeout: START_MS,
        interval: 50,
      })
      proxies.postgres.heal()
      const node = await starting
      expect(node.output()).toMatch(/cannot start yet, trying again/)
      // It waited, and was not started again.
      expect(node.output()).not.toMatch(/^DATABASE_URL: cannot use/m)
      const isUp = async () =>
        (await cluster.haproxy.nodes()).find(({ port }) => port === Number(new URL(node.url).port))
          ?.status
      try {
        for (const proxy of [proxies.postgres, ...proxies.nats]) proxy[how]()
        await vi.waitFor(
          async () => expect(await readiness(node)).toEqual({ code: 200, status: 'degraded' }),
          {
            timeout: RECOVERY_MS,
          },
        )
        expect(await isUp()).toMatch(/^UP/)

        proxies.redis[how]()
        await vi.waitFor(async () => expect(await isUp()).toBe('DOWN'), {
          timeout: RECOVERY_MS,
          interval: 50,
        })
        expect(await readiness(node)).toEqual({ code: 503, status: 'cut_off' })
        for (let request = 0; request < 12; request++)
          expect((await one.tryWrite('cut-off', 'x')).status).toBe(200)

        for (const proxy of proxies.all) proxy.heal()
        await vi.waitFor(async () => expect(await isUp()).toBe('UP'), {
          timeout: RECOVERY_MS,
          interval: 50,
        })
        await works(new Agent(new Client(node.url), one.address, one.token))
        expect(node.output()).not.toMatch(/defect/)
      } finally {
        for (const proxy of proxies.all) proxy.heal()
        await node.kill()
      }
    })
  }
})
