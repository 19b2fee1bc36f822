/** The port of the shared state: reading keys, and changing them by events. */
import type { EventOf } from '../events/event.ts'

export interface StateEntry {
  key: string
  value: string
  modifiedBy: string
  /** RFC 3339, in UTC. */
  modifiedAt: string
}

/** Keys in byte order, and how many have the prefix in all. */
export interface StatePage {
  keys: Buffer[]
  total: number
}

/** What a list for people says of a key. */
export interface StateListing {
  key: Buffer
  modifiedBy: string
  /** RFC 3339, in UTC. */
  modifiedAt: string
  /** Bytes of the value. */
  length: number
}

export interface StoredUsage {
  /** Bytes of all keys and values. */
  usedBytes: number
  keyCount: number
}

/** The write would take the store over its capacity. */
export class StoreFull extends Error {
  override name = 'StoreFull'
}

/** There is no such key. */
export class UnknownKey extends Error {
  override name = 'UnknownKey'
}

/**
 * Others change the same, or hold the capacity that is left; this change waited too long for its
 * turn.
 */
export class StateBusy extends Error {
  override name = 'StateBusy'
}

/** Any of its methods throws `Unavailable` when a part is out. */
export interface StateReader {
  /** @returns the entry, never older than what was acknowledged; undefined if there is none */
  find(key: string): Promise<StateEntry | undefined>

  /**
   * A page of keys in byte order, and how many have the prefix in all.
   *
   * @param prefix matched byte for byte
   * @param after a key; the page begins behind it
   * @param limit keys at most
   */
  page(prefix: string, after: Buffer | undefined, limit: number): Promise<StatePage>

  /** As `page`, with what there is to say of each key beside its value. */
  listings(
    prefix: string,
    after: Buffer | undefined,
    limit: number,
  ): Promise<{ keys: StateListing[]; total: number }>

  /** What all keys and values take, in bytes, and how many there are. */
  usage(): Promise<StoredUsage>
}

/** Any of its methods throws `Unavailable` when a part is out. */
export interface StateStore extends StateReader {
  /**
   * Appends the event of a write if the store has the capacity for it. Resolves when it can be
   * read.
   *
   * @throws StoreFull, StateBusy: there is no event
   * @throws ProjectionBehind, Unavailable: the write may still take effect, whole
   */
  write(event: EventOf<'state_written'>): Promise<void>

  /**
   * Appends the event of a delete if there is such a key; of deletes at once just one finds it.
   * Resolves when the key is gone.
   *
   * @throws UnknownKey, StateBusy: there is no event
   * @throws ProjectionBehind, Unavailable: the delete may still take effect
   */
  delete(event: EventOf<'state_deleted'>): Promise<void>

  /** For an orderly stop, when nothing is under way any more. */
  close(): Promise<void>
}
