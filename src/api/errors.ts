/** The errors of the contract, and the one place where what went wrong becomes HTTP. */
import type { Context } from 'hono'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { VerifierBusy } from '../access/credentials.ts'
import { ProjectionBehind } from '../events/progress.ts'
import { IdempotencyKeyReused, UnknownRecipient } from '../messaging/messaging.ts'
import { BatchQueueFull } from '../platform/batch.ts'
import { Overloaded } from '../platform/byte-budget.ts'
import { UnknownCursor } from '../platform/cursor.ts'
import { BrokenRequest } from '../platform/http-refusals.ts'
import { Unavailable } from '../platform/unavailable.ts'
import { VerificationFailed } from '../registry/registry.ts'
import { StateBusy, StoreFull, UnknownKey } from '../state/state-store.ts'
import { WebhookUrlRefused } from '../webhooks/webhook-url.ts'
import type { ApiEnvironment } from './endpoint.ts'

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

/** An answer other than 2xx. The message is for a person and holds nothing that the caller may not know. */
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

/** What to answer for an error. Errors that no capability announces are defects: `internal_error`, and nothing of them is told. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (error instanceof BrokenRequest) {
    const { refusal } = error
    return new ApiError(refusal.error, refusal.message, {}, refusal.status)
  }
  if (error instanceof VerificationFailed) return new ApiError('verification_failed', error.message)
  if (error instanceof WebhookUrlRefused) return new ApiError('bad_request', error.message)
  if (error instanceof UnknownRecipient) return new ApiError('not_found', 'no agent has that address')
  if (error instanceof UnknownKey) return new ApiError('not_found', 'there is no such key')
  if (error instanceof UnknownCursor) {
    return new ApiError('bad_request', 'cursor must be the next_cursor of a page of this list, unchanged')
  }
  if (error instanceof IdempotencyKeyReused) {
    return new ApiError('bad_request', 'this Idempotency-Key was used for another message within the last two minutes')
  }
  if (error instanceof StoreFull)
    return new ApiError('store_full', 'the write would take the shared state over its capacity')
  if (error instanceof Unavailable) return unavailable('a part of the kernel is out; try again')
  if (error instanceof ProjectionBehind)
    return unavailable('the change is recorded and will take effect, but has not yet')
  if (error instanceof StateBusy) return unavailable('other agents are changing the same; try again')
  if (error instanceof VerifierBusy || error instanceof BatchQueueFull || error instanceof Overloaded)
    return unavailable('the kernel is overloaded; try again')
  return new ApiError('internal_error', 'something went wrong in the kernel')
}

/** Writes an error's answer. */
export function respondWithError(context: Context<ApiEnvironment>, error: ApiError): Response {
  for (const [name, value] of Object.entries({ ...context.get('limitHeaders'), ...error.headers }))
    context.header(name, value)
  if (error.code === 'unauthorized') context.header('WWW-Authenticate', 'Bearer')
  return context.json({ error: error.code, message: error.message }, error.status)
}
