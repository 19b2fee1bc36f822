/**
 * An API node on given storage: the capabilities put together, behind HTTP. The same for embedded
 * and cluster storage.
 */
import { Credentials } from '../access/credentials.ts'
import type { Config } from '../config.ts'
import { formatEvent } from '../events/event.ts'
import { Messaging } from '../messaging/messaging.ts'
import { inBackground } from '../platform/background.ts'
import { ByteBudget } from '../platform/byte-budget.ts'
import { CursorSeal } from '../platform/cursor.ts'
import { startHttpServer } from '../platform/http-server.ts'
import { startInternalServer } from '../platform/internal-server.ts'
import type { Logger } from '../platform/logger.ts'
import type { Metrics } from '../platform/metrics.ts'
import { Registry } from '../registry/registry.ts'
import { State } from '../state/state.ts'
import type { Storage } from '../storage/storage.ts'
import { parseCidr } from '../webhooks/public-address.ts'
import { createHostResolver } from '../webhooks/resolve-host.ts'
import { WebhookSecrets } from '../webhooks/webhook-secrets.ts'
import { checkWebhookUrl, readWebhookUrl } from '../webhooks/webhook-url.ts'
import { agentAccess } from './agent-access.ts'
import { createApp } from './app.ts'
import { clientAddressReader } from './client-address.ts'
import { createEndpoints } from './endpoints.ts'
import { createOpenApiDocument, describeAgentApi } from './openapi.ts'

export interface Node {
  port: number
  internalPort: number
  /** `/readyz` says no from now on. */
  drain(): void
  /** Finishes the requests under way, and what they left to be recorded. */
  close(): Promise<void>
}

/** @param moreMetrics of a thread that has its own */
export async function startNode(
  config: Config,
  storage: Storage,
  logger: Logger,
  moreMetrics?: () => Promise<Metrics>,
): Promise<Node> {
  const { log, admission, removals } = storage
  const cursors = await CursorSeal.load(storage.keys)
  const webhookSecrets = await WebhookSecrets.load(storage, config.WEBHOOK_SECRET_KEY)
  const credentials = new Credentials({
    verifier: config.AUTH_VERIFIER,
    hmacKey: config.AUTH_HMAC_KEY,
    bcryptCost: config.BCRYPT_COST,
  })
  const registry = new Registry(
    { store: storage.registry, credentials, cursors },
    {
      gate: config.VERIFICATION_GATE,
      challengeTtlMs: config.VERIFICATION_TTL,
      newWebhookSecret: (address, authorization) => webhookSecrets.create(address, authorization),
    },
  )
  const state = new State(
    { store: storage.state, log, cursors },
    { capacityBytes: config.STATE_CAPACITY_BYTES },
  )
  const { queue, queueProgress: progress } = storage
  const messaging = new Messaging({ registry, log, queue, removals, progress })
  const allow = config.WEBHOOK_ALLOW_CIDRS.map(parseCidr)
  const resolve = createHostResolver()

  const endpoints = createEndpoints({
    registry,
    messaging,
    state,
    checkWebhookUrl: async (text) => {
      const target = readWebhookUrl(text)
      await checkWebhookUrl(new URL(target.url), { allow, resolve })
      return target
    },
    rememberSession: async (token, identity) => {
      await admission.open(token, { identity })
    },
    recordRegistryRead: (reader) => {
      const event = {
        ts: new Date().toISOString(),
        type: 'registry_read',
        agent: reader,
        data: { read_by: reader },
      } as const
      inBackground('record_read', log.append(event))
    },
    limits: {
      stateMaxKeyBytes: config.STATE_MAX_KEY_BYTES,
      stateMaxValueBytes: config.STATE_MAX_VALUE_BYTES,
      messageMaxContentBytes: config.MESSAGE_MAX_CONTENT_BYTES,
    },
    termsUrl: config.TERMS_URL,
  })
  const clientAddress = clientAddressReader({
    trustedProxies: config.TRUSTED_PROXIES,
    ipv6Prefix: config.RATE_LIMIT_IPV6_PREFIX,
  })
  const app = createApp({
    endpoints,
    admit: agentAccess({ admission, registry, clientAddress }),
    clientAddress,
    logger,
    requestBytes: new ByteBudget({ name: 'requests', limit: config.REQUESTS_MAX_BYTES }),
    answerBytes: new ByteBudget({ name: 'answers', limit: config.ANSWERS_MAX_BYTES }),
    document: {
      content: createOpenApiDocument(endpoints, describeAgentApi(config.TERMS_URL)),
      path: '/v1/openapi.json',
      page: '/docs',
    },
  })
  const internal = await startInternalServer({
    host: config.internalHost,
    port: config.INTERNAL_PORT,
    checks: storage.checks,
    logger,
    ...(moreMetrics && { moreMetrics }),
    readEvents: async ({ since, limit }) => (await log.read(since, limit)).map(formatEvent),
  })
  const server = await startHttpServer({
    fetch: (request, bindings) => app.fetch(request, bindings),
    host: config.HOST,
    port: config.PORT,
    keepAliveMs: config.HTTP_KEEP_ALIVE_TIMEOUT,
    refusedRoute: 'unknown',
    logger,
  })
  return {
    port: server.port,
    internalPort: internal.port,
    drain: internal.drain,
    close: async () => {
      await server.close()
      await messaging.drain()
      await storage.state.close()
      await credentials.close()
      await internal.close()
    },
  }
}
