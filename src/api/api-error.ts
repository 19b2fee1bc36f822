/** The errors of the contract. */
import type { ContentfulStatusCode } from 'hono/utils/http-status'

export const ERROR_CODES = {
  bad_request: 400,
  unauthorized: 401,
  verification_failed: 403,
  not_found: 404,
  method_not_allowed: 405,
  value_too_large: 413,
  unsupported_media_type: 415,
  rate_limited: 429,
  internal_error: 500,
  unavailable: 503,
  too_many_connections: 503,
  store_full: 507,
} as const satisfies Record<string, ContentfulStatusCode>

export type ErrorCode = keyof typeof ERROR_CODES

/**
 * An answer other than 2xx. The message is for a person and holds nothing that the caller may not
 * know.
 */
export class ApiError extends Error {
  override name = 'ApiError'
  readonly code: ErrorCode
  readonly headers: Readonly<Record<string, string>>
  readonly status: ContentfulStatusCode

  /** The status is that of the code, unless HTTP has one that says more. */
  constructor(
    code: ErrorCode,
    message: string,
    headers: Record<string, string> = {},
    status: ContentfulStatusCode = ERROR_CODES[code],
  ) {
    super(message)
    this.code = code
    this.headers = headers
    this.status = status
  }
}

/** When a client whose request met an outage should try again. */
const RETRY_AFTER_SECONDS = '1'

export function unavailable(message: string): ApiError {
  return new ApiError('unavailable', message, { 'Retry-After': RETRY_AFTER_SECONDS })
}
