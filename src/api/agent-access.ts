/** Who asks the agent API, and how often they may. */
import type { HttpBindings } from '@hono/node-server'
import { Counter } from 'prom-client'
import type { Admission, Category } from '../access/admission.ts'
import { type Level, parseAuthorization } from '../access/tokens.ts'
import type { Registry } from '../registry/registry.ts'
import { ApiError } from './api-error.ts'
import { applyLimit } from './app.ts'
import type { ApiContext, Endpoint } from './endpoint.ts'

/** What each bucket limits, as refusals say it. */
const LIMITED: Readonly<Record<Category | 'client', string>> = {
  message: 'sending and receiving messages, together',
  state_read: 'reading state',
  state_write: 'writing and deleting state, together',
  registry_read: 'reading the registry',
  client: 'operators that one address registers',
}
const OTHER: Readonly<Record<Level, Level>> = { agent: 'operator', operator: 'agent' }

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
      applyLimit(context, await admission.admitClient(clientAddress(context.env)), LIMITED.client)
      return
    }
    if (!level) return
    const { identity, bucket } = await authenticate(context, level, limit)
    context.set('identity', identity)
    if (bucket && limit) applyLimit(context, bucket, LIMITED[limit])
  }

  async function authenticate(context: ApiContext, level: Level, category: Category | undefined) {
    const header = context.req.header('authorization')
    const token = parseAuthorization(header, level)
    if (!token) {
      const isOther = parseAuthorization(header, OTHER[level]) !== undefined
      throw new ApiError(
        'unauthorized',
        isOther
          ? `this is an ${OTHER[level]} token, and an ${level} token is needed`
          : `an ${level} token is needed: Authorization: Bearer <token>`,
      )
    }
    const admitted = await admission.admit(token, category)
    sessionLookups[admitted ? 'hit' : 'miss']++
    if (admitted) return { identity: admitted.session.identity, bucket: admitted.bucket }
    const identity = await registry.authenticate(token)
    const opened =
      identity === undefined ? undefined : await admission.open(token, { identity }, category)
    if (!opened) throw new ApiError('unauthorized', `this ${level} token is unknown or revoked`)
    return { identity: opened.session.identity, bucket: opened.bucket }
  }
}
