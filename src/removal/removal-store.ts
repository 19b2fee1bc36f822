/**
 * What a removal is made on, and finding what is to be removed: the same on one machine and in a
 * cluster.
 */
import { hash } from 'node:crypto'
import type { EventOf, LoggedEvent, Routing } from '../events/event.ts'
import { type EventLog, readEvents } from '../events/event-log.ts'
import type { Removal, Removals } from './removals.ts'

/** Any of its methods throws `Unavailable` where a part is out, unless it says otherwise. */
export interface RemovalStore {
  readonly log: Pick<EventLog, 'read' | 'get'>
  readonly removals: Removals
  /**
   * @returns the value of a key, undefined where it has none; and as of which sequence number: what
   *   comes behind that is not in it
   */
  present(key: string): Promise<{ value: string | undefined; asOf: number }>
  /** @returns the sequence number of a message that was not delivered yet, as far as is known */
  seqOf(messageId: string): Promise<number | undefined>
  /**
   * Appends the event of a removal.
   *
   * @returns its sequence number
   */
  append(event: RemovalEvent, routing: Routing & { id?: string }): Promise<number>
  /**
   * Resolves when agents and observers are answered accordingly.
   *
   * @returns undefined; after 10 s, why they are not yet. A part that is out is such a reason
   */
  inForce(event: Pick<RemovalEvent, 'type'>, seq: number): Promise<string | undefined>
  /**
   * Takes the content out of these events of the log, which a removal is about: what is left of
   * them says why. Those of which that has been done are passed over, so it can be done again.
   */
  erase(events: readonly number[], reason: string): Promise<void>
  /**
   * Rids files of what was deleted in them, as far as this program can.
   *
   * @returns what is left to others, a sentence each
   */
  cleanFiles(): Promise<string[]>
}

export type RemovalEvent = EventOf<'state_key_removed'> | EventOf<'message_redacted'>

/** Told now and then how far the log has been read. */
export type OnProgress = (read: { readonly events: number; readonly last: LoggedEvent }) => void

/** What a removal says of itself beside what is removed. */
export interface RemovalDetails {
  readonly reason: string
  readonly performedBy: string
}

export type Message = EventOf<'message_sent'> & Routing & { seq: number }

/** What is there of a key. */
export interface FoundKey {
  /** Its value, or the last one that it had; undefined where it has had none since `removal`. */
  readonly value: string | undefined
  readonly isPresent: boolean
  /** The latest. */
  readonly removal: Removal | undefined
  /** The sequence number up to which this was looked at. */
  readonly asOf: number
}

/**
 * Looks for a key in the state, and where it is not there through the log. Undefined: it was never
 * written.
 */
export async function findKey(
  store: RemovalStore,
  key: string,
  onProgress: OnProgress,
): Promise<FoundKey | undefined> {
  const { value, asOf } = await store.present(key)
  const removal = (await store.removals.ofKeys([key])).get(key)
  if (value !== undefined) return { value, isPresent: true, removal, asOf }
  const last = await lastWrite(store.log, key, removal?.seq ?? 0, onProgress)
  if (last === undefined && removal === undefined) return undefined
  return {
    value: last?.data.value,
    isPresent: false,
    removal,
    asOf: Math.max(asOf, last?.seq ?? 0),
  }
}

/**
 * Removes a key. What was written to it between the look at its value and the event is removed by
 * that too, so it gets an event of its own, with its hash. Resolves to the last event and its
 * sequence number.
 */
export async function removeKey(
  store: RemovalStore,
  key: string,
  found: FoundKey,
  details: RemovalDetails,
): Promise<{ event: RemovalEvent; seq: number }> {
  const now = await store.present(key)
  let value = now.value ?? found.value ?? ''
  for (let asOf = now.asOf; ; ) {
    const event: RemovalEvent = {
      ts: new Date().toISOString(),
      type: 'state_key_removed',
      data: { key, ...dataOf(details, value) },
    }
    const seq = await store.append(event, {})
    const overlooked = await lastWrite(store.log, key, asOf, () => {}, seq)
    if (overlooked === undefined || hashOf(overlooked.data.value) === event.data.content_hash)
      return { event, seq }
    value = overlooked.data.value
    asOf = seq
  }
}

/** Looks for a message among those that wait, then through the log. */
export async function findMessage(
  store: RemovalStore,
  id: string,
  onProgress: OnProgress,
): Promise<Message | undefined> {
  const seq = await store.seqOf(id)
  if (seq !== undefined) {
    const [event] = await store.log.get([seq])
    if (event?.type === 'message_sent') return event
  }
  for await (const event of read(store.log, 0, onProgress)) {
    if (event.type === 'message_sent' && event.data.message_id === id) return event
  }
  return undefined
}

/** Redacts a message. Resolves to the event and its sequence number. */
export async function redactMessage(
  store: RemovalStore,
  { seq: about, data: { message_id, to, content } }: Message,
  details: RemovalDetails,
): Promise<{ event: RemovalEvent; seq: number }> {
  const event: RemovalEvent = {
    ts: new Date().toISOString(),
    type: 'message_redacted',
    data: { message_id, ...dataOf(details, content) },
  }
  const seq = await store.append(event, { about, recipient: to, id: `redacted-${message_id}` })
  return { event, seq }
}

/** Events that are erased at once. */
const ERASED_AT_ONCE = 100

/**
 * Erases what a removal removed: the content of the message, or all values that the key had before
 * it. Resolves to the number of events that it was in still, and what is left to others.
 *
 * @param message where it is known already
 */
export async function erase(
  store: RemovalStore,
  removal: Pick<Removal, 'seq' | 'key' | 'message_id' | 'reason'>,
  onProgress: OnProgress,
  message?: Message,
): Promise<{ erased: number; left: string[] }> {
  let erased = 0
  let found: number[] = []
  const flush = async () => {
    if (found.length > 0) await store.erase(found, removal.reason)
    erased += found.length
    found = []
  }
  for await (const seq of contentsOf(store, removal, onProgress, message)) {
    found.push(seq)
    if (found.length === ERASED_AT_ONCE) await flush()
  }
  await flush()
  return { erased, left: await store.cleanFiles() }
}

/** The sequence numbers of the events that hold the content still. */
async function* contentsOf(
  store: RemovalStore,
  { seq: until, key, message_id }: Pick<Removal, 'seq' | 'key' | 'message_id'>,
  onProgress: OnProgress,
  known?: Message,
): AsyncGenerator<number> {
  if (message_id !== undefined) {
    const message = known ?? (await findMessage(store, message_id, onProgress))
    if (message !== undefined && message.data.redacted !== true) yield message.seq
    return
  }
  for await (const { seq, type, data } of read(store.log, 0, onProgress)) {
    if (seq >= until) return
    if (type === 'state_written' && data.key === key && data.redacted !== true) yield seq
  }
}

export function hashOf(content: string): string {
  return hash('sha256', content)
}

function dataOf({ reason, performedBy }: RemovalDetails, content: string) {
  return { reason, performed_by: performedBy, content_hash: hashOf(content) }
}

type StateWrite = EventOf<'state_written'> & { seq: number }

/** The last write of a key after `since`, and before `until` where that is given. */
async function lastWrite(
  log: RemovalStore['log'],
  key: string,
  since: number,
  onProgress: OnProgress,
  until = Number.POSITIVE_INFINITY,
): Promise<StateWrite | undefined> {
  let last: StateWrite | undefined
  for await (const event of read(log, since, onProgress)) {
    if (event.seq >= until) break
    if (event.type === 'state_written' && event.data.key === key) last = event
  }
  return last
}

const TOLD_EVERY_MS = 5_000

async function* read(
  log: RemovalStore['log'],
  since: number,
  onProgress: OnProgress,
): AsyncGenerator<LoggedEvent> {
  let events = 0
  let toldAt = performance.now()
  for await (const event of readEvents(log, since)) {
    yield event
    events++
    if (performance.now() < toldAt + TOLD_EVERY_MS) continue
    toldAt = performance.now()
    onProgress({ events, last: event })
  }
}
