/**
 * Agents at work: they write to each other, keep notes, share keys, fill the state to the brim, and
 * use up their limits. Every request, its answer and its times are kept.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import {
  Agent,
  type Answer,
  agentCreated,
  type Client,
  capacity,
  message,
  messageAccepted,
  messagesPage,
  type Operator,
  solvePipeline,
  stateDeleted,
  stateValue,
} from '../client.ts'
import type { Receiver } from '../receiver.ts'
import type { Operation, Push } from './history.ts'

/** Of the state: little enough that writes are refused now and then. */
export const SCARCE_BYTES = 300_000
/**
 * Of the state: enough that nodes hold room ahead, and so little that what they hold is soon spent.
 */
export const AMPLE_BYTES = 20_000_000
/** The limit that is not lifted: of registry reads, which `GET /v1/agents/me` draws on. */
export const LIMIT_PER_MINUTE = 30
/** What a kernel needs to be set to for these agents. */
export const WORKLOAD_SETTINGS = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
  RATE_LIMIT_WEBHOOK_PER_MIN: '1000000',
  RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: String(LIMIT_PER_MINUTE),
  STATE_CAPACITY_BYTES: String(SCARCE_BYTES),
}
const SHARED_KEYS = 4
const FILLED_KEYS = 60
const FILL_BYTES = 8_000
/** Every so many-th message is too large to be kept in the queue itself. */
const LARGE_EVERY = 5
const LARGE_BYTES = 2_000
/**
 * Longer than a lease of messages: what was in the hands of a process that died is back by then.
 */
const COLLECT_DEADLINE_MS = 45_000
/** Tries at one message under an idempotency key, which is remembered for two minutes. */
const MAX_TRIES = 60
const REGISTER_EVERY_MS = 2_000
const LIMITED_EVERY_MS = 200

export interface WorkloadOptions {
  readonly client: Client
  readonly random: () => number
  /** Agents that receive by polling. */
  readonly agents: number
  /** Agents whose messages are pushed here. */
  readonly webhooks?: { readonly receiver: Receiver; readonly agents: number }
  /** Between the requests of one loop, in ms; each agent runs four of them. */
  readonly paceMs: number
}

export class Workload {
  readonly operations: Operation[] = []
  readonly #options: WorkloadOptions
  readonly #agents: Agent[] = []
  readonly #pushed: Agent[] = []
  /** All whose registration was acknowledged, with the ones that are not at work. */
  readonly registered: Agent[] = []
  readonly #loops: Promise<void>[] = []
  readonly #receiving: Promise<void>[] = []
  #running = false
  /** Until the last answer to a sender is in: only then it is known what must arrive. */
  #sending = false
  #stoppedAt = Number.POSITIVE_INFINITY
  #number = 0
  /** Contents that were acknowledged and are not known to have arrived. */
  readonly #awaited = new Set<string>()
  readonly #arrived = new Set<string>()
  readonly #pushes: Push[] = []

  constructor(options: WorkloadOptions) {
    this.#options = options
  }

  /** Registers the agents and begins. */
  async start(): Promise<void> {
    const { client, agents, webhooks } = this.#options
    const operator = await client.registerOperator()
    for (let index = 0; index < agents; index++) this.#agents.push(await operator.registerAgent())
    for (let index = 0; index < (webhooks?.agents ?? 0); index++)
      this.#pushed.push(await operator.registerAgent(`${webhooks?.receiver.url}/${index}`))
    this.registered.push(...this.#agents, ...this.#pushed)
    this.#running = true
    this.#sending = true
    const all = this.registered.slice()
    for (const agent of all) {
      this.#receiving.push(this.#receive(agent))
      this.#loops.push(this.#send(agent, all), this.#keepNotes(agent), this.#share(agent))
    }
    const [first, second] = all
    if (!first || !second) throw new Error('a workload has two agents at least')
    this.#loops.push(this.#fill(first), this.#useUpLimit(second), this.#register(operator))
  }

  /**
   * Ends it: waits for what is under way, and until every acknowledged message has arrived or no
   * more can be hoped for.
   */
  async stop(): Promise<void> {
    this.#running = false
    await Promise.all(this.#loops)
    this.#stoppedAt = performance.now()
    this.#sending = false
    await Promise.all(this.#receiving)
  }

  /** What came to the webhooks. */
  get pushes(): readonly Push[] {
    this.#newPushes()
    return this.#pushes
  }

  /** What came since it was asked last. */
  #newPushes(): Push[] {
    const deliveries = this.#options.webhooks?.receiver.deliveries ?? []
    const pushes = deliveries.slice(this.#pushes.length).map(({ body, receivedAt }) => {
      const { message_id, from, to, content } = message.parse(JSON.parse(body.toString()))
      // The receiver's clock is the wall clock, the history's begins with the process.
      return { id: message_id, from, to, content, at: receivedAt - performance.timeOrigin }
    })
    this.#pushes.push(...pushes)
    return pushes
  }

  async #asked(agent: string, call: () => Promise<Answer>) {
    const began = performance.now()
    const answer = await call().catch(() => undefined)
    const retryAfter = answer?.headers['retry-after']
    const asked = {
      agent,
      began,
      ended: performance.now(),
      status: answer?.status ?? 0,
      retryAfter,
    }
    return { asked, answer }
  }

  async #send(agent: Agent, all: readonly Agent[]): Promise<void> {
    while (this.#running) {
      const number = ++this.#number
      const to = all[Math.floor(this.#options.random() * all.length)] as Agent
      const content = `${agent.address} ${number} ${number % LARGE_EVERY === 0 ? 'x'.repeat(LARGE_BYTES) : ''}`
      const isKeyed = number % 2 === 0
      const request = {
        json: { to: to.address, content },
        ...(isKeyed && { headers: { 'Idempotency-Key': `message-${number}` } }),
      }
      for (let tries = 1; tries <= (isKeyed ? MAX_TRIES : 1); tries++) {
        const { asked, answer } = await this.#asked(agent.address, () =>
          agent.request('POST', '/v1/messages', request),
        )
        const messageId =
          answer?.status === 202 ? answer.as(202, messageAccepted).message_id : undefined
        this.operations.push({ ...asked, kind: 'send', to: to.address, content, messageId })
        if (messageId !== undefined) this.#awaited.add(content)
        if (asked.status !== 0 && asked.status !== 503) break
        await this.#pause()
      }
      await this.#pause()
    }
  }

  async #receive(agent: Agent): Promise<void> {
    while (
      this.#sending ||
      (!this.#isComplete() && performance.now() < this.#stoppedAt + COLLECT_DEADLINE_MS)
    ) {
      const { asked, answer } = await this.#asked(agent.address, () =>
        agent.request('GET', '/v1/messages?limit=20'),
      )
      const received = answer?.status === 200 ? answer.as(200, messagesPage).messages : []
      const messages = received.map(({ message_id, from, to, content }) => ({
        id: message_id,
        from,
        to,
        content,
      }))
      for (const { content } of messages) this.#arrived.add(content)
      this.operations.push({ ...asked, kind: 'receive', messages })
      await this.#pause()
    }
  }

  #isComplete(): boolean {
    for (const { content } of this.#newPushes()) this.#arrived.add(content)
    for (const content of this.#awaited)
      if (this.#arrived.has(content)) this.#awaited.delete(content)
    return this.#awaited.size === 0
  }

  /** A key that it alone writes, and reads at once. */
  async #keepNotes(agent: Agent): Promise<void> {
    const key = `notes/${agent.address}`
    while (this.#running) {
      await this.#write(agent, key)
      await this.#read(agent, key)
      await this.#pause()
    }
  }

  /** Keys that all write, read and remove. */
  async #share(agent: Agent): Promise<void> {
    while (this.#running) {
      const key = `shared/${Math.floor(this.#options.random() * SHARED_KEYS)}`
      const chance = this.#options.random()
      if (chance < 0.4) await this.#read(agent, key)
      else if (chance < 0.85) await this.#write(agent, key)
      else await this.#remove(agent, key)
      await this.#pause()
    }
  }

  /** Takes what capacity is left, and gives some back. */
  async #fill(agent: Agent): Promise<void> {
    while (this.#running) {
      const key = `filled/${Math.floor(this.#options.random() * FILLED_KEYS)}`
      const written = await this.#write(agent, key, Math.floor(this.#options.random() * FILL_BYTES))
      if (written === 507) await this.#remove(agent, key)
      const { asked, answer } = await this.#asked(agent.address, () =>
        agent.request('GET', '/v1/state/_capacity'),
      )
      const usedBytes = answer?.status === 200 ? answer.as(200, capacity).used_bytes : 0
      this.operations.push({ ...asked, kind: 'capacity', usedBytes })
      await this.#pause()
    }
  }

  async #useUpLimit(agent: Agent): Promise<void> {
    while (this.#running) {
      const { asked } = await this.#asked(agent.address, () =>
        agent.request('GET', '/v1/agents/me'),
      )
      this.operations.push({ ...asked, kind: 'limited' })
      await sleep(LIMITED_EVERY_MS)
    }
  }

  async #register(operator: Operator): Promise<void> {
    while (this.#running) {
      const challenge = await operator.challenge().catch(() => undefined)
      if (challenge !== undefined) {
        const response = solvePipeline(challenge.challenge_data)
        const { asked, answer } = await this.#asked(operator.id, () =>
          operator.answerChallenge(challenge.challenge_id, response),
        )
        const created = answer?.status === 201 ? answer.as(201, agentCreated) : undefined
        this.operations.push({ ...asked, kind: 'register', address: created?.agent_address })
        if (created !== undefined)
          this.registered.push(
            new Agent(this.#options.client, created.agent_address, created.agent_token),
          )
      }
      await sleep(REGISTER_EVERY_MS)
    }
  }

  async #write(agent: Agent, key: string, bytes = 0): Promise<number> {
    const value = `${++this.#number} ${'x'.repeat(bytes)}`
    const { asked } = await this.#asked(agent.address, () => agent.tryWrite(key, value))
    this.operations.push({ ...asked, kind: 'write', key, value })
    return asked.status
  }

  async #read(agent: Agent, key: string): Promise<void> {
    const { asked, answer } = await this.#asked(agent.address, () => agent.tryRead(key))
    const value = answer?.status === 200 ? answer.as(200, stateValue).value : undefined
    this.operations.push({ ...asked, kind: 'read', key, value })
  }

  async #remove(agent: Agent, key: string): Promise<void> {
    const { asked, answer } = await this.#asked(agent.address, () => agent.tryRemove(key))
    const deletedAt = answer?.status === 200 ? answer.as(200, stateDeleted).deleted_at : undefined
    this.operations.push({ ...asked, kind: 'remove', key, deletedAt })
  }

  #pause(): Promise<void> {
    return sleep(this.#options.paceMs * (0.5 + this.#options.random()))
  }
}
