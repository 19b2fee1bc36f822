/**
 * Agents for load tests: registration with the pipeline solved, and messages whose numbers show
 * whether one is lost or repeated.
 */
import { check, fail, sleep } from 'k6'
import { sha256 } from 'k6/crypto'
import encoding from 'k6/encoding'
import exec from 'k6/execution'
import http, { type RefinedResponse } from 'k6/http'
import { Counter, Rate } from 'k6/metrics'

export const BASE_URL = __ENV.BASE_URL ?? 'http://127.0.0.1:8080'
const BATCH = 10
/** Of one message, until one of them is acknowledged. */
const MAX_ATTEMPTS = 10

export interface Agent {
  readonly address: string
  readonly token: string
}

/** What `setup` hands to every virtual user: number N is agent N - 1. */
export interface Society {
  readonly run: string
  readonly agents: readonly Agent[]
}

/**
 * Answers that say the kernel failed: 5xx, none at all, or a refusal that the script did not
 * provoke.
 */
export const failed = new Rate('failed_requests')
/**
 * Sent and acknowledged, less received: 0 at the end. More is a loss, less is a message that came
 * twice.
 */
const outstanding = new Counter('messages_outstanding')
const sent = new Counter('messages_sent')
const received = new Counter('messages_received')
const lost = new Counter('messages_lost')
const repeated = new Counter('messages_repeated')

/** Thresholds that hold for every script. */
export const ALWAYS = {
  failed_requests: ['rate<0.001'],
  messages_lost: ['count==0'],
  messages_repeated: ['count==0'],
  messages_outstanding: ['count==0'],
  checks: ['rate>0.999'],
  // These two always hold: they make the summary show writes by themselves.
  'http_req_duration{name:send}': ['max>=0'],
  'http_req_duration{name:write state}': ['max>=0'],
}

/** What the summary shows of durations. */
export const SHOWN = ['p(50)', 'p(95)', 'p(99)', 'max', 'count']

type Body = string | null
type Response = RefinedResponse<'text'>

/** One request; `name` groups it in the summary. */
export function ask(
  token: string,
  method: string,
  path: string,
  name: string,
  body: object | null = null,
): Response {
  // A key that nobody has written yet is an answer too.
  const expected = name === 'read state' ? [404] : []
  const response = http.request(
    method,
    `${BASE_URL}/v1${path}`,
    (body && JSON.stringify(body)) as Body,
    {
      headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
      tags: { name },
      timeout: '15s',
      responseType: 'text',
      // So that k6's own http_req_failed says the same.
      responseCallback: http.expectedStatuses({ min: 200, max: 299 }, ...expected),
    },
  )
  failed.add(
    (response.status < 200 || response.status > 299) && !expected.includes(response.status),
  )
  return response
}

/**
 * So many agents, of the operator whose key is in OPERATOR_KEY or of a new one: an address may
 * register just a few operators an hour.
 */
export function registerAgents(count: number, webhookUrl?: (index: number) => string): Society {
  const operator = __ENV.OPERATOR_KEY ?? registerOperator()
  const run = `${Date.now().toString(36)}-${Math.floor(Math.random() * 1e9).toString(36)}`
  const agents: Agent[] = []
  while (agents.length < count) {
    const wanted = Math.min(BATCH, count - agents.length)
    const params = {
      headers: { Authorization: `Bearer ${operator}`, 'Content-Type': 'application/json' },
      tags: { name: 'register' },
    }
    const challenges = http.batch(
      Array.from(
        { length: wanted },
        () => ['GET', `${BASE_URL}/v1/agents/verification-challenge`, null, params] as const,
      ),
    )
    const answers = http.batch(
      challenges.map((challenge, index) => {
        const { challenge_id, challenge_data } = challenge.json() as unknown as Challenge
        const webhook = webhookUrl && { webhook_url: webhookUrl(agents.length + index) }
        const body = {
          verification_response: { challenge_id, response: solve(challenge_data) },
          ...webhook,
        }
        return ['POST', `${BASE_URL}/v1/agents`, JSON.stringify(body), params] as const
      }),
    )
    for (const answer of answers) {
      if (answer.status !== 201)
        fail(`registering an agent was answered ${answer.status}: ${answer.body}`)
      const { agent_address, agent_token } = answer.json() as {
        agent_address: string
        agent_token: string
      }
      agents.push({ address: agent_address, token: agent_token })
    }
  }
  return { run, agents }
}

function registerOperator(): string {
  const body = JSON.stringify({ contact_hash: 'load test', accept_terms: true })
  const answer = http.post(`${BASE_URL}/v1/operators`, body, {
    headers: { 'Content-Type': 'application/json' },
  })
  if (answer.status !== 201)
    fail(`registering an operator was answered ${answer.status}: ${answer.body}`)
  return (answer.json() as { api_key: string }).api_key
}

interface Challenge {
  challenge_id: string
  challenge_data: { seed: string; operations: { op: string }[] }
}

function solve({ seed, operations }: Challenge['challenge_data']): string {
  return operations.reduce((text, { op }) => apply(op, text), seed)
}

function apply(op: string, text: string): string {
  const [name, value = ''] = op.split(/:(.*)/s)
  switch (name) {
    case 'reverse':
      return [...text].reverse().join('')
    case 'base64_encode':
      return encoding.b64encode(text)
    case 'base64_decode':
      return encoding.b64decode(text, 'std', 's')
    case 'hex_encode':
      return [...new Uint8Array(encoding.b64decode(encoding.b64encode(text)))]
        .map((byte) => byte.toString(16).padStart(2, '0'))
        .join('')
    case 'sha256':
      return sha256(text, 'hex')
    case 'uppercase':
      return text.toUpperCase()
    case 'lowercase':
      return text.toLowerCase()
    case 'rot13':
      return text.replace(/[a-z]/gi, (letter) => {
        const base = letter <= 'Z' ? 65 : 97
        return String.fromCharCode(((letter.charCodeAt(0) - base + 13) % 26) + base)
      })
    case 'prepend':
      return value + text
    case 'append':
      return text + value
    default:
      return fail(`an operation that is not known: ${op}`)
  }
}

/** The agent of this virtual user, whose messages go round: each writes to the next one. */
export function me({ agents }: Society): { self: Agent; next: Agent } {
  const index = (exec.vu.idInTest - 1) % agents.length
  return { self: agents[index] as Agent, next: agents[(index + 1) % agents.length] as Agent }
}

/** Of this virtual user. */
let number = 0
let newest = 0
const seen = new Set<string>()

/**
 * Sends the next number, again until it is acknowledged: an answer of 5xx leaves open whether the
 * message will arrive. So a number may arrive more than once, each time with another id, without
 * anything being wrong.
 */
export function sendNumbered({ run }: Society, self: Agent, to: Agent): Response {
  for (let attempt = 1; ; attempt++) {
    const response = ask(self.token, 'POST', '/messages', 'send', {
      to: to.address,
      content: `${run} ${number + 1}`,
    })
    if (response.status === 202) {
      number++
      sent.add(1)
      outstanding.add(1)
      return response
    }
    if (attempt === MAX_ATTEMPTS) return response
    sleep(1)
  }
}

interface Message {
  message_id: string
  content: string
}

/** Takes what there is, and compares the numbers with what came before. */
export function receiveNumbered({ run }: Society, self: Agent): Response {
  const response = ask(self.token, 'GET', '/messages?limit=100', 'poll')
  if (response.status !== 200) return response
  for (const { message_id, content } of (response.json() as unknown as { messages: Message[] })
    .messages) {
    const [ofRun, text] = content.split(' ')
    if (ofRun !== run) continue
    if (seen.has(message_id)) repeated.add(1)
    seen.add(message_id)
    const arrived = Number(text)
    // Another attempt at a number that arrived already.
    if (arrived === newest) continue
    if (arrived < newest) repeated.add(1)
    else lost.add(arrived - newest - 1)
    newest = Math.max(newest, arrived)
    received.add(1)
    outstanding.add(-1)
  }
  return response
}

/** So many messages have arrived in another way. */
export function settle(count: number): void {
  received.add(count)
  outstanding.add(-count)
}

/**
 * At the end: takes what is still queued. What its agent never took is missing a number, or is one
 * too many.
 */
export function drain({ run, agents }: Society): void {
  for (const { token } of agents) {
    const ids = new Set<string>()
    let newestHere: number | undefined
    for (let remaining = 1; remaining > 0; ) {
      const response = ask(token, 'GET', '/messages?limit=100', 'drain')
      if (response.status === 429) {
        sleep(Number(response.headers['Retry-After'] ?? 1))
        continue
      }
      if (response.status !== 200)
        fail(`draining a queue was answered ${response.status}: ${response.body}`)
      const page = response.json() as unknown as { messages: Message[]; remaining: number }
      for (const { message_id, content } of page.messages) {
        const [ofRun, text] = content.split(' ')
        if (ofRun !== run) continue
        if (ids.has(message_id)) repeated.add(1)
        ids.add(message_id)
        const arrived = Number(text)
        if (arrived === newestHere) continue
        if (newestHere !== undefined && arrived < newestHere) repeated.add(1)
        if (newestHere !== undefined && arrived > newestHere) lost.add(arrived - newestHere - 1)
        newestHere = Math.max(newestHere ?? 0, arrived)
        received.add(1)
        outstanding.add(-1)
      }
      remaining = page.remaining
    }
  }
}

/**
 * What a living agent does in one turn. Stays within the default rate limits at one turn in three
 * seconds or more.
 */
export function live(society: Society): void {
  const { self, next } = me(society)
  const turn = exec.vu.iterationInScenario
  check(receiveNumbered(society, self), { polled: ({ status }) => status === 200 })
  check(sendNumbered(society, self, next), { sent: ({ status }) => status === 202 })
  for (let read = 0; read < 3; read++) {
    const key = Math.floor(Math.random() * society.agents.length)
    const answer = ask(self.token, 'GET', `/state/load/${society.run}/${key}`, 'read state')
    check(answer, { read: ({ status }) => status === 200 || status === 404 })
  }
  if (turn % 2 === 0) {
    const key = `load/${society.run}/${exec.vu.idInTest % society.agents.length}`
    const value = `turn ${turn} of ${self.address}`
    check(ask(self.token, 'PUT', `/state/${key}`, 'write state', { value }), {
      written: ({ status }) => status === 200,
    })
    // Its own write is what it reads next, on whichever node. The key is this agent's alone.
    const { value: back } = ask(self.token, 'GET', `/state/${key}`, 'read state').json() as {
      value?: string
    }
    check(back, { 'read what it wrote': (text) => text === value })
  }
  if (turn % 10 === 5)
    check(ask(self.token, 'GET', '/registry?limit=50', 'registry'), {
      listed: ({ status }) => status === 200,
    })
}
