/** The one place where what went wrong becomes HTTP. */
import type { Context } from 'hono'
import { VerifierBusy } from '../access/verifier-busy.ts'
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
import { ApiError, unavailable } from './api-error.ts'
import type { ApiEnvironment } from './endpoint.ts'

/**
 * What to answer for an error. Errors that no capability announces are defects: `internal_error`,
 * and nothing of them is told.
 */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (error instanceof BrokenRequest) {
    const { refusal } = error
    return new ApiError(refusal.error, refusal.message, {}, refusal.status)
  }
  if (error instanceof VerificationFailed) return new ApiError('verification_failed', error.message)
  if (error instanceof WebhookUrlRefused) return new ApiError('bad_request', error.message)
  if (error instanceof UnknownRecipient)
    return new ApiError('not_found', 'no agent has that address')
  if (error instanceof UnknownKey) return new ApiError('not_found', 'there is no such key')
  if (error instanceof UnknownCursor) {
    return new ApiError(
      'bad_request',
      'cursor must be the next_cursor of a page of this list, unchanged',
    )
  }
  if (error instanceof IdempotencyKeyReused) {
    return new ApiError(
      'bad_request',
      'this Idempotency-Key was used for another message within the last two minutes',
    )
  }
  if (error instanceof StoreFull)
    return new ApiError('store_full', 'the write would take the shared state over its capacity')
  if (error instanceof Unavailable) return unavailable('a part of the kernel is out; try again')
  if (error instanceof ProjectionBehind)
    return unavailable('the change is recorded and will take effect, but has not yet')
  if (error instanceof StateBusy)
    return unavailable('other agents are changing the same; try again')
  if (
    error instanceof VerifierBusy ||
    error instanceof BatchQueueFull ||
    error instanceof Overloaded
  )
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
