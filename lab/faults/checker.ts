/**
 * Decides from a history alone whether the kernel kept its promises (docs/guarantees.md).
 *
 * The event log is the witness: it proposes one order of all changes, and the checker decides
 * whether that order explains what agents were told. Changes that were acknowledged are in it once,
 * in an order that agrees with real time; each read is of the value that a key had at some moment
 * between its beginning and its end. So an order need not be searched for, and the check takes time
 * in proportion to the history (but for sorting it).
 */
import { isDeepStrictEqual } from 'node:util'
import type { Event } from '../kernel.ts'
import type {
  FaultRecord,
  History,
  Operation,
  Part,
  Read,
  ReceivedMessage,
  Remove,
  Send,
  Watch,
  Write,
} from './history.ts'

/** Service is back so long after a part's repair. */
export const RECOVERY_MS = 5_000
/** Before a node dies: what it has answered in this time may not be recorded as delivered yet. */
const UNRECORDED_MS = 2_000

export type Rule =
  | 'crash'
  | 'undocumented answer'
  | 'late recovery'
  | 'lost message'
  | 'forged message'
  | 'repeated message'
  | 'reordered messages'
  | 'log'
  | 'lost write'
  | 'order of writes'
  | 'stale read'
  | 'read of nothing that was written'
  | 'capacity'
  | 'limit'
  | 'disagreement'
  | 'missed event'
  | 'repeated event'
  | 'reordered events'
  | 'forged event'

export interface Violation {
  readonly rule: Rule
  readonly what: string
  /** When, on the history's clock. */
  readonly at: number
  /** What it is about: a key, a content, an address. */
  readonly subject: string
}

/** All violations, in order of their rules. */
export function check(history: History): Violation[] {
  return [
    ...history.crashes.map(
      ({ name, at, output }): Violation => ({
        rule: 'crash',
        what: `${name} ended by itself: ${output}`,
        at,
        subject: name,
      }),
    ),
    ...checkAnswers(history),
    ...checkMessages(history),
    ...checkLog(history),
    ...checkState(history),
    ...checkCapacity(history),
    ...checkLimit(history),
    ...checkAgreement(history),
    ...history.watches.flatMap((watch) => checkWatch(watch, history.events)),
  ]
}

/** Statuses that an operation may be answered with, other than 503. */
const DOCUMENTED: Readonly<Record<Operation['kind'], readonly number[]>> = {
  send: [202],
  receive: [200],
  write: [200, 507],
  read: [200, 404],
  remove: [200, 404],
  capacity: [200],
  limited: [200, 429],
  register: [201],
}
/** Where no answer may come: what carries it is killed, or too slow for the client. */
const CARRIERS: readonly Part[] = ['api', 'haproxy']

function checkAnswers({ operations, faults }: History): Violation[] {
  return operations.flatMap((operation): Violation[] => {
    const { kind, status, retryAfter, began, ended, agent } = operation
    const violation = (rule: Rule, what: string) => [{ rule, what, at: ended, subject: agent }]
    // What hits no part, such as a rolling restart, nobody is to notice.
    const during = faults.filter(
      (fault) => fault.hits.length > 0 && overlaps(fault, began, ended, RECOVERY_MS),
    )
    if (status === 0 || status === 503) {
      if (status === 0 && !during.some(({ hits }) => CARRIERS.some((part) => hits.includes(part))))
        return violation('undocumented answer', `${kind}: none`)
      if (status === 503 && !isRetryAfter(retryAfter))
        return violation('undocumented answer', `${kind}: 503 with Retry-After: ${retryAfter}`)
      return during.length === 0
        ? violation('late recovery', `${kind}: ${status}, with nothing broken`)
        : []
    }
    // What is stored of a limit is then worth no more than that it is used up.
    const mayBeLimited = during.some(({ hits }) => hits.includes('clock'))
    if (!DOCUMENTED[kind].includes(status) && !(status === 429 && mayBeLimited))
      return violation('undocumented answer', `${kind}: ${status}`)
    if (status === 429 && !isRetryAfter(retryAfter))
      return violation('undocumented answer', `${kind}: 429 with Retry-After: ${retryAfter}`)
    return []
  })
}

function isRetryAfter(value: string | undefined): boolean {
  return /^[1-9]\d*$/.test(value ?? '')
}

/** Whether a fault, and some time after its repair, meets an interval. */
function overlaps(
  { began, repaired }: FaultRecord,
  from: number,
  to: number,
  afterMs = 0,
): boolean {
  return from <= repaired + afterMs && to >= began
}

interface Arrival extends ReceivedMessage {
  readonly at: number
  readonly how: 'pull' | 'push'
  /** Its place among all that arrived at this recipient. */
  readonly place: number
}

/** All tries at one message. */
interface Sent {
  readonly from: string
  readonly to: string
  readonly content: string
  readonly began: number
  readonly ended: number
  readonly acknowledged: boolean
  readonly refused: boolean
  readonly messageId: string | undefined
}

function checkMessages(history: History): Violation[] {
  const { operations, faults, events } = history
  const sent = new Map(
    [...Map.groupBy(operations.filter(isSend), ({ content }) => content)].map(
      ([content, tries]) => [content, together(tries)],
    ),
  )
  const arrivals = arrivalsOf(history)
  const failed = new FailedReceives(history)
  const delivered = deliveredIds(events)
  const violations: Violation[] = []

  const byContent = Map.groupBy(arrivals, ({ content }) => content)
  for (const message of sent.values()) {
    const { content, to, acknowledged, ended } = message
    if (!acknowledged || byContent.has(content) || isLostWithItsCarrier(message, delivered, failed))
      continue
    violations.push({
      rule: 'lost message',
      what: `to ${to}: ${shown(content)}, which was acknowledged`,
      at: ended,
      subject: content,
    })
  }

  for (const arrival of arrivals) {
    const { content, id, from, to, at } = arrival
    const message = sent.get(content)
    const forged = (what: string) =>
      violations.push({
        rule: 'forged message',
        what: `${what}: ${shown(content)}`,
        at,
        subject: content,
      })
    if (message === undefined) forged('nobody sent it')
    else if (message.from !== from || message.to !== to) forged(`not from ${from} to ${to}`)
    else if (message.refused) forged('its sending was refused')
    else if (at < message.began) forged('it came before it was sent')
    else if (message.messageId !== undefined && message.messageId !== id)
      forged(`its id is ${message.messageId}`)
  }

  for (const [content, all] of byContent) {
    const [first, ...more] = all.toSorted((one, other) => one.at - other.at)
    if (first === undefined) continue
    if (more.length > 0 && !mayRepeat(faults, first.how, first.at))
      violations.push({
        rule: 'repeated message',
        what: `${shown(content)} arrived ${all.length} times`,
        at: more[0]?.at ?? first.at,
        subject: content,
      })
  }

  const acknowledged = [...sent.values()].filter((message) => message.acknowledged)
  for (const pair of Map.groupBy(acknowledged, ({ from, to }) => `${from} ${to}`).values()) {
    let next: { place: number; message: Sent } | undefined
    for (const message of pair.toSorted((one, other) => other.began - one.began)) {
      const first = byContent
        .get(message.content)
        ?.toSorted((one, other) => one.place - other.place)
        .at(0)
      if (first === undefined) continue
      const wasOvertaken =
        next !== undefined && next.place < first.place && message.ended < next.message.began
      if (
        wasOvertaken &&
        !failed.between(message.to, message.began, first.at, [...CARRIERS, 'network'])
      )
        violations.push({
          rule: 'reordered messages',
          what: `${shown(message.content)} arrived after ${shown(next?.message.content ?? '')}`,
          at: first.at,
          subject: message.content,
        })
      if (next === undefined || first.place < next.place) next = { place: first.place, message }
    }
  }
  return violations
}

/** Receives that may have lost what they were to carry, or left it in a node's hands. */
export class FailedReceives {
  readonly #faults: readonly FaultRecord[]
  readonly #byAgent: ReadonlyMap<string, Operation[]>

  constructor({ operations, faults }: Pick<History, 'operations' | 'faults'>) {
    this.#faults = faults
    const failed = operations.filter(({ kind, status }) => kind === 'receive' && status !== 200)
    this.#byAgent = Map.groupBy(failed, ({ agent }) => agent)
  }

  /** Whether one of an agent failed in this time, while one of these parts was broken. */
  between(agent: string, from: number, to: number, parts: readonly Part[]): boolean {
    return (this.#byAgent.get(agent) ?? []).some(
      ({ began, ended }) =>
        ended >= from &&
        began <= to &&
        this.#faults.some(
          (fault) => hit(fault, parts) && overlaps(fault, began, ended, RECOVERY_MS),
        ),
    )
  }
}

/** The ids of the messages that the log says were delivered. */
export function deliveredIds(events: readonly Event[]): ReadonlySet<string> {
  return new Set(
    events.flatMap(({ type, data }) =>
      type === 'message_delivered' ? [String(data.message_id)] : [],
    ),
  )
}

/**
 * A load balancer that was killed took responses with it that it had got whole: see
 * docs/guarantees.md.
 */
export function isLostWithItsCarrier(
  { to, ended, messageId }: Pick<Send, 'to' | 'ended' | 'messageId'>,
  delivered: ReadonlySet<string>,
  failed: FailedReceives,
): boolean {
  return (
    delivered.has(messageId ?? '') &&
    failed.between(to, ended, Number.POSITIVE_INFINITY, ['haproxy'])
  )
}

/** Whether a message that came first at that time, and so, may come again. */
export function mayRepeat(
  faults: readonly FaultRecord[],
  how: Arrival['how'],
  at: number,
): boolean {
  return faults.some(
    (fault) => hit(fault, repeaters(how)) && overlaps(fault, at, at + UNRECORDED_MS, RECOVERY_MS),
  )
}

/**
 * What may make a message come twice, by how it came first. A node that dies with the response
 * written may not have recorded it. A worker that dies, freezes or is cut off cannot say that it
 * has pushed.
 */
function repeaters(how: Arrival['how']): readonly Part[] {
  return how === 'pull' ? ['api', 'haproxy'] : ['worker', 'postgres', 'network', 'nats']
}

function hit({ hits }: FaultRecord, parts: readonly Part[]): boolean {
  return parts.some((part) => hits.includes(part))
}

function isSend(operation: Operation): operation is Send {
  return operation.kind === 'send'
}

/** What all tries at one message under one idempotency key come to. */
export function together(tries: readonly Send[]): Sent {
  const [first] = tries
  if (first === undefined) throw new Error('a message has one try at least')
  const { agent, to, content, began } = first
  const accepted = tries.find(({ status }) => status === 202)
  return {
    from: agent,
    to,
    content,
    began,
    ended: accepted?.ended ?? Number.POSITIVE_INFINITY,
    acknowledged: accepted !== undefined,
    refused: tries.every(({ status }) => status >= 400 && status < 500),
    messageId: accepted?.messageId,
  }
}

/** What arrived at each agent, in the order of its arrival there. */
function arrivalsOf({ operations, pushes }: History): Arrival[] {
  const pulled = operations.flatMap((operation) =>
    operation.kind === 'receive'
      ? operation.messages.map((message) => ({
          ...message,
          at: operation.ended,
          how: 'pull' as const,
        }))
      : [],
  )
  const pushed = pushes.map((push) => ({ ...push, how: 'push' as const }))
  return [...pulled, ...pushed]
    .toSorted((one, other) => one.at - other.at)
    .map((arrival, place) => ({ ...arrival, place }))
}

/** Every acknowledged change has its one event, and every event somebody who asked for it. */
function checkLog({ operations, events }: History): Violation[] {
  const violations: Violation[] = []
  const wrong = (what: string, subject = '', at = 0) =>
    violations.push({ rule: 'log', what, at, subject })
  let last = 0
  for (const { seq } of events) {
    if (seq <= last) wrong(`event ${seq} comes after ${last}`)
    last = seq
  }
  const sends = Map.groupBy(operations.filter(isSend), ({ content }) => content)
  const messages = Map.groupBy(ofType(events, 'message_sent'), ({ data }) => String(data.content))
  for (const [content, tries] of sends) {
    const { acknowledged, refused, messageId, ended } = together(tries)
    const found = messages.get(content) ?? []
    if (found.length > 1) wrong(`a message is in the log ${found.length} times`, content, ended)
    if (acknowledged && found[0]?.data.message_id !== messageId)
      wrong('an acknowledged message is not in the log', content, ended)
    if (refused && found.length > 0)
      wrong('a message that was refused is in the log', content, ended)
  }
  for (const content of messages.keys())
    if (!sends.has(content)) wrong('a message that nobody sent', content)

  const deliveries = Map.groupBy(ofType(events, 'message_delivered'), ({ data }) =>
    String(data.message_id),
  )
  for (const [id, found] of deliveries)
    if (found.length > 1) wrong(`message ${id} is delivered ${found.length} times`)

  const registered = new Set(
    ofType(events, 'agent_registered').map(({ data }) => String(data.address)),
  )
  for (const operation of operations)
    if (
      operation.kind === 'register' &&
      operation.address !== undefined &&
      !registered.has(operation.address)
    )
      wrong(
        `the registration of ${operation.address} is not in the log`,
        operation.address,
        operation.ended,
      )
  return violations
}

function ofType(events: readonly Event[], type: string): Event[] {
  return events.filter((event) => event.type === type)
}

/** An event of a key, with the request that asked for it. */
interface Change {
  readonly seq: number
  /** Undefined where it removed the key. */
  readonly value: string | undefined
  readonly began: number
  /** Infinite where it was not acknowledged: it may take effect at any time after it began. */
  readonly ended: number
}

function checkState(history: History): Violation[] {
  const changesOfKeys = Map.groupBy(
    history.events.filter(({ type }) => type === 'state_written' || type === 'state_deleted'),
    ({ data }) => String(data.key),
  )
  const operationsOfKeys = Map.groupBy(history.operations.filter(isOfKey), ({ key }) => key)
  const keys = new Set([...changesOfKeys.keys(), ...operationsOfKeys.keys()])
  return [...keys].flatMap((key) =>
    checkKey(key, operationsOfKeys.get(key) ?? [], changesOfKeys.get(key) ?? []),
  )
}

function isOfKey(operation: Operation): operation is Write | Read | Remove {
  return operation.kind === 'write' || operation.kind === 'read' || operation.kind === 'remove'
}

function checkKey(
  key: string,
  operations: readonly (Write | Read | Remove)[],
  events: readonly Event[],
): Violation[] {
  const violations: Violation[] = []
  const wrong = (rule: Rule, what: string, at: number) =>
    violations.push({ rule, what: `${key}: ${what}`, at, subject: key })
  const { changes, seqs } = matched(operations, events, wrong)

  // That the log's order agrees with real time: nothing is after a change that began only when that
  // one had been acknowledged.
  let latest: Change | undefined
  for (const change of changes) {
    if (latest !== undefined && latest.began > change.ended)
      wrong(
        'order of writes',
        `event ${latest.seq} began after ${change.seq} was acknowledged`,
        change.ended,
      )
    if (latest === undefined || change.began > latest.began) latest = change
  }

  /** The last change up to each, by when it began: a reader that saw it saw all before it. */
  const begunBy = changes.map(() => 0)
  for (const [index, { began }] of changes.entries())
    begunBy[index] = Math.max(begunBy[index - 1] ?? 0, began)
  const indexOf = new Map(changes.map(({ seq }, index) => [seq, index]))
  const places = new Map(
    changes.flatMap(({ value }, index) => (value === undefined ? [] : [[value, index]])),
  )

  // In the order in which they began; what had ended by then was known to somebody.
  let known: { ended: number; index: number }[] = []
  let least = -1
  for (const operation of operations.toSorted((one, other) => one.began - other.began)) {
    for (const { ended, index } of known)
      if (ended < operation.began) least = Math.max(least, index)
    known = known.filter(({ ended }) => ended >= operation.began)
    const index = observed(operation)
    if (index !== undefined) known.push({ ended: operation.ended, index })
  }
  return violations

  /**
   * Index of the change that an answer shows to have taken effect, -1 for none; undefined if it
   * shows nothing.
   */
  function observed(operation: Write | Read | Remove): number | undefined {
    const { status, ended } = operation
    if (status === 404) return observedAbsence(ended)
    if (status !== 200) return undefined
    if (operation.kind !== 'read') return indexOf.get(seqs.get(operation) ?? -1)
    const index = places.get(operation.value ?? '')
    if (index === undefined)
      wrong('read of nothing that was written', shown(operation.value ?? ''), ended)
    else if (index < least)
      wrong(
        'stale read',
        `event ${changes[index]?.seq} was read when ${changes[least]?.seq} was known`,
        ended,
      )
    else if ((begunBy[index] ?? 0) > ended)
      wrong(
        'stale read',
        `event ${changes[index]?.seq} was read before one ahead of it began`,
        ended,
      )
    return index
  }

  function observedAbsence(ended: number): number | undefined {
    const index = absence(least)
    if (index === undefined)
      wrong('stale read', `nothing was found when ${changes[least]?.seq} was known`, ended)
    else if (index >= 0 && (begunBy[index] ?? 0) > ended)
      wrong('stale read', `nothing was found before ${changes[index]?.seq} removed it`, ended)
    return index
  }

  /**
   * The first change at or after an index that leaves the key absent; -1 is before the first
   * change.
   */
  function absence(from: number): number | undefined {
    if (from < 0) return -1
    for (let index = from; index < changes.length; index++)
      if (changes[index]?.value === undefined) return index
    return undefined
  }
}

/**
 * The key's events with the requests that asked for them, and for each acknowledged request its
 * place in the log.
 */
function matched(
  operations: readonly (Write | Read | Remove)[],
  events: readonly Event[],
  wrong: (rule: Rule, what: string, at: number) => void,
): { changes: Change[]; seqs: Map<Operation, number> } {
  const writes = new Map(
    operations.flatMap((operation) =>
      operation.kind === 'write' ? [[operation.value, operation]] : [],
    ),
  )
  const removes = operations.filter((operation) => operation.kind === 'remove')
  const acknowledgedRemoves = new Map(
    removes.flatMap((remove) =>
      remove.status === 200 ? [[`${remove.agent} ${remove.deletedAt}`, remove]] : [],
    ),
  )
  const seqs = new Map<Operation, number>()
  const changes = events.map(({ seq, type, agent, ts, data }): Change => {
    if (type === 'state_written') {
      const value = String(data.value)
      const write = writes.get(value)
      if (write === undefined) wrong('log', `nobody wrote event ${seq}`, 0)
      else if (seqs.has(write)) wrong('log', `event ${seq} was written before`, write.ended)
      else if (write.status !== 200 && write.status !== 0 && write.status !== 503)
        wrong('log', `event ${seq} was refused with ${write.status}`, write.ended)
      if (write !== undefined) seqs.set(write, seq)
      return { seq, value, began: write?.began ?? 0, ended: acknowledgement(write) }
    }
    const remove = acknowledgedRemoves.get(`${agent} ${ts}`)
    if (remove !== undefined) {
      seqs.set(remove, seq)
      return { seq, value: undefined, began: remove.began, ended: remove.ended }
    }
    const unanswered = removes.filter(
      ({ agent: by, status }) => by === agent && (status === 0 || status === 503),
    )
    if (unanswered.length === 0) wrong('log', `nobody asked for event ${seq}`, 0)
    return {
      seq,
      value: undefined,
      began: Math.min(...unanswered.map(({ began }) => began)),
      ended: Number.POSITIVE_INFINITY,
    }
  })
  for (const operation of operations)
    if (operation.kind !== 'read' && operation.status === 200 && !seqs.has(operation))
      wrong(
        'lost write',
        `a ${operation.kind} was acknowledged and is not in the log`,
        operation.ended,
      )
  return { changes, seqs }
}

function acknowledgement(write: Write | undefined): number {
  return write?.status === 200 ? write.ended : Number.POSITIVE_INFINITY
}

/** The state by the log alone, and the most that it ever took. */
function replay(events: readonly Event[]): {
  state: Map<string, string>
  used: number
  peak: number
} {
  const state = new Map<string, string>()
  let used = 0
  let peak = 0
  const sizeOf = (key: string) => {
    const value = state.get(key)
    return value === undefined ? 0 : Buffer.byteLength(key) + Buffer.byteLength(value)
  }
  for (const { type, data } of events) {
    if (type !== 'state_written' && type !== 'state_deleted') continue
    const key = String(data.key)
    used -= sizeOf(key)
    if (type === 'state_written') state.set(key, String(data.value))
    else state.delete(key)
    used += sizeOf(key)
    peak = Math.max(peak, used)
  }
  return { state, used, peak }
}

function checkCapacity({ operations, events, capacityBytes }: History): Violation[] {
  const violation = (what: string, at: number, subject = ''): Violation => ({
    rule: 'capacity',
    what,
    at,
    subject,
  })
  const { peak } = replay(events)
  return [
    ...(peak > capacityBytes
      ? [violation(`the log takes up to ${peak} bytes of ${capacityBytes}`, 0)]
      : []),
    ...operations.flatMap((operation) =>
      operation.kind === 'capacity' && operation.usedBytes > capacityBytes
        ? [
            violation(
              `${operation.usedBytes} of ${capacityBytes} bytes`,
              operation.ended,
              operation.agent,
            ),
          ]
        : [],
    ),
  ]
}

/**
 * In no stretch of time more than a full bucket and what refilled it. While Redis is out nodes
 * count for themselves, and it comes back empty.
 */
function checkLimit({ operations, faults, limitPerMinute }: History): Violation[] {
  const afresh = faults.filter((fault) => hit(fault, ['redis', 'network', 'machine']))
  const allowed = operations.filter(({ kind, status }) => kind === 'limited' && status === 200)
  const violations: Violation[] = []
  for (const [agent, all] of Map.groupBy(allowed, (operation) => operation.agent)) {
    let stretch: Operation[] = []
    for (const operation of all.toSorted((one, other) => one.began - other.began)) {
      const since = stretch.at(-1)?.began ?? operation.began
      if (afresh.some((fault) => overlaps(fault, since, operation.ended, RECOVERY_MS))) stretch = []
      stretch.push(operation)
      const many = stretch.findIndex(
        ({ began }, index) =>
          stretch.length - index >
          limitPerMinute + 1 + ((operation.ended - began) * limitPerMinute) / 60_000,
      )
      if (many < 0) continue
      const { began } = stretch[many] as Operation
      violations.push({
        rule: 'limit',
        what: `${stretch.length - many} requests within ${Math.round(operation.ended - began)} ms`,
        at: operation.ended,
        subject: agent,
      })
      stretch = []
    }
  }
  return violations
}

function checkAgreement({
  events,
  nodes,
  observers,
  differences,
  refusedTokens,
}: History): Violation[] {
  const at = Number.POSITIVE_INFINITY
  const violations: Violation[] = []
  const wrong = (what: string, subject = '') =>
    violations.push({ rule: 'disagreement', what, at, subject })
  const { state, used } = replay(events)
  const agents = ofType(events, 'agent_registered').length
  for (const view of nodes) {
    for (const key of new Set([...state.keys(), ...Object.keys(view.state)]))
      if (view.state[key] !== state.get(key))
        wrong(`${key} on ${view.node} is not what the log says`, key)
    if (view.usedBytes !== used || view.keyCount !== state.size)
      wrong(
        `${view.node} counts ${view.keyCount} keys of ${view.usedBytes} bytes, the log ${state.size} of ${used}`,
      )
    if (view.agents !== agents) wrong(`${view.node} lists ${view.agents} agents, the log ${agents}`)
  }
  for (const { observer, ...counted } of observers) {
    if (counted.agents !== agents)
      wrong(`${observer} lists ${counted.agents} agents, the log ${agents}`)
    if (counted.events !== events.length)
      wrong(`${observer} counts ${counted.events} events, the log ${events.length}`)
  }
  if (differences !== undefined) wrong(`verify: ${differences}`)
  for (const address of refusedTokens) wrong(`the token of ${address} is refused`, address)
  return violations
}

/**
 * Whoever watches has seen what the log has of what it asked for: all of it, as it is there, in
 * order, and each once.
 */
function checkWatch({ name, since, types, seen }: Watch, events: readonly Event[]): Violation[] {
  const violations: Violation[] = []
  const wrong = (rule: Rule, what: string) =>
    violations.push({ rule, what: `${name}: ${what}`, at: Number.POSITIVE_INFINITY, subject: name })
  const wanted = new Map(
    events.flatMap((event) =>
      event.seq > since && (types?.includes(event.type) ?? true) ? [[event.seq, event]] : [],
    ),
  )
  const had = new Set<number>()
  let last = since
  for (const event of seen) {
    const { seq } = event
    const logged = wanted.get(seq)
    if (logged === undefined) wrong('forged event', `${seq} is not what it asked for`)
    else if (!isDeepStrictEqual(logged, event))
      wrong('forged event', `${seq} is another than in the log`)
    if (had.has(seq)) wrong('repeated event', `${seq} came again, after ${last}`)
    else if (seq < last) wrong('reordered events', `${seq} came after ${last}`)
    had.add(seq)
    last = Math.max(last, seq)
  }
  const missed = [...wanted.keys()].filter((seq) => !had.has(seq))
  if (missed.length > 0) {
    const [first] = missed
    wrong(
      'missed event',
      `${missed.length} of ${wanted.size} never came, the first of them ${first}; it ends at ${last}`,
    )
  }
  return violations
}

function shown(text: string): string {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}
