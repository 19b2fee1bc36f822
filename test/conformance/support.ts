/** What the conformance suites share. */
import { randomUUID } from 'node:crypto'
import { newAddress } from '../../src/access/tokens.ts'
import type { LoggedEvent, NewEvent } from '../../src/events/event.ts'
import type { Database } from '../../src/platform/database.ts'
import { DatabaseProjection } from '../../src/projector/database-projection.ts'
import { RegistryStore } from '../../src/registry/registry-store.ts'
import { StateStore } from '../../src/state/state-store.ts'

/** A migrated database that nothing else uses. For the suites of what is the same code on Postgres and on PGlite. */
export interface DatabaseHarness extends AsyncDisposable {
  readonly database: Database
}

/** Applies events as the projector does, wherever the projection stands. */
export async function applyEvents(database: Database, events: readonly LoggedEvent[]): Promise<void> {
  const stores = { registry: new RegistryStore(database), state: new StateStore(database, 1) }
  const projection = new DatabaseProjection(database, stores, { maxQueue: 10_000, exclusive: true })
  const position = (await projection.acquire('test', 60_000)) ?? 0
  await projection.apply('test', position, events)
}

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
  return { ts: now(), type: 'state_read', agent: reader, data: { key, read_by: reader, found: true } }
}

export function registryRead(reader = newAddress()): NewEvent {
  return { ts: now(), type: 'registry_read', agent: reader, data: { read_by: reader } }
}

export function sent(to: string, content: string, from = newAddress()): Extract<NewEvent, { type: 'message_sent' }> {
  const data = { message_id: randomUUID(), from, to, content, content_length: Buffer.byteLength(content) }
  return { ts: now(), type: 'message_sent', agent: from, data }
}

/** Calls it for 0 to count - 1 at the same time. */
export function inParallel<T>(count: number, call: (index: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: count }, (_, index) => call(index)))
}

export function inSequence<T>(count: number, call: (index: number) => Promise<T>): Promise<T[]> {
  return Array.fromAsync({ length: count }, (_, index) => call(index))
}
