/** `Retry-After`, by which a receiver says when to come again: RFC 9110 section 10.2.3. */

/** Digits that are read; a time of more is as good as for ever. */
const SECONDS = /^\d{1,15}$/
/** IMF-fixdate, the one form that may be sent (RFC 9110 section 5.6.7). */
const HTTP_DATE = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/

/**
 * How long to wait, in ms, 0 or more; undefined for a header that is missing or means nothing.
 *
 * @param text seconds, or an HTTP date
 * @param now in ms since 1970
 */
export function parseRetryAfter(text: string | undefined, now: number): number | undefined {
  if (text === undefined) return undefined
  if (SECONDS.test(text)) return Number(text) * 1_000
  if (!HTTP_DATE.test(text)) return undefined
  const at = Date.parse(text)
  return Number.isNaN(at) ? undefined : Math.max(0, at - now)
}
