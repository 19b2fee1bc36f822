/** Who asks the agent API, and how often they may. */
import type { HttpBindings } from '@hono/node-server'
import { Counter } from 'prom-client'
import type { Admission, Category } from '../access/admission.ts'
import { type Level, parseAuthorization } from '../access/tokens.ts'
import type { Registry } from '../registry/registry.ts'
import { ApiError } from './api-error.ts'
import { applyLimit } from './app.ts'
import type { ApiContext, Endpoint } from './endpoint.ts'

const sessionLookups = { hit: 0, miss: 0 }
new Counter({
  name: 'tabulum_session_lookups_total',
  help: 'Requests by whether their session was cached.',
  labelNames: ['result'] as const,
  collect() {
    this.reset()
    for (const [result, count] of Object.entries(sessionLookups)) this.inc({ result }, count)
  },
})

export interface AgentAccessParts {
  admission: Admission
  registry: Pick<Registry, 'authenticate'>
  /** Names the client that a request comes from. */
  clientAddress: (bindings: HttpBindings) => string
}

/**
 * Finds out who asks and takes the request from their bucket. What it returns throws `unauthorized`
 * and `rate_limited`.
 */
export function agentAccess({ admission, registry, clientAddress }: AgentAccessParts) {
  return admit

  async function admit(context: ApiContext, { level, limit }: Endpoint): Promise<void> {
    if (limit === 'client') {
      applyLimit(context, await admission.admitClient(clientAddress(context.env)))
      return
    }
    if (!level) return
    const { identity, bucket } = await authenticate(context, level, limit)
    context.set('identity', identity)
    if (bucket) applyLimit(context, bucket)
  }

  async function authenticate(context: ApiContext, level: Level, category: Category | undefined) {
    const token = parseAuthorization(context.req.header('authorization'), level)
    // Made where it is thrown: an error collects its stack, which costs as much as the rest of
    // this.
    const unauthorized = () =>
      new ApiError('unauthorized', `an ${level} token is needed: Authorization: Bearer <token>`)
    if (!token) throw unauthorized()
    const admitted = await admission.admit(token, category)
    sessionLookups[admitted ? 'hit' : 'miss']++
    if (admitted) return { identity: admitted.session.identity, bucket: admitted.bucket }
    const identity = await registry.authenticate(token)
    const opened =
      identity === undefined ? undefined : await admission.open(token, { identity }, category)
    if (!opened) throw unauthorized()
    return { identity: opened.session.identity, bucket: opened.bucket }
  }
}
