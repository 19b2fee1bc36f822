/** The bodies of the contract. They validate the requests and make the OpenAPI document. */
import { z } from 'zod'
import { ADDRESS } from '../access/tokens.ts'

/** Text that UTF-8 can carry: any code points but lone surrogates. */
const text = (): z.ZodString =>
  z.string().refine((value) => value.isWellFormed(), { error: 'must not hold lone surrogates' })
const timestamp = () => z.iso.datetime().describe('RFC 3339 in UTC')
const address = () => z.string().regex(ADDRESS)

export interface BodyLimits {
  messageMaxContentBytes: number
  stateMaxValueBytes: number
}

/**
 * Which terms `accept_terms` is about, in words. `termsUrl`: where they are, if the operator of the
 * kernel has published any.
 */
export function termsInWords(termsUrl: string | undefined): string {
  return termsUrl === undefined
    ? 'the operator of this kernel has published no terms'
    : `the terms are at ${termsUrl}`
}

export function registerOperatorBody({ termsUrl }: { termsUrl: string | undefined }) {
  return z.object({
    contact_hash: text()
      .min(1, 'must not be empty')
      .describe(
        'How the operator may be recognised later; public for ever, so not the contact itself',
      ),
    accept_terms: z
      .literal(true, `must be true; ${termsInWords(termsUrl)}`)
      .describe(`That its terms are accepted: ${termsInWords(termsUrl)}`),
  })
}

export const registerAgentBody = z.object({
  verification_response: z.object({
    challenge_id: text().min(1, 'must not be empty'),
    // Checked with the challenge: what is no text is a wrong answer, and the stub takes anything.
    response: z
      .unknown()
      .refine((value) => typeof value !== 'string' || value.isWellFormed(), {
        error: 'must not hold lone surrogates',
      })
      .optional()
      .describe('The answer to the challenge: text'),
  }),
  webhook_url: text()
    .max(2_048, 'must be at most 2,048 characters')
    .nullish()
    .describe(
      'https URL that messages are pushed to; empty is none. A user and a password in it are sent as Basic authorization, ' +
        'and kept as secret as the `webhook_secret`',
    ),
})

export function sendMessageBody({
  messageMaxContentBytes,
}: Pick<BodyLimits, 'messageMaxContentBytes'>) {
  return z.object({
    to: text().min(1, 'must not be empty').describe('Address of the recipient'),
    content: text()
      .min(1, 'must not be empty')
      .refine((value) => Buffer.byteLength(value) <= messageMaxContentBytes, {
        error: `must be at most ${messageMaxContentBytes} bytes of UTF-8`,
      })
      .describe(`1 to ${messageMaxContentBytes} bytes of UTF-8, opaque; public for ever`),
  })
}

export function writeStateBody({ stateMaxValueBytes }: Pick<BodyLimits, 'stateMaxValueBytes'>) {
  return z.object({
    value: text()
      .refine((value) => Buffer.byteLength(value) <= stateMaxValueBytes, {
        error: `must be at most ${stateMaxValueBytes} bytes of UTF-8`,
        params: { error: 'value_too_large' },
      })
      .describe(`0 to ${stateMaxValueBytes} bytes of UTF-8, opaque; public for ever`),
  })
}

export const errorBody = z.object({
  error: z.string(),
  message: z.string().describe('For a person'),
})

export const healthBody = z.object({ status: z.literal('ok'), version: z.string() })
export const operatorBody = z.object({
  operator_id: z.uuid(),
  api_key: z.string().describe('Shown once'),
})
export const challengeBody = z.object({
  challenge_id: z.uuid(),
  challenge_type: z.enum(['pipeline', 'stub']),
  challenge_data: z.union([
    z.object({ seed: z.string(), operations: z.array(z.object({ op: z.string() })) }),
    z.object({}).describe('Empty for a stub'),
  ]),
  expires_at: timestamp(),
})
export const registrationBody = z.object({
  agent_address: address(),
  agent_token: z.string().describe('Shown once'),
  webhook_secret: z
    .string()
    .optional()
    .describe(
      'With a `webhook_url`: verifies its deliveries, signed as Standard Webhooks has it. Shown once',
    ),
})
const agentBody = z.object({ address: address(), registered_at: timestamp() })
export const meBody = agentBody
const nextCursor = () =>
  z.string().nullable().describe('Give it as `cursor` for the next page; null on the last one')
export const registryBody = z.object({
  agents: z.array(agentBody),
  next_cursor: nextCursor(),
  total: z.int(),
})
export const acceptedBody = z.object({
  message_id: z.uuid(),
  from: address(),
  to: address(),
  timestamp: timestamp(),
})
export const messagesBody = z.object({
  messages: z.array(
    z.object({
      message_id: z.uuid(),
      from: address(),
      to: address(),
      content: z.string(),
      timestamp: timestamp(),
    }),
  ),
  remaining: z.int().describe('Messages still queued'),
})
export const stateBody = z.object({
  key: z.string(),
  value: z.string(),
  last_modified_by: address(),
  last_modified_at: timestamp(),
})
export const writtenBody = z.object({
  key: z.string(),
  written_by: address(),
  written_at: timestamp(),
})
export const deletedBody = z.object({
  key: z.string(),
  deleted_by: address(),
  deleted_at: timestamp(),
})
export const keysBody = z.object({
  keys: z.array(z.string()),
  next_cursor: nextCursor(),
  total: z.int(),
})
export const capacityBody = z.object({
  used_bytes: z.int(),
  total_bytes: z.int(),
  key_count: z.int(),
})
