/**
 * Capacity of the shared store that the database has allotted to this node ahead of need, so that a
 * write need not ask for it before its append.
 *
 * An allotment counts against the capacity from when it was granted. A write takes its whole size
 * from it, as though its key were not there yet, and when the write is known to have been applied,
 * the next renewal says so. So what is used, reserved and held together never exceeds the capacity,
 * and too much is counted rather than too little; where the capacity is nearly used up nothing is
 * held, and each write reserves exactly what it needs (`renew_state_allotment` and
 * `reserve_state_writes` in the database say when).
 */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { PREPARATION_USABLE_MS } from '../events/event-log.ts'
import { inBackground } from '../platform/background.ts'
import type { StateTables } from './postgres-state-tables.ts'

/** What is asked for beside what is under way: a second of writes on a busy node. */
const WANTED_BYTES = 4 * 1_048_576
/** An allotment is renewed when half of it is spent, or when it is so old. */
const RENEW_MS = 1_000
/**
 * So long after its last renewal capacity may be taken from it. What is taken may be appended until
 * `PREPARATION_USABLE_MS` after it.
 */
const USABLE_MS = 3_000
assert(RENEW_MS < USABLE_MS && USABLE_MS < PREPARATION_USABLE_MS)
/** When nothing has been taken for so long, it is given back. */
export const IDLE_MS = 500
/** After a renewal the next one waits so long, or `RENEW_MS` where it granted nothing or failed. */
const PAUSE_MS = 20

/** Capacity for one write, whichever way it was had. One of the two is called in the end. */
export interface WriteCapacity {
  /** A time of `performance.now()` after which the write must not be appended any more. */
  readonly notAfter: number
  /** The reservation that it was had by; undefined if it is from the allotment. */
  readonly reservation?: string | undefined
  /** The write has been applied. */
  settle(): void
  /** Whether it ever will be is not known. */
  lose(): void
}

/** All in bytes. What the database counts for it is the sum of the four. */
interface Allotment {
  readonly id: string
  free: number
  inFlight: number
  settled: number
  lost: number
  renewedAt: number
}

export class CapacityAllotment {
  readonly #store: Pick<StateTables, 'renewAllotment'>
  #allotment: Allotment | undefined
  #asking: Promise<void> | undefined
  #renewableAt = 0
  #takenAt = Number.NEGATIVE_INFINITY
  #idle: NodeJS.Timeout | undefined

  constructor(store: Pick<StateTables, 'renewAllotment'>) {
    this.#store = store
  }

  /**
   * Capacity for a write of `size` bytes, key and value; undefined where none is left: then it has
   * to be reserved. Never waits.
   */
  take(size: number): WriteCapacity | undefined {
    const now = performance.now()
    // A write that comes alone is not worth an allotment.
    const isOneOfMany = now < this.#takenAt + IDLE_MS
    this.#takenAt = now
    const allotment = this.#allotment
    if (allotment === undefined || allotment.free < size || now > allotment.renewedAt + USABLE_MS) {
      if (isOneOfMany) this.#renew()
      return undefined
    }
    allotment.free -= size
    allotment.inFlight += size
    if (allotment.free < WANTED_BYTES / 2 || now > allotment.renewedAt + RENEW_MS) this.#renew()
    const end = (as: 'settled' | 'lost') => {
      allotment.inFlight -= size
      allotment[as] += size
    }
    return {
      notAfter: allotment.renewedAt + PREPARATION_USABLE_MS,
      settle: () => end('settled'),
      lose: () => end('lost'),
    }
  }

  #renew(): void {
    if (this.#asking === undefined && performance.now() > this.#renewableAt)
      void this.#ask(WANTED_BYTES)
  }

  /**
   * Gives back what no write has taken. Never throws: what cannot be given back is cleared away by
   * maintenance.
   */
  async giveBack(): Promise<void> {
    await this.#asking
    if (this.#allotment !== undefined) await this.#ask(0)
  }

  /** Gives all back, when no write is under way any more. For an orderly stop. */
  async close(): Promise<void> {
    await this.giveBack()
    clearTimeout(this.#idle)
  }

  /** Asks the database for so much beside what is under way. One at a time. Never throws. */
  #ask(wanted: number): Promise<void> {
    this.#asking ??= this.#renewNow(wanted).finally(() => {
      this.#asking = undefined
    })
    return this.#asking
  }

  async #renewNow(wanted: number): Promise<void> {
    const opening = this.#allotment === undefined
    const renewedAt = performance.now()
    const allotment = this.#allotment ?? {
      id: randomUUID(),
      free: 0,
      inFlight: 0,
      settled: 0,
      lost: 0,
      renewedAt,
    }
    if (wanted === 0) allotment.free = 0
    const { id, free, inFlight, settled, lost } = allotment
    // While the answer is on its way, no more can be taken than is kept.
    const kept = free + inFlight
    const asking = this.#store.renewAllotment({
      id,
      opening,
      settled,
      lost,
      kept,
      wanted: wanted + inFlight,
    })
    // Whatever it fails with, writes go on without: they reserve what they need.
    inBackground('renew_allotment', asking)
    const bytes = await asking.catch(() => undefined)
    clearTimeout(this.#idle)
    this.#renewableAt = performance.now() + (bytes || wanted === 0 ? PAUSE_MS : RENEW_MS)
    if (!bytes) {
      // There is none left, or nobody knows how much.
      this.#allotment = undefined
      return
    }
    allotment.settled -= settled
    allotment.lost -= lost
    allotment.free += bytes - kept
    allotment.renewedAt = renewedAt
    this.#allotment = allotment
    this.#watchIdle()
  }

  #watchIdle(): void {
    this.#idle = setTimeout(() => {
      if (performance.now() > this.#takenAt + IDLE_MS) void this.giveBack()
      else this.#watchIdle()
    }, IDLE_MS).unref()
  }
}
