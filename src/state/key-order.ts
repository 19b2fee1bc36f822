/**
 * The order of keys, which is that of their UTF-8: what is before all of them, after all, and after
 * those with a prefix.
 */

/** Before every key: the empty one, which no key is. */
export const BEFORE_ALL = Buffer.of()
/** After every key: no UTF-8 has this byte. */
export const AFTER_ALL = Buffer.of(0xff)

/** The first byte string after all that begin with `prefix`; null if there is none. */
export function endOfPrefix(prefix: Buffer): Buffer | null {
  // UTF-8 has no byte 0xff, so the last byte can always be increased.
  const last = prefix.at(-1)
  return last === undefined ? null : Buffer.concat([prefix.subarray(0, -1), Buffer.of(last + 1)])
}
