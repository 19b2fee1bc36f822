/** The connection to the NATS cluster, and the checks that it can carry the kernel. */
import { connect, type NatsConnection } from 'nats'
import type { Logger } from './logger.ts'
import { StartupError } from './startup-error.ts'

/** A value of 1 MiB may be 6 MiB as JSON. */
export const NEEDED_PAYLOAD_BYTES = 8 * 1_048_576
const OUTDATED = /^2\.[0-9]\./
/** A server that does not answer pings for twice this long is left for another. */
const PING_INTERVAL_MS = 500
const CONNECT_TIMEOUT_MS = 2_000

/** Connects to one of the servers, and to another when that is lost, for ever. Throws `StartupError` if none can be used. */
export async function connectNats(urls: readonly string[], name: string, logger: Logger): Promise<NatsConnection> {
  const { user, pass } = credentialsOf(urls)
  const connection = await connect({
    servers: urls.map((url) => withoutCredentials(url)),
    ...(user !== undefined && { user, pass }),
    name,
    timeout: CONNECT_TIMEOUT_MS,
    pingInterval: PING_INTERVAL_MS,
    maxPingOut: 2,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 100,
    reconnectJitter: 100,
    noAsyncTraces: true,
  }).catch((error: Error) => {
    throw new StartupError(
      `NATS_URL: cannot connect to any of ${urls.map(withoutCredentials).join(', ')}: ${error.message}`,
    )
  })
  const { max_payload: allowed = 0, jetstream } = connection.info ?? {}
  if (allowed < NEEDED_PAYLOAD_BYTES) {
    await connection.close()
    throw new StartupError(
      `NATS allows messages of ${allowed} bytes only: set max_payload to at least ${NEEDED_PAYLOAD_BYTES} (8MB)`,
    )
  }
  if (!jetstream) {
    await connection.close()
    throw new StartupError('JetStream is off on the NATS server: configure a jetstream block and start it again')
  }
  const version = connection.info?.version ?? ''
  if (OUTDATED.test(version)) {
    logger.warn(
      { version },
      'NATS before 2.10 can corrupt the event log when its leader freezes: see docs/guarantees.md',
    )
  }
  void (async () => {
    for await (const { type, data } of connection.status()) {
      if (type === 'disconnect' || type === 'reconnect') logger.warn({ server: String(data) }, `nats ${type}`)
    }
  })()
  return connection
}

function withoutCredentials(url: string): string {
  const parsed = new URL(url)
  return `${parsed.protocol}//${parsed.host}`
}

function credentialsOf(urls: readonly string[]): { user?: string; pass?: string } {
  const parsed = urls.map((url) => new URL(url)).find(({ username }) => username !== '')
  return parsed ? { user: decodeURIComponent(parsed.username), pass: decodeURIComponent(parsed.password) } : {}
}
