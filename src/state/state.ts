/** The shared key-value store: any agent, any key, the last write wins. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NewEvent } from '../events/event.ts'
import { type EventLog, LogUnavailable, PREPARATION_USABLE_MS } from '../events/event-log.ts'
import type { Progress } from '../events/progress.ts'
import type { CursorSeal } from '../platform/cursor.ts'
import type { StateEntry, StateStore } from './state-store.ts'

/** The write would take the store over its capacity. */
export class StoreFull extends Error {
  override name = 'StoreFull'
}

/** There is no such key. */
export class UnknownKey extends Error {
  override name = 'UnknownKey'
}

/** Deletes of one key follow each other; this one waited too long for its turn. */
export class KeyBusy extends Error {
  override name = 'KeyBusy'
}

const DELETE_TURN_TIMEOUT_MS = 1_000
const DELETE_TURN_POLL_MS = 10

export interface Usage {
  usedBytes: number
  totalBytes: number
  keyCount: number
}

export class State {
  readonly #store: StateStore
  readonly #log: EventLog
  readonly #progress: Progress
  readonly #cursors: CursorSeal
  readonly #capacityBytes: number
  readonly #now: () => number

  constructor(
    parts: { store: StateStore; log: EventLog; progress: Progress; cursors: CursorSeal },
    options: { capacityBytes: number; now?: () => number },
  ) {
    this.#store = parts.store
    this.#log = parts.log
    this.#progress = parts.progress
    this.#cursors = parts.cursors
    this.#capacityBytes = options.capacityBytes
    this.#now = options.now ?? Date.now
  }

  /** The entry of a key; undefined if absent. The read is recorded in the log, which the reader does not wait for. */
  async read(key: string, reader: string): Promise<StateEntry | undefined> {
    const entry = await this.#store.find(key)
    this.#record({ key, read_by: reader, found: entry !== undefined })
    return entry
  }

  #record(data: { key: string; read_by: string; found: boolean }): void {
    const event = { ts: this.#timestamp(), type: 'state_read', agent: data.read_by, data } as const
    this.#log.append(event).catch((error: unknown) => {
      if (!(error instanceof LogUnavailable)) throw error
    })
  }

  /** Writes a key. Returns when. Throws `StoreFull`, or that a part is out: then the write may still take effect, whole. */
  async write(key: string, value: string, writer: string): Promise<{ writtenAt: string }> {
    const length = Buffer.byteLength(value)
    const id = randomUUID()
    const reservedAt = performance.now()
    const outcome = await this.#store.reserve({ id, key, kind: 'write', size: Buffer.byteLength(key) + length })
    if (outcome === 'full') throw new StoreFull()
    const ts = this.#timestamp()
    await this.#commit(reservedAt, {
      ts,
      type: 'state_written',
      agent: writer,
      data: { key, value, value_length: length, written_by: writer },
    })
    return { writtenAt: ts }
  }

  /** Deletes a key. Returns when. Throws `UnknownKey`, `KeyBusy`, or that a part is out. */
  async delete(key: string, deleter: string): Promise<{ deletedAt: string }> {
    const id = randomUUID()
    const { outcome, reservedAt } = await this.#reserveDelete(id, key)
    if (outcome === 'absent') throw new UnknownKey()
    if (outcome === 'busy') throw new KeyBusy()
    const ts = this.#timestamp()
    await this.#commit(reservedAt, { ts, type: 'state_deleted', agent: deleter, data: { key, deleted_by: deleter } })
    return { deletedAt: ts }
  }

  async #reserveDelete(id: string, key: string) {
    const deadline = performance.now() + DELETE_TURN_TIMEOUT_MS
    for (;;) {
      const reservedAt = performance.now()
      const outcome = await this.#store.reserve({ id, key, kind: 'delete', size: 0 })
      if (outcome !== 'busy' || performance.now() > deadline) return { outcome, reservedAt }
      await sleep(DELETE_TURN_POLL_MS)
    }
  }

  async #commit(reservedAt: number, event: NewEvent): Promise<void> {
    const { seq } = await this.#log.append(event, { notAfter: reservedAt + PREPARATION_USABLE_MS })
    await this.#progress.reached(seq)
  }

  /** A page of the keys with a prefix, in byte order. Throws `UnknownCursor`. */
  async list(
    prefix: string,
    limit: number,
    cursor: string | undefined,
  ): Promise<{ keys: string[]; nextCursor: string | null; total: number }> {
    const list = `state ${prefix}`
    const after = cursor === undefined ? undefined : this.#cursors.open(list, cursor)
    const { keys, total } = await this.#store.page(prefix, after, limit + 1)
    const page = keys.slice(0, limit)
    const last = page.at(-1)
    const nextCursor = keys.length > limit && last ? this.#cursors.seal(list, last) : null
    return { keys: page.map((key) => key.toString('utf8')), nextCursor, total }
  }

  async usage(): Promise<Usage> {
    return { ...(await this.#store.usage()), totalBytes: this.#capacityBytes }
  }

  #timestamp(): string {
    return new Date(this.#now()).toISOString()
  }
}
