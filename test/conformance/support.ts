/** What the conformance suites share. */
import { randomUUID } from 'node:crypto'
import { newAddress } from '../../src/access/tokens.ts'
import type { EventOf, NewEvent } from '../../src/events/event.ts'
import type { Removals } from '../../src/removal/removals.ts'

export function now(): string {
  return new Date().toISOString()
}

export function written(key: string, value: string, writer = newAddress()): NewEvent {
  return {
    ts: now(),
    type: 'state_written',
    agent: writer,
    data: { key, value, value_length: Buffer.byteLength(value), written_by: writer },
  }
}

export function deleted(key: string, deleter = newAddress()): NewEvent {
  return { ts: now(), type: 'state_deleted', agent: deleter, data: { key, deleted_by: deleter } }
}

export function read(key: string, reader = newAddress()): NewEvent {
  return {
    ts: now(),
    type: 'state_read',
    agent: reader,
    data: { key, read_by: reader, found: true },
  }
}

export function registryRead(reader = newAddress()): NewEvent {
  return { ts: now(), type: 'registry_read', agent: reader, data: { read_by: reader } }
}

export function sent(
  to: string,
  content: string,
  from = newAddress(),
): Extract<NewEvent, { type: 'message_sent' }> {
  const data = {
    message_id: randomUUID(),
    from,
    to,
    content,
    content_length: Buffer.byteLength(content),
  }
  return { ts: now(), type: 'message_sent', agent: from, data }
}

const removed = { reason: 'illegal', performed_by: 'operator', content_hash: '00' }

export function keyRemoved(
  key: string,
  details: Partial<typeof removed> = {},
): EventOf<'state_key_removed'> {
  return { ts: now(), type: 'state_key_removed', data: { key, ...removed, ...details } }
}

export function redacted(
  message_id: string,
  details: Partial<typeof removed> = {},
): EventOf<'message_redacted'> {
  return { ts: now(), type: 'message_redacted', data: { message_id, ...removed, ...details } }
}

/** Where nothing was ever removed. */
export const noRemovals: Removals = {
  list: async () => ({ removals: [], total: 0 }),
  ofMessages: async () => new Map(),
  ofKeys: async () => new Map(),
}

/** Calls it for 0 to count - 1 at the same time. */
export function inParallel<T>(count: number, call: (index: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: count }, (_, index) => call(index)))
}

export function inSequence<T>(count: number, call: (index: number) => Promise<T>): Promise<T[]> {
  return Array.fromAsync({ length: count }, (_, index) => call(index))
}
