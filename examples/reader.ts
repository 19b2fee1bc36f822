/**
 * A reader. It puts a text into the shared state, finds the librarian (librarian.py), asks it how
 * many words the text has, checks what the librarian then wrote into the shared state, and says
 * thanks.
 *
 *     npx node examples/reader.ts [url of the kernel] [--wait seconds]
 *
 * Environment: TABULUM_URL (http://localhost:8080), OPERATOR_KEY (without it, an operator is
 * registered).
 */
import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'

const TEXT = 'Give me a place to stand, and I will move the world.'
/** Where the librarian says what its address is. */
const DIRECTORY_KEY = 'directory/librarian'
/**
 * Sending and receiving share 60 requests a minute, so a queue is not asked more often than this.
 */
const POLL_MS = 1_500
const REQUEST_TIMEOUT_MS = 10_000

const { baseUrl, waitSeconds } = readArguments()
const deadline = Date.now() + waitSeconds * 1_000

function readArguments(): { baseUrl: string; waitSeconds: number } {
  try {
    const options = { wait: { type: 'string', default: '120' } } as const
    const { values, positionals } = parseArgs({ options, allowPositionals: true })
    const url = new URL(positionals[0] || process.env.TABULUM_URL || 'http://localhost:8080')
    const seconds = Number(values.wait)
    if (!(seconds > 0)) throw new Error(`--wait ${values.wait}: must be a number of seconds`)
    return { baseUrl: url.href.replace(/\/+$/, ''), waitSeconds: seconds }
  } catch (error) {
    console.error(`reader: ${error instanceof Error ? error.message : error}`)
    process.exit(2)
  }
}

/** An answer that says no, for a reason that trying again does not change. */
class Refused extends Error {
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

interface RequestOptions {
  token?: string
  body?: object
  headers?: Record<string, string>
}

/**
 * One request of the API. Waits and tries again where that is safe and may help: at 429 and 503,
 * after as long as the kernel says, and when the connection broke.
 */
async function request<T>(
  method: string,
  path: string,
  { token, body, headers }: RequestOptions = {},
): Promise<T> {
  for (;;) {
    let reason: string
    let retrySeconds = 1
    try {
      const response = await fetch(baseUrl + path, {
        method,
        headers: {
          ...(token !== undefined && { Authorization: `Bearer ${token}` }),
          ...(body && { 'Content-Type': 'application/json' }),
          ...headers,
        },
        ...(body && { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
      })
      const text = await response.text()
      if (response.ok) return JSON.parse(text) as T
      reason = `${method} ${path} was answered ${response.status} ${text.slice(0, 300)}`
      if (response.status !== 429 && response.status !== 503)
        throw new Refused(response.status, reason)
      retrySeconds = Number(response.headers.get('retry-after')) || 1
    } catch (error) {
      if (error instanceof Refused) throw error
      reason = `${method} ${path} failed: ${causeOf(error)}`
    }
    await pause(retrySeconds * 1_000, reason)
  }
}

/** Waits, unless the time is up before. */
async function pause(milliseconds: number, reason: string): Promise<void> {
  if (Date.now() + milliseconds > deadline) {
    const seconds = Math.ceil(milliseconds / 1_000)
    throw new Error(`${reason}; --wait ${waitSeconds} leaves no time to try again in ${seconds} s`)
  }
  await sleep(milliseconds)
}

function causeOf(error: unknown): string {
  const { message, cause } = error as Error
  return cause instanceof Error
    ? cause.message || String((cause as NodeJS.ErrnoException).code)
    : message
}

function say(line: string): void {
  console.log(`${new Date().toISOString().slice(11, 19)}  reader     ${line}`)
}

/** The challenge: text operations, applied in turn. */
function solve({ seed, operations }: { seed: string; operations: { op: string }[] }): string {
  return operations.reduce((text, { op }) => apply(op, text), seed)
}

function apply(op: string, text: string): string {
  if (op.startsWith('prepend:')) return op.slice('prepend:'.length) + text
  if (op.startsWith('append:')) return text + op.slice('append:'.length)
  switch (op) {
    case 'reverse':
      return Array.from(text).reverse().join('') // by code point: text.split('') would tear pairs of surrogates apart
    case 'base64_encode':
      return Buffer.from(text).toString('base64')
    case 'base64_decode':
      return Buffer.from(text, 'base64').toString()
    case 'hex_encode':
      return Buffer.from(text).toString('hex')
    case 'sha256':
      return createHash('sha256').update(text).digest('hex')
    case 'uppercase':
      return text.toUpperCase()
    case 'lowercase':
      return text.toLowerCase()
    case 'rot13':
      return text.replace(/[A-Z]/gi, (letter) =>
        String.fromCharCode(letter.charCodeAt(0) + (letter.toUpperCase() < 'N' ? 13 : -13)),
      )
    default:
      throw new Error(`The challenge has an operation that this program does not know: ${op}`)
  }
}

interface Identity {
  agent_address: string
  agent_token: string
}

async function register(): Promise<Identity> {
  const token = process.env.OPERATOR_KEY || (await registerOperator())
  for (let attempt = 1; ; attempt++) {
    const challenge = await request<{
      challenge_id: string
      challenge_data: Parameters<typeof solve>[0]
    }>('GET', '/v1/agents/verification-challenge', { token })
    const response = solve(challenge.challenge_data)
    try {
      const body = { verification_response: { challenge_id: challenge.challenge_id, response } }
      return await request<Identity>('POST', '/v1/agents', { token, body })
    } catch (error) {
      // A challenge is good for one attempt: if the answer to the first got lost, its repetition is
      // 403.
      if (!(error instanceof Refused && error.status === 403) || attempt === 3) throw error
    }
  }
}

async function registerOperator(): Promise<string> {
  const contactHash = createHash('sha256').update('reader@example.org').digest('hex')
  const body = { contact_hash: contactHash, accept_terms: true }
  const operator = await request<{ operator_id: string; api_key: string }>(
    'POST',
    '/v1/operators',
    { body },
  )
  say(`registered operator ${operator.operator_id}`)
  return operator.api_key
}

const statePath = (key: string) => `/v1/state/${encodeURIComponent(key)}`

interface Entry {
  value: string
  last_modified_by: string
}

/** Reads a key of the shared state; undefined if there is none. */
async function readState(token: string, key: string): Promise<Entry | undefined> {
  try {
    return await request<Entry>('GET', statePath(key), { token })
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return undefined
    throw error
  }
}

/** When an agent registered, found by going through the whole registry; undefined if it did not. */
async function registeredAt(token: string, address: string): Promise<string | undefined> {
  for (let cursor = ''; ; ) {
    const page = await request<{
      agents: { address: string; registered_at: string }[]
      next_cursor: string | null
    }>('GET', `/v1/registry?limit=1000${cursor && `&cursor=${encodeURIComponent(cursor)}`}`, {
      token,
    })
    const agent = page.agents.find((entry) => entry.address === address)
    if (agent || page.next_cursor === null) return agent?.registered_at
    cursor = page.next_cursor
  }
}

/**
 * Sends a message, once however often it has to be tried: the kernel knows a repetition by its key.
 */
async function send(token: string, to: string, content: object): Promise<string> {
  const sent = await request<{ message_id: string }>('POST', '/v1/messages', {
    token,
    body: { to, content: JSON.stringify(content) },
    headers: { 'Idempotency-Key': randomUUID() },
  })
  return sent.message_id
}

interface Message {
  message_id: string
  from: string
  content: string
}

/**
 * What an agent agreed on with others is for itself to check: the kernel passes any text on, from
 * anybody.
 */
function parseAnswer({ content }: Message): { answers: string; words: number } | undefined {
  try {
    const { kind, answers, words } = JSON.parse(content)
    return kind === 'answer' && typeof answers === 'string' && Number.isInteger(words)
      ? { answers, words }
      : undefined
  } catch {
    return undefined
  }
}

/** Asks whoever is the librarian, and if another one takes over meanwhile, that one too. */
async function ask(token: string, textKey: string): Promise<{ librarian: string; words: number }> {
  const asked = new Set<string>()
  const questions = new Set<string>()
  for (;;) {
    const librarian = (await readState(token, DIRECTORY_KEY))?.value
    if (librarian !== undefined && !asked.has(librarian)) {
      const since = await registeredAt(token, librarian)
      if (since === undefined) {
        say(`${DIRECTORY_KEY} names nobody who is in the registry`)
      } else {
        say(`found the librarian: ${librarian}, in the registry since ${since}`)
        questions.add(await send(token, librarian, { kind: 'question', key: textKey }))
        say(`asked ${librarian}: how many words are in ${textKey}?`)
      }
      asked.add(librarian)
    }
    const { messages } = await request<{ messages: Message[] }>('GET', '/v1/messages', { token })
    for (const message of messages) {
      const answer = parseAnswer(message)
      if (answer && asked.has(message.from) && questions.has(answer.answers)) {
        say(`${message.from} answered: ${answer.words} words`)
        return { librarian: message.from, words: answer.words }
      }
      say(`did not understand ${message.from}: ${JSON.stringify(message.content.slice(0, 100))}`)
    }
    await pause(
      POLL_MS,
      asked.size === 0
        ? 'No librarian is there: start examples/librarian.py'
        : 'No answer has come',
    )
  }
}

async function main(): Promise<void> {
  const health = await fetch(`${baseUrl}/v1/health`, {
    signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
  }).catch((error) => {
    throw new Error(
      `There is no kernel at ${baseUrl} (${causeOf(error)}): start one with npm start, or give its URL`,
    )
  })
  if (!health.ok)
    throw new Error(`${baseUrl} is no kernel, or is not well: /v1/health answered ${health.status}`)

  const { agent_address: address, agent_token: token } = await register()
  say(`registered as ${address}`)

  const textKey = `shelf/${address}/text`
  await request('PUT', statePath(textKey), { token, body: { value: TEXT } })
  say(`wrote ${textKey}: ${JSON.stringify(TEXT)}`)

  const { librarian, words } = await ask(token, textKey)

  const countKey = `shelf/${address}/words`
  const count = await readState(token, countKey)
  // Every agent may write every key, so who wrote is part of what is read.
  if (count?.value !== String(words) || count.last_modified_by !== librarian) {
    throw new Error(`${countKey} holds ${JSON.stringify(count)}, not ${words} from ${librarian}`)
  }
  say(`read ${countKey}: ${count.value}, written by ${count.last_modified_by}`)

  await send(token, librarian, { kind: 'thanks' })
  say(`thanked ${librarian}; done`)
}

try {
  await main()
} catch (error) {
  console.error(`reader: ${error instanceof Error ? error.message : error}`)
  process.exitCode = 1
}
