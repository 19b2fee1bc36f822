/** `remove` on a cluster that runs: what agents get from then on, by every way. */
import { hash } from 'node:crypto'
import { afterAll, afterEach, beforeAll, expect, it, vi } from 'vitest'
import { type Agent, Client, type Message, message } from '../../lab/client.ts'
import { type Cluster, type Places, startSharedCluster } from '../../lab/cluster.ts'
import { createTestAuthority, startReceiver, type TestAuthority } from '../../lab/receiver.ts'
import { REDACTED } from '../../src/removal/redaction.ts'

const START_MS = 240_000
const TEST_MS = 240_000
const WITHIN = { timeout: 120_000, interval: 100 }
const LARGE = 'illegal '.repeat(5_000)

let authority: TestAuthority
let cluster: Cluster<Places>
let client: Client
let sender: Agent

beforeAll(async () => {
  authority = await createTestAuthority()
  cluster = await startSharedCluster({
    nodes: 2,
    workers: 1,
    settings: {
      RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
      RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
      WEBHOOK_ALLOW_CIDRS: '127.0.0.1/32',
      WEBHOOK_CA_FILE: authority.caFile,
      WEBHOOK_TOTAL_TIMEOUT: '120s',
    },
  })
  client = new Client(cluster.baseUrl)
  sender = await client.registerAgent()
}, START_MS)
afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]()
  await authority?.[Symbol.asyncDispose]()
}, START_MS)
afterEach(({ task }) => {
  if (task.result?.state === 'fail') console.error(cluster.output().slice(-5_000))
})

async function sendAll(to: Agent, contents: readonly string[]): Promise<string[]> {
  const ids: string[] = []
  for (const content of contents) ids.push((await sender.send(to.address, content)).message_id)
  return ids
}

async function redact(id: string | undefined): Promise<void> {
  const { code, output } = await cluster.run('remove', [
    'message',
    '--id',
    id ?? '',
    '--reason',
    'illegal',
    '--yes',
  ])
  expect(code, output).toBe(0)
}

const contentsOf = (messages: readonly Message[]) => messages.map(({ content }) => content)

it('a state key: agents get 404 on every node, the list lacks it, its room is free', {
  timeout: TEST_MS,
}, async () => {
  await sender.write('kept', 'fine')
  const before = await sender.capacity()
  await sender.write('bad', 'first')
  await sender.write('bad', 'illegal')
  const { code, output } = await cluster.run('remove', [
    'state',
    '--key',
    'bad',
    '--reason',
    'illegal',
    '--yes',
  ])
  expect(code, output).toBe(0)
  expect(output).toContain(hash('sha256', 'illegal'))
  for (const { url } of cluster.nodes) {
    const answer = await new Client(url).request('GET', '/v1/state/bad', { token: sender.token })
    expect(answer.status).toBe(404)
  }
  expect(await sender.keys()).toEqual(['kept'])
  // What nodes hold ahead is no part of it.
  expect(await sender.capacity()).toEqual(before)
  await sender.write('gone', 'once')
  await sender.remove('gone')
  const gone = await cluster.run('remove', [
    'state',
    '--key',
    'gone',
    '--reason',
    'illegal',
    '--yes',
  ])
  expect(gone.code, gone.output).toBe(0)
  expect(gone.output).toContain(hash('sha256', 'once'))
})

it('messages that wait in a queue, small and large, arrive redacted, in order and once', {
  timeout: TEST_MS,
}, async () => {
  const to = await client.registerAgent()
  const ids = await sendAll(to, ['0', 'illegal', '2', LARGE, '4'])
  await redact(ids[1])
  await redact(ids[3])
  const received = await to.receiveAll()
  expect(contentsOf(received)).toEqual(['0', REDACTED, '2', REDACTED, '4'])
  expect(received.map(({ message_id }) => message_id)).toEqual(ids)
  expect(await to.receiveAll()).toEqual([])
  // It was delivered, and is redacted for observers all the same.
  await redact(ids[0])
  await sendAll(to, ['5'])
  expect(contentsOf(await to.receiveAll())).toEqual(['5'])
})

it('the queues that are built anew, after Redis has lost all, have the redactions', {
  timeout: TEST_MS,
}, async () => {
  const to = await client.registerAgent()
  const ids = await sendAll(to, ['0', 'illegal', LARGE, '3'])
  await redact(ids[1])
  await cluster.redis.wipe()
  await redact(ids[2])
  const received: Message[] = []
  await vi.waitFor(async () => {
    const answer = await to.request('GET', '/v1/messages?limit=100')
    if (answer.status === 200) received.push(...(answer.json as { messages: Message[] }).messages)
    expect(received).toHaveLength(ids.length)
  }, WITHIN)
  expect(contentsOf(received)).toEqual(['0', REDACTED, REDACTED, '3'])
})

it('messages to a webhook arrive redacted, pushed or, where that fails, fetched', {
  timeout: TEST_MS,
}, async () => {
  const gate = Promise.withResolvers<void>()
  const answering = (status: number) =>
    startReceiver({
      authority,
      behaviour: async () => {
        await gate.promise
        return { status }
      },
    })
  await using well = await answering(200)
  await using gone = await answering(410)
  const [pushed, fetching] = await Promise.all(
    [well, gone].map(({ url }) => client.registerAgent({ webhookUrl: `${url}/hook` })),
  )
  const pushedIds = await sendAll(pushed as Agent, ['0', 'illegal', '2'])
  const fetchedIds = await sendAll(fetching as Agent, ['illegal', LARGE, '2'])
  // The first of each is on its way.
  await vi.waitFor(
    () => expect([well.deliveries.length, gone.deliveries.length]).toEqual([1, 1]),
    WITHIN,
  )
  await redact(pushedIds[1])
  await redact(fetchedIds[0])
  await redact(fetchedIds[1])
  gate.resolve()
  await vi.waitFor(() => expect(well.deliveries).toHaveLength(3), WITHIN)
  const delivered = well.deliveries.map(({ body }) => message.parse(JSON.parse(body.toString())))
  expect(contentsOf(delivered)).toEqual(['0', REDACTED, '2'])
  const fetched: Message[] = []
  await vi.waitFor(async () => {
    fetched.push(...(await (fetching as Agent).receiveAll()))
    expect(fetched).toHaveLength(3)
  }, WITHIN)
  expect(contentsOf(fetched)).toEqual([REDACTED, REDACTED, '2'])
})

it('is said to be in the log where no projector takes it in, and takes effect when one does', {
  timeout: TEST_MS,
}, async () => {
  const to = await client.registerAgent()
  const [id = ''] = await sendAll(to, ['illegal'])
  const all = [...cluster.nodes, ...cluster.workers]
  await Promise.all(all.map((member) => member.freeze()))
  const { code, output } = await cluster
    .run('remove', ['message', '--id', id, '--reason', 'illegal', '--yes'])
    .finally(() => Promise.all(all.map((member) => member.thaw())))
  expect(code, output).toBe(1)
  expect(output).toMatch(
    /The removal of message \S+ is in the log as event \d+, and not in force yet: the projection/,
  )
  await vi.waitFor(async () => {
    expect((await cluster.run('remove', ['list'])).output).toContain(id)
  }, WITHIN)
  await vi.waitFor(
    async () => expect(contentsOf(await to.receiveAll())).toEqual([REDACTED]),
    WITHIN,
  )
})

it('leaves nothing that verify would tell of', { timeout: TEST_MS }, async () => {
  const { output } = await cluster.run('verify')
  expect(output).toMatch(/no differences\.\n$/)
})
