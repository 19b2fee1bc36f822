/**
 * The observation service on real servers: what its credentials can do, and what observers see
 * while its processes come and go.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import {
  type Cluster,
  type ClusterNode,
  type Places,
  startCluster,
  startSharedCluster,
} from '../../lab/cluster.ts'
import type { Event } from '../../lab/kernel.ts'
import { startWatcher, type Transport, type Watcher } from '../../lab/watcher.ts'
import { LEASE_MS } from '../../src/observe/observer.ts'
import { REDACTED } from '../../src/removal/redaction.ts'

const START_MS = 300_000
const TEST_MS = 300_000
const WITHIN = { timeout: 120_000, interval: 100 }
/** Between two requests of an agent at work. */
const PACE_MS = 20
const SETTINGS = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
  RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
}
const TRANSPORTS: readonly Transport[] = ['WebSocket', 'SSE']

const rightsOf = ({ postgres, nats }: Cluster<Places>) => ({
  DATABASE_URL: postgres.observerUrl,
  NATS_URL: nats.observerUrl,
  REDIS_URL: '',
})

/**
 * Agents that write, read and send as long as `during` takes. Resolves when they have stopped, to
 * what it resolves to.
 */
async function whileWorking<T>(agents: readonly Agent[], during: () => Promise<T>): Promise<T> {
  let isOver = false
  const work = async (agent: Agent, number: number) => {
    for (let round = 0; !isOver; round++) {
      const to = agents[(number + 1) % agents.length] as Agent
      // What is refused while something changes leaves nothing that has to be there.
      await agent.tryWrite(`tasks/${number}/${round % 7}`, `${round}`).catch(() => {})
      await agent.tryRead(`tasks/${number}/${round % 7}`).catch(() => {})
      await agent.trySend(to.address, `${number} ${round}`).catch(() => {})
      await agent.request('GET', '/v1/messages').catch(() => {})
      await sleep(PACE_MS)
    }
  }
  const working = agents.map(work)
  try {
    return await during()
  } finally {
    isOver = true
    await Promise.all(working)
  }
}

async function ask<T>({ url }: ClusterNode, path: string): Promise<T> {
  const response = await fetch(`${url}/observe/${path}`)
  const text = await response.text()
  if (response.status !== 200) throw new Error(`${path} answered ${response.status}: ${text}`)
  return JSON.parse(text) as T
}

const BUILT = /^[\d,]+ events applied, up to .*: they serve from now on\.\n/m

/**
 * Said at the start: that a server of the distribution is old, and that there were no tables yet.
 */
const AT_START = /NATS before 2\.10|are built from the beginning of the log/

function complaintsOf(output: string): string[] {
  return output.split('\n').filter((line) => line !== '' && !AT_START.test(line))
}

async function metricOf({ internalUrl }: ClusterNode, name: string): Promise<number> {
  const text = await (await fetch(`${internalUrl}/metrics`)).text()
  return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1] ?? Number.NaN)
}

/** The observer that applies the log, and another. */
async function leading(
  observers: readonly ClusterNode[],
): Promise<{ leader: ClusterNode; other: ClusterNode }> {
  return await vi.waitFor(async () => {
    const leads = await Promise.all(
      observers.map((observer) => metricOf(observer, 'tabulum_observation_leading')),
    )
    const leader = observers[leads.indexOf(1)]
    const other = observers[leads.indexOf(0)]
    if (leader === undefined || other === undefined) throw new Error(`these lead: ${leads}`)
    return { leader, other }
  }, WITHIN)
}

/** That the read models are those that the whole log gives. */
async function expectExact(cluster: Cluster<Places>): Promise<void> {
  const last = (await cluster.events()).at(-1)?.seq ?? 0
  await vi.waitFor(async () => {
    const { code, output } = await cluster.run('verify')
    expect(code, output).toBe(0)
    expect(output).toContain('no differences.')
    const [, events, seq] =
      /Compared the observation, (\d+) events, up to (\d+)\./.exec(output) ?? []
    expect(Number(seq), output).toBeGreaterThanOrEqual(last)
    expect(Number(events)).toBeGreaterThan(0)
  }, WITHIN)
}

/** Those that ask for all, and one for some, each over another transport. */
function watchersOf(observers: readonly ClusterNode[], since: number) {
  const urls = observers.map(({ url }) => url)
  const types = ['message_sent', 'state_written']
  return [
    ...TRANSPORTS.map((transport) => ({
      watcher: startWatcher({ transport, urls, since }),
      wants: (_event: Event) => true,
    })),
    {
      watcher: startWatcher({ transport: 'SSE', urls: urls.toReversed(), since, types }),
      wants: ({ type }: Event) => types.includes(type),
    },
  ]
}

/** That each has seen what the log has, once and in order; then they end. */
async function expectSeen(
  watchers: readonly { watcher: Watcher; wants: (event: Event) => boolean }[],
  log: readonly Event[],
): Promise<void> {
  for (const { watcher, wants } of watchers) {
    const wanted = log.filter(wants)
    const last = wanted.at(-1)?.seq ?? 0
    await vi.waitFor(
      () => expect(watcher.seen.at(-1)?.seq ?? 0).toBeGreaterThanOrEqual(last),
      WITHIN,
    )
    await watcher.stop()
    expect(watcher.seen.filter(({ seq }) => seq <= last)).toEqual(wanted)
  }
}

async function lastSeqOf(cluster: Cluster<Places>): Promise<number> {
  return (await cluster.events()).at(-1)?.seq ?? 0
}

describe('on servers that go on', () => {
  let cluster: Cluster<Places>
  let agents: readonly Agent[]
  let observers: readonly ClusterNode[]

  beforeAll(async () => {
    cluster = await startSharedCluster({ nodes: 1, workers: 1, settings: SETTINGS })
    observers = [await cluster.startObserver(), await cluster.startObserver()]
    agents = await new Client(cluster.baseUrl).registerAgents(4)
  }, START_MS)
  afterAll(() => cluster?.[Symbol.asyncDispose](), START_MS)
  afterEach(({ task }) => {
    if (task.result?.state === 'fail') console.error(cluster.output().slice(-5_000))
  })

  describe('the role in Postgres', () => {
    const REFUSED = '42501'
    /** None of them holds a credential. */
    const READABLE = ['erasures', 'removals', 'state', 'state_blocks', 'state_usage']
    let sql: postgres.Sql
    let tables: { table: string; column: string }[]

    beforeAll(async () => {
      sql = postgres(cluster.postgres.observerUrl, { max: 1, onnotice: () => {} })
      const owner = postgres(cluster.postgres.ownerUrl, { max: 1, onnotice: () => {} })
      tables = await owner<{ table: string; column: string }[]>`
        select table_name as table, min(column_name) as column from information_schema.columns
        where table_schema = 'public' group by 1 order by 1`
      await owner.end()
    })
    afterAll(() => sql?.end())

    const codeOf = (statement: string) =>
      sql.unsafe(statement).then(
        () => 'done',
        ({ code }: { code: string }) => code,
      )

    it('changes no table of the kernel', async () => {
      expect(tables.length).toBeGreaterThan(10)
      for (const { table, column } of tables) {
        for (const statement of [
          `insert into "${table}" default values`,
          `update "${table}" set "${column}" = "${column}"`,
          `delete from "${table}"`,
          `truncate "${table}"`,
          `drop table "${table}"`,
        ])
          expect(`${statement}: ${await codeOf(statement)}`).toBe(`${statement}: ${REFUSED}`)
      }
    })

    it('reads those that it shows something of, and none with a credential', async () => {
      const readable: string[] = []
      for (const { table } of tables) {
        const code = await codeOf(`select * from "${table}" limit 1`)
        if (code === 'done') readable.push(table)
        else expect(code, table).toBe(REFUSED)
      }
      expect(readable).toEqual(READABLE)
    })

    it('has no function do for it what it may not', async () => {
      // Those that run with the rights of whoever made them.
      const trusted = await sql`
        select proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'public' and prosecdef`
      expect([...trusted]).toEqual([])
      const key = Buffer.from('key').toString('base64')
      const id = '00000000-0000-4000-8000-000000000000'
      for (const call of [
        `apply_events('nobody', 0, 1, '{}')`,
        `project_state('[{"seq":1,"key":"${key}","value":"${key}","by":"tab_x","at":"2026-01-01T00:00:00Z"}]')`,
        `project_removals('[{"seq":1,"ts":"2026-01-01T00:00:00Z","action":"message_redacted"}]')`,
        `project_registry('{"operators":[],"agents":[]}')`,
        `reserve_state_writes('[{"id":"${id}","key":"${key}","size":1}]', 1000)`,
        `renew_state_allotment('${id}', true, 0, 0, 1, 1, 1000)`,
        `release_state(array['${id}'::uuid])`,
        `release_state_allotments(now(), 10)`,
        `release_webhook_lanes('[{"recipient":"tab_x","claim":1}]')`,
      ])
        expect(`${call}: ${await codeOf(`select ${call}`)}`).toBe(`${call}: ${REFUSED}`)
    })

    it('makes nothing outside its schemas', async () => {
      for (const statement of [
        'create table public.mine (x integer)',
        'create temporary table mine (x integer)',
        'create schema mine',
        'create function public.mine() returns integer language sql as $$ select 1 $$',
        'create role mine',
        `copy (select 1) to program 'true'`,
        `select pg_read_file('PG_VERSION')`,
        `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tabulum'`,
        'alter role tabulum nologin',
        'set role tabulum',
      ])
        expect(`${statement}: ${await codeOf(statement)}`).toBe(`${statement}: ${REFUSED}`)
      expect(await codeOf('create table observation_next.mine (x integer)')).toBe('done')
      expect(await codeOf('drop table observation_next.mine')).toBe('done')
    })
  })

  it('what it does in normal work, it may: it has nothing to complain of', {
    timeout: TEST_MS,
  }, async () => {
    const since = await lastSeqOf(cluster)
    const watchers = watchersOf(observers, since)
    await whileWorking(agents, async () => {
      await vi.waitFor(
        async () => expect((await cluster.events(since)).length).toBeGreaterThan(300),
        WITHIN,
      )
    })
    const log = (await cluster.events(since)).slice(0, 1_000)
    const range = `since=${since}&until=${log.at(-1)?.seq}&limit=1000`
    for (const observer of observers) {
      expect(await ask(observer, `events?${range}`)).toMatchObject({ events: log })
      const sent = log.filter(({ type }) => type === 'message_sent')
      expect(await ask(observer, `events?${range}&type=message_sent`)).toMatchObject({
        events: sent,
      })
      await ask(observer, 'agents')
      await ask(observer, 'network')
      await ask(observer, 'activity')
      await ask(observer, 'state/tasks/0/0/history')
      await ask(observer, 'transparency')
    }
    await expectSeen(watchers, log)
    const rebuilt = await cluster.run('observe', ['--rebuild'], rightsOf(cluster))
    expect(rebuilt.code, rebuilt.output).toBe(0)
    expect(rebuilt.output).toMatch(BUILT)
    await expectExact(cluster)
    for (const observer of observers) expect(complaintsOf(observer.output())).toEqual([])
    expect(complaintsOf(rebuilt.output.replace(BUILT, ''))).toEqual([])
  })

  it('goes on within seconds where the process that leads is killed', {
    timeout: TEST_MS,
  }, async () => {
    const { leader, other } = await leading(observers)
    await whileWorking(agents, async () => {
      await leader.kill()
      await vi.waitFor(
        async () => expect(await metricOf(other, 'tabulum_observation_leading')).toBe(1),
        {
          timeout: 2 * LEASE_MS + 20_000,
          interval: 20,
        },
      )
      // An answer is as new as what was acknowledged before.
      const [agent, recipient] = agents as [Agent, Agent]
      const sentBy = async () =>
        (await ask<{ messages_sent: number }>(other, `agents/${agent.address}`)).messages_sent
      await vi.waitFor(async () => {
        const before = await sentBy()
        await agent.send(recipient.address, 'one more')
        expect(await sentBy()).toBeGreaterThan(before)
      }, WITHIN)
      await leader.restart()
    })
    await expectExact(cluster)
  })

  it('counts nothing twice where the process that leads stands still for longer than its lease', {
    timeout: TEST_MS,
  }, async () => {
    const { leader, other } = await leading(observers)
    await whileWorking(agents, async () => {
      await leader.freeze()
      await vi.waitFor(
        async () => expect(await metricOf(other, 'tabulum_observation_leading')).toBe(1),
        WITHIN,
      )
      const from = await metricOf(other, 'tabulum_observation_applied_seq')
      await vi.waitFor(
        async () =>
          expect(await metricOf(other, 'tabulum_observation_applied_seq')).toBeGreaterThan(from),
        WITHIN,
      )
      await leader.thaw()
      await vi.waitFor(
        async () => expect(await metricOf(leader, 'tabulum_observation_leading')).toBe(0),
        WITHIN,
      )
    })
    await expectExact(cluster)
    expect(await metricOf(other, 'tabulum_observation_leading')).toBe(1)
  })

  it('a stream misses nothing and repeats nothing while observers are stopped, killed and started', {
    timeout: TEST_MS,
  }, async () => {
    const since = await lastSeqOf(cluster)
    const watchers = watchersOf(observers, since)
    await whileWorking(agents, async () => {
      for (const observer of observers) {
        await observer.restart()
        await observer.kill()
        await observer.restart()
      }
    })
    for (const { watcher } of watchers) expect(watcher.connections).toBeGreaterThan(1)
    await expectSeen(watchers, await cluster.events(since))
    await expectExact(cluster)
  })

  it('serves while its read models are built anew, and they are exact', {
    timeout: TEST_MS,
  }, async () => {
    const since = await lastSeqOf(cluster)
    const watchers = watchersOf(observers, since)
    const failed: unknown[] = []
    let answers = 0
    await whileWorking(agents, async () => {
      let isOver = false
      const asking = observers.map(async (observer, index) => {
        const [agent, recipient] = [agents[index], agents[index + 2]] as [Agent, Agent]
        let before = 0
        while (!isOver) {
          try {
            // What was acknowledged before is in every answer, and nothing that was there is gone.
            await agent.send(recipient.address, 'counted')
            const figures = await ask<{ messages_sent: number }>(
              observer,
              `agents/${agent.address}`,
            )
            if (figures.messages_sent <= before)
              failed.push(`${figures.messages_sent} after ${before}`)
            before = figures.messages_sent
            await ask(observer, 'events?type=message_sent&before=999999999999&limit=10')
            await ask(observer, 'agents')
            await ask(observer, 'network')
            await ask(observer, 'activity')
            await ask(observer, 'state/tasks/0/0/history')
            answers++
          } catch (error) {
            failed.push(error)
          }
        }
      })
      for (let times = 0; times < 3; times++) {
        const { code, output } = await cluster.run('observe', ['--rebuild'], rightsOf(cluster))
        expect(code, output).toBe(0)
      }
      isOver = true
      await Promise.all(asking)
    })
    expect(failed).toEqual([])
    expect(answers).toBeGreaterThan(5)
    await expectSeen(watchers, await cluster.events(since))
    await expectExact(cluster)
  })

  it('shows what was removed nowhere any more, on no observer', { timeout: TEST_MS }, async () => {
    const [agent, recipient] = agents as [Agent, Agent]
    const since = await lastSeqOf(cluster)
    const key = 'removal/bad'
    const urls = observers.map(({ url }) => [url])
    const early = urls.map((urls, index) =>
      startWatcher({ transport: TRANSPORTS[index % 2] as Transport, urls, since }),
    )
    await agent.write(key, 'illegal value')
    const { message_id: id } = await agent.send(recipient.address, 'illegal message')
    await agent.write('removal/good', 'fine')
    for (const { seen } of early)
      await vi.waitFor(() => expect(JSON.stringify(seen)).toContain('illegal message'), WITHIN)
    for (const args of [
      ['state', '--key', key],
      ['message', '--id', id],
    ]) {
      const { code, output } = await cluster.run('remove', [
        ...args,
        '--reason',
        'illegal',
        '--yes',
      ])
      expect(code, output).toBe(0)
    }
    const log = await cluster.events(since)
    const seqs = log.map(({ seq }) => seq)
    const written = log.find(({ type, data }) => type === 'state_written' && data.key === key)
      ?.seq as number
    const isShown = (events: readonly Event[]) => {
      expect(JSON.stringify(events)).not.toContain('illegal value')
      expect(JSON.stringify(events)).not.toContain('illegal message')
      return events
        .filter(({ data }) => data.content === REDACTED || data.value === REDACTED)
        .map(({ type }) => type)
    }
    const removed = async () => {
      for (const observer of observers) {
        const page = async (query: string) =>
          (await ask<{ events: Event[] }>(observer, `events?since=${since}&${query}`)).events
        const all = await page('limit=1000')
        expect(all.map(({ seq }) => seq)).toEqual(seqs)
        expect(isShown(all)).toEqual(['state_written', 'message_sent'])
        expect(isShown(await page('type=message_sent'))).toEqual(['message_sent'])
        expect(isShown(await page(`agent=${agent.address}&type=state_written`))).toEqual([
          'state_written',
        ])
        expect(isShown(await page('before=999999999999'))).toEqual([
          'message_sent',
          'state_written',
        ])
        const value = { key, value: REDACTED, redacted: true, reason: 'illegal' }
        expect(await ask(observer, `state/${key}`)).toEqual(value)
        expect(await ask(observer, `state/${key}?at=${written}`)).toMatchObject(value)
        const { versions } = await ask<{ versions: { type: string }[] }>(
          observer,
          `state/${key}/history`,
        )
        expect(versions.map(({ type }) => type)).toEqual(['state_key_removed', 'state_written'])
        const { removals } = await ask<{ removals: object[] }>(observer, 'transparency')
        expect(removals.slice(-2)).toMatchObject([
          { action: 'state_key_removed', key, reason: 'illegal' },
          { action: 'message_redacted', message_id: id, reason: 'illegal' },
        ])
        for (const transport of TRANSPORTS) {
          for (const types of [undefined, ['state_written', 'message_sent']]) {
            const late = startWatcher({
              transport,
              urls: [observer.url],
              since,
              ...(types && { types }),
            })
            const wanted = log.filter(({ type }) => types?.includes(type) ?? true)
            await vi.waitFor(
              () => expect(late.seen.map(({ seq }) => seq)).toEqual(wanted.map(({ seq }) => seq)),
              WITHIN,
            )
            await late.stop()
            expect(isShown(late.seen)).toEqual(['state_written', 'message_sent'])
          }
        }
      }
    }
    await removed()
    // Who watched before has got the content, and is told that it was removed.
    for (const watcher of early) {
      await vi.waitFor(() => expect(watcher.seen.map(({ seq }) => seq)).toEqual(seqs), WITHIN)
      await watcher.stop()
      expect(watcher.seen.slice(-2).map(({ type }) => type)).toEqual([
        'state_key_removed',
        'message_redacted',
      ])
    }
    const { code, output } = await cluster.run('observe', ['--rebuild'], rightsOf(cluster))
    expect(code, output).toBe(0)
    await removed()
    await expectExact(cluster)
  })
})

describe('on servers of its own', () => {
  it('a stream misses nothing and repeats nothing while the log gets another leader', {
    timeout: TEST_MS,
  }, async () => {
    await using cluster = await startCluster({ nodes: 1, workers: 1, settings: SETTINGS })
    const observers = [await cluster.startObserver()]
    const agents = await new Client(cluster.baseUrl).registerAgents(3)
    const watchers = watchersOf(observers, 0)
    const { servers } = cluster.nats
    await whileWorking(agents, async () => {
      // Each change meets a stream under way.
      const flowing = async () => {
        const before = watchers.map(({ watcher }) => watcher.seen.length)
        await vi.waitFor(() => {
          for (const [index, { watcher }] of watchers.entries())
            expect(watcher.seen.length).toBeGreaterThan((before[index] ?? 0) + 10)
        }, WITHIN)
      }
      await flowing()
      for (const server of servers) {
        await cluster.nats.makeLeader('EVENTS', server)
        await flowing()
      }
      const leader = await vi.waitFor(async () => {
        const found = await cluster.nats.streamLeader('EVENTS')
        if (found === undefined) throw new Error('no server leads')
        return found
      }, WITHIN)
      await leader.kill()
      await flowing()
      await leader.restart()
      await flowing()
    })
    await expectSeen(watchers, await cluster.events())
    await expectExact(cluster)
  })
})
