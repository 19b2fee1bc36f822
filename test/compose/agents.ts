/** Agents on the cluster: the requests of docs/tour.md, and load that notices what is lost. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, type Answer, Client, messageAccepted, messagesPage } from '../../lab/client.ts'
import { delivered, expect, OBSERVE_PORT, PORT, until, within } from './engine.ts'

const client = new Client(`http://127.0.0.1:${PORT}`)

/**
 * Who writes to whom under load: so many that none meets its limit of 60 a minute with a turn of
 * PAUSE_MS for one.
 */
const PAIRS = 12
const PAUSE_MS = 100
/** A turn is three requests, each of which has a deadline of a minute. */
const TURN_MS = 200_000
/** Each is asked twice a second at most, within a limit of 300 a minute for a reader. */
const READ_BACK_MS = 300_000

let agents: readonly [Agent, Agent]
let pairs: (readonly [Agent, Agent])[] = []

/**
 * Asks until the answer is no 503: a machine that is short of CPU may have some, right after a
 * start too.
 */
async function patiently<T>(what: string, ask: () => Promise<T>): Promise<T> {
  let answer: { is: T } | undefined
  await until(what, async () => {
    try {
      answer = { is: await ask() }
    } catch (error) {
      if (!(error instanceof Error && error.message.includes(' answered 503 '))) throw error
    }
    return answer !== undefined
  })
  if (answer === undefined) throw new Error(`no answer to ${what}`)
  return answer.is
}

/** The requests of docs/tour.md. */
export async function tour(): Promise<void> {
  const operator = await patiently('an operator', () => client.registerOperator())
  const register = () => patiently('an agent', () => operator.registerAgent())
  const pair = async () => [await register(), await register()] as const
  agents = await pair()
  pairs = []
  while (pairs.length < PAIRS) pairs.push(await pair())
  const [ada, bob] = agents
  await patiently('the registry', () => ada.registry())
  for (const [from, to, content] of [
    [ada, bob, 'Bob, what is 6 times 7?'],
    [bob, ada, '42, Ada.'],
  ] as const) {
    await from.send(to.address, content)
    await comes(to, content)
  }
  await patiently('a value, written', () => ada.write('answers/6-times-7', '42'))
  await stateIsThere()
}

async function comes(to: Agent, content: string): Promise<void> {
  const { messages } = await patiently('a message', () => to.receive())
  expect(
    'what came',
    messages.map((message) => message.content),
    [content],
  )
}

export async function stateIsThere(): Promise<void> {
  const read = await patiently('the value', () => agents[1].read('answers/6-times-7'))
  expect('the value', read.value, '42')
}

/** Who wrote to each other there. */
export const addressesOfTour = () => agents.map(({ address }) => address)

/** Another than who reads with `statusOf`. */
export const writes = (key: string, value: string) =>
  patiently(`a value, written to ${key}`, () => agents[0].write(key, value))

export const statusOf = async (key: string) => (await agents[1].tryRead(key)).status

/** A message that waits, for whoever looks for it later. */
export const leave = (content: string) => agents[0].send(agents[1].address, content)

export const isWaiting = (content: string) => comes(agents[1], content)

/** Lets an agent with this webhook be sent a message. */
export async function sendTo(webhookUrl: string, content: string): Promise<void> {
  const recipient = await patiently('an agent with a webhook', () =>
    client.registerAgent({ webhookUrl }),
  )
  await agents[0].send(recipient.address, content)
}

/** No answer is a failure too. */
const attempt = (request: Promise<Answer>): Promise<Answer | string> =>
  request.catch((error: unknown) => (error instanceof Error ? error.message : String(error)))
const is = (answer: Answer | string, status: number): answer is Answer =>
  typeof answer !== 'string' && answer.status === status

export const answers = async () =>
  is(await attempt(agents[0].request('GET', '/v1/state?prefix=load/')), 200)

/** Whether what agents did can be seen at the observation service. */
export async function isWatched(): Promise<boolean> {
  const url = `http://127.0.0.1:${OBSERVE_PORT}/observe/events?type=state_written&limit=1`
  const answer = await fetch(url, { signal: AbortSignal.timeout(10_000) }).catch(() => undefined)
  return answer?.ok === true && (await answer.text()).includes('"state_written"')
}

export interface Load {
  requests: number
  /** What was not acknowledged, and why. */
  failed: string[]
}

export const counted = ({ requests, failed }: Load) =>
  `${failed.length} of ${requests} requests failed`

/**
 * Messages and values, some a second, from `action`'s begin to its end. @throws when something
 * acknowledged is lost
 */
export async function underLoad(action: () => Promise<unknown>): Promise<Load> {
  const outstanding = new Map<Agent, Set<string>>()
  /**
   * May have been in an answer that never came: a load balancer that is killed takes it along
   * (docs/guarantees.md).
   */
  const inHand = new Set<string>()
  const written = new Map<string, string>()
  const load: Load = { requests: 0, failed: [] }
  const counting = async (request: Promise<Answer>, right: number): Promise<Answer | undefined> => {
    const answer = await attempt(request)
    load.requests++
    if (is(answer, right)) return answer
    load.failed.push(String(answer))
    return undefined
  }
  const take = async (recipient: Agent, count = true) => {
    const asked = recipient.request('GET', '/v1/messages?limit=100')
    const waiting = outstanding.get(recipient)
    asked.catch(() => {
      for (const id of waiting ?? []) inHand.add(id)
    })
    const answer = count ? await counting(asked, 200) : await attempt(asked)
    if (typeof answer !== 'object' || answer.status !== 200) return
    for (const { message_id } of answer.as(200, messagesPage).messages) waiting?.delete(message_id)
  }
  const turn = async (number: number, [sender, recipient]: readonly [Agent, Agent]) => {
    const sent = await counting(sender.trySend(recipient.address, `message ${number}`), 202)
    if (sent !== undefined) {
      const waiting = outstanding.get(recipient) ?? new Set()
      outstanding.set(recipient, waiting.add(sent.as(202, messageAccepted).message_id))
    }
    const [key, value] = [`load/${number}`, String(number)]
    if ((await counting(sender.tryWrite(key, value), 200)) !== undefined) written.set(key, value)
    await take(recipient)
  }
  let isOver = false
  const loading = async () => {
    for (let number = 0; !isOver; number++) {
      await turn(number, pairs[number % PAIRS] ?? agents)
      await sleep(PAUSE_MS)
    }
  }
  const acting = async () => {
    try {
      await action()
    } finally {
      isOver = true
    }
  }
  // Together, so that a defect in either is heard at once.
  const turns = loading()
  await Promise.all([
    acting().then(() => within('the end of the last turn of the load', turns, TURN_MS)),
    turns,
  ])

  await until('the last message that was acknowledged', async () => {
    for (const [recipient, waiting] of outstanding)
      if (waiting.size > 0) await take(recipient, false)
    const left = [...outstanding.values()].flatMap((waiting) => [...waiting])
    if (left.some((id) => !inHand.has(id))) return false
    const taken = left.length === 0 ? new Set() : await delivered()
    return left.every((id) => taken.has(id))
  })
  const readBack = async () => {
    for (const [index, [key, value]] of [...written].entries()) {
      const [, reader] = pairs[index % PAIRS] ?? agents
      expect(key, (await patiently(key, () => reader.read(key))).value, value)
    }
  }
  await within('the values that were acknowledged, read again', readBack(), READ_BACK_MS)
  return load
}
