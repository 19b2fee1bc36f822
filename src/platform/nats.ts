/** The connection to the NATS cluster, and the checks that it can carry the kernel. */
import { connect, type NatsConnection } from 'nats'
import { inBackground } from './background.ts'
import type { Logger } from './logger.ts'
import { NotThereYet, StartupError } from './startup-error.ts'

/** A value of 1 MiB may be 6 MiB as JSON. */
export const NEEDED_PAYLOAD_BYTES = 8 * 1_048_576
const OUTDATED = /^2\.[0-9]\./
/** A server that does not answer pings for twice this long is left for another. */
const PING_INTERVAL_MS = 500
const CONNECT_TIMEOUT_MS = 2_000

/**
 * Connects to one of the servers, and to another when that is lost, for ever; also while they
 * refuse the password, which may be changing. Should the library give the connection up all the
 * same, the process ends with status 1: it would be of no use. Throws `NotThereYet` if no server
 * lets it in, `StartupError` if they cannot be used.
 */
export async function connectNats(
  urls: readonly string[],
  name: string,
  logger: Logger,
  setting = 'NATS_URL',
): Promise<NatsConnection> {
  const { user, pass } = credentialsOf(urls)
  const connection = await connect({
    servers: urls.map((url) => withoutCredentials(url)),
    ...(user !== undefined && { user, pass }),
    name,
    timeout: CONNECT_TIMEOUT_MS,
    pingInterval: PING_INTERVAL_MS,
    maxPingOut: 2,
    maxReconnectAttempts: -1,
    // By default a second refusal in a row ends the connection for good.
    ignoreAuthErrorAbort: true,
    reconnectTimeWait: 100,
    reconnectJitter: 100,
    noAsyncTraces: true,
  }).catch((error: Error) => {
    throw new NotThereYet(
      `${setting}: cannot connect to any of ${urls.map(withoutCredentials).join(', ')}: ${error.message}`,
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
    throw new StartupError(
      'JetStream is off on the NATS server: configure a jetstream block and start it again',
    )
  }
  const version = connection.info?.version ?? ''
  if (OUTDATED.test(version)) {
    logger.warn(
      { version },
      'NATS before 2.10 can corrupt the event log when its leader freezes: see docs/guarantees.md',
    )
  }
  inBackground('nats_status', tellStatus(connection, logger))
  inBackground('nats_closed', endWith(connection, logger, process.exit))
  return connection
}

async function tellStatus(connection: NatsConnection, logger: Logger): Promise<void> {
  // The library tells of each attempt, which may be ten in a second.
  let told = ''
  for await (const { type, data } of connection.status()) {
    if (type !== 'disconnect' && type !== 'reconnect' && type !== 'error') continue
    const line = type === 'error' ? `nats refuses: ${data}` : `nats ${type}`
    if (
      line === told ||
      (type === 'disconnect' && told !== '') ||
      (type === 'reconnect' && told === '')
    )
      continue
    logger.warn(type === 'error' ? {} : { server: String(data) }, line)
    told = type === 'reconnect' ? '' : line
  }
}

/**
 * Ends the process where the connection is closed for another reason than that this program has
 * closed it.
 */
export async function endWith(
  connection: Pick<NatsConnection, 'closed'>,
  logger: Pick<Logger, 'fatal'>,
  exit: (code: number) => void,
): Promise<void> {
  const error = await connection.closed()
  if (!error) return
  logger.fatal(
    { err: error },
    'the connection to NATS is closed for good: the process ends, to be started again',
  )
  exit(1)
}

function withoutCredentials(url: string): string {
  const parsed = new URL(url)
  return `${parsed.protocol}//${parsed.host}`
}

function credentialsOf(urls: readonly string[]): { user?: string; pass?: string } {
  const parsed = urls.map((url) => new URL(url)).find(({ username }) => username !== '')
  return parsed
    ? { user: decodeURIComponent(parsed.username), pass: decodeURIComponent(parsed.password) }
    : {}
}
