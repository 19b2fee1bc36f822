/** Pushing to webhooks, put together from the settings: in `worker`, and in `serve`. */
import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config.ts'
import { inBackground } from '../platform/background.ts'
import type { Logger } from '../platform/logger.ts'
import { StartupError } from '../platform/startup-error.ts'
import type { Storage } from '../storage/storage.ts'
import { RETRY_POLICY } from './back-off.ts'
import { parseCidr } from './public-address.ts'
import { createWebhookClient, type WebhookClient } from './webhook-client.ts'
import { WebhookSecrets } from './webhook-secrets.ts'
import { runWebhookWorker } from './webhook-worker.ts'

const MINUTE_MS = 60_000
const ROTATION_RETRY_MS = 5_000

/**
 * Begins to push what there is to push. `stop` lets the deliveries in flight finish and begins no
 * new ones. Throws `StartupError`.
 */
export async function startPushing(
  config: Config,
  storage: Storage,
  logger: Logger,
): Promise<{ stop(): Promise<void> }> {
  if (config.cluster && config.WEBHOOK_SECRET_KEY.length === 0) {
    logger.warn(
      'WEBHOOK_SECRET_KEY is not set: the key of the webhook secrets is in the database that they are in',
    )
  }
  const client = openClient(config)
  const secrets = await WebhookSecrets.load(storage, config.WEBHOOK_SECRET_KEY)
  const stop = new AbortController()
  const rotating =
    config.WEBHOOK_SECRET_KEY.length > 1 ? rotate(secrets, logger, stop.signal) : undefined
  const pushing = runWebhookWorker(
    {
      lanes: storage.lanes,
      log: storage.log,
      removals: storage.removals,
      client,
      secrets,
      progress: storage.laneProgress,
      pushes: storage.pushes,
      logger,
      holder: `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`,
      concurrency: config.WEBHOOK_CONCURRENCY,
      retry: { ...RETRY_POLICY, maxAttempts: config.WEBHOOK_MAX_RETRIES + 1 },
      circuit: {
        threshold: config.WEBHOOK_CIRCUIT_THRESHOLD,
        duration: config.WEBHOOK_CIRCUIT_DURATION,
      },
      outbound: { limit: config.RATE_LIMIT_WEBHOOK_PER_MIN, periodMs: MINUTE_MS },
      maxBacklog: config.MESSAGE_MAX_QUEUE_PER_AGENT,
    },
    stop.signal,
  )
  inBackground('push', Promise.all([pushing, rotating]))
  return {
    async stop() {
      stop.abort()
      await Promise.all([pushing, rotating])
      client.close()
    },
  }
}

/**
 * While there is more than one key: brings all secrets under the first, and says when the others
 * can go.
 */
async function rotate(secrets: WebhookSecrets, logger: Logger, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      const done = await secrets.sealAnew(signal)
      if (!signal.aborted)
        logger.info(done, 'all webhook secrets are under the first key of WEBHOOK_SECRET_KEY now')
      return
    } catch (error) {
      logger.warn({ error: String(error) }, 'webhook secrets not sealed anew, trying again')
      await sleep(ROTATION_RETRY_MS, undefined, { signal }).catch(() => {})
    }
  }
}

function openClient(config: Config): WebhookClient {
  try {
    return createWebhookClient({
      allow: config.WEBHOOK_ALLOW_CIDRS.map(parseCidr),
      ...(config.WEBHOOK_CA_FILE !== undefined && { caFile: config.WEBHOOK_CA_FILE }),
      connectTimeoutMs: config.WEBHOOK_CONNECT_TIMEOUT,
      totalTimeoutMs: config.WEBHOOK_TOTAL_TIMEOUT,
      maxIdleConnections: Math.max(256, config.WEBHOOK_CONCURRENCY),
    })
  } catch (error) {
    throw new StartupError(
      `WEBHOOK_CA_FILE cannot be used: ${error instanceof Error ? error.message : error}`,
    )
  }
}
