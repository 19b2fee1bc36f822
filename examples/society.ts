/**
 * A society: some hundred agents with crafts, friends and projects, who get up, talk, work, write
 * things down and go to bed. For trying the kernel and the page on which one watches it.
 *
 *     npx node examples/society.ts [--agents 300] [--speed 1] [--seed 1] [--minutes …] \
 *       [--url http://localhost:8080]
 *
 * A day of the society takes ten minutes at speed 1. The same seed and number of agents do the same
 * in the same order (society/plan.ts). Runs for so many minutes, or until Ctrl-C.
 *
 * Environment: TABULUM_URL (http://localhost:8080), OPERATOR_KEY (without it, an operator is
 * registered).
 */
import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import {
  type Act,
  clockOf,
  DAY,
  dayOf,
  MOST_AGENTS,
  Society,
  type Step,
  slug,
} from './society/plan.ts'

/** Of a day of the society, at speed 1. */
const DAY_MS = 600_000
const REQUEST_TIMEOUT_MS = 20_000
/** Requests under way at once. */
const MAX_REQUESTS = 24
/**
 * Steps that wait, of all and of one: then the society waits, or the one lets it be. Limits of the
 * kernel are of an agent.
 */
const MAX_WAITING = 500
const MAX_WAITING_OF_ONE = 20
const REPORT_MS = 10_000
/** Beyond it the society's clock is put back, so that what was late does not come all at once. */
const MOST_LATE_MS = 1_000
/** Where a refusal does not say when to come back. */
const RETRY_SECONDS = 2
/** What is under way at the end may take so long. */
const END_MS = 5_000

interface Settings {
  readonly agents: number
  readonly speed: number
  readonly seed: number
  readonly url: string
  readonly minutes: number
}

function readArguments(): Settings {
  try {
    const text = (value: string) => ({ type: 'string', default: value }) as const
    const { values } = parseArgs({
      options: {
        agents: text('300'),
        speed: text('1'),
        seed: text('1'),
        url: text(process.env.TABULUM_URL || 'http://localhost:8080'),
        minutes: { type: 'string' },
      },
    })
    const url = URL.parse(values.url)
    if (!url || !/^https?:$/.test(url.protocol))
      throw new Error(`--url ${values.url}: must begin with http:// or https://`)
    return {
      agents: number('agents', values.agents, 2, MOST_AGENTS, Number.isInteger),
      speed: number('speed', values.speed, 0.01, 10_000),
      seed: number('seed', values.seed, 0, 2 ** 31, Number.isInteger),
      url: url.href.replace(/\/+$/, ''),
      minutes:
        values.minutes === undefined
          ? Number.POSITIVE_INFINITY
          : number('minutes', values.minutes, 0.01, 100_000),
    }
  } catch (error) {
    console.error(`society: ${error instanceof Error ? error.message : error}`)
    process.exit(2)
  }
}

function number(
  name: string,
  text: string,
  least: number,
  most: number,
  isRight = Number.isFinite,
): number {
  const value = text.trim() === '' ? Number.NaN : Number(text)
  if (isRight(value) && value >= least && value <= most) return value
  const kind = isRight === Number.isInteger ? 'a whole number' : 'a number'
  throw new Error(`--${name} ${text}: must be ${kind} from ${least} to ${most}`)
}

const settings = readArguments()
/** Aborted when the time is up, or at Ctrl-C: nothing new begins, nobody waits any more. */
const end = new AbortController()
/** Aborted when what was under way had its time to end. */
const cut = new AbortController()

/** An answer that says no, for a reason that trying again does not change. */
class Refused extends Error {
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** So many hold it at once; the others wait in turn. */
class Slots {
  #free: number
  readonly #waiting: (() => void)[] = []
  constructor(slots: number) {
    this.#free = slots
  }
  async with<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free -= 1
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      return await work()
    } finally {
      const next = this.#waiting.shift()
      if (next) next()
      else this.#free += 1
    }
  }
}
const slots = new Slots(MAX_REQUESTS)
/** One registers after the other, so that the log has them in the order of the plan. */
const door = new Slots(1)

/** When one may ask again: of each token after 429, and of everybody after 503. */
const quiet = new Map<string, number>()
const EVERYBODY = ''
const tally = {
  messages: 0,
  writes: 0,
  deletions: 0,
  'waits for limits': 0,
  'waits for the kernel': 0,
  'left out': 0,
}

interface RequestOptions {
  token?: string | undefined
  body?: object | undefined
  headers?: Record<string, string> | undefined
}

/**
 * One request of the API; comes again after 429 and 503, when the kernel said, and when the
 * connection broke.
 */
async function request<T>(
  method: string,
  path: string,
  { token, body, headers }: RequestOptions = {},
): Promise<T> {
  const own = token ?? EVERYBODY
  const waitOf = (who: string) => (quiet.get(who) ?? 0) - Date.now()
  for (;;) {
    for (let wait = 1; wait > 0; ) {
      wait = Math.max(waitOf(own), waitOf(EVERYBODY))
      if (wait > 0) await pause(wait)
    }
    const outcome = await slots.with(() => {
      end.signal.throwIfAborted()
      return once<T>(method, path, { token, body, headers })
    })
    if ('answer' in outcome) return outcome.answer
    tally[outcome.isLimit ? 'waits for limits' : 'waits for the kernel'] += 1
    const whose = outcome.isLimit ? own : EVERYBODY
    quiet.set(whose, Math.max(quiet.get(whose) ?? 0, Date.now() + outcome.seconds * 1_000))
  }
}

async function once<T>(
  method: string,
  path: string,
  { token, body, headers }: RequestOptions,
): Promise<{ answer: T } | { seconds: number; isLimit: boolean }> {
  let response: Response
  let text: string
  try {
    response = await fetch(settings.url + path, {
      method,
      headers: {
        ...(token !== undefined && { Authorization: `Bearer ${token}` }),
        ...(body && { 'Content-Type': 'application/json' }),
        ...headers,
      },
      ...(body && { body: JSON.stringify(body) }),
      signal: AbortSignal.any([cut.signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]),
    })
    text = await response.text()
  } catch {
    return { seconds: RETRY_SECONDS, isLimit: false }
  }
  if (response.ok) return { answer: JSON.parse(text) as T }
  if (response.status !== 429 && response.status !== 503)
    throw new Refused(
      response.status,
      `${method} ${path} was answered ${response.status} ${text.slice(0, 300)}`,
    )
  return {
    seconds: Number(response.headers.get('retry-after')) || RETRY_SECONDS,
    isLimit: response.status === 429,
  }
}

const pause = (milliseconds: number) => sleep(milliseconds, undefined, { signal: end.signal })

/** The challenge: text operations, applied in turn. */
function solve({ seed, operations }: { seed: string; operations: { op: string }[] }): string {
  return operations.reduce((text, { op }) => {
    const [, name = op, value = ''] = /^(prepend|append):(.*)$/s.exec(op) ?? []
    const operation = OPERATIONS[name]
    if (!operation)
      throw new Error(`The challenge has an operation that this program does not know: ${op}`)
    return operation(text, value)
  }, seed)
}

const OPERATIONS: Readonly<Record<string, (text: string, value: string) => string>> = {
  prepend: (text, value) => value + text,
  append: (text, value) => text + value,
  reverse: (text) => Array.from(text).reverse().join(''),
  base64_encode: (text) => Buffer.from(text).toString('base64'),
  base64_decode: (text) => Buffer.from(text, 'base64').toString(),
  hex_encode: (text) => Buffer.from(text).toString('hex'),
  sha256: (text) => createHash('sha256').update(text).digest('hex'),
  uppercase: (text) => text.toUpperCase(),
  lowercase: (text) => text.toLowerCase(),
  rot13: (text) =>
    text.replace(/[A-Z]/gi, (letter) =>
      String.fromCharCode(letter.charCodeAt(0) + (letter.toUpperCase() < 'N' ? 13 : -13)),
    ),
}

async function registerOperator(): Promise<string> {
  const contactHash = createHash('sha256').update('society@example.org').digest('hex')
  const operator = await request<{ api_key: string }>('POST', '/v1/operators', {
    body: { contact_hash: contactHash, accept_terms: true },
  })
  return operator.api_key
}

/** A member as the kernel knows it. */
interface Identity {
  readonly address: string
  readonly token: string
}

async function register(operator: string): Promise<Identity> {
  for (let attempt = 1; ; attempt++) {
    const path = '/v1/agents/verification-challenge'
    const challenge = await request<{
      challenge_id: string
      challenge_data: Parameters<typeof solve>[0]
    }>('GET', path, {
      token: operator,
    })
    const response = solve(challenge.challenge_data)
    try {
      const agent = await request<{ agent_address: string; agent_token: string }>(
        'POST',
        '/v1/agents',
        {
          token: operator,
          body: { verification_response: { challenge_id: challenge.challenge_id, response } },
        },
      )
      return { address: agent.agent_address, token: agent.agent_token }
    } catch (error) {
      // A challenge is good for one attempt: if the answer to the first got lost, its repetition is
      // 403.
      if (!(error instanceof Refused && error.status === 403) || attempt === 3) throw error
    }
  }
}

/** Carries out steps: those of one member in turn, those of different members at once. */
class Stage {
  readonly #society: Society
  readonly #operator: string
  readonly #identities = new Map<number, Promise<Identity>>()
  /** Of each member what it does, and how much waits behind. */
  readonly #turns = new Map<number, { last: Promise<void>; waiting: number }>()
  #waiting = 0
  #failure: Error | undefined

  constructor(society: Society, operator: string) {
    this.#society = society
    this.#operator = operator
  }

  get present(): number {
    return this.#identities.size
  }

  /** Resolves when there is room for another step. Throws what a step has failed with. */
  async begin({ who, act }: Step): Promise<void> {
    while (this.#waiting >= MAX_WAITING && !this.#failure) await pause(20)
    if (this.#failure) throw this.#failure
    const turns = this.#turns.get(who) ?? { last: Promise.resolve(), waiting: 0 }
    this.#turns.set(who, turns)
    if (turns.waiting >= MAX_WAITING_OF_ONE) {
      tally['left out'] += 1
      return
    }
    turns.waiting += 1
    this.#waiting += 1
    turns.last = turns.last
      .then(() => this.#do(who, act))
      .catch((error: Error) => {
        // What the end has cut off is no failure.
        if (!end.signal.aborted) this.#failure ??= error
      })
      .finally(() => {
        turns.waiting -= 1
        this.#waiting -= 1
      })
  }

  /** Resolves when nothing is under way. Throws what a step has failed with. */
  async finished(): Promise<void> {
    await Promise.all([...this.#turns.values()].map(({ last }) => last))
    if (this.#failure) throw this.#failure
  }

  async #do(who: number, act: Act): Promise<void> {
    end.signal.throwIfAborted()
    if (act.kind === 'arrive') return this.#arrive(who)
    const identity = await this.#identities.get(who)
    if (!identity) return
    const { token } = identity
    switch (act.kind) {
      case 'say': {
        const to = await this.#identities.get(act.to)
        if (!to) return
        await request('POST', '/v1/messages', {
          token,
          body: { to: to.address, content: act.text },
          headers: { 'Idempotency-Key': randomUUID() },
        })
        tally.messages += 1
        return
      }
      case 'fetch':
        await request('GET', '/v1/messages', { token })
        return
      case 'look up':
        await request('GET', '/v1/registry?limit=20', { token })
        return
      case 'write':
        await request('PUT', statePath(act.key), { token, body: { value: act.value } })
        tally.writes += 1
        return
      case 'read':
      case 'delete':
        try {
          await request(act.kind === 'read' ? 'GET' : 'DELETE', statePath(act.key), { token })
          if (act.kind === 'delete') tally.deletions += 1
        } catch (error) {
          // Somebody else was faster, or it was never written.
          if (!(error instanceof Refused && error.status === 404)) throw error
        }
    }
  }

  async #arrive(who: number): Promise<void> {
    const registered = door.with(() => register(this.#operator))
    this.#identities.set(who, registered)
    const { address, token } = await registered
    const { name, craft } = this.#society.members[who] as Society['members'][number]
    const value = JSON.stringify({ name, craft: craft.name, address })
    await request('PUT', statePath(`people/${slug(name)}`), { token, body: { value } })
    tally.writes += 1
  }
}

const statePath = (key: string) => `/v1/state/${encodeURIComponent(key)}`

function say(line: string): void {
  console.log(`${new Date().toISOString().slice(11, 19)}  society    ${line}`)
}

/** What there was of it. */
const told = () =>
  Object.entries(tally)
    .filter(([name, count]) => count > 0 || name === 'messages')
    .map(([name, count]) => `${count} ${name}`)
    .join(', ')

async function main(): Promise<void> {
  const { url, agents, seed, speed } = settings
  const health = await fetch(`${url}/v1/health`, {
    signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
  }).catch((error) => {
    const cause = error.cause?.message || error.cause?.code || error.message
    throw new Error(
      `There is no kernel at ${url} (${cause}): start one with npm start, or give its URL`,
    )
  })
  if (!health.ok)
    throw new Error(`${url} is no kernel, or is not well: /v1/health answered ${health.status}`)

  const society = new Society(agents, seed)
  const stage = new Stage(society, process.env.OPERATOR_KEY || (await registerOperator()))
  say(
    `${agents} agents, seed ${seed}; a day takes ${Number((DAY_MS / speed / 60_000).toPrecision(3))} minutes. Ctrl-C ends it.`,
  )
  try {
    await play(society, stage)
  } finally {
    // Nothing new begins; what is under way ends.
    end.abort()
    const timer = setTimeout(() => cut.abort(), END_MS)
    await stage.finished()
    clearTimeout(timer)
  }
}

/** Begins each step when its time has come, until the end. Throws what a step has failed with. */
async function play(society: Society, stage: Stage): Promise<void> {
  const msPerMinute = DAY_MS / DAY / settings.speed
  const stop = Date.now() + settings.minutes * 60_000
  let reported = Date.now()
  /** When the society's first midnight was; later where the kernel lets it run no faster. */
  let midnight: number | undefined
  let slipped = 0
  for (const step of society.steps()) {
    midnight ??= Date.now() - step.at * msPerMinute
    const due = midnight + step.at * msPerMinute
    await pause(Math.max(0, Math.min(due, stop) - Date.now()))
    if (Date.now() >= stop) return
    await stage.begin(step)
    const late = Date.now() - due
    if (late > MOST_LATE_MS) {
      midnight += late
      slipped += late
    }
    if (Date.now() - reported >= REPORT_MS) {
      reported = Date.now()
      const behind =
        slipped === 0 ? '' : `; ${Math.round(slipped / 1_000)} s late, as the kernel takes no more`
      slipped = 0
      say(`day ${dayOf(step.at)}, ${clockOf(step.at)}: ${stage.present} agents, ${told()}${behind}`)
    }
  }
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    // Whoever asks twice does not want to wait.
    if (end.signal.aborted) process.exit(130)
    end.abort()
  })
}

try {
  await main()
} catch (error) {
  // The end, where something waited.
  if (!(error instanceof Error && error.name === 'AbortError')) {
    console.error(`society: ${error instanceof Error ? error.message : error}`)
    process.exitCode = 1
  }
}
if (process.exitCode !== 1) say(`over: ${told()}`)
