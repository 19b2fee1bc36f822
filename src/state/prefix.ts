/** The first byte string after all that begin with `prefix`; null if there is none. */
export function endOfPrefix(prefix: Buffer): Buffer | null {
  // UTF-8 has no byte 0xff, so the last byte can always be increased.
  const last = prefix.at(-1)
  return last === undefined ? null : Buffer.concat([prefix.subarray(0, -1), Buffer.of(last + 1)])
}
