/** The stream in JetStream that holds the event log: created where there is none, checked where there is; its consumers, and its messages. */

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  ErrorCode,
  headers,
  type JetStreamManager,
  type MsgHdrs,
  NatsError,
  nanos,
  RetentionPolicy,
  StorageType,
} from 'nats'
import { StartupError } from '../platform/startup-error.ts'
import type { LoggedEvent, NewEvent, Routing, Via } from './event.ts'
import { DEDUPLICATION_WINDOW_MS, LogUnavailable } from './event-log.ts'

export const STREAM = 'EVENTS'
/** Every subject of an event. */
export const ALL_EVENTS = 'events.>'
/** Every subject of an event that changes something. */
export const ALL_CHANGES = 'events.*.change.>'
const ABOUT = 'Tabulum-About'
const RESERVATION = 'Tabulum-Reservation'
const ORIGIN = 'Tabulum-Origin'

const RETRY_MS = 50
/** Servers that have just started, or lost their leader, need some seconds to agree. */
const STREAM_TIMEOUT_MS = 20_000
/** The server removes a consumer that nobody has asked anything for so long. */
const UNUSED_MS = 30_000
/** The server's codes: there is no such consumer, and the stream holds no such message. */
export const CONSUMER_NOT_FOUND = 10014
const NO_MESSAGE_FOUND = 10037

/** Throws `StartupError` where the stream that is there has another number of replicas. */
export async function ensureStream(manager: JetStreamManager, replicas: number): Promise<void> {
  const deadline = performance.now() + STREAM_TIMEOUT_MS
  for (;;) {
    try {
      return await findOrCreateStream(manager, replicas)
    } catch (error) {
      if (error instanceof StartupError || performance.now() > deadline) throw error
      await sleep(RETRY_MS)
    }
  }
}

async function findOrCreateStream(manager: JetStreamManager, replicas: number): Promise<void> {
  const existing = await manager.streams.info(STREAM).catch((error: unknown) => {
    if (error instanceof NatsError && error.api_error?.err_code === 10059) return undefined
    throw error
  })
  if (existing) {
    if (existing.config.num_replicas === replicas) return
    throw new StartupError(
      `the stream ${STREAM} has ${existing.config.num_replicas} replicas, not EVENTS_REPLICAS=${replicas}: set EVENTS_REPLICAS to that, or change the stream with the nats tool`,
    )
  }
  await manager.streams.add({
    name: STREAM,
    description: 'Everything that happened, in order',
    subjects: [ALL_EVENTS],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    discard: DiscardPolicy.New,
    num_replicas: replicas,
    duplicate_window: nanos(DEDUPLICATION_WINDOW_MS),
    allow_direct: true,
    deny_purge: true,
    deny_delete: true,
  })
}

/**
 * Creates a consumer of our own, of every event after `since`: one of some events could not tell those that it leaves out from
 * those that its replica lacks. Resolves to its name; throws `LogUnavailable`.
 */
export async function addConsumer(manager: JetStreamManager, since: number): Promise<string> {
  const name = `kernel-${randomUUID()}`
  try {
    await manager.consumers.add(STREAM, {
      name,
      ack_policy: AckPolicy.None,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: since + 1,
      inactive_threshold: nanos(UNUSED_MS),
      mem_storage: true,
      num_replicas: 1,
    })
  } catch (error) {
    throw unavailable(error)
  }
  return name
}

/** Removes a consumer of our own. The server does so by itself when it has not been used for a while. Throws `LogUnavailable`. */
export async function deleteConsumer(manager: JetStreamManager, name: string): Promise<void> {
  try {
    await manager.consumers.delete(STREAM, name)
  } catch (error) {
    // One that is gone already is what was wanted.
    if (!(error instanceof NatsError && error.api_error?.err_code === CONSUMER_NOT_FOUND)) throw unavailable(error)
  }
}

/**
 * The place of the last event on such a subject, 0 if there is none, as the stream's leader knows. The event comes whole, which may take long
 * where it is large; but a stream that has no leader leaves the request unanswered. So `prompt` is asked first, and then whether there is a
 * leader, before `patient` is waited for. Throws `LogUnavailable`.
 */
export async function lastSeqOf(
  { prompt, patient }: { prompt: JetStreamManager; patient: JetStreamManager },
  subject: string,
): Promise<number> {
  const ask = async (manager: JetStreamManager) =>
    (await manager.streams.getMessage(STREAM, { last_by_subj: subject })).seq
  try {
    return await ask(prompt).catch(async (error: unknown) => {
      if (!(error instanceof NatsError && error.code === ErrorCode.Timeout)) throw error
      await prompt.streams.info(STREAM)
      return ask(patient)
    })
  } catch (error) {
    if (error instanceof NatsError && error.api_error?.err_code === NO_MESSAGE_FOUND) return 0
    throw unavailable(error)
  }
}

/** A message of the stream, as JetStream or a direct read gives it. */
export interface StreamMessage {
  readonly subject: string
  readonly data: Uint8Array
  readonly headers?: MsgHdrs | undefined
}

/** Whether an event on this subject changes something. */
export function isChange(subject: string): boolean {
  return subject.includes('.change.')
}

/** An event as it was read, and the bytes that it came in. */
export interface StoredEvent {
  readonly event: LoggedEvent
  readonly bytes: number
}

export function toStoredEvent(seq: number, { subject, data, headers }: StreamMessage): StoredEvent {
  const event = JSON.parse(Buffer.from(data.buffer, data.byteOffset, data.length).toString('utf8')) as NewEvent
  const via = subject.split('.')[4]
  const about = headers?.get(ABOUT)
  const reservation = headers?.get(RESERVATION)
  const origin = headers?.get(ORIGIN)
  return {
    event: {
      seq,
      ...event,
      ...(via !== '-' && { via: via as Via }),
      ...(about && { about: Number(about) }),
      ...(reservation && { reservation }),
      ...(origin && { origin }),
    },
    bytes: data.length,
  }
}

/** A message's headers: what the projections need beside the event, and who appends it. */
export function eventHeaders({ about, reservation }: Routing, origin: string | undefined): MsgHdrs {
  const all = headers()
  if (about !== undefined) all.set(ABOUT, String(about))
  if (reservation !== undefined) all.set(RESERVATION, reservation)
  if (origin !== undefined) all.set(ORIGIN, origin)
  return all
}

export function unavailable(error: unknown): LogUnavailable {
  return error instanceof LogUnavailable ? error : new LogUnavailable('the event log cannot be read', { cause: error })
}
