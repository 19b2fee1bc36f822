/**
 * How one attempt to deliver ended.
 *
 * - `delivered`: the receiver answered 2xx
 * - `rejected`: it answered something else, a redirect included: they are not followed. With 429 or
 *   503 it may have said how long to wait before the next attempt, in ms.
 * - `failed`: no answer; the stage says what came to an end, the reason why, for a log. A reason is
 *   made of words of ours and of error codes, and holds nothing of the message, of the URL or of
 *   what the receiver sent.
 */
export type DeliveryOutcome =
  | { readonly kind: 'delivered'; readonly status: number }
  | { readonly kind: 'rejected'; readonly status: number; readonly retryAfterMs?: number }
  | { readonly kind: 'failed'; readonly stage: DeliveryStage; readonly reason: string }

/**
 * - `url`: the URL is not one that may be delivered to
 * - `sign`: the agent's webhook secret cannot be opened, so there is nothing to sign with; nothing
 *   was sent
 * - `resolve`: its host has no address
 * - `refused_address`: its host has an address that is not public; nothing was sent
 * - `connect`: no TCP connection
 * - `tls`: no TLS, or a certificate that does not prove the host; no HTTP was sent
 * - `send`: the connection broke before the first byte of an answer; the receiver may have the
 *   message or not
 * - `answer`: what came back is not an HTTP answer, is too large, or broke off before its status
 *   and headers were complete
 * - `timeout`: the total time was up while waiting for the answer. Where it, or the time to
 *   connect, was up earlier, the stage is that earlier one and the reason is `timeout`.
 */
export type DeliveryStage =
  | 'url'
  | 'sign'
  | 'resolve'
  | 'refused_address'
  | 'connect'
  | 'tls'
  | 'send'
  | 'answer'
  | 'timeout'

/** Thrown inside the webhook client, which returns it as the outcome `failed`. */
export class DeliveryFailure extends Error {
  override readonly name = 'DeliveryFailure'
  readonly stage: DeliveryStage
  readonly reason: string

  constructor(stage: DeliveryStage, reason: string) {
    super(`${stage}: ${reason}`)
    this.stage = stage
    this.reason = reason
  }
}
