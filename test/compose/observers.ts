/**
 * Whoever watches the cluster through the published port of the observation service, and what its
 * operator does there.
 */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { Client, percentEncode } from '../../lab/client.ts'
import { type Event, event } from '../../lab/kernel.ts'
import { startWatcher, type Transport, type Watcher } from '../../lab/watcher.ts'
import { addressesOfTour, statusOf, writes } from './agents.ts'
import {
  areHealthy,
  compose,
  containers,
  expect,
  inspect,
  kill,
  logHas,
  OBSERVE_PORT,
  settings,
  until,
  within,
} from './engine.ts'

const url = `http://127.0.0.1:${OBSERVE_PORT}`
const client = new Client(url)

const TRANSPORTS: readonly Transport[] = ['SSE', 'WebSocket']
/** Within the limit of 300 a minute, with room for what else is asked meanwhile. */
const ASK_EVERY_MS = 300
const REDACTED = '[REDACTED — see /observe/transparency]'
/** What the observation service may know of the passwords in .env. */
const ITS_OWN = ['TABULUM_OBSERVER_PASSWORD', 'NATS_OBSERVER_PASSWORD']

const eventsPage = z.object({ events: z.array(event), next_cursor: z.int(), has_more: z.boolean() })
const stateBody = z.object({
  value: z.string(),
  redacted: z.literal(true).optional(),
  reason: z.string().optional(),
})
const historyBody = z.object({ versions: z.array(z.object({ type: z.string() })) })
const transparency = z.object({
  removals: z.array(
    z.object({
      key: z.string().optional(),
      reason: z.string(),
      performed_by: z.string(),
      content_hash: z.string(),
    }),
  ),
})

const ask = async <T>(path: string, shape: z.ZodType<T>): Promise<T> =>
  (await client.request('GET', path)).as(200, shape)
const eventsOf = async (query: string): Promise<Event[]> =>
  (await ask(`/observe/events?${query}`, eventsPage)).events

/** What the agents of the tour did, and the page for people with its program. */
export async function seesTheTour(): Promise<void> {
  expect('health', (await ask('/observe/health', z.object({ status: z.string() }))).status, 'ok')
  const [ada, bob] = addressesOfTour()
  const done = async (query: string) =>
    (await eventsOf(`${query}&limit=100`)).map(({ type, data }) => ({
      type,
      content: data.content ?? data.value,
    }))
  expect(
    'what the two wrote to each other',
    await done(`agent=${ada}&with=${bob}&type=message_sent`),
    [
      { type: 'message_sent', content: 'Bob, what is 6 times 7?' },
      { type: 'message_sent', content: '42, Ada.' },
    ],
  )
  expect('what was written', await done(`agent=${ada}&type=state_written&key=answers/6-times-7`), [
    { type: 'state_written', content: '42' },
  ])
  await page()
}

async function page(): Promise<void> {
  const { status, headers, body } = await client.request('GET', '/')
  expect('the page', [status, headers['content-type']?.split(';')[0]], [200, 'text/html'])
  const script = /<script[^>]+src="([^"]+)"/.exec(body.toString())?.[1]
  const program = await client.request('GET', new URL(script ?? 'no-script', `${url}/`).pathname)
  expect(
    'its program',
    [program.status, program.headers['content-type']?.split(';')[0]],
    [200, 'text/javascript'],
  )
}

/** Its containers have no password but the observer's two, and do not find Redis. */
export async function hasOnlyItsOwn(): Promise<void> {
  const secrets = Object.entries(settings()).filter(([name]) => /_PASSWORD$|_KEY$/.test(name))
  const lookUp = (name: string) =>
    `require('node:dns').lookup('${name}', (error) => process.exit(error ? 0 : 1))`
  for (const id of await containers('observe')) {
    const environment = await inspect('{{json .Config.Env}}', id)
    const known = secrets.flatMap(([name, value]) => (environment.includes(value) ? [name] : []))
    expect('secrets of the observation service', known.toSorted(), ITS_OWN.toSorted())
  }
  await compose('exec', '-T', 'observe', 'node', '-e', lookUp('redis'))
}

/** A stream brings what happens, from its answer on; `during` makes something happen. */
async function watching(during: (watchers: readonly Watcher[]) => Promise<void>): Promise<void> {
  const since = (await eventsOf('before=999999999999999&limit=1'))[0]?.seq ?? 0
  const watchers = TRANSPORTS.map((transport) =>
    startWatcher({ transport, urls: [url], since, types: ['state_written', 'state_key_removed'] }),
  )
  try {
    await until('two streams', async () => watchers.every(({ connections }) => connections > 0))
    await during(watchers)
    const right = (
      await eventsOf(`since=${since}&type=state_written,state_key_removed&limit=1000`)
    ).map(({ seq }) => seq)
    expect('that something was to be seen', right.length > 0, true)
    for (const [index, { seen }] of watchers.entries()) {
      await until(
        `the last event on ${TRANSPORTS[index]}`,
        async () => seen.at(-1)?.seq === right.at(-1),
      )
      expect(
        `what came on ${TRANSPORTS[index]}`,
        seen.map(({ seq }) => seq),
        right,
      )
    }
  } finally {
    await within('the end of the streams', Promise.all(watchers.map((watcher) => watcher.stop())))
  }
}

/**
 * How many of the questions that were asked one after the other, from `action`'s begin to its end,
 * had no good answer.
 */
async function asking(action: () => Promise<void>): Promise<{ asked: number; failed: string[] }> {
  const failed: string[] = []
  let asked = 0
  let isOver = false
  const loop = async () => {
    while (!isOver) {
      await eventsOf('limit=1').catch((error: unknown) => void failed.push(String(error)))
      asked++
      await sleep(ASK_EVERY_MS)
    }
  }
  const acting = action().finally(() => {
    isOver = true
  })
  await Promise.all([acting, loop()])
  return { asked, failed }
}

/**
 * Kills one process of two after the other: the port goes on answering, and streams go on where
 * they were.
 */
export async function outlivesAProcess(): Promise<string> {
  const processes = await containers('observe')
  expect('processes of the observation service', processes.length, 2)
  const told: string[] = []
  await watching(async (watchers) => {
    const connections = () => watchers.reduce((sum, watcher) => sum + watcher.connections, 0)
    const before = connections()
    for (const [index, id] of processes.entries()) {
      const { asked, failed } = await asking(async () => {
        await writes(`observed/${index}`, 'before')
        await kill('observe', id)
        await writes(`observed/${index}`, 'after')
        await until('the health of all after a kill', areHealthy)
      })
      // What was in its hands when it was killed; nothing that is asked after that.
      if (failed.length > 1)
        throw new Error(`${failed.length} of ${asked} questions failed: ${failed.join('; ')}`)
      told.push(`${failed.length} of ${asked} questions failed`)
    }
    expect('that a process which was killed had a stream', connections() > before, true)
  })
  return told.join(', ')
}

/** As docs/deploying.md says: first what would be done, then the removal, then the original too. */
export async function removes(): Promise<void> {
  const [key, value, reason] = ['illegal/here', 'what may not be hosted', 'court order 12/2026']
  const remove = (env: readonly string[], ...args: readonly string[]) =>
    compose(
      ...[
        'exec',
        '-T',
        ...env.flatMap((setting) => ['--env', setting]),
        'worker',
        'node',
        'src/main.ts',
      ],
      ...['remove', 'state', '--key', key, '--reason', reason, ...args],
    )
  await watching(async () => {
    await writes(key, value)
    await remove([], '--dry-run')
    expect('after the dry run', await statusOf(key), 200)
    await remove([], '--by', 'Ada, legal', '--yes')
  })
  expect('what agents get', await statusOf(key), 404)
  const path = `/observe/state/${percentEncode(key)}`
  expect('what observers get', await ask(path, stateBody), {
    value: REDACTED,
    redacted: true,
    reason,
  })
  const { versions } = await ask(`${path}/history`, historyBody)
  expect(
    'its history',
    versions.map(({ type }) => type),
    ['state_key_removed', 'state_written'],
  )
  const [written] = await eventsOf(`key=${key}&type=state_written`)
  expect('its event', [written?.data.value, written?.data.redacted], [REDACTED, true])
  expect('what is found of it', await eventsOf(`text=${percentEncode(value)}`), [])
  const hash = createHash('sha256').update(value).digest('hex')
  expect('the transparency log', (await ask('/observe/transparency', transparency)).removals, [
    { key, reason, performed_by: 'Ada, legal', content_hash: hash },
  ])
  const listed = (
    await compose('exec', '-T', 'worker', 'node', 'src/main.ts', 'remove', 'list')
  ).toString()
  expect(
    'what remove list says',
    listed.includes(` "${key}" ${hash} by Ada, legal: ${reason}\n`),
    true,
  )
  const again = await remove([], '--yes').then(
    () => 'removed',
    (error: unknown) => String(error),
  )
  expect('that it is not removed twice', again.includes('was removed already'), true)

  const { NATS_ADMIN_PASSWORD, REDIS_ADMIN_PASSWORD } = settings()
  const servers = ['nats-1', 'nats-2', 'nats-3'].map(
    (server) => `nats://admin:${NATS_ADMIN_PASSWORD}@${server}:4222`,
  )
  const admin = [
    `NATS_ADMIN_URL=${servers.join()}`,
    `REDIS_URL=redis://admin:${REDIS_ADMIN_PASSWORD}@redis:6379`,
  ]
  expect('that it is in the log', await logHas(value), true)
  const said = (await remove(admin, '--erase', '--yes')).toString()
  expect('what --erase says', said.includes('from 1 event of the log'), true)
  expect('that it is in the log after --erase', await logHas(value), false)
}

/** As docs/deploying.md says; whoever watches notices nothing. */
export async function rebuilds(): Promise<void> {
  const network = async () =>
    JSON.stringify((await client.request('GET', '/observe/network')).as(200, z.unknown()))
  const before = await network()
  const { asked, failed } = await asking(async () => {
    const said = (await compose('run', '--rm', '-T', 'observe', 'observe', '--rebuild')).toString()
    expect('what --rebuild says', said.includes('they serve from now on'), true)
  })
  expect(`failed questions of ${asked} during a rebuild`, failed, [])
  expect('the network after a rebuild', await network(), before)
  await watching(() => writes('rebuilt', 'yes').then(() => undefined))
}
