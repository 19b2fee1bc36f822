/**
 * Histories of a simulated kernel that keeps every promise, and ways to go on that keep or break
 * one.
 */
import type { History, NodeView, Operation, ReceivedMessage } from '../../lab/faults/history.ts'
import type { Event } from '../../lab/kernel.ts'

const [ANNA, BERT] = ['tab_anna', 'tab_bert'] as const
const AGENTS = [ANNA, BERT, 'tab_cora']
/** Of the steps that follow the simulation. */
const KEY = 'after'
const KEYS = ['one', 'two']
const ROUNDS = 60
/** Of the requests, those that are not answered; half of them take effect all the same. */
const UNANSWERED = 0.05

interface Planned {
  readonly agent: string
  readonly began: number
  /** When it takes effect: between its beginning and its end. */
  readonly point: number
  readonly ended: number
  readonly chance: number
  readonly choice: number
  readonly isAnswered: boolean
}

/**
 * What agents would have seen; the same for the same numbers. Agents ask one thing after another,
 * and beside each other.
 */
export function simulate(random: () => number): History {
  const planned = AGENTS.flatMap((agent) => {
    let time = random() * 10
    return Array.from({ length: ROUNDS }, (): Planned => {
      const began = time + random() * 5
      const ended = began + 1 + random() * 20
      time = ended
      const point = began + (ended - began) * random()
      const isAnswered = random() >= UNANSWERED
      return {
        agent,
        began,
        point,
        ended,
        chance: random(),
        choice: Math.floor(random() * 1_000),
        isAnswered,
      }
    })
  }).toSorted((one, other) => one.point - other.point)
  const end = Math.max(...planned.map(({ ended }) => ended)) + 1

  const events: Event[] = []
  const operations: Operation[] = []
  const state = new Map<string, string>()
  const queues = new Map<string, ReceivedMessage[]>(AGENTS.map((agent) => [agent, []]))
  const append = (type: string, agent: string, data: Event['data']) => {
    const seq = events.length + 1
    const ts = new Date(seq).toISOString()
    events.push({ seq, ts, type, agent, data })
    return ts
  }
  const receive = (agent: string, began: number, ended: number) => {
    const messages = queues.get(agent)?.splice(0) ?? []
    for (const { id } of messages) append('message_delivered', agent, { message_id: id, to: agent })
    operations.push({ kind: 'receive', agent, began, ended, status: 200, messages })
  }
  for (const [number, { agent, began, ended, chance, choice, isAnswered }] of planned.entries()) {
    const key = KEYS[choice % KEYS.length] as string
    const asked = { agent, began, ended, status: isAnswered ? 200 : 503, retryAfter: '1' }
    const takesEffect = isAnswered || choice % 4 < 2
    if (chance < 0.3) {
      const to = AGENTS[choice % AGENTS.length] as string
      const [id, content] = [`id ${number}`, `message ${number}`]
      operations.push({
        ...asked,
        kind: 'send',
        to,
        content,
        status: isAnswered ? 202 : 503,
        messageId: isAnswered ? id : undefined,
      })
      if (!takesEffect) continue
      append('message_sent', agent, { message_id: id, from: agent, to, content })
      queues.get(to)?.push({ id, from: agent, to, content })
    } else if (chance < 0.5) receive(agent, began, ended)
    else if (chance < 0.7) {
      const value = state.get(key)
      operations.push({
        ...asked,
        kind: 'read',
        key,
        value,
        status: value === undefined ? 404 : 200,
      })
    } else if (chance < 0.9) {
      const value = `value ${number}`
      operations.push({ ...asked, kind: 'write', key, value })
      if (!takesEffect) continue
      append('state_written', agent, { key, value })
      state.set(key, value)
    } else if (state.has(key)) {
      const deletedAt = takesEffect ? append('state_deleted', agent, { key }) : undefined
      operations.push({
        ...asked,
        kind: 'remove',
        key,
        deletedAt: isAnswered ? deletedAt : undefined,
      })
      if (takesEffect) state.delete(key)
    } else operations.push({ ...asked, kind: 'remove', key, status: 404 })
  }
  for (const agent of AGENTS) receive(agent, end, end + 1)
  const usedBytes = [...state].reduce((sum, [key, value]) => sum + key.length + value.length, 0)
  const view: NodeView = {
    node: 'api-1',
    state: Object.fromEntries(state),
    usedBytes,
    keyCount: state.size,
    agents: 0,
  }
  return {
    operations,
    events,
    pushes: [],
    // So that what was not answered is not remarked on: it hits nothing that excuses anything else.
    faults: [{ name: 'a fault', hits: ['redis'], began: 0, repaired: end }],
    crashes: [],
    capacityBytes: 1_000_000,
    limitPerMinute: 30,
    nodes: [view],
    observers: [],
    watches: [],
    refusedTokens: [],
  }
}

/** A history that goes on after its end, step by step: each begins when the one before is over. */
class Epilogue {
  readonly #history: History
  readonly #operations: Operation[] = []
  readonly #events: Event[] = []
  readonly #state: Record<string, string> = {}
  #time: number

  constructor(history: History) {
    this.#history = history
    this.#time = Math.max(...history.operations.map(({ ended }) => ended)) + 1
  }

  #asked(agent: string, status: number) {
    const began = this.#time + 1
    this.#time += 2
    return { agent, began, ended: this.#time, status, retryAfter: '1' }
  }

  #append(type: string, agent: string, data: Event['data']): string {
    const seq = this.#history.events.length + this.#events.length + 1
    const ts = new Date(seq).toISOString()
    this.#events.push({ seq, ts, type, agent, data })
    return ts
  }

  send(content: string): this {
    const asked = this.#asked(ANNA, 202)
    const id = `id of ${content}`
    this.#append('message_sent', ANNA, { message_id: id, from: ANNA, to: BERT, content })
    this.#operations.push({ ...asked, kind: 'send', to: BERT, content, messageId: id })
    return this
  }

  receive(...contents: string[]): this {
    const messages = contents.map((content) => ({
      id: `id of ${content}`,
      from: ANNA,
      to: BERT,
      content,
    }))
    this.#operations.push({ ...this.#asked(BERT, 200), kind: 'receive', messages })
    return this
  }

  write(value: string): this {
    const asked = this.#asked(ANNA, 200)
    this.#append('state_written', ANNA, { key: KEY, value })
    this.#operations.push({ ...asked, kind: 'write', key: KEY, value })
    this.#state[KEY] = value
    return this
  }

  read(value: string | undefined): this {
    this.#operations.push({
      ...this.#asked(BERT, value === undefined ? 404 : 200),
      kind: 'read',
      key: KEY,
      value,
    })
    return this
  }

  /** `isLogged`: its event is in the log, as it should be. */
  remove({ isLogged = true } = {}): this {
    const asked = this.#asked(ANNA, 200)
    const deletedAt = isLogged
      ? this.#append('state_deleted', ANNA, { key: KEY })
      : new Date(0).toISOString()
    this.#operations.push({ ...asked, kind: 'remove', key: KEY, deletedAt })
    delete this.#state[KEY]
    return this
  }

  /** In the end, nodes have this value. */
  inTheEnd(value: string): this {
    this.#state[KEY] = value
    return this
  }

  get history(): History {
    const { operations, events, nodes } = this.#history
    const state = { ...nodes[0]?.state, ...this.#state }
    const usedBytes = Object.entries(state).reduce(
      (sum, [key, value]) => sum + key.length + value.length,
      0,
    )
    return {
      ...this.#history,
      operations: [...operations, ...this.#operations],
      events: [...events, ...this.#events],
      nodes: [{ node: 'api-1', state, usedBytes, keyCount: Object.keys(state).length, agents: 0 }],
    }
  }
}

const after = (history: History) => new Epilogue(history)

/** Ways to go on that keep every promise. */
export const SOUND: Readonly<Record<string, (history: History) => History>> = {
  'messages arrive in order, over several answers': (history) =>
    after(history).send('a').send('b').receive('a').receive('b').history,
  'a key is written, read, removed and missed': (history) =>
    after(history).write('a').read('a').write('b').read('b').remove().read(undefined).history,
}

/** Ways to go on, each of which breaks one promise. */
export const BROKEN: Readonly<Record<string, (history: History) => History>> = {
  'a message is lost': (history) => after(history).send('a').send('b').receive('a').history,
  'a message comes twice in one answer': (history) =>
    after(history).send('a').receive('a', 'a').history,
  'a message comes again later': (history) =>
    after(history).send('a').receive('a').receive('a').history,
  'messages change places in one answer': (history) =>
    after(history).send('a').send('b').receive('b', 'a').history,
  'messages change places over several answers': (history) =>
    after(history).send('a').send('b').receive('b').receive('a').history,
  'a message comes that nobody sent': (history) => after(history).receive('forged').history,
  'a message comes before it was sent': (history) => after(history).receive('a').send('a').history,
  'a read is of a value that has been written over': (history) =>
    after(history).write('a').write('b').read('a').history,
  'a read goes back behind an earlier one': (history) =>
    after(history).write('a').write('b').read('b').read('a').history,
  'a read is of a value that nobody wrote': (history) =>
    after(history).write('a').read('ghost').history,
  'a read is of a value that was written later': (history) =>
    after(history).read('a').write('a').history,
  'a key that is there is not found': (history) =>
    after(history).write('a').read(undefined).history,
  'a key that was removed is found': (history) =>
    after(history).write('a').remove().read('a').history,
  'two removals find one key': (history) =>
    after(history).write('a').remove().remove({ isLogged: false }).history,
  'a node has another value in the end': (history) =>
    after(history).write('a').write('b').inTheEnd('a').history,
}
