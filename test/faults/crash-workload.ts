/**
 * Agents that do everything an agent can, several at a time, and record each request with its
 * answer.
 */
import type { z } from 'zod'
import {
  type Answer,
  agentCreated,
  type Client,
  challengeIssued,
  errorBody,
  keyPath,
  type Message,
  messageAccepted,
  messagesPage,
  operatorCreated,
  solvePipeline,
  stateDeleted,
  stateValue,
  stateWritten,
} from '../../lab/client.ts'

/** An agent or operator whose registration was acknowledged. */
export interface Holder {
  name: string
  token: string
}

interface Recorded {
  /** Which start of the kernel it was. */
  life: number
  /** Order of beginnings and ends of all requests. */
  began: number
  ended: number
  /**
   * `unknown`: the kernel was killed before the answer, or it answered 503; the request may or may
   * not have taken effect.
   */
  outcome: 'done' | 'refused' | 'unknown'
}

export interface Send extends Recorded {
  from: string
  to: string
  /** No other request has it. */
  content: string
  accepted?: z.infer<typeof messageAccepted>
}
export interface Receive extends Recorded {
  agent: string
  messages: Message[]
}
export interface Put extends Recorded {
  agent: string
  key: string
  /** No other request has it. */
  value: string
  writtenAt?: string
}
export interface Delete extends Recorded {
  agent: string
  key: string
  deletedAt?: string
}
export interface Read extends Recorded {
  agent: string
  key: string
  /** Undefined where it was answered 404. */
  found?: z.infer<typeof stateValue>
}
export interface Registration extends Recorded {
  operator: string
  address?: string
}

export class History {
  readonly agents: Holder[] = []
  readonly operators: Holder[] = []
  readonly sends: Send[] = []
  readonly receives: Receive[] = []
  readonly puts: Put[] = []
  readonly deletes: Delete[] = []
  readonly reads: Read[] = []
  readonly registrations: Registration[] = []
  readonly statuses: Record<string, number> = {}
  #clock = 0

  tick(): number {
    return ++this.#clock
  }

  /** Everything but receiving, whose acknowledgement stands for an event in the log. */
  changes(): Recorded[] {
    return [...this.sends, ...this.puts, ...this.deletes, ...this.registrations].filter(
      ({ outcome }) => outcome === 'done',
    )
  }
}

const SHARED_KEYS = Array.from(
  { length: 40 },
  (_, index) => `shared/${index % 2 === 0 ? 'ü' : '\0'}${index}`,
)
const MAX_AGENTS = 24
const FILLER = ['x', '\0', '😀', '"', 'ß']

/**
 * Some agents at work against one start of the kernel; each ends when its connection breaks, or at
 * `stopAfter` answers in all.
 */
export class Workload {
  readonly #history: History
  readonly #random: () => number
  readonly #client: Client
  readonly #life: number
  readonly #onAnswer: () => void
  #stopped = false

  constructor(
    history: History,
    random: () => number,
    client: Client,
    life: number,
    onAnswer: () => void,
  ) {
    this.#history = history
    this.#random = random
    this.#client = client
    this.#life = life
    this.#onAnswer = onAnswer
  }

  /** Requests under way are finished, no more are begun. */
  stop(): void {
    this.#stopped = true
  }

  /** Runs with the first agents there are. Resolves when all of them have ended. */
  async run(actors: number): Promise<void> {
    const agents = this.#history.agents.slice(0, actors)
    await Promise.all(
      agents.flatMap((agent) => [
        this.#loop(() => this.#act(agent)),
        this.#loop(() => this.receive(agent)),
      ]),
    )
  }

  async #loop(step: () => Promise<boolean>): Promise<void> {
    while (!this.#stopped) {
      if (!(await step())) return
    }
  }

  #integer(below: number): number {
    return Math.floor(this.#random() * below)
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#integer(list.length)] as T
  }

  #text(name: string, averageLength: number): string {
    return `${name} ${this.#pick(FILLER).repeat(this.#integer(2 * averageLength))}`
  }

  #key(agent: Holder): string {
    return this.#random() < 0.5 ? this.#pick(SHARED_KEYS) : `own/${agent.name}/${this.#integer(6)}`
  }

  async #act(agent: Holder): Promise<boolean> {
    const dice = this.#random()
    if (dice < 0.4) return this.#send(agent)
    if (dice < 0.65) return this.#put(agent)
    if (dice < 0.77) return this.#delete(agent)
    if (dice < 0.95 || this.#history.agents.length >= MAX_AGENTS) return this.#read(agent)
    return this.register(this.#pick(this.#history.operators))
  }

  async #send(agent: Holder): Promise<boolean> {
    const to = this.#pick(this.#history.agents).name
    const began = this.#history.tick()
    const content = this.#text(
      `message ${began} of ${agent.name}`,
      this.#random() < 0.05 ? 6_000 : 400,
    )
    const result = await this.#request(
      agent,
      'POST',
      '/v1/messages',
      { to, content },
      202,
      messageAccepted,
    )
    this.#history.sends.push({
      ...result.recorded,
      began,
      from: agent.name,
      to,
      content,
      ...(result.body && { accepted: result.body }),
    })
    return result.alive
  }

  async receive(agent: Holder): Promise<boolean> {
    const result = await this.#request(
      agent,
      'GET',
      `/v1/messages?limit=${1 + this.#integer(20)}`,
      undefined,
      200,
      messagesPage,
    )
    this.#history.receives.push({
      ...result.recorded,
      agent: agent.name,
      messages: result.body?.messages ?? [],
    })
    return result.alive
  }

  async #put(agent: Holder): Promise<boolean> {
    const key = this.#key(agent)
    const began = this.#history.tick()
    const value = this.#text(`value ${began}`, this.#random() < 0.05 ? 100_000 : 1_000)
    const result = await this.#request(
      agent,
      'PUT',
      keyPath(key),
      { value },
      200,
      stateWritten,
      507,
    )
    const writtenAt = result.body?.written_at
    this.#history.puts.push({
      ...result.recorded,
      began,
      agent: agent.name,
      key,
      value,
      ...(writtenAt && { writtenAt }),
    })
    return result.alive
  }

  async #delete(agent: Holder): Promise<boolean> {
    const key = this.#key(agent)
    const result = await this.#request(
      agent,
      'DELETE',
      keyPath(key),
      undefined,
      200,
      stateDeleted,
      404,
    )
    const deletedAt = result.body?.deleted_at
    this.#history.deletes.push({
      ...result.recorded,
      agent: agent.name,
      key,
      ...(deletedAt && { deletedAt }),
    })
    return result.alive
  }

  async #read(agent: Holder): Promise<boolean> {
    const key = this.#key(agent)
    const result = await this.#request(agent, 'GET', keyPath(key), undefined, 200, stateValue, 404)
    this.#history.reads.push({
      ...result.recorded,
      agent: agent.name,
      key,
      ...(result.body && { found: result.body }),
    })
    return result.alive
  }

  async registerOperator(): Promise<boolean> {
    const json = { contact_hash: 'a contact', accept_terms: true }
    const result = await this.#request(
      undefined,
      'POST',
      '/v1/operators',
      json,
      201,
      operatorCreated,
    )
    if (result.body)
      this.#history.operators.push({ name: result.body.operator_id, token: result.body.api_key })
    return result.alive
  }

  /** Registers an agent, which others then write to. */
  async register(operator: Holder): Promise<boolean> {
    const path = '/v1/agents/verification-challenge'
    const { body: challenge } = await this.#request(
      operator,
      'GET',
      path,
      undefined,
      200,
      challengeIssued,
    )
    if (!challenge) return false
    const response = solvePipeline(challenge.challenge_data)
    const json = { verification_response: { challenge_id: challenge.challenge_id, response } }
    const result = await this.#request(operator, 'POST', '/v1/agents', json, 201, agentCreated)
    const address = result.body?.agent_address
    this.#history.registrations.push({
      ...result.recorded,
      operator: operator.name,
      ...(address && { address }),
    })
    if (result.body)
      this.#history.agents.push({ name: result.body.agent_address, token: result.body.agent_token })
    return result.alive
  }

  /**
   * `refusal`: the status other than success that may come. Any other answer is a failure of the
   * test.
   */
  async #request<T>(
    holder: Holder | undefined,
    method: string,
    path: string,
    json: unknown,
    success: number,
    shape: z.ZodType<T>,
    refusal?: number,
  ): Promise<{ recorded: Recorded; body?: T; alive: boolean }> {
    const life = this.#life
    const began = this.#history.tick()
    let answer: Answer
    try {
      answer = await this.#client.request(method, path, {
        token: holder?.token,
        ...(json !== undefined && { json }),
      })
    } catch {
      this.#count(method, path, 'no answer')
      return {
        recorded: { life, began, ended: this.#history.tick(), outcome: 'unknown' },
        alive: false,
      }
    }
    const ended = this.#history.tick()
    this.#count(method, path, String(answer.status))
    this.#onAnswer()
    if (answer.status === 503) {
      errorBody.parse(answer.json)
      return { recorded: { life, began, ended, outcome: 'unknown' }, alive: true }
    }
    if (answer.status === refusal) {
      errorBody.parse(answer.json)
      return { recorded: { life, began, ended, outcome: 'refused' }, alive: true }
    }
    return {
      recorded: { life, began, ended, outcome: 'done' },
      body: answer.as(success, shape),
      alive: true,
    }
  }

  #count(method: string, path: string, outcome: string): void {
    const name = `${method} ${path.split(/[/?]/).slice(2, 3)} ${outcome}`
    this.#history.statuses[name] = (this.#history.statuses[name] ?? 0) + 1
  }
}
