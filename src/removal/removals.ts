/**
 * The port of the transparency log: what the operator of the infrastructure removed because it is
 * illegal to host.
 */
import type { EventType } from '../events/event.ts'

export type RemovalAction = Extract<EventType, 'state_key_removed' | 'message_redacted'>

export interface Removal {
  /** Sequence number of the event that removed it. */
  readonly seq: number
  /** RFC 3339, in UTC. */
  readonly ts: string
  readonly action: RemovalAction
  /** Of a state key. */
  readonly key?: string
  /** Of a message. */
  readonly message_id?: string
  /** For the public. */
  readonly reason: string
  readonly performed_by: string
  /** SHA-256 of what was removed, in hexadecimal digits. */
  readonly content_hash: string
}

export interface RemovalPage {
  readonly removals: Removal[]
  /** Of all removals there are. */
  readonly total: number
}

/** Ids or keys that one question asks for at most; of more, several are asked. */
export const ASKED_AT_ONCE = 500

/** Each method throws `Unavailable` where the store is out. */
export interface Removals {
  /**
   * A page of removals, the oldest first.
   *
   * @param page `after`: a sequence number, it begins behind it; `limit`: removals at most
   */
  list(page: { readonly after?: number; readonly limit: number }): Promise<RemovalPage>

  /** @returns those of these messages that were redacted, by id */
  ofMessages(ids: readonly string[]): Promise<Map<string, Removal>>

  /**
   * @returns of each of these keys that was ever removed, the latest removal; it may have been
   *   written again since
   */
  ofKeys(keys: readonly string[]): Promise<Map<string, Removal>>
}

/** A row of the table `removals`, on both storages. */
export interface RemovalRow {
  seq: number
  ts: string
  action: string
  key: Uint8Array | null
  message_id: string | null
  reason: string
  performed_by: string
  content_hash: string
}

export function toRemoval({ key, message_id, action, ...row }: RemovalRow): Removal {
  return {
    ...row,
    action: action as RemovalAction,
    ...(key !== null && { key: Buffer.from(key).toString('utf8') }),
    ...(message_id !== null && { message_id }),
  }
}

/**
 * By what was removed; where it was removed more than once, the last of them. Rows come in their
 * order.
 */
export function byId(removals: readonly Removal[]): Map<string, Removal> {
  return new Map(removals.map((removal) => [removal.message_id ?? removal.key ?? '', removal]))
}

/** In parts of `ASKED_AT_ONCE`. */
export function inParts<T>(items: readonly T[]): T[][] {
  const distinct = [...new Set(items)]
  return Array.from({ length: Math.ceil(distinct.length / ASKED_AT_ONCE) }, (_, index) =>
    distinct.slice(index * ASKED_AT_ONCE, (index + 1) * ASKED_AT_ONCE),
  )
}
