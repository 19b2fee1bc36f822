/**
 * Maintenance on real servers: one process at a time keeps it, whoever dies, and no job harms those
 * who serve.
 */
import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { type Cluster, type ClusterProcess, startCluster } from '../../lab/cluster.ts'
import { type PostgresDatabase, sharedPostgres } from '../../lab/servers.ts'
import {
  type Database,
  DatabaseUnavailable,
  openPostgres,
  roundTrip,
} from '../../src/platform/database.ts'
import { Lease } from '../../src/platform/lease.ts'
import { standing } from '../../src/projector/database-projection.ts'
import { RegistryTables } from '../../src/registry/postgres-registry-tables.ts'
import { StateTables } from '../../src/state/postgres-state-tables.ts'

const START_MS = 180_000
const TEST_MS = 300_000
const HOUR_MS = 3_600_000
/** A minute, the run after it, and some for a busy machine. */
const TAKEN_OVER = { timeout: 180_000, interval: 200 }

describe('the lease', () => {
  let server: PostgresDatabase
  let superuser: postgres.Sql
  let database: Database

  beforeAll(async () => {
    server = await sharedPostgres()
    superuser = postgres(server.superuserUrl, { max: 2, onnotice: () => {} })
    database = openPostgres({ url: server.appUrl, poolMode: 'session', maxConnections: 4 })
  }, START_MS)
  afterAll(async () => {
    await database?.destroy()
    await superuser?.end()
    await server?.[Symbol.asyncDispose]()
  })

  const leaseOf = (holder: string) => new Lease(database, 'maintenance', holder)
  const free = () => superuser`update leases set holder = null, expires_at = '-infinity'`

  it('is one process’s of many that ask at once, until it gives it back', async () => {
    await free()
    const leases = Array.from({ length: 8 }, (_, index) => leaseOf(`process ${index}`))
    const taken = await Promise.all(leases.map((lease) => lease.take(60_000, 0)))
    expect(taken.filter(Boolean)).toHaveLength(1)
    const holder = leases[taken.indexOf(true)] as Lease
    const others = leases.filter((lease) => lease !== holder)
    expect(await holder.take(60_000, 0)).toBe(true)
    for (const other of others) {
      await other.release()
      expect(await other.take(60_000, 0)).toBe(false)
    }
    await holder.release()
    // Whoever is to step in last waits.
    expect(await others[0]?.take(60_000, HOUR_MS)).toBe(false)
    expect(await others[0]?.take(60_000, 0)).toBe(true)
    expect(await holder.take(60_000, 0)).toBe(false)
  })

  it('of a process that is gone ends in its time, whatever the clock was set to since', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: -HOUR_MS, max: 1_000 * HOUR_MS }), async (aheadMs) => {
        await free()
        expect(await leaseOf('gone').take(20_000, 0)).toBe(true)
        await superuser`update leases set expires_at = expires_at + ${aheadMs}::float8 * interval '1 millisecond'`
        const isOver = await leaseOf('next').take(20_000, 0)
        if (Math.abs(aheadMs + 20_000) > 15_000) expect(isOver).toBe(aheadMs < -20_000)
        const [row] = await superuser<{ left: number }[]>`
          select extract(epoch from expires_at - clock_timestamp())::float8 * 1000 as left from leases`
        expect(row?.left).toBeLessThanOrEqual(20_000)
      }),
      { numRuns: 60 },
    )
  })

  it('and every job of the database end, when something is locked, by what Postgres says; no connection is replaced for that', {
    timeout: TEST_MS,
  }, async () => {
    const [registry, state] = [new RegistryTables(database), new StateTables(database, 1_000_000)]
    await free()
    expect(await standing(database)).toMatchObject({ appliedSeq: 0 })
    const pids = async () => {
      const rows = await superuser<{ pid: number }[]>`
        select pid from pg_stat_activity where usename = 'tabulum' and datname = current_database() order by pid`
      return rows.map(({ pid }) => pid)
    }
    const release = Promise.withResolvers<void>()
    const locked = Promise.withResolvers<void>()
    const locker = superuser.begin(async (transaction) => {
      await transaction`lock table leases, challenges, agents, operators, state_reservations, state_allotments in access exclusive mode`
      locked.resolve()
      await release.promise
    })
    await locked.promise
    try {
      // All connections are there.
      await Promise.all(
        Array.from({ length: 4 }, () => roundTrip(database, 'test', () => standing(database))),
      )
      const before = await pids()
      const now = new Date()
      const jobs = [
        () => registry.tidyChallenges(10),
        () => registry.tidyRegistrations(now, 10),
        () => state.tidyReservations(now, 10),
        () => state.tidyAllotments(now, 10),
        () => leaseOf('locked out').take(20_000, 0),
      ]
      for (const job of jobs) {
        const begun = performance.now()
        await expect(job()).rejects.toThrow(DatabaseUnavailable)
        // Less than it would take this process to give up.
        expect(performance.now() - begun).toBeLessThan(14_000)
      }
      const after = await pids()
      expect(before.filter((pid) => after.includes(pid)).length).toBe(before.length)
    } finally {
      release.resolve()
      await locker
    }
  })

  it('is not asked for by what is locked row by row: that is passed over', async () => {
    const registry = new RegistryTables(database)
    const stage = async () => {
      const operatorId = randomUUID()
      await registry.stageOperator(operatorId, { lookup: Buffer.alloc(8), tokenHash: operatorId })
      return operatorId
    }
    const [held, other] = [await stage(), await stage()]
    await superuser.begin(async (transaction) => {
      await transaction`select from operators where operator_id = ${held} for update`
      expect(await registry.tidyRegistrations(new Date(Date.now() + HOUR_MS), 10)).toBe(1)
    })
    const left =
      await superuser`select operator_id from operators where operator_id in (${held}, ${other})`
    expect(left.map((row) => row.operator_id)).toEqual([held])
    expect(await registry.tidyRegistrations(new Date(Date.now() + HOUR_MS), 10)).toBe(1)
  })
})

describe('in a cluster', () => {
  let cluster: Cluster
  let superuser: postgres.Sql
  let agent: Agent

  beforeAll(async () => {
    cluster = await startCluster({ nodes: 1, workers: 2, settings: { LOG_LEVEL: 'info' } })
    superuser = postgres(cluster.postgres.superuserUrl, { max: 3, onnotice: () => {} })
    agent = await new Client(cluster.baseUrl).registerAgent()
  }, START_MS)
  afterAll(async () => {
    await superuser?.end()
    await cluster?.[Symbol.asyncDispose]()
  }, START_MS)

  const members = (): readonly ClusterProcess[] => [...cluster.nodes, ...cluster.workers]

  async function metric({ internalUrl }: ClusterProcess, line: string): Promise<number> {
    const text = await (await fetch(`${internalUrl}/metrics`)).text()
    const found = text.split('\n').find((each) => each.startsWith(`${line} `))
    return Number(found?.slice(line.length + 1) ?? Number.NaN)
  }

  /** The one process that runs maintenance. */
  async function keeper(): Promise<ClusterProcess> {
    return vi.waitFor(async () => {
      const running = members().filter(({ process }) => process.running)
      const keeping = await Promise.all(
        running.map((one) => metric(one, 'tabulum_maintenance_keeping')),
      )
      expect(keeping.filter((value) => value === 1)).toHaveLength(1)
      return running[keeping.indexOf(1)] as ClusterProcess
    }, TAKEN_OVER)
  }

  /** What a node that died long ago left behind: one of everything. */
  async function abandon(): Promise<void> {
    await superuser`insert into operators (operator_id, token_lookup, token_hash, staged_at)
      values (gen_random_uuid(), '\\x00', 'x', now() - interval '1 hour')`
    await superuser`insert into challenges (challenge_id, operator_id, issued_at, expires_at)
      values (gen_random_uuid(), gen_random_uuid(), now() - interval '1 hour', now() - interval '1 minute')`
    await superuser.begin(async (transaction) => {
      await transaction`update state_usage set reserved_bytes = reserved_bytes + 30, allotted_bytes = allotted_bytes + 20`
      await transaction`insert into state_allotments (id, bytes, renewed_at) values (gen_random_uuid(), 20, now() - interval '1 hour')`
      await transaction`insert into state_reservations (id, key, size, reserved_at)
        values (gen_random_uuid(), '\\x00', 10, now() - interval '1 hour')`
    })
  }

  async function left(): Promise<unknown> {
    const [row] = await superuser`
      select (select count(*)::int from operators where seq is null) as staged, (select count(*)::int from challenges) as challenges,
        (select count(*)::int from state_reservations) as reservations,
        (select count(*)::int from state_allotments where renewed_at < now() - interval '30 minutes') as allotments`
    return row
  }
  const NOTHING = { staged: 0, challenges: 0, reservations: 0, allotments: 0 }

  /**
   * Holds what `release_state_allotments` waits for, so that a run of `allotments` is under way,
   * and says when that is so.
   */
  async function whileAllotmentsWait(work: () => Promise<void>): Promise<void> {
    await superuser.begin(async (transaction) => {
      await transaction`select from state_usage for update`
      await vi.waitFor(async () => {
        const [row] = await superuser<{ waiting: number }[]>`
          select count(*)::int as waiting from pg_stat_activity
          where wait_event_type = 'Lock' and query like '%release_state_allotments%' and pid <> pg_backend_pid()`
        expect(row?.waiting).toBeGreaterThan(0)
      }, TAKEN_OVER)
      await work()
    })
  }

  async function nothingUnheard(): Promise<void> {
    for (const member of members().filter(({ process }) => process.running))
      expect(await metric(member, 'tabulum_unhandled_rejections_total'), member.name).toBe(0)
    for (const { internalUrl } of members()) {
      expect(await (await fetch(`${internalUrl}/metrics`)).text()).not.toMatch(/reason="defect"/)
    }
  }

  it('what was abandoned goes; what is in use stays', { timeout: TEST_MS }, async ({
    onTestFailed,
  }) => {
    onTestFailed(() => console.error(cluster.output()))
    await abandon()
    await agent.write('kept', 'x')
    await vi.waitFor(async () => expect(await left()).toEqual(NOTHING), TAKEN_OVER)
    expect((await agent.read('kept')).value).toBe('x')
    expect((await cluster.run('verify')).output).toContain('no differences')
    const one = await keeper()
    expect(cluster.workers.map(({ name }) => name)).toContain(one.name)
    await vi.waitFor(async () => {
      for (const task of [
        'challenges',
        'registrations',
        'reservations',
        'allotments',
        'generations',
      ])
        expect(
          await metric(one, `tabulum_maintenance_runs_total{task="${task}",outcome="done"}`),
          task,
        ).toBeGreaterThan(0)
    }, TAKEN_OVER)
  })

  it('is done by hand: says what each job did, what is wrong, and which jobs there are', {
    timeout: TEST_MS,
  }, async ({ onTestFailed }) => {
    onTestFailed(() => console.error(cluster.output()))
    await abandon()
    const all = await cluster.run('maintain')
    expect(
      all.output
        .split('\n')
        .filter((line) => / rows, /.test(line))
        .map((line) => line.split(' (')[0]),
    ).toEqual(
      ['challenges', 'registrations', 'reservations', 'allotments', 'generations'].map(
        (name) => `${name}: done`,
      ),
    )
    expect(all.code).toBe(0)
    expect(await left()).toEqual(NOTHING)

    const unknown = await cluster.run('maintain', ['allotments', 'alotments'])
    expect(unknown).toEqual({
      code: 2,
      output:
        'a cluster has no job "alotments": there are challenges, registrations, reservations, allotments, generations\n',
    })
    await whileAllotmentsWait(async () => {
      const failed = await cluster.run('maintain', ['allotments', 'challenges'])
      expect(failed.output).toMatch(
        /^challenges: done.*\nallotments: failed: the database cannot be reached: canceling statement due to lock timeout/m,
      )
      expect(failed.code).toBe(1)
    })
  })

  it('a keeper that is killed in the middle of a job is replaced within a minute, and the job is done', {
    timeout: TEST_MS,
  }, async ({ onTestFailed }) => {
    onTestFailed(() => console.error(cluster.output()))
    const killed = await keeper()
    await abandon()
    await whileAllotmentsWait(() => killed.kill())
    expect((await keeper()).name).not.toBe(killed.name)
    await vi.waitFor(async () => expect(await left()).toEqual(NOTHING), TAKEN_OVER)
    await killed.restart()
    await nothingUnheard()
  })

  it('a keeper that is told to stop in the middle of a job ends in order, and gives its lease back', {
    timeout: TEST_MS,
  }, async ({ onTestFailed }) => {
    onTestFailed(() => console.error(cluster.output()))
    const stopped = await keeper()
    const { pid } = stopped
    await abandon()
    await whileAllotmentsWait(async () => {
      expect(await stopped.stop()).toBe(0)
    })
    const [lease] = await superuser`select holder from leases`
    expect(lease?.holder ?? '').not.toContain(`-${pid}-`)
    await vi.waitFor(async () => expect(await left()).toEqual(NOTHING), TAKEN_OVER)
    await stopped.restart()
    await nothingUnheard()
  })

  it('without a worker an api node does it; a database that is out for longer than the lease ends nothing', {
    timeout: TEST_MS * 2,
  }, async ({ onTestFailed }) => {
    onTestFailed(() => console.error(cluster.output()))
    await Promise.all(cluster.workers.map((worker) => worker.stop()))
    const node = cluster.nodes[0] as ClusterProcess
    expect((await keeper()).name).toBe(node.name)
    const { pid } = node
    await cluster.postgres.stop()
    await vi.waitFor(
      async () => expect(await metric(node, 'tabulum_maintenance_keeping')).toBe(0),
      TAKEN_OVER,
    )
    await cluster.postgres.restart()
    await abandon()
    expect((await keeper()).name).toBe(node.name)
    await vi.waitFor(async () => expect(await left()).toEqual(NOTHING), TAKEN_OVER)
    expect(node.process.running && node.pid).toBe(pid)
    await Promise.all(cluster.workers.map((worker) => worker.restart()))
    await nothingUnheard()
  })
})
