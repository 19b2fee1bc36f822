/**
 * Messages to agents with a webhook: pushed to real HTTPS receivers on loopback, or else pulled.
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Webhook } from 'standardwebhooks'
import { afterAll, expect, it, vi } from 'vitest'
import { type Agent, Client, message } from '../../lab/client.ts'
import {
  type Answer,
  createTestAuthority,
  type Delivery,
  type Receiver,
  startReceiver,
} from '../../lab/receiver.ts'
import { ownTarget } from '../support/target.ts'
import { receiveSoon } from './support.ts'

/** Few, so that giving up takes a second and a half. */
const MAX_RETRIES = 1
const CIRCUIT_THRESHOLD = 3
/**
 * Long enough for a message to find the circuit open, on a machine that is held up for a second or
 * two.
 */
const CIRCUIT_DURATION_MS = 8_000
/**
 * Probes that come before the circuit is half-open at most, where the test has slept for all of
 * that time.
 */
const MAX_EARLY_PROBES = 5
const WITHIN = { timeout: 60_000, interval: 50 }

const authority = await createTestAuthority()
afterAll(() => authority[Symbol.asyncDispose]())
const target = await ownTarget({
  WEBHOOK_ALLOW_CIDRS: '127.0.0.0/8',
  WEBHOOK_CA_FILE: authority.caFile,
  WEBHOOK_SECRET_KEY: randomBytes(32).toString('hex'),
  WEBHOOK_MAX_RETRIES: String(MAX_RETRIES),
  WEBHOOK_CIRCUIT_THRESHOLD: String(CIRCUIT_THRESHOLD),
  WEBHOOK_CIRCUIT_DURATION: `${CIRCUIT_DURATION_MS}ms`,
  LOG_LEVEL: 'info',
})
const client = new Client(target.baseUrl)
const sender = await client.registerAgent()

/** A receiver, and the agent whose webhook it is. */
async function pushedTo(options: Partial<Parameters<typeof startReceiver>[0]> = {}) {
  const receiver = await startReceiver({ authority, ...options })
  const agent = await client.registerAgent({ webhookUrl: receiver.url })
  return { agent, receiver, [Symbol.asyncDispose]: () => receiver.close() }
}

const pushed = ({ body }: Delivery) => message.parse(JSON.parse(body.toString()))
const contents = (receiver: Receiver) =>
  receiver.deliveries.map((delivery) => pushed(delivery).content)

async function sendAll(to: Agent, texts: readonly string[]): Promise<string[]> {
  const ids: string[] = []
  for (const text of texts) ids.push((await sender.send(to.address, text)).message_id)
  return ids
}

/** What the log says became of messages to an agent. */
async function endings(to: Agent): Promise<Record<string, unknown>[]> {
  const events = await target.events()
  return events.flatMap(({ type, agent, data }) =>
    agent === to.address && ['message_delivered', 'push_failed'].includes(type)
      ? [{ type, ...data }]
      : [],
  )
}

/** Sends the same message until one does not find the circuit open, and returns how many did. */
async function probe(to: Agent, text: string): Promise<number> {
  for (let early = 0; early <= MAX_EARLY_PROBES; early++) {
    const [id] = await sendAll(to, [text])
    const ending = await vi.waitFor(async () => {
      const found = (await endings(to)).find(({ message_id }) => message_id === id)
      expect(found).toBeDefined()
      return found
    }, WITHIN)
    if (ending?.reason !== 'circuit_open') return early
  }
  throw new Error(`the circuit is open still after ${MAX_EARLY_PROBES} probes`)
}

/** A behaviour: the first delivery is answered so, all others with 204. */
function firstAnsweredWith(status: number): () => Answer {
  let count = 0
  return () => ({ status: ++count === 1 ? status : 204 })
}

it('pushes a message as JSON, signed so that a public library verifies it', async () => {
  await using hook = await pushedTo()
  const content = 'hello \u0000 "ü" 🙂'
  const accepted = await sender.send(hook.agent.address, content)
  await hook.receiver.received(1)
  const [delivery] = hook.receiver.deliveries as [Delivery]
  expect(delivery.method).toBe('POST')
  expect(delivery.headers['content-type']).toBe('application/json')
  expect(delivery.headers['webhook-id']).toBe(accepted.message_id)
  expect(JSON.parse(delivery.body.toString())).toEqual({ ...accepted, content })
  const headers = delivery.headers as Record<string, string>
  const webhook = new Webhook(hook.agent.webhookSecret ?? '')
  expect(webhook.verify(delivery.body.toString(), headers)).toMatchObject({ content })
  expect(() => webhook.verify(`${delivery.body} `, headers)).toThrow()
})

it('logs a push as delivered, and does not queue it too', async () => {
  await using hook = await pushedTo()
  const [id] = await sendAll(hook.agent, ['hello'])
  await hook.receiver.received(1)
  await vi.waitFor(async () => {
    expect(await endings(hook.agent)).toEqual([
      {
        type: 'message_delivered',
        message_id: id,
        to: hook.agent.address,
        delivery_method: 'push',
      },
    ])
  }, WITHIN)
  expect(await hook.agent.receive()).toEqual({ messages: [], remaining: 0 })
})

it("pushes an agent's messages in the order of the log, each once", async () => {
  await using hook = await pushedTo()
  const texts = Array.from({ length: 60 }, (_, index) => String(index))
  await sendAll(hook.agent, texts)
  // One that is pushed again is pushed before the log says that it was.
  await vi.waitFor(async () => expect(await endings(hook.agent)).toHaveLength(texts.length), WITHIN)
  expect(contents(hook.receiver)).toEqual(texts)
})

it('retries with the same id and a signature of its own, and lets nothing overtake', async () => {
  await using hook = await pushedTo({ behaviour: firstAnsweredWith(500) })
  await sendAll(hook.agent, ['first', 'second'])
  await hook.receiver.received(3)
  expect(contents(hook.receiver)).toEqual(['first', 'first', 'second'])
  const [first, again] = hook.receiver.deliveries as [Delivery, Delivery]
  expect(again.headers['webhook-id']).toBe(first.headers['webhook-id'])
  expect(again.headers['webhook-timestamp']).not.toBe(first.headers['webhook-timestamp'])
  expect(again.receivedAt - first.receivedAt).toBeGreaterThanOrEqual(1_000)
  await vi.waitFor(async () => expect(await endings(hook.agent)).toHaveLength(2), WITHIN)
  expect((await endings(hook.agent)).map(({ type }) => type)).toEqual([
    'message_delivered',
    'message_delivered',
  ])
})

it('moves what cannot be delivered to the pull queue, in order, and says so in the log', async () => {
  await using hook = await pushedTo({
    behaviour: { status: 302, headers: { Location: 'https://127.0.0.1/' } },
  })
  const ids = await sendAll(hook.agent, ['one', 'two'])
  await vi.waitFor(async () => expect(await endings(hook.agent)).toHaveLength(2), WITHIN)
  expect(await endings(hook.agent)).toEqual(
    ids.map((id) => ({
      type: 'push_failed',
      message_id: id,
      to: hook.agent.address,
      reason: 'undeliverable',
    })),
  )
  expect(contents(hook.receiver)).toEqual(['one', 'one', 'two', 'two'])
  expect((await receiveSoon(hook.agent, 2)).map(({ content }) => content)).toEqual(['one', 'two'])
  await vi.waitFor(async () => {
    expect((await endings(hook.agent)).slice(2)).toEqual(
      ids.map((id) => ({
        type: 'message_delivered',
        message_id: id,
        to: hook.agent.address,
        delivery_method: 'pull',
      })),
    )
  }, WITHIN)
})

it('opens the circuit after so many failed messages in a row; then probes with one, and closes it when that arrives', async () => {
  await using hook = await pushedTo({ behaviour: 'reset' })
  const failing = Array.from({ length: CIRCUIT_THRESHOLD }, (_, index) => `failing ${index}`)
  const endingsSoon = (count: number) =>
    vi.waitFor(async () => {
      const all = await endings(hook.agent)
      expect(all).toHaveLength(count)
      return all
    }, WITHIN)
  await sendAll(hook.agent, [...failing, 'not attempted'])
  const first = await endingsSoon(failing.length + 1)
  expect(first.map(({ type, reason }) => `${type} ${reason}`)).toEqual([
    ...failing.map(() => 'push_failed undeliverable'),
    'push_failed circuit_open',
  ])
  const attempts = hook.receiver.deliveries.length
  expect(attempts).toBe(CIRCUIT_THRESHOLD * (MAX_RETRIES + 1))

  await sleep(CIRCUIT_DURATION_MS)
  const early = await probe(hook.agent, 'probe')
  await sendAll(hook.agent, ['after the probe'])
  expect((await endingsSoon(failing.length + early + 3)).at(-1)).toMatchObject({
    reason: 'circuit_open',
  })
  expect(contents(hook.receiver).slice(attempts)).toEqual(['probe'])

  hook.receiver.behave({ status: 200 })
  await sleep(CIRCUIT_DURATION_MS)
  const earlyAgain = await probe(hook.agent, 'probe again')
  await sendAll(hook.agent, ['and on'])
  await hook.receiver.received(attempts + 3)
  expect(contents(hook.receiver).slice(attempts + 1)).toEqual(['probe again', 'and on'])
  const expected = [
    ...failing,
    'not attempted',
    ...Array(early).fill('probe'),
    'probe',
    'after the probe',
    ...Array(earlyAgain).fill('probe again'),
  ]
  const queued = (await receiveSoon(hook.agent, expected.length)).map(({ content }) => content)
  expect(queued).toEqual(expected)
})

it('does not keep anybody waiting for an endpoint that never answers', async () => {
  await using hook = await pushedTo()
  const answered = Promise.withResolvers<Answer>()
  await using hole = await pushedTo({ behaviour: () => answered.promise })
  await sendAll(hole.agent, ['lost', 'in space'])
  await hole.receiver.received(1)
  await sendAll(hook.agent, ['quick'])
  await hook.receiver.received(1)
  // The first attempt is still being made: neither answered nor given up, which closes its
  // connection.
  expect(hole.receiver.deliveries).toHaveLength(1)
  expect(hole.receiver.openConnections).toBe(1)
  answered.resolve({ status: 200 })
})

it('goes on after a restart with what was waiting', async () => {
  await using hook = await pushedTo({ behaviour: firstAnsweredWith(503) })
  await sendAll(hook.agent, ['first', 'second'])
  await hook.receiver.received(1)
  await target.restart()
  await hook.receiver.received(3)
  expect(contents(hook.receiver)).toEqual(['first', 'first', 'second'])
})

it('sends user and password of the URL as Basic authorization, and shows them nowhere', async () => {
  const password = 'gehéim/@:🙂'
  const receiver = await startReceiver({ authority, behaviour: firstAnsweredWith(500) })
  await using _ = { [Symbol.asyncDispose]: () => receiver.close() }
  const { host, pathname } = new URL(receiver.url)
  const agent = await client.registerAgent({
    webhookUrl: `https://us%20er:${encodeURIComponent(password)}@${host}${pathname}`,
  })
  await sendAll(agent, ['hello'])
  await receiver.received(2)
  const basic = Buffer.from(`us er:${password}`).toString('base64')
  expect(receiver.deliveries.map(({ headers }) => headers.authorization)).toEqual([
    `Basic ${basic}`,
    `Basic ${basic}`,
  ])
  expect(receiver.deliveries.map(({ path }) => path)).toEqual([pathname, pathname])
  await vi.waitFor(() => expect(target.output()).toContain('webhook attempt failed'), WITHIN)
  const me = await client.request('GET', '/v1/agents/me', { token: agent.token })
  const shown = [target.output(), JSON.stringify(await target.events()), me.body.toString()].join(
    '\n',
  )
  for (const part of [basic, password, encodeURIComponent(password), 'us%20er', 'us er']) {
    expect(shown).not.toContain(part)
  }
})

it('shows the secret once: neither log nor events hold it, nor contents the log', async () => {
  await using hook = await pushedTo({ behaviour: { status: 500 } })
  const secret = hook.agent.webhookSecret ?? ''
  expect(secret).not.toBe('')
  await sendAll(hook.agent, ['unmistakable content'])
  await hook.receiver.received(1)
  await vi.waitFor(() => expect(target.output()).toContain('webhook attempt failed'), WITHIN)
  expect(target.output()).not.toContain(secret.slice('whsec_'.length))
  expect(target.output()).not.toContain('unmistakable content')
  expect(JSON.stringify(await target.events())).not.toContain(secret.slice('whsec_'.length))
})
