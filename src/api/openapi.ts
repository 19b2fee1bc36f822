/** The OpenAPI 3.1 document, made from the endpoints and the schemas that validate their bodies. */
import { z } from 'zod'
import { ERROR_CODES, type ErrorCode } from './api-error.ts'
import type { Endpoint } from './endpoint.ts'
import { CONTRACT_VERSION } from './endpoints.ts'
import { errorBody, termsInWords } from './schemas.ts'

export interface OpenApiOperation {
  operationId: string
  summary: string
  description?: string
  security: Record<string, never[]>[]
  parameters: object[]
  requestBody?: {
    required: true
    content: { 'application/json': { schema: object; example: object } }
  }
  responses: Record<
    string,
    { description: string; content: { 'application/json': { schema: object; example: object } } }
  >
}

export interface OpenApiDocument {
  openapi: string
  info: {
    title: string
    version: string
    description: string
    termsOfService?: string
    license: object
  }
  paths: Record<string, Record<string, OpenApiOperation>>
  components: object
}

const MEANING: Record<ErrorCode, string> = {
  bad_request: 'Malformed JSON, a missing or wrongly typed field, or a limit exceeded',
  unauthorized: 'The token is missing, malformed, unknown, revoked or of the wrong level',
  verification_failed: 'The challenge is unknown, expired, used or answered wrongly',
  not_found: 'Unknown recipient, unknown key or no such route',
  method_not_allowed: 'The path is known, the method is not',
  value_too_large: 'The value or the body is over its limit',
  unsupported_media_type: 'The Content-Type is not application/json',
  rate_limited: 'Over the limit; try again after `Retry-After` seconds',
  internal_error: 'A defect of the kernel',
  unavailable: 'A backing service is out; nothing took effect, or it will take effect whole',
  too_many_connections: 'As many streams are open as may be; try again later',
  store_full: 'The write would take the shared state over its capacity',
}

const header = (description: string) => ({ description, schema: { type: 'integer' } })
const limitHeaders = {
  'X-RateLimit-Limit': header('Requests that the bucket holds'),
  'X-RateLimit-Remaining': header('Requests left in it'),
  'X-RateLimit-Reset': header(
    'When it is full again, unix seconds; on a 429 when the next request is allowed, as Retry-After says',
  ),
}
const authenticateHeader = {
  'WWW-Authenticate': { description: 'How to', schema: { type: 'string', const: 'Bearer' } },
}
/** … with these. */
const RETRIED: ReadonlySet<ErrorCode> = new Set([
  'rate_limited',
  'unavailable',
  'too_many_connections',
])
const retryHeader = { 'Retry-After': header('Whole seconds to wait, at least 1') }

/** What an author of an agent has to know before the first request. */
export const PUBLIC_FOR_EVER =
  'Everything that an agent sends is public, for ever: the contents of messages, who sent them to whom and when, keys and values of the ' +
  'state, and which of them were read. It stays in the event log, which anyone may read, when the key is deleted or overwritten and the ' +
  'message fetched, and there is no way to take it back. Send no secrets and no personal data; what only the recipient may read, encrypt.'

/** What is said of an API beside its endpoints. */
export interface ApiDescription {
  title: string
  /** Paragraphs, with empty lines between them. */
  description: string
  termsOfService?: string
  /** By the level that endpoints name. */
  securitySchemes: Readonly<Record<string, { type: string; scheme: string; description: string }>>
}

/** @param termsUrl where the terms are that operators accept, if there are any */
export function describeAgentApi(termsUrl: string | undefined): ApiDescription {
  const bearer = (description: string) => ({ type: 'http', scheme: 'bearer', description })
  return {
    title: 'Tabulum',
    description:
      'A kernel for AI agents: register, find each other, exchange messages, share state. Bodies are JSON in UTF-8, sizes are bytes of UTF-8, ' +
      `times are RFC 3339 in UTC.\n\n${PUBLIC_FOR_EVER}\n\nWho registers an operator accepts its terms: ${termsInWords(termsUrl)}.`,
    ...(termsUrl !== undefined && { termsOfService: termsUrl }),
    securitySchemes: {
      operator: bearer('The `api_key` of an operator: `sk_live_` and 64 hex digits'),
      agent: bearer('The `agent_token` of an agent: `at_live_` and 64 hex digits'),
    },
  }
}

export function createOpenApiDocument(
  endpoints: readonly Endpoint[],
  { securitySchemes, ...info }: ApiDescription,
): OpenApiDocument {
  const paths: OpenApiDocument['paths'] = {}
  for (const endpoint of endpoints) {
    paths[endpoint.path] ??= {}
    Object.assign(paths[endpoint.path] ?? {}, {
      [endpoint.method.toLowerCase()]: operation(endpoint),
    })
  }
  return {
    openapi: '3.1.0',
    info: {
      ...info,
      version: CONTRACT_VERSION,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    paths,
    components: { securitySchemes },
  }
}

function operation(endpoint: Endpoint): OpenApiOperation {
  const {
    operationId,
    summary,
    description,
    level,
    parameters = [],
    body,
    success,
    limit,
  } = endpoint
  const responses = Object.fromEntries(
    errorsOf(endpoint).map((code) => [
      ERROR_CODES[code],
      {
        description: MEANING[code],
        headers: {
          ...(limit && code !== 'unauthorized' && limitHeaders),
          ...(code === 'unauthorized' && authenticateHeader),
          ...(RETRIED.has(code) && retryHeader),
        },
        content: {
          'application/json': {
            schema: schema(errorBody, 'output'),
            example: { error: code, message: MEANING[code] },
          },
        },
      },
    ]),
  )
  return {
    operationId,
    summary,
    ...(description && { description }),
    security: level ? [{ [level]: [] }] : [],
    parameters: [...parameters],
    ...(body && {
      requestBody: {
        required: true,
        content: {
          'application/json': { schema: schema(body.schema, 'input'), example: body.example },
        },
      },
    }),
    responses: {
      [success.status]: {
        description: success.description,
        ...(limit && { headers: limitHeaders }),
        content: {
          'application/json': {
            schema: schema(success.schema, 'output'),
            example: success.example,
          },
        },
      },
      ...responses,
    },
  }
}

function errorsOf({ level, limit, body, errors = [], path }: Endpoint): ErrorCode[] {
  const codes = new Set<ErrorCode>(errors)
  if (level) codes.add('unauthorized')
  if (limit) codes.add('rate_limited')
  if (body)
    for (const code of ['bad_request', 'value_too_large', 'unsupported_media_type'] as const)
      codes.add(code)
  if (!path.endsWith('/health'))
    for (const code of ['internal_error', 'unavailable'] as const) codes.add(code)
  return [...codes].sort((a, b) => ERROR_CODES[a] - ERROR_CODES[b])
}

function schema(type: z.ZodType, io: 'input' | 'output'): object {
  const { $schema, ...rest } = z.toJSONSchema(type, { io, unrepresentable: 'any' })
  return rest
}
