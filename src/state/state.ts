/** The shared key-value store: any agent, any key, the last write wins. */
import type { EventLog } from '../events/event-log.ts'
import { inBackground } from '../platform/background.ts'
import type { CursorSeal } from '../platform/cursor.ts'
import type { StateEntry, StateStore } from './state-store.ts'

export interface Usage {
  usedBytes: number
  totalBytes: number
  keyCount: number
}

export class State {
  readonly #store: StateStore
  readonly #log: EventLog
  readonly #cursors: CursorSeal
  readonly #capacityBytes: number
  readonly #now: () => number

  constructor(
    parts: { store: StateStore; log: EventLog; cursors: CursorSeal },
    options: { capacityBytes: number; now?: () => number },
  ) {
    this.#store = parts.store
    this.#log = parts.log
    this.#cursors = parts.cursors
    this.#capacityBytes = options.capacityBytes
    this.#now = options.now ?? Date.now
  }

  /**
   * The entry of a key; undefined if absent. The read is recorded in the log, which the reader does
   * not wait for.
   */
  async read(key: string, reader: string): Promise<StateEntry | undefined> {
    const entry = await this.#store.find(key)
    this.#record({ key, read_by: reader, found: entry !== undefined })
    return entry
  }

  #record(data: { key: string; read_by: string; found: boolean }): void {
    const event = { ts: this.#timestamp(), type: 'state_read', agent: data.read_by, data } as const
    inBackground('record_read', this.#log.append(event))
  }

  /** Writes a key. Returns when. Throws as `StateStore.write` does. */
  async write(key: string, value: string, writer: string): Promise<{ writtenAt: string }> {
    const ts = this.#timestamp()
    const data = { key, value, value_length: Buffer.byteLength(value), written_by: writer }
    await this.#store.write({ ts, type: 'state_written', agent: writer, data })
    return { writtenAt: ts }
  }

  /** Deletes a key. Returns when. Throws as `StateStore.delete` does. */
  async delete(key: string, deleter: string): Promise<{ deletedAt: string }> {
    const ts = this.#timestamp()
    await this.#store.delete({
      ts,
      type: 'state_deleted',
      agent: deleter,
      data: { key, deleted_by: deleter },
    })
    return { deletedAt: ts }
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
