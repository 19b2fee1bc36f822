/**
 * Every setting of the program: its name, its default, its unit. The only reader of the
 * environment. A wrong setting stops the program at start with its name, its value and what would
 * be right.
 */
import { z } from 'zod'
import { editDistance } from './platform/edit-distance.ts'

/**
 * A setting (or a combination of them) that cannot be used; the message says which and what would
 * be right.
 */
export class ConfigError extends Error {
  override name = 'ConfigError'
}

const MILLISECONDS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 } as const

function duration(fallback: string, minimum: string, maximum: string) {
  const hint = `a duration between ${minimum} and ${maximum}, such as 250ms, 30s, 5m or 1h`
  const [low, high] = [toMilliseconds(minimum) ?? 0, toMilliseconds(maximum) ?? 0]
  return z
    .string()
    .default(fallback)
    .transform((text, context) => {
      const value = toMilliseconds(text)
      if (value !== undefined && value >= low && value <= high) return value
      context.addIssue({ code: 'custom', message: hint })
      return z.NEVER
    })
}

function toMilliseconds(text: string): number | undefined {
  const match = /^(\d{1,9})(ms|s|m|h)$/.exec(text)
  return match ? Number(match[1]) * MILLISECONDS[match[2] as keyof typeof MILLISECONDS] : undefined
}

/**
 * What one request of the greatest size needs: a value of 1 MiB, or a page of keys
 * (src/api/body.ts, answer-size.ts).
 */
const LARGEST_HOLD_BYTES = 27 * 1_048_576

function integer(fallback: number, minimum: number, maximum: number) {
  const hint = `a whole number from ${minimum} to ${maximum}`
  return z
    .string()
    .default(String(fallback))
    .transform((text, context) => {
      const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
      if (value >= minimum && value <= maximum) return value
      context.addIssue({ code: 'custom', message: hint })
      return z.NEVER
    })
}

function choice<const T extends readonly [string, ...string[]]>(options: T, fallback: T[number]) {
  return z.enum(options, { error: `one of ${options.join(', ')}` }).default(fallback as never)
}

function url(...protocols: string[]) {
  const hint = `a URL beginning with ${protocols.map((protocol) => `${protocol}//`).join(' or ')}`
  return z
    .string()
    .refine((text) => protocols.includes(URL.parse(text)?.protocol ?? ''), { error: hint })
    .optional()
}

const cidr = z.union([z.cidrv4(), z.cidrv6()])

function list<T extends z.ZodType<string>>(item: T, hint: string) {
  return z
    .string()
    .default('')
    .transform((text, context) => {
      const items = text.split(',').flatMap((part) => part.trim() || [])
      if (items.every((part) => item.safeParse(part).success)) return items
      context.addIssue({ code: 'custom', message: hint })
      return z.NEVER
    })
}

const port = (fallback: number) => integer(fallback, 0, 65_535)
const perMinute = (fallback: number) => integer(fallback, 1, 1_000_000_000)

const settings = z.object({
  /** Where agents connect. */
  PORT: port(8080),
  HOST: z.string().min(1).default('0.0.0.0'),
  /** Metrics, livez, readyz, the event log for operators. Not for the public. */
  INTERNAL_PORT: port(9090),
  /**
   * Address of the internal port: by default HOST in a cluster, whose nodes are probed from
   * outside, and 127.0.0.1 for `serve`.
   */
  INTERNAL_HOST: z.string().min(1).optional(),
  /** Where anybody may watch. */
  OBSERVE_PORT: port(8090),
  /** Live streams that one process of the observation service serves at once. */
  OBSERVE_MAX_STREAMS: integer(100, 0, 5_000),
  /**
   * Where the observation service reads: a replica of DATABASE_URL, which it writes its own tables
   * to.
   */
  OBSERVE_DATABASE_URL: url('postgres:', 'postgresql:'),
  /**
   * How long a connection is kept for its next request. Longer than a load balancer in front keeps
   * it (those of clouds: up to 600 s), so that it is never the server that closes one being reused.
   */
  HTTP_KEEP_ALIVE_TIMEOUT: duration('650s', '1s', '1h'),
  /** Embedded storage only. */
  DATA_DIR: z.string().min(1).default('./data'),
  DATABASE_URL: url('postgres:', 'postgresql:'),
  /**
   * `session` uses prepared statements; `transaction` suits a pooler that hands out connections per
   * transaction.
   */
  DATABASE_POOL_MODE: choice(['session', 'transaction'], 'session'),
  /** Connections to Postgres that one process opens at most. */
  DATABASE_MAX_CONNECTIONS: integer(10, 1, 1_000),
  REDIS_URL: url('redis:', 'rediss:'),
  /** `cluster` speaks Redis Cluster, with REDIS_URL as the first node to ask. */
  REDIS_MODE: choice(['single', 'cluster'], 'single'),
  /** Comma-separated servers of one NATS cluster. */
  NATS_URL: list(
    z.string().regex(/^(nats|tls):\/\/\S+$/),
    'comma-separated URLs beginning with nats:// or tls://',
  ),
  /** The same servers, as the user who may delete from the log. For `remove --erase` alone. */
  NATS_ADMIN_URL: list(
    z.string().regex(/^(nats|tls):\/\/\S+$/),
    'comma-separated URLs beginning with nats:// or tls://',
  ),
  EVENTS_REPLICAS: integer(3, 1, 5),
  /** Proxies whose X-Forwarded-For is believed. */
  TRUSTED_PROXIES: list(cidr, 'comma-separated CIDR ranges, such as 10.0.0.0/8'),
  LOG_LEVEL: choice(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], 'info'),
  RATE_LIMIT_MESSAGE_PER_MIN: perMinute(60),
  RATE_LIMIT_STATE_READ_PER_MIN: perMinute(300),
  RATE_LIMIT_STATE_WRITE_PER_MIN: perMinute(60),
  RATE_LIMIT_REGISTRY_READ_PER_MIN: perMinute(30),
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: perMinute(5),
  RATE_LIMIT_WEBHOOK_PER_MIN: perMinute(60),
  /** Of one client address, at the observation service. */
  RATE_LIMIT_OBSERVE_PER_MIN: perMinute(300),
  /**
   * Leading bits of an IPv6 address that make one client: providers give each customer a /64 at
   * least.
   */
  RATE_LIMIT_IPV6_PREFIX: integer(64, 1, 128),
  /** Sum of the bytes of all keys and values. */
  STATE_CAPACITY_BYTES: integer(1_073_741_824, 1, Number.MAX_SAFE_INTEGER),
  STATE_MAX_KEY_BYTES: integer(1_024, 1, 2_000),
  STATE_MAX_VALUE_BYTES: integer(1_048_576, 1, 1_048_576),
  MESSAGE_MAX_CONTENT_BYTES: integer(65_536, 1, 1_048_576),
  /** Messages; past that the oldest leaves the queue. */
  MESSAGE_MAX_QUEUE_PER_AGENT: integer(10_000, 1, 1_000_000),
  /** The terms that an operator accepts with `accept_terms`. */
  TERMS_URL: url('https:', 'http:'),
  /**
   * Bytes that bodies under way, with what is made of them, may hold in a process; one agent may
   * hold half of it.
   */
  REQUESTS_MAX_BYTES: integer(58_720_256, 2 * LARGEST_HOLD_BYTES, Number.MAX_SAFE_INTEGER),
  /**
   * Bytes that answers may hold in a process until clients have read them; one agent may hold half
   * of it.
   */
  ANSWERS_MAX_BYTES: integer(67_108_864, 2 * LARGEST_HOLD_BYTES, Number.MAX_SAFE_INTEGER),
  VERIFICATION_GATE: choice(['pipeline', 'stub'], 'pipeline'),
  VERIFICATION_TTL: duration('5m', '1s', '1h'),
  /** How long a verified token is believed without asking the database. */
  SESSION_TTL: duration('30s', '1s', '30s'),
  AUTH_VERIFIER: choice(['bcrypt', 'hmac'], 'bcrypt'),
  AUTH_HMAC_KEY: z.string().min(32, 'at least 32 characters from a random source').optional(),
  /** log2 of bcrypt's rounds; 10 is about 70 ms of CPU. */
  BCRYPT_COST: integer(10, 4, 15),
  WEBHOOK_CONNECT_TIMEOUT: duration('5s', '10ms', '1m'),
  WEBHOOK_TOTAL_TIMEOUT: duration('10s', '10ms', '5m'),
  WEBHOOK_MAX_RETRIES: integer(3, 0, 10),
  /** Messages in a row that fail before an agent's circuit opens. */
  WEBHOOK_CIRCUIT_THRESHOLD: integer(5, 1, 1_000),
  WEBHOOK_CIRCUIT_DURATION: duration('5m', '10ms', '24h'),
  /** Deliveries in flight in one worker. */
  WEBHOOK_CONCURRENCY: integer(100, 1, 10_000),
  /**
   * Ranges that webhooks may reach although they are not public. For tests and private deployments.
   */
  WEBHOOK_ALLOW_CIDRS: list(cidr, 'comma-separated CIDR ranges, such as 10.0.0.0/8'),
  /**
   * Encrypts the webhook secrets in the database; the same for all processes. Of several the first
   * encrypts, and all decrypt: to change it, see docs/deploying.md. Without one they share a key
   * kept in that database.
   */
  WEBHOOK_SECRET_KEY: list(
    z.string().regex(/^[0-9a-f]{64}$/i),
    '64 hexadecimal digits from a random source, such as openssl rand -hex 32, or a comma-separated list of such',
  ).transform((keys) => keys.map((key) => Buffer.from(key, 'hex'))),
  /** PEM file of an additional certificate authority for webhooks. */
  WEBHOOK_CA_FILE: z.string().min(1).optional(),
  /**
   * How long `api`, `worker` and `migrate` wait at their start for servers, and for the schema: a
   * first start of everything.
   */
  STARTUP_TIMEOUT: duration('2m', '1ms', '1h'),
  /** How long a stopping process waits for what is in flight. */
  SHUTDOWN_TIMEOUT: duration('25s', '100ms', '10m'),
})

type Settings = z.infer<typeof settings>

/** The three servers of a cluster. */
export interface ClusterServers {
  readonly databaseUrl: string
  readonly redisUrl: string
  readonly natsUrls: readonly string[]
}

export type Config = Readonly<Settings> & {
  /** Set: cluster storage. Undefined: embedded storage in DATA_DIR. */
  readonly cluster: ClusterServers | undefined
  /** Address that the internal port is bound to. */
  readonly internalHost: string
}

/**
 * Reads the settings from an environment. Throws `ConfigError` that names every wrong setting. An
 * empty value counts as unset, as container tools pass unset variables on as empty ones. With
 * `partOfCluster` a command that needs just one of the servers may be given just that.
 */
export function loadConfig(
  environment: Readonly<Record<string, string | undefined>>,
  { partOfCluster = false }: { partOfCluster?: boolean } = {},
): Config {
  const present = Object.fromEntries(
    Object.entries(environment).filter(([, value]) => value !== ''),
  )
  const result = settings.safeParse(present)
  if (!result.success) {
    const lines = result.error.issues.map((issue) => {
      const name = String(issue.path[0])
      return `${name}=${shown(name, present[name])}: must be ${issue.message}`
    })
    throw new ConfigError(lines.join('\n'))
  }
  const config = result.data
  if (config.AUTH_VERIFIER === 'hmac' && config.AUTH_HMAC_KEY === undefined) {
    throw new ConfigError(
      'AUTH_HMAC_KEY is missing: AUTH_VERIFIER=hmac needs a secret of at least 32 characters',
    )
  }
  const cluster = partOfCluster ? undefined : clusterServers(config)
  const isInCluster = config.DATABASE_URL !== undefined || config.NATS_URL.length > 0
  return {
    ...config,
    cluster,
    internalHost: config.INTERNAL_HOST ?? (isInCluster ? config.HOST : '127.0.0.1'),
  }
}

/**
 * For a command that listens on more than one of them. Throws `ConfigError` where two ports are the
 * same.
 */
export function checkPorts(
  config: Config,
  names: readonly PortName[] = ['PORT', 'INTERNAL_PORT'],
): void {
  const areAll = (host: string) => host === '0.0.0.0' || host === '::'
  const hostOf = (name: PortName) => (name === 'INTERNAL_PORT' ? config.internalHost : config.HOST)
  for (const [index, one] of names.entries()) {
    for (const other of names.slice(index + 1)) {
      const [oneHost, otherHost] = [hostOf(one), hostOf(other)]
      const overlap = oneHost === otherHost || areAll(oneHost) || areAll(otherHost)
      if (config[one] !== config[other] || config[one] === 0 || !overlap) continue
      throw new ConfigError(
        `${one} and ${other} are both ${config[one]}: ${PURPOSES[other]}, give it another`,
      )
    }
  }
}

type PortName = 'PORT' | 'OBSERVE_PORT' | 'INTERNAL_PORT'
const PURPOSES: Record<PortName, string> = {
  PORT: 'this port is for agents',
  OBSERVE_PORT: 'the observation service has a port of its own',
  INTERNAL_PORT: 'the internal port is not for agents',
}

/** Whose prefix means that a setting of ours was meant, whatever follows. */
const OUR_PREFIXES = [
  'RATE_LIMIT_',
  'OBSERVE_',
  'WEBHOOK_',
  'STATE_',
  'MESSAGE_',
  'DATABASE_',
  'REDIS_',
  'NATS_',
]
/**
 * … unless it is another program's: passwords and addresses that the configuration of the servers
 * is made with (docker-compose.yml, deploy/), programs of the tests, what Kubernetes says of
 * services and systemd of directories.
 */
const OF_OTHERS =
  /_(PASSWORD|BIN|PORT|DIR)$|_(SERVICE|SERVER|PORT)_|^NATS_(HOST|ROUTES|MAX_FILE_STORE|USER)$|^OBSERVE_REPLICAS$|^DATABASE_URL_OF_THE_OWNER$|^STATE_DIRECTORY$/
/** Letters of a setting for each that may be mistyped: one in `HOST`, as `HOME` is two from it. */
const LETTERS_A_TYPO = 5

/**
 * The names in an environment that look like settings and are none, with the setting that each is
 * nearest to. Most variables of an environment are other programs': only what shares a prefix with
 * settings, or is a typing error away from one, is taken for ours.
 */
export function unknownSettings(
  environment: Readonly<Record<string, string | undefined>>,
): { name: string; nearest: string }[] {
  return Object.keys(environment).flatMap((name) => {
    if (settingNames.includes(name) || environment[name] === '') return []
    const upper = name.toUpperCase().slice(0, MAX_NAME_LENGTH)
    const [nearest, distance] = settingNames
      .map((setting) => [setting, editDistance(upper, setting)] as const)
      .reduce((best, each) => (each[1] < best[1] ? each : best))
    const isTypo = distance <= Math.ceil(nearest.length / LETTERS_A_TYPO)
    const isOurs = OUR_PREFIXES.some((prefix) => name.startsWith(prefix)) && !OF_OTHERS.test(name)
    return isTypo || isOurs ? [{ name, nearest }] : []
  })
}

/** Of a name so much is compared: no setting is longer. */
const MAX_NAME_LENGTH = 64

function clusterServers(config: Settings): ClusterServers | undefined {
  const given = {
    DATABASE_URL: config.DATABASE_URL !== undefined,
    REDIS_URL: config.REDIS_URL !== undefined,
    NATS_URL: config.NATS_URL.length > 0,
  }
  const missing = Object.entries(given).flatMap(([name, isGiven]) => (isGiven ? [] : [name]))
  if (missing.length === 3) return undefined
  if (missing.length > 0 || config.DATABASE_URL === undefined || config.REDIS_URL === undefined) {
    throw new ConfigError(
      `${missing.join(' and ')} missing: a cluster needs DATABASE_URL, REDIS_URL and NATS_URL; embedded storage needs none of them`,
    )
  }
  return { databaseUrl: config.DATABASE_URL, redisUrl: config.REDIS_URL, natsUrls: config.NATS_URL }
}

/** What may be shown of a wrong value: URLs and keys carry secrets. */
function shown(name: string, value: string | undefined): string {
  return /URL|KEY/.test(name) ? '(not shown)' : JSON.stringify(value ?? '')
}

/** Names of all settings, for checking the files that mention them. */
export const settingNames: readonly string[] = Object.keys(settings.shape)
