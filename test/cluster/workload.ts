/** Agents that send, receive, write and read while something breaks, and remember what they were told. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, type Answer, Client, messagesPage } from '../support/client.ts'

export interface Outcome {
  /** How many answers there were of each status, by method and resource; 0 is a connection that broke. */
  counts: Record<string, number>
  /** Of the slowest answer to each, in ms. */
  slowest: Record<string, number>
  lost: string[]
  repeated: string[]
  reordered: string[]
  /** Reads that were older than what the same agent had been acknowledged. */
  stale: string[]
  sent: number
}

const AGENTS = 6
/** Longer than a lease: what was leased by a process that died is back by then. */
const COLLECT_DEADLINE_MS = 45_000

/** Runs the agents until `during` is done and for a second more, collects all messages, and says what went wrong. */
export async function runWorkload(baseUrl: string, during: () => Promise<void>): Promise<Outcome> {
  const client = new Client(baseUrl)
  const agents = await client.registerAgents(AGENTS)
  const outcome: Outcome = { counts: {}, slowest: {}, lost: [], repeated: [], reordered: [], stale: [], sent: 0 }
  const acknowledged = new Map<string, string>()
  const received = new Map<string, number>()
  const lastNumber = new Map<string, number>()
  const overtaken = new Map<string, string>()
  let running = true
  let number = 0

  async function observed(name: string, call: () => Promise<Answer>): Promise<Answer | undefined> {
    const start = performance.now()
    const answer = await call().catch(() => undefined)
    const key = `${name} ${answer?.status ?? 0}`
    outcome.counts[key] = (outcome.counts[key] ?? 0) + 1
    outcome.slowest[key] = Math.max(outcome.slowest[key] ?? 0, Math.round(performance.now() - start))
    return answer
  }

  async function send(agent: Agent): Promise<void> {
    while (running) {
      const to = agents[number % AGENTS] as Agent
      // Every fifth is too large to be kept in the queue itself.
      const content = `${agent.address} ${++number} ${number % 5 === 0 ? 'x'.repeat(2_000) : ''}`
      const answer = await observed('send', () => agent.trySend(to.address, content))
      if (answer?.status === 202) acknowledged.set(content, to.address)
      await sleep(10)
    }
  }

  async function receive(agent: Agent): Promise<void> {
    const deadline = () => performance.now() > stoppedAt + COLLECT_DEADLINE_MS
    while (sending || (!isComplete() && !deadline())) {
      const answer = await observed('receive', () => agent.request('GET', '/v1/messages?limit=20'))
      if (answer?.status === 200)
        for (const { from, content } of answer.as(200, messagesPage).messages) note(from, agent, content)
      await sleep(15)
    }
  }

  function note(from: string, to: Agent, content: string): void {
    received.set(content, (received.get(content) ?? 0) + 1)
    const pair = `${from} ${to.address}`
    const place = Number(content.split(' ')[1])
    if (place < (lastNumber.get(pair) ?? 0)) overtaken.set(content, `${pair}: ${place} after ${lastNumber.get(pair)}`)
    lastNumber.set(pair, Math.max(place, lastNumber.get(pair) ?? 0))
  }

  async function write(agent: Agent): Promise<void> {
    const key = `workload/${agent.address}`
    let acknowledgedValue = 0
    const unacknowledged = new Set<number>()
    for (let value = 1; running; value++) {
      const written = await observed('write', () => agent.tryWrite(key, String(value)))
      if (written?.status === 200) acknowledgedValue = value
      else unacknowledged.add(value)
      const answer = await observed('read', () => agent.tryRead(key))
      if (answer?.status === 404 && acknowledgedValue > 0) outcome.stale.push(`${key} is gone`)
      if (answer?.status === 200) {
        const seen = Number((answer.json as { value: string }).value)
        // One that was not acknowledged may take effect at any later time: a server that was frozen still had it.
        if (seen < acknowledgedValue && !unacknowledged.has(seen))
          outcome.stale.push(`${key}: ${seen} after ${acknowledgedValue} was acknowledged`)
      }
      await sleep(20)
    }
  }

  const isComplete = () => acknowledged.keys().every((content) => received.has(content))
  let stoppedAt = Number.POSITIVE_INFINITY
  // Until the last answer to a sender is in: only then it is known what must arrive.
  let sending = true
  const receiving = Promise.all(agents.map(receive))
  const working = Promise.all(agents.flatMap((agent) => [send(agent), write(agent)]))
  try {
    await sleep(500)
    await during()
    await sleep(1_000)
  } finally {
    running = false
    await working
    stoppedAt = performance.now()
    sending = false
    await receiving
  }
  // One that was not acknowledged before the next was sent may take effect later than it.
  outcome.reordered = [...overtaken]
    .filter(([content]) => acknowledged.has(content))
    .map(([, description]) => description)
  outcome.sent = acknowledged.size
  outcome.lost = [...acknowledged.keys()].filter((content) => !received.has(content)).map(shown)
  outcome.repeated = [...received].filter(([, times]) => times > 1).map(([content]) => shown(content))
  return outcome
}

function shown(content: string): string {
  return content.slice(0, 40)
}
