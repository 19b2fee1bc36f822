/**
 * What a batch of events changes in the observation's read models: sums, so that a store applies
 * few rows.
 */
import type { EventType, LoggedEvent } from '../events/event.ts'

/** How the read models write the types, which never change. */
export const TYPE_NUMBERS = {
  operator_created: 1,
  agent_registered: 2,
  message_sent: 3,
  message_delivered: 4,
  push_failed: 5,
  state_written: 6,
  state_deleted: 7,
  state_read: 8,
  registry_read: 9,
  state_key_removed: 10,
  message_redacted: 11,
} as const satisfies Record<EventType, number>

/**
 * What `events` has for a delivery that was pushed: it is nobody's doing, and `last_active` is
 * looked up by number.
 */
export const PUSHED = 12

const TYPES = new Map<number, EventType>([
  ...Object.entries(TYPE_NUMBERS).map(([type, number]) => [number, type as EventType] as const),
  [PUSHED, 'message_delivered'],
])

/** The numbers that events of a type have in `events`. */
export function numbersOf(type: EventType): number[] {
  return type === 'message_delivered' ? [TYPE_NUMBERS[type], PUSHED] : [TYPE_NUMBERS[type]]
}

/** Those of what an agent does: a registration is its operator's doing, and a push the kernel's. */
export const DEEDS: readonly number[] = [
  TYPE_NUMBERS.message_sent,
  TYPE_NUMBERS.message_delivered,
  TYPE_NUMBERS.state_written,
  TYPE_NUMBERS.state_deleted,
  TYPE_NUMBERS.state_read,
  TYPE_NUMBERS.registry_read,
]

/** The type that has this number. */
export function typeOf(number: number): EventType {
  const type = TYPES.get(number)
  if (type === undefined) throw new TypeError(`no type of event has the number ${number}`)
  return type
}

export const ALL_TYPES = Object.keys(TYPE_NUMBERS) as EventType[]

/**
 * Seconds that activity is summed over: of everybody, and of each agent. Each is a few times the
 * one before, so that a chart of any stretch adds up a few rows for each of its buckets.
 */
export const SPANS = [60, 600, 3_600, 21_600, 86_400] as const
export const AGENT_SPANS = [3_600] as const

/** Whose activity a row is about that is about everybody's. */
export const EVERYBODY = 0

export interface Figures {
  /** Of the agent: the sequence number of its registration. */
  id: number
  sent: number
  received: number
  writes: number
  /** Milliseconds since 1970; null where it did nothing. */
  active: number | null
}

export interface Changes {
  registered: (Figures & { address: string; at: number })[]
  /** Of those who were registered before. */
  figures: Figures[]
  edges: { sender: number; recipient: number; count: number; seq: number }[]
  /**
   * `nth` of its type, and `agent_nth` of its agent's messages or writes, in this batch. `keys`: so
   * many there are after it; null where it changes none.
   */
  events: {
    seq: number
    at: number
    type: number
    /** The number of its public type. */
    total: number
    agent: number | null
    nth: number
    agent_nth: number | null
    keys: number | null
  }[]
  totals: { type: number; count: number }[]
  /** `nth` from this sender to this recipient, and `received` of the recipient's, in this batch. */
  messages: { sender: number; recipient: number; seq: number; nth: number; received: number }[]
  activity: {
    agent: number
    span: number
    start: number
    type: number
    count: number
    seq: number
  }[]
  /** Keys in hexadecimal digits. Of a key that is gone the length is null. */
  versions: {
    key: string
    seq: number
    type: number
    author: number | null
    at: number
    length: number | null
  }[]
  /** How many keys there are now. */
  keys: number
  /** Of the agent that was registered last. */
  lastRegisteredAt: number
}

/** What there was before a batch. */
export interface Known {
  /** By address; an agent that is not among them is nobody. */
  readonly ids: ReadonlyMap<string, number>
  /** In hexadecimal digits: those that the batch changes first and that were there. */
  readonly existing: ReadonlySet<string>
  readonly keys: number
  /** In ms since 1970: times of the registry follow its order. */
  readonly lastRegisteredAt: number
}

/** The addresses that a batch names, beside those that it registers. */
export function addressesOf(events: readonly LoggedEvent[]): Set<string> {
  const addresses = new Set<string>()
  for (const event of events) {
    if (event.agent !== undefined) addresses.add(event.agent)
    if (event.type === 'message_sent') addresses.add(event.data.to)
  }
  for (const event of events)
    if (event.type === 'agent_registered') addresses.delete(event.data.address)
  return addresses
}

/** The keys that a batch changes, in hexadecimal digits. */
export function keysOf(events: readonly LoggedEvent[]): Set<string> {
  return new Set(events.flatMap((event) => (isChangeOfKey(event) ? [toHex(event.data.key)] : [])))
}

/**
 * What a batch changes in the read models.
 *
 * @param events in their order
 * @param known what there was before them
 */
export function changesIn(events: readonly LoggedEvent[], known: Known): Changes {
  const summary = new Summary(known)
  for (const event of events) summary.add(event)
  return summary.changes()
}

class Summary {
  readonly #known: Known
  readonly #ids: Map<string, number>
  readonly #events: Changes['events'] = []
  readonly #totals = new Map<number, number>()
  readonly #registered = new Map<number, Changes['registered'][number]>()
  /** Of those who were registered before the batch. */
  readonly #figures = new Map<number, Figures>()
  readonly #messages: Changes['messages'] = []
  readonly #edges = new Map<string, Changes['edges'][number]>()
  readonly #activity = new Map<string, Changes['activity'][number]>()
  readonly #versions: Changes['versions'] = []
  /** Of the keys that the batch changes, those that are there. */
  readonly #existing: Set<string>
  #lastRegisteredAt: number

  constructor(known: Known) {
    this.#known = known
    this.#ids = new Map(known.ids)
    this.#existing = new Set(known.existing)
    this.#lastRegisteredAt = known.lastRegisteredAt
  }

  add(event: LoggedEvent): void {
    const { seq, type: name } = event
    const type = TYPE_NUMBERS[name]
    const at = Date.parse(event.ts)
    if (name === 'agent_registered') this.#register(seq, event.data.address, at)
    const agent = event.agent === undefined ? undefined : this.#ids.get(event.agent)
    const isPushed = name === 'message_delivered' && event.data.delivery_method === 'push'
    const number = isPushed ? PUSHED : type
    const nth = (this.#totals.get(type) ?? 0) + 1
    this.#totals.set(type, nth)
    this.#countActivity(EVERYBODY, SPANS[0], at / 1_000, { type, count: 1, seq })
    if (agent !== undefined) {
      for (const span of AGENT_SPANS)
        this.#countActivity(agent, span, at / 1_000, { type, count: 1, seq })
      if (DEEDS.includes(number)) {
        const its = this.#figuresOf(agent)
        its.active = Math.max(its.active ?? 0, at)
      }
    }
    let agentNth: number | null = null
    if (name === 'message_sent')
      agentNth = this.#countMessage(seq, agent, this.#ids.get(event.data.to))
    if (name === 'state_written' && agent !== undefined) agentNth = ++this.#figuresOf(agent).writes
    const keys = isChangeOfKey(event) ? this.#changeKey(event, agent, at) : null
    this.#events.push({
      seq,
      at,
      type: number,
      total: type,
      agent: agent ?? null,
      nth,
      agent_nth: agentNth,
      keys,
    })
  }

  changes(): Changes {
    // Minutes are few; longer spans are sums of them.
    for (const row of [...this.#activity.values()])
      if (row.agent === EVERYBODY)
        for (const span of SPANS.slice(1)) this.#countActivity(EVERYBODY, span, row.start, row)
    return {
      events: this.#events,
      totals: [...this.#totals].map(([type, count]) => ({ type, count })),
      registered: [...this.#registered.values()],
      figures: [...this.#figures.values()],
      messages: this.#messages,
      edges: [...this.#edges.values()],
      activity: [...this.#activity.values()],
      versions: this.#versions,
      keys: this.#keys,
      lastRegisteredAt: this.#lastRegisteredAt,
    }
  }

  /** How many keys there are. */
  get #keys(): number {
    return this.#known.keys + this.#existing.size - this.#known.existing.size
  }

  #register(seq: number, address: string, at: number): void {
    this.#lastRegisteredAt = Math.max(this.#lastRegisteredAt, at)
    this.#ids.set(address, seq)
    const its = this.#figuresOf(seq)
    this.#registered.set(seq, { address, at: this.#lastRegisteredAt, ...its })
    this.#figures.delete(seq)
  }

  #figuresOf(id: number): Figures {
    const its = this.#registered.get(id) ??
      this.#figures.get(id) ?? { id, sent: 0, received: 0, writes: 0, active: null }
    if (!this.#registered.has(id)) this.#figures.set(id, its)
    return its
  }

  /** @returns how many messages the sender has sent in this batch, null where it is nobody */
  #countMessage(
    seq: number,
    sender: number | undefined,
    recipient: number | undefined,
  ): number | null {
    const sent = sender === undefined ? null : ++this.#figuresOf(sender).sent
    if (recipient === undefined) return sent
    const received = ++this.#figuresOf(recipient).received
    if (sender === undefined) return sent
    const name = `${sender} ${recipient}`
    const count = (this.#edges.get(name)?.count ?? 0) + 1
    this.#edges.set(name, { sender, recipient, count, seq })
    this.#messages.push({ sender, recipient, seq, nth: count, received })
    return sent
  }

  /** @returns how many keys there are after it */
  #changeKey(event: ChangeOfKey, author: number | undefined, at: number): number {
    const { seq, type } = event
    const key = toHex(event.data.key)
    const length = type === 'state_written' ? event.data.value_length : null
    const version = { key, seq, type: TYPE_NUMBERS[type], author: author ?? null, at, length }
    this.#versions.push(version)
    if (length === null) this.#existing.delete(key)
    else this.#existing.add(key)
    return this.#keys
  }

  #countActivity(
    agent: number,
    span: number,
    seconds: number,
    { type, count, seq }: Pick<Changes['activity'][number], 'type' | 'count' | 'seq'>,
  ): void {
    const start = Math.floor(seconds / span) * span
    const name = `${agent} ${span} ${start} ${type}`
    const row = this.#activity.get(name)
    if (row) row.count += count
    else this.#activity.set(name, { agent, span, start, type, count, seq })
  }
}

type ChangeOfKey = Extract<
  LoggedEvent,
  { type: 'state_written' | 'state_deleted' | 'state_key_removed' }
>

function isChangeOfKey(event: LoggedEvent): event is ChangeOfKey {
  return (
    event.type === 'state_written' ||
    event.type === 'state_deleted' ||
    event.type === 'state_key_removed'
  )
}

export function toHex(text: string): string {
  return Buffer.from(text).toString('hex')
}
