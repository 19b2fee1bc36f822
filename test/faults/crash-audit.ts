/**
 * Compares what agents were told with what the kernel kept. Each check returns what it found wrong,
 * as sentences; none is the aim.
 */
import { z } from 'zod'
import type { Client, Message } from '../../lab/client.ts'
import { me, message, percentEncode, registryPage, stateValue } from '../../lab/client.ts'
import type { Event } from '../../lab/kernel.ts'
import type { Delete, History, Holder, Put, Receive, Send } from './crash-workload.ts'

const sentData = message.omit({ timestamp: true }).extend({ content_length: z.int() })
const deliveredData = z.strictObject({
  message_id: z.uuid(),
  to: z.string(),
  delivery_method: z.literal('pull'),
})
const writtenData = z.strictObject({
  key: z.string(),
  value: z.string(),
  value_length: z.int(),
  written_by: z.string(),
})
const deletedData = z.strictObject({ key: z.string(), deleted_by: z.string() })
const registeredData = z.strictObject({
  address: z.string(),
  operator_id: z.uuid(),
  has_webhook: z.literal(false),
})

export interface StateEntry {
  value: string
  by: string
  at: string
  seq: number
}

/** What the log alone says. */
export interface Replay {
  state: Map<string, StateEntry>
  /** Addresses in the order of their registration, and when. */
  agents: Map<string, string>
  operators: Set<string>
  sent: Map<string, { seq: number; ts: string; data: z.infer<typeof sentData> }>
  /** Place of the event that a message was delivered by its id. */
  delivered: Map<string, number>
  wrong: string[]
}

export function replay(events: readonly Event[]): Replay {
  const result: Replay = {
    state: new Map(),
    agents: new Map(),
    operators: new Set(),
    sent: new Map(),
    delivered: new Map(),
    wrong: [],
  }
  const { state, agents, operators, sent, delivered, wrong } = result
  let last = 0
  for (const { seq, ts, type, agent, data } of events) {
    if (seq <= last) wrong.push(`event ${seq} comes after ${last}`)
    last = seq
    if (type === 'operator_created') {
      operators.add(String(data.operator_id))
    } else if (type === 'agent_registered') {
      const { address, operator_id } = registeredData.parse(data)
      if (agents.has(address)) wrong.push(`${address} is registered twice`)
      if (!operators.has(operator_id))
        wrong.push(`${address} was registered by an operator who was not`)
      agents.set(address, ts)
    } else if (type === 'message_sent') {
      const message = sentData.parse(data)
      if (sent.has(message.message_id))
        wrong.push(`message ${message.message_id} is in the log twice`)
      if (!agents.has(message.to) || !agents.has(message.from))
        wrong.push(`event ${seq} is between agents who were not registered`)
      if (Buffer.byteLength(message.content) !== message.content_length)
        wrong.push(`event ${seq} has a wrong length`)
      sent.set(message.message_id, { seq, ts, data: message })
    } else if (type === 'message_delivered') {
      const { message_id, to } = deliveredData.parse(data)
      if (sent.get(message_id)?.data.to !== to)
        wrong.push(`event ${seq} delivers a message that was not sent to ${to} before`)
      if (delivered.has(message_id))
        wrong.push(`message ${message_id} is delivered twice in the log`)
      delivered.set(message_id, seq)
    } else if (type === 'state_written') {
      const { key, value, value_length, written_by } = writtenData.parse(data)
      if (Buffer.byteLength(value) !== value_length) wrong.push(`event ${seq} has a wrong length`)
      state.set(key, { value, by: written_by, at: ts, seq })
    } else if (type === 'state_deleted') {
      const { key, deleted_by } = deletedData.parse(data)
      if (!state.delete(key))
        wrong.push(`event ${seq} deletes a key that is not there: two deletes found it`)
      if (deleted_by !== agent) wrong.push(`event ${seq} is not its agent's`)
    } else if (type !== 'state_read' && type !== 'registry_read') {
      wrong.push(`event ${seq} is of type ${type}`)
    }
  }
  return result
}

/**
 * Every acknowledged change has its one event; every event comes from one request that was not
 * refused.
 */
export function auditLog(events: readonly Event[], history: History, log: Replay): string[] {
  const wrong: string[] = []

  const sends = new Map(history.sends.map((send) => [send.content, send]))
  const contents = new Map<string, number>()
  for (const { seq, ts, data } of log.sent.values()) {
    contents.set(data.content, (contents.get(data.content) ?? 0) + 1)
    const send = sends.get(data.content)
    if (!send || send.from !== data.from || send.to !== data.to)
      wrong.push(`event ${seq}: nobody sent this message`)
    const { accepted } = send ?? {}
    if (accepted && (accepted.message_id !== data.message_id || accepted.timestamp !== ts))
      wrong.push(`event ${seq} is not what was acknowledged`)
  }
  for (const send of history.sends) checkCount('message', send, contents.get(send.content) ?? 0)

  const puts = new Map(history.puts.map((put) => [put.value, put]))
  const values = new Map<string, number>()
  const deletions = new Map<string, number>()
  const deletion = (agent: unknown, key: unknown) => JSON.stringify([agent, key])
  for (const { seq, ts, type, agent, data } of events) {
    if (type === 'state_deleted') count(deletions, deletion(agent, data.key))
    if (type !== 'state_written') continue
    const value = String(data.value)
    count(values, value)
    const put = puts.get(value)
    if (!put || put.key !== data.key || put.agent !== data.written_by)
      wrong.push(`event ${seq}: nobody wrote this value`)
    if (put?.writtenAt !== undefined && put.writtenAt !== ts)
      wrong.push(`event ${seq} is not what was acknowledged`)
  }
  for (const put of history.puts) checkCount('value', put, values.get(put.value) ?? 0)

  for (const [name, group] of Map.groupBy(history.deletes, ({ agent, key }) =>
    deletion(agent, key),
  )) {
    const done = group.filter(({ outcome }) => outcome === 'done').length
    const possible = group.filter(({ outcome }) => outcome !== 'refused').length
    const found = deletions.get(name) ?? 0
    if (found < done || found > possible)
      wrong.push(`${name}: ${found} deletes in the log, ${done} acknowledged, ${possible} possible`)
    deletions.delete(name)
  }
  for (const name of deletions.keys()) wrong.push(`${name}: nobody asked for this delete`)
  const deletedAt = new Set(
    events.flatMap(({ type, agent, ts, data }) =>
      type === 'state_deleted' ? [`${ts} ${agent} ${data.key}`] : [],
    ),
  )
  for (const { agent, key, deletedAt: at } of history.deletes) {
    if (at !== undefined && !deletedAt.has(`${at} ${agent} ${key}`))
      wrong.push(`the delete of ${key} at ${at} is not in the log`)
  }

  for (const { address, outcome } of history.registrations) {
    if (outcome === 'done' && !log.agents.has(address ?? ''))
      wrong.push(`the registration of ${address} is not in the log`)
  }
  if (log.agents.size > history.registrations.length)
    wrong.push('there are more registrations in the log than were asked for')
  for (const { name } of history.operators) {
    if (!log.operators.has(name)) wrong.push(`the operator ${name} is not in the log`)
  }
  const reads = (type: string) => events.filter((event) => event.type === type).length
  if (reads('state_read') > history.reads.length)
    wrong.push('there are more reads in the log than were made')
  return wrong

  function checkCount(what: string, { outcome, life }: Send | Put, found: number): void {
    const [least, most] = { done: [1, 1], refused: [0, 0], unknown: [0, 1] }[outcome] as [
      number,
      number,
    ]
    if (found < least || found > most)
      wrong.push(`a ${what} of life ${life}, ${outcome}, is in the log ${found} times`)
  }
}

function count(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1)
}

/**
 * Reads are of values in the log, and never older than what the same agent was acknowledged before.
 */
export function auditReads(events: readonly Event[], history: History): string[] {
  const wrong: string[] = []
  const place = new Map<string, number>()
  /** Places of a key's deletes, and of the beginning, when it is absent as well. */
  const absences = new Map<string, number[]>()
  for (const { seq, type, agent, ts, data } of events) {
    if (type === 'state_written') place.set(String(data.value), seq)
    if (type !== 'state_deleted') continue
    place.set(`${ts} ${agent} ${data.key}`, seq)
    absences.set(String(data.key), [...(absences.get(String(data.key)) ?? []), seq])
  }
  const placeOf = (change: Put | Delete) =>
    place.get(
      'value' in change ? change.value : `${change.deletedAt} ${change.agent} ${change.key}`,
    ) ?? 0
  const done = [...history.puts, ...history.deletes].filter(({ outcome }) => outcome === 'done')
  const changes = Map.groupBy(done, ({ agent, key }) => JSON.stringify([agent, key]))
  for (const { agent, key, found, outcome, began, life } of history.reads) {
    if (outcome === 'unknown') continue
    const earlier = (changes.get(JSON.stringify([agent, key])) ?? []).filter(
      ({ ended }) => ended < began,
    )
    const known = Math.max(0, ...earlier.map(placeOf))
    if (found === undefined) {
      const isRight = known === 0 || (absences.get(key) ?? []).some((seq) => seq >= known)
      if (!isRight)
        wrong.push(
          `life ${life}: ${agent} was told that ${key} is absent, which it had written as event ${known}`,
        )
      continue
    }
    const seq = place.get(found.value)
    if (seq === undefined)
      wrong.push(`life ${life}: a value of ${key} was read that is not in the log`)
    else if (seq < known)
      wrong.push(
        `life ${life}: ${agent} read event ${seq} of ${key} after ${known} was acknowledged to it`,
      )
  }
  return wrong
}

/**
 * What was received over all lives, the last collection included: everything acknowledged, as it
 * was sent, in order for each pair, and once, but for what a killed kernel may not have known to be
 * written.
 */
export function auditDeliveries(history: History, log: Replay): string[] {
  const wrong: string[] = []
  const deliveries = new Map<string, Receive[]>()
  const lastPlace = new Map<string, number>()
  for (const receive of history.receives) {
    let previous = 0
    for (const received of receive.messages) {
      const source = log.sent.get(received.message_id)
      if (!source) {
        wrong.push(`${receive.agent} received a message that is not in the log`)
        continue
      }
      const { seq, ts, data } = source
      if (receive.agent !== data.to || !isSame(received, { ...data, timestamp: ts }))
        wrong.push(`the message of event ${seq} arrived otherwise`)
      if (seq <= previous)
        wrong.push(`an answer to ${receive.agent} has event ${seq} after ${previous}`)
      previous = seq
      const earlier = deliveries.get(received.message_id) ?? []
      deliveries.set(received.message_id, [...earlier, receive])
      if (earlier.length > 0) continue
      const pair = `${data.from} ${data.to}`
      if (seq < (lastPlace.get(pair) ?? 0))
        wrong.push(`the message of event ${seq} arrived after a later one of its sender`)
      lastPlace.set(pair, seq)
    }
  }
  const changes = Map.groupBy(history.changes(), ({ life }) => life)
  for (const [id, receives] of deliveries) {
    for (const [index, receive] of receives.slice(1).entries()) {
      const before = receives[index] as Receive
      if (before.life === receive.life) {
        wrong.push(`message ${id} was delivered twice to ${receive.agent} in life ${receive.life}`)
        continue
      }
      // What was acknowledged later came later in the log than the record of the delivery, so the
      // kernel had it.
      const known = changes.get(before.life)?.some(({ began }) => began > before.ended)
      if (known)
        wrong.push(
          `message ${id} of life ${before.life} was delivered again in life ${receive.life}, though its delivery was known`,
        )
    }
  }
  for (const { data, seq } of log.sent.values()) {
    if (!deliveries.has(data.message_id))
      wrong.push(`the message of event ${seq} to ${data.to} has not arrived`)
    if (!log.delivered.has(data.message_id))
      wrong.push(`the delivery of the message of event ${seq} is not in the log`)
  }
  return wrong
}

function isSame(one: Message, other: Message): boolean {
  return (['message_id', 'from', 'to', 'content', 'timestamp'] as const).every(
    (name) => one[name] === other[name],
  )
}

/** State and registry, as the API shows them, are what the log replays to. */
export async function auditStores(client: Client, reader: Holder, log: Replay): Promise<string[]> {
  const wrong: string[] = []
  const get = async (path: string) => client.request('GET', path, { token: reader.token })

  const expected = [...log.state.keys()].toSorted((a, b) =>
    Buffer.compare(Buffer.from(a), Buffer.from(b)),
  )
  const page = z.object({ keys: z.array(z.string()), next_cursor: z.null(), total: z.int() })
  const { keys, total } = (await get('/v1/state?limit=1000')).as(200, page)
  if (JSON.stringify(keys) !== JSON.stringify(expected))
    wrong.push(`the keys are ${JSON.stringify(keys)}, not ${JSON.stringify(expected)}`)
  if (total !== expected.length) wrong.push(`total is ${total}, not ${expected.length}`)
  for (const [key, { value, by, at, seq }] of log.state) {
    const answer = await get(`/v1/state/${percentEncode(key)}`)
    const entry = answer.status === 200 ? answer.as(200, stateValue) : undefined
    if (entry?.value !== value || entry.last_modified_by !== by || entry.last_modified_at !== at) {
      wrong.push(`${JSON.stringify(key)} is not as event ${seq} left it (${answer.status})`)
    }
  }
  const usedBytes = [...log.state].reduce(
    (sum, [key, { value }]) => sum + Buffer.byteLength(key) + Buffer.byteLength(value),
    0,
  )
  const capacity = z.object({ used_bytes: z.int(), total_bytes: z.int(), key_count: z.int() })
  const { used_bytes, total_bytes, key_count } = (await get('/v1/state/_capacity')).as(
    200,
    capacity,
  )
  if (used_bytes !== usedBytes) wrong.push(`used_bytes is ${used_bytes}, not ${usedBytes}`)
  if (used_bytes > total_bytes) wrong.push(`used_bytes ${used_bytes} is over ${total_bytes}`)
  if (key_count !== expected.length) wrong.push(`key_count is ${key_count}, not ${expected.length}`)
  for (const prefix of ['shared/', 'own/', 'shared/\0', 'nothing']) {
    const found = (await get(`/v1/state?limit=1000&prefix=${percentEncode(prefix)}`)).as(
      200,
      page,
    ).total
    const right = expected.filter((key) => key.startsWith(prefix)).length
    if (found !== right) wrong.push(`total of ${JSON.stringify(prefix)} is ${found}, not ${right}`)
  }

  const registry = (await get('/v1/registry?limit=1000')).as(200, registryPage)
  const registered = [...log.agents].map(([address, registered_at]) => ({ address, registered_at }))
  if (JSON.stringify(registry.agents) !== JSON.stringify(registered))
    wrong.push('the registry is not as the log has it')
  if (registry.total !== registered.length)
    wrong.push(`the registry's total is ${registry.total}, not ${registered.length}`)
  return wrong
}

/** All tokens that were ever acknowledged are good. */
export async function auditTokens(client: Client, history: History): Promise<string[]> {
  const wrong: string[] = []
  for (const { name, token } of history.agents) {
    const answer = await client.request('GET', '/v1/agents/me', { token })
    if (answer.status !== 200 || answer.as(200, me).address !== name)
      wrong.push(`the token of ${name} is not good any more`)
  }
  for (const { name, token } of history.operators) {
    const answer = await client.request('GET', '/v1/agents/verification-challenge', { token })
    if (answer.status !== 200) wrong.push(`the token of operator ${name} is not good any more`)
  }
  return wrong
}

/** What a drained queue should have held: the messages without a delivery in the log, in order. */
export function queuedByLog(log: Replay): Map<string, string[]> {
  const waiting = [...log.sent.values()].filter(({ data }) => !log.delivered.has(data.message_id))
  const queues = Map.groupBy(waiting, ({ data }) => data.to)
  return new Map(
    [...queues].map(([to, messages]) => [to, messages.map(({ data }) => data.message_id)]),
  )
}
