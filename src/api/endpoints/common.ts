/** What endpoints of several kinds have in common. */

import type { Messaging } from '../../messaging/messaging.ts'
import type { Registry } from '../../registry/registry.ts'
import type { State } from '../../state/state.ts'
import type { WebhookTarget } from '../../webhooks/webhook-url.ts'
import { BYTES_OF_A_CHARACTER } from '../answer-size.ts'
import type { Parameter } from '../endpoint.ts'
import type { BodyLimits } from '../schemas.ts'

/** What endpoints are made with. */
export interface EndpointParts {
  registry: Registry
  messaging: Messaging
  state: State
  /** Checks a webhook URL and returns what it says. Throws `WebhookUrlRefused`. */
  checkWebhookUrl: (url: string) => Promise<WebhookTarget>
  /** A new token's holder need not wait for its first verification. */
  rememberSession: (
    token: Parameters<Registry['authenticate']>[0],
    identity: string,
  ) => Promise<void>
  /** Notes that a registry was read, which the reader does not wait for. */
  recordRegistryRead: (reader: string) => void
  limits: BodyLimits & { stateMaxKeyBytes: number }
  /** Where the terms are that an operator accepts; undefined where none are published. */
  termsUrl: string | undefined
}

/**
 * The longest body that can hold a content of so many bytes, with something left for the rest.
 */
export const bodyBytes = (contentBytes: number) => BYTES_OF_A_CHARACTER * contentBytes + 4_096
/** Of one without a content. */
export const SMALL_BODY_BYTES = 16_384

/** What examples are made of. */
export const example = {
  address: 'tab_k3v9x0q2m7c1z8w5r4t6',
  other: 'tab_a1b2c3d4e5f6g7h8i9j0',
  id: '0b9b5a54-6a0f-4c0e-9c35-0d6f0c1f2a11',
  time: '2026-01-01T12:00:00.000Z',
}

/**
 * Of a list that comes in pages.
 *
 * @param maximum entries
 * @param fallback entries, where no number or a wrong one is asked for
 */
export const pageParameters = (maximum: number, fallback: number): Parameter[] => [
  {
    name: 'limit',
    in: 'query',
    description: `Entries on the page; anything else means ${fallback}`,
    schema: { type: 'integer', minimum: 1, maximum, default: fallback },
  },
  {
    name: 'cursor',
    in: 'query',
    description: '`next_cursor` of the page before; empty for the first',
    schema: { type: 'string' },
  },
]
