/** Which paths are served, by which methods. */
import { ApiError } from './api-error.ts'
import type { Endpoint } from './endpoint.ts'

/** What a pattern may end in: it takes the rest of the path. In braces elsewhere nothing is one. */
export const PARAMETER = /\/\{(\w+)\}$/

/** The name of the parameter that a pattern ends in, empty where it ends in none. */
export function parameterOf(pattern: string): string {
  return PARAMETER.exec(pattern)?.[1] ?? ''
}

export class Routes {
  readonly #groups: ReadonlyMap<string, readonly Endpoint[]>
  readonly #patterns: readonly string[]
  readonly #page: string

  /**
   * @param page the path of the page that describes the endpoints
   * @param others paths that are served beside the endpoints, by GET alone
   */
  constructor(endpoints: readonly Endpoint[], page: string, others: readonly string[]) {
    this.#groups = Map.groupBy(endpoints, ({ path }) => path)
    this.#patterns = [...this.#groups.keys(), ...others]
    this.#page = page
  }

  /**
   * The pattern that serves a path by some method; the keys' where another method serves a narrower
   * one, as `/v1/state/_capacity`.
   */
  patternOf(path: string): string | undefined {
    const ofKeys = this.#patterns.find(
      (pattern) => PARAMETER.test(pattern) && path.startsWith(pattern.replace(PARAMETER, '/')),
    )
    return ofKeys ?? this.#patterns.find((pattern) => pattern === path)
  }

  /** Why a path is not served by the method that was asked: `not_found` or `method_not_allowed`. */
  notServed(path: string): ApiError {
    const pattern = this.patternOf(path)
    if (pattern === undefined)
      return new ApiError('not_found', `there is no such route; see ${this.#page}`)
    const group = this.#groups.get(pattern)
    return group
      ? methodNotAllowed(group)
      : new ApiError('method_not_allowed', 'only GET is served here', { Allow: 'GET, HEAD' })
  }
}

function methodNotAllowed(group: readonly Endpoint[]): ApiError {
  // What serves GET serves HEAD, by Hono: the same answer without its body.
  const served = ({ method, takes }: Endpoint) =>
    method === 'GET' && !takes ? ['GET', 'HEAD'] : [method]
  const allowed = group.flatMap(served).join(', ')
  return new ApiError('method_not_allowed', `this path serves ${allowed}`, { Allow: allowed })
}
