/** What a batch of events changes in the observation's read models: sums, so that a store applies few rows. */
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

const TYPES = new Map<number, EventType>(
  Object.entries(TYPE_NUMBERS).map(([type, number]) => [number, type as EventType]),
)

/** The type that has this number. */
export function typeOf(number: number): EventType {
  const type = TYPES.get(number)
  if (type === undefined) throw new TypeError(`no type of event has the number ${number}`)
  return type
}

export const ALL_TYPES = Object.keys(TYPE_NUMBERS) as EventType[]

/**
 * Seconds that activity is summed over: of everybody, and of each agent. Each is a few times the one before, so that a chart of any stretch adds
 * up a few rows for each of its buckets.
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
  events: { seq: number; type: number; agent: number | null }[]
  activity: { agent: number; span: number; start: number; type: number; count: number; seq: number }[]
  /** Keys in hexadecimal digits. Of a key that is gone the length is null. */
  versions: { key: string; seq: number; type: number; author: number | null; at: number; length: number | null }[]
}

type Counted = Pick<Changes['activity'][number], 'type' | 'count' | 'seq'>

/** The addresses that a batch names, beside those that it registers. */
export function addressesOf(events: readonly LoggedEvent[]): Set<string> {
  const addresses = new Set<string>()
  for (const event of events) {
    if (event.agent !== undefined) addresses.add(event.agent)
    if (event.type === 'message_sent') addresses.add(event.data.to)
  }
  for (const event of events) if (event.type === 'agent_registered') addresses.delete(event.data.address)
  return addresses
}

/**
 * @param events in their order
 * @param known the ids of agents that were registered before; one that is nowhere is nobody
 * @param lastRegisteredAt of the agent that was registered last, in ms since 1970: times of the registry follow its order
 */
export function changesOf(
  events: readonly LoggedEvent[],
  known: ReadonlyMap<string, number>,
  lastRegisteredAt: number,
): Changes {
  const ids = new Map(known)
  const registered = new Map<number, Changes['registered'][number]>()
  const figures = new Map<number, Figures>()
  const edges = new Map<string, Changes['edges'][number]>()
  const activity = new Map<string, Changes['activity'][number]>()
  const changes: Pick<Changes, 'events' | 'versions'> = { events: [], versions: [] }

  const figuresOf = (id: number): Figures => {
    const its = registered.get(id) ?? figures.get(id) ?? { id, sent: 0, received: 0, writes: 0, active: null }
    if (!registered.has(id)) figures.set(id, its)
    return its
  }
  const add = (agent: number, span: number, seconds: number, { type, count, seq }: Counted) => {
    const start = Math.floor(seconds / span) * span
    const name = `${agent} ${span} ${start} ${type}`
    const row = activity.get(name)
    if (row) row.count += count
    else activity.set(name, { agent, span, start, type, count, seq })
  }

  let registeredAt = lastRegisteredAt
  for (const event of events) {
    const { seq, type: name, agent: address, data } = event
    const type = TYPE_NUMBERS[name]
    const at = Date.parse(event.ts)
    if (name === 'agent_registered') {
      registeredAt = Math.max(registeredAt, at)
      ids.set(data.address, seq)
      registered.set(seq, { address: data.address, at: registeredAt, ...figuresOf(seq) })
      figures.delete(seq)
    }
    const agent = address === undefined ? undefined : ids.get(address)
    changes.events.push({ seq, type, agent: agent ?? null })
    add(EVERYBODY, SPANS[0], at / 1_000, { type, count: 1, seq })
    if (agent !== undefined) {
      for (const span of AGENT_SPANS) add(agent, span, at / 1_000, { type, count: 1, seq })
      if (isDoneBy(event)) {
        const its = figuresOf(agent)
        its.active = Math.max(its.active ?? 0, at)
      }
    }
    if (name === 'message_sent') {
      const recipient = ids.get(data.to)
      if (agent !== undefined) figuresOf(agent).sent++
      if (recipient !== undefined) figuresOf(recipient).received++
      if (agent === undefined || recipient === undefined) continue
      const edge = edges.get(`${agent} ${recipient}`) ?? { sender: agent, recipient, count: 0, seq }
      edges.set(`${agent} ${recipient}`, { ...edge, count: edge.count + 1, seq })
    } else if (name === 'state_written' || name === 'state_deleted' || name === 'state_key_removed') {
      if (name === 'state_written' && agent !== undefined) figuresOf(agent).writes++
      const length = name === 'state_written' ? data.value_length : null
      changes.versions.push({ key: toHex(data.key), seq, type, author: agent ?? null, at, length })
    }
  }
  // Minutes are few; longer spans are sums of them.
  for (const row of [...activity.values()])
    if (row.agent === EVERYBODY) for (const span of SPANS.slice(1)) add(EVERYBODY, span, row.start, row)
  return {
    ...changes,
    registered: [...registered.values()],
    figures: [...figures.values()],
    edges: [...edges.values()],
    activity: [...activity.values()],
  }
}

/** Whether the agent of an event did something: a registration is its operator's doing, and a push the kernel's. */
function isDoneBy({ type, data }: LoggedEvent): boolean {
  if (type === 'message_delivered') return data.delivery_method === 'pull'
  return type !== 'agent_registered' && type !== 'push_failed'
}

export function toHex(text: string): string {
  return Buffer.from(text).toString('hex')
}
