/**
 * The stream in JetStream that holds the event log: created where there is none, checked where
 * there is; and its consumers.
 */

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  type JetStreamManager,
  type MsgHdrs,
  NatsError,
  nanos,
  RetentionPolicy,
  StorageType,
  type StreamState,
} from 'nats'
import { NotThereYet, StartupError } from '../platform/startup-error.ts'
import { ALL_SUBJECTS, Batch } from './batch.ts'
import { DEDUPLICATION_WINDOW_MS, LogUnavailable } from './event-log.ts'

export const STREAM = 'EVENTS'
/** The header that names the process which appended a batch, where that waits for it. */
export const ORIGIN = 'Tabulum-Origin'

const RETRY_MS = 50
/** Servers that have just started, or lost their leader, need some seconds to agree. */
const STREAM_TIMEOUT_MS = 20_000
/** The server removes a consumer that nobody has asked anything for so long. */
const UNUSED_MS = 30_000
/** The server's codes: there is no such consumer, there is no such stream. */
export const CONSUMER_NOT_FOUND = 10014
const STREAM_NOT_FOUND = 10059

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

/** Throws `StartupError` where there is no such stream yet. */
export async function findStream(manager: JetStreamManager): Promise<void> {
  try {
    await manager.streams.info(STREAM)
  } catch (error) {
    if (!(error instanceof NatsError && error.api_error?.err_code === STREAM_NOT_FOUND)) throw error
    throw new NotThereYet(`there is no stream ${STREAM} yet: an api node or worker creates it`)
  }
}

async function findOrCreateStream(manager: JetStreamManager, replicas: number): Promise<void> {
  const existing = await manager.streams.info(STREAM).catch((error: unknown) => {
    if (error instanceof NatsError && error.api_error?.err_code === STREAM_NOT_FOUND)
      return undefined
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
    subjects: [ALL_SUBJECTS],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    discard: DiscardPolicy.New,
    num_replicas: replicas,
    duplicate_window: nanos(DEDUPLICATION_WINDOW_MS),
    // What is illegal to host must be erasable, by an administrator. `deny_delete` and `deny_purge`
    // nobody could undo; the kernel's user may do neither (deploy/nats/common.conf).
    allow_direct: true,
  })
}

/**
 * Creates a consumer of our own, of every message of the stream from `first` on: one of some of
 * them could not tell those that it leaves out from those that its replica lacks. Resolves to its
 * name; throws `LogUnavailable`.
 */
export async function addConsumer(manager: JetStreamManager, first: number): Promise<string> {
  const name = `kernel-${randomUUID()}`
  try {
    await manager.consumers.add(STREAM, {
      name,
      ack_policy: AckPolicy.None,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: first,
      inactive_threshold: nanos(UNUSED_MS),
      mem_storage: true,
      num_replicas: 1,
    })
  } catch (error) {
    throw unavailable(error)
  }
  return name
}

/**
 * Removes a consumer of our own. The server does so by itself when it has not been used for a
 * while. Throws `LogUnavailable`.
 */
export async function deleteConsumer(manager: JetStreamManager, name: string): Promise<void> {
  try {
    await manager.consumers.delete(STREAM, name)
  } catch (error) {
    // One that is gone already is what was wanted.
    if (!(error instanceof NatsError && error.api_error?.err_code === CONSUMER_NOT_FOUND))
      throw unavailable(error)
  }
}

/** What the stream's leader says of it. Throws `LogUnavailable`. */
export async function streamState(manager: JetStreamManager): Promise<StreamState> {
  try {
    return (await manager.streams.info(STREAM)).state
  } catch (error) {
    throw unavailable(error)
  }
}

/** A message of the stream, as JetStream or a direct read gives it. */
export interface StreamMessage {
  readonly subject: string
  readonly data: Uint8Array
  readonly headers?: MsgHdrs | undefined
}

export function toBatch(message: number, { data, headers }: StreamMessage): Batch {
  return new Batch(message, data, headers?.get(ORIGIN) || undefined)
}

export function unavailable(error: unknown): LogUnavailable {
  return error instanceof LogUnavailable
    ? error
    : new LogUnavailable('the event log cannot be read', { cause: error })
}
