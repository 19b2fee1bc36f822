/** What an endpoint is: everything that routing, checking and describing it need, in one place. */
import type { HttpBindings } from '@hono/node-server'
import type { Context } from 'hono'
import type { z } from 'zod'
import type { Category } from '../access/admission.ts'
import type { Level } from '../access/tokens.ts'
import type { Hold } from '../platform/byte-budget.ts'
import type { ErrorCode } from './api-error.ts'
import type { Query } from './request.ts'

export interface ApiEnvironment {
  Bindings: HttpBindings
  Variables: {
    /** Agent address or operator id, once known. */
    identity?: string
    /** What the answer says of the bucket that the request drew on. */
    limitHeaders?: Readonly<Record<string, string>>
  }
}

export type ApiContext = Context<ApiEnvironment>

export interface ApiRequest<Body> {
  context: ApiContext
  /** Who the token belongs to; empty on an endpoint without one. */
  identity: string
  body: Body
  /**
   * The rest of the path, percent-decoded, where the pattern ends in a parameter: any text, with
   * slashes or empty. What is no UTF-8 was answered with `bad_request`.
   */
  parameter: string
  query: Query
  /**
   * What the answer holds. An endpoint whose answer may be long makes it larger before it has all
   * of it; most need not touch it.
   */
  answer: Hold
}

export interface ApiResponse {
  status: 200 | 201 | 202
  body: object
}

export interface Parameter {
  name: string
  in: 'query' | 'header' | 'path'
  description: string
  schema: object
  required?: boolean
}

/** The rest of the path. */
export function pathParameter(name: string, description: string): Parameter {
  return { name, in: 'path', description, schema: { type: 'string' }, required: true }
}

export interface Endpoint<Body = unknown> {
  operationId: string
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  /**
   * OpenAPI pattern; a parameter may only stand at its end, and takes the rest of the path, slashes
   * included.
   */
  path: string
  summary: string
  description?: string
  level?: Level
  /** A GET that takes away what it answers with: HEAD is refused, as it would take that unseen. */
  takes?: true
  /** The agent's bucket that each request draws on, or `client`: the one of its address. */
  limit?: Category | 'client'
  parameters?: readonly Parameter[]
  /** Its schema, and the bytes beyond which it is not even read. */
  body?: { schema: z.ZodType<Body>; maxBytes: number; example: object }
  success: {
    status: ApiResponse['status']
    description: string
    schema: z.ZodType
    example: object
  }
  /** Beside those that every endpoint of its kind has. */
  errors?: readonly ErrorCode[]
  /** A `Response` where the answer is no JSON. */
  handle: (request: ApiRequest<Body>) => Promise<ApiResponse | Response>
}

/**
 * Ties the type of the body to its schema, and forgets it where endpoints of all kinds stand
 * together.
 */
export function endpoint<Body = undefined>(definition: Endpoint<Body>): Endpoint {
  return definition as Endpoint
}
