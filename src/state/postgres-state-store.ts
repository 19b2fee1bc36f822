/**
 * The shared state of a cluster: a write has its capacity and a delete its turn before the append,
 * and both wait for the projection after it.
 */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { EventOf, NewEvent } from '../events/event.ts'
import { type AppendOptions, type EventLog, PREPARATION_USABLE_MS } from '../events/event-log.ts'
import { type Progress, ProjectionBehind } from '../events/progress.ts'
import { CapacityAllotment, IDLE_MS, type WriteCapacity } from './capacity-allotment.ts'
import { DELETE_MS, type StateTables } from './postgres-state-tables.ts'
import {
  StateBusy,
  type StateEntry,
  type StateListing,
  type StatePage,
  type StateStore,
  type StoredUsage,
  StoreFull,
  UnknownKey,
} from './state-store.ts'

/**
 * Below the time for which a delete keeps others of its key waiting (`StateTables.beginDelete`):
 * one that took longer is not acknowledged.
 */
const DELETE_USABLE_MS = 2_800
assert(DELETE_USABLE_MS < DELETE_MS)
/**
 * How long a change waits for its turn. Longer than nodes keep an allotment that they do not use.
 */
const TURN_TIMEOUT_MS = 1_200
assert(TURN_TIMEOUT_MS > 2 * IDLE_MS)
const TURN_POLL_MS = 10

export class PostgresStateStore implements StateStore {
  readonly #tables: StateTables
  readonly #allotment: CapacityAllotment
  readonly #log: EventLog
  readonly #progress: Progress

  /** @param progress of the projection in the database */
  constructor(tables: StateTables, log: EventLog, progress: Progress) {
    this.#tables = tables
    this.#allotment = new CapacityAllotment(tables)
    this.#log = log
    this.#progress = progress
  }

  find(key: string): Promise<StateEntry | undefined> {
    return this.#tables.find(key)
  }

  page(prefix: string, after: Buffer | undefined, limit: number): Promise<StatePage> {
    return this.#tables.page(prefix, after, limit)
  }

  listings(
    prefix: string,
    after: Buffer | undefined,
    limit: number,
  ): Promise<{ keys: StateListing[]; total: number }> {
    return this.#tables.listings(prefix, after, limit)
  }

  usage(): Promise<StoredUsage> {
    return this.#tables.usage()
  }

  async write(event: EventOf<'state_written'>): Promise<void> {
    const { key, value_length: length } = event.data
    const size = Buffer.byteLength(key) + length
    const capacity = this.#allotment.take(size) ?? (await this.#reserve(key, size))
    const { reservation, notAfter } = capacity
    try {
      await this.#commit(event, { notAfter, ...(reservation && { reservation }) })
    } catch (error) {
      capacity.lose()
      throw error
    }
    capacity.settle()
  }

  async #reserve(key: string, size: number): Promise<WriteCapacity> {
    const { id, outcome, begunAt } = await inTurn(async () => {
      const id = randomUUID()
      const begunAt = performance.now()
      const outcome = await this.#tables.reserve({ id, key, size })
      if (outcome === 'busy') await this.#allotment.giveBack()
      return { id, outcome, begunAt }
    })
    if (outcome === 'full') throw new StoreFull()
    if (outcome === 'busy') throw new StateBusy()
    // The projector settles it by its name in the event; one that is lost maintenance clears away.
    return {
      notAfter: begunAt + PREPARATION_USABLE_MS,
      reservation: id,
      settle: () => {},
      lose: () => {},
    }
  }

  async delete(event: EventOf<'state_deleted'>): Promise<void> {
    const { outcome, begunAt } = await inTurn(async () => {
      const begunAt = performance.now()
      return { outcome: await this.#tables.beginDelete(event.data.key), begunAt }
    })
    if (outcome === 'absent') throw new UnknownKey()
    if (outcome === 'busy') throw new StateBusy()
    const notAfter = begunAt + DELETE_USABLE_MS
    await this.#commit(event, { notAfter })
    // By now another delete may have begun, and found the key as well.
    if (performance.now() > notAfter) throw new ProjectionBehind('the delete took too long')
  }

  async #commit(event: NewEvent, options: AppendOptions): Promise<void> {
    const { seq } = await this.#log.append(event, options)
    await this.#progress.reached(seq)
  }

  /** Gives the allotment back. */
  close(): Promise<void> {
    return this.#allotment.close()
  }
}

/** Tries until the outcome is another than `busy`, or for so long that the last one is that. */
async function inTurn<T extends { outcome: string }>(attempt: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + TURN_TIMEOUT_MS
  for (;;) {
    const result = await attempt()
    if (result.outcome !== 'busy' || performance.now() > deadline) return result
    await sleep(TURN_POLL_MS)
  }
}
