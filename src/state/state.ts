/** The shared key-value store: any agent, any key, the last write wins. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NewEvent } from '../events/event.ts'
import { type AppendOptions, type EventLog, PREPARATION_USABLE_MS } from '../events/event-log.ts'
import { type Progress, ProjectionBehind } from '../events/progress.ts'
import { inBackground } from '../platform/background.ts'
import type { CursorSeal } from '../platform/cursor.ts'
import { HeldRoom, type WriteRoom } from './held-room.ts'
import type { StateEntry, StateStore } from './state-store.ts'

/** The write would take the store over its capacity. */
export class StoreFull extends Error {
  override name = 'StoreFull'
}

/** There is no such key. */
export class UnknownKey extends Error {
  override name = 'UnknownKey'
}

/** Others change the same, or hold the room that is left; this change waited too long for its turn. */
export class StateBusy extends Error {
  override name = 'StateBusy'
}

/** Below the time for which a delete keeps others of its key waiting (`StateStore.beginDelete`): one that took longer is not acknowledged. */
const DELETE_USABLE_MS = 2_800
/** How long a change waits for its turn. Longer than nodes hold room that they do not use. */
const TURN_TIMEOUT_MS = 1_200
const TURN_POLL_MS = 10

export interface Usage {
  usedBytes: number
  totalBytes: number
  keyCount: number
}

export class State {
  readonly #store: StateStore
  readonly #room: HeldRoom
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
    this.#room = new HeldRoom(parts.store)
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
    inBackground('record_read', this.#log.append(event))
  }

  /** Writes a key. Returns when. Throws `StoreFull`, `StateBusy`, or that a part is out: then the write may still take effect, whole. */
  async write(key: string, value: string, writer: string): Promise<{ writtenAt: string }> {
    const length = Buffer.byteLength(value)
    const size = Buffer.byteLength(key) + length
    const room = this.#room.take(size) ?? (await this.#reserve(key, size))
    const { reservation } = room
    const ts = this.#timestamp()
    try {
      await this.#commit(
        {
          ts,
          type: 'state_written',
          agent: writer,
          data: { key, value, value_length: length, written_by: writer },
        },
        { notAfter: room.notAfter, ...(reservation && { reservation }) },
      )
    } catch (error) {
      room.lose()
      throw error
    }
    room.settle()
    return { writtenAt: ts }
  }

  async #reserve(key: string, size: number): Promise<WriteRoom> {
    const { id, outcome, begunAt } = await inTurn(async () => {
      const id = randomUUID()
      const begunAt = performance.now()
      const outcome = await this.#store.reserve({ id, key, size })
      if (outcome === 'busy') await this.#room.giveBack()
      return { id, outcome, begunAt }
    })
    if (outcome === 'full') throw new StoreFull()
    if (outcome === 'busy') throw new StateBusy()
    // The projector settles it by its name in the event; one that is lost maintenance clears away.
    return { notAfter: begunAt + PREPARATION_USABLE_MS, reservation: id, settle: () => {}, lose: () => {} }
  }

  /** Deletes a key. Returns when. Throws `UnknownKey`, `StateBusy`, or that a part is out. */
  async delete(key: string, deleter: string): Promise<{ deletedAt: string }> {
    const { outcome, begunAt } = await inTurn(async () => {
      const begunAt = performance.now()
      return { outcome: await this.#store.beginDelete(key), begunAt }
    })
    if (outcome === 'absent') throw new UnknownKey()
    if (outcome === 'busy') throw new StateBusy()
    const ts = this.#timestamp()
    const notAfter = begunAt + DELETE_USABLE_MS
    await this.#commit({ ts, type: 'state_deleted', agent: deleter, data: { key, deleted_by: deleter } }, { notAfter })
    // By now another delete may have begun, and found the key as well.
    if (performance.now() > notAfter) throw new ProjectionBehind('the delete took too long')
    return { deletedAt: ts }
  }

  async #commit(event: NewEvent, options: AppendOptions): Promise<void> {
    const { seq } = await this.#log.append(event, options)
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

  /** Gives back the room that is held. For an orderly stop. */
  async close(): Promise<void> {
    await this.#room.close()
  }

  #timestamp(): string {
    return new Date(this.#now()).toISOString()
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
