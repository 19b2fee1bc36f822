/**
 * The machine-readable code of an error (`ECONNRESET`, `CERT_HAS_EXPIRED`), else `unknown`.
 *
 * A reason for a log is made of codes and never of messages: a message may quote what the other
 * side sent, its certificate or its answer. Where several addresses were tried (`AggregateError`),
 * the last one's code.
 */
export function errorCode(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0)
    return errorCode(error.errors.at(-1))
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,63}$/.test(code) ? code : 'unknown'
}
