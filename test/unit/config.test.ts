import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  ConfigError,
  checkPorts,
  loadConfig,
  settingNames,
  unknownSettings,
} from '../../src/config.ts'

/** The settings and defaults that the documentation promises. */
const DEFAULTS = {
  PORT: 8080,
  HOST: '0.0.0.0',
  INTERNAL_PORT: 9090,
  OBSERVE_PORT: 8090,
  HTTP_KEEP_ALIVE_TIMEOUT: 650_000,
  DATA_DIR: './data',
  EVENTS_REPLICAS: 3,
  TRUSTED_PROXIES: [],
  LOG_LEVEL: 'info',
  RATE_LIMIT_MESSAGE_PER_MIN: 60,
  RATE_LIMIT_STATE_READ_PER_MIN: 300,
  RATE_LIMIT_STATE_WRITE_PER_MIN: 60,
  RATE_LIMIT_REGISTRY_READ_PER_MIN: 30,
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: 5,
  RATE_LIMIT_WEBHOOK_PER_MIN: 60,
  RATE_LIMIT_OBSERVE_PER_MIN: 300,
  OBSERVE_MAX_STREAMS: 100,
  RATE_LIMIT_IPV6_PREFIX: 64,
  REQUESTS_MAX_BYTES: 58_720_256,
  ANSWERS_MAX_BYTES: 67_108_864,
  STATE_CAPACITY_BYTES: 1_073_741_824,
  STATE_MAX_KEY_BYTES: 1_024,
  STATE_MAX_VALUE_BYTES: 1_048_576,
  MESSAGE_MAX_CONTENT_BYTES: 65_536,
  MESSAGE_MAX_QUEUE_PER_AGENT: 10_000,
  VERIFICATION_GATE: 'pipeline',
  VERIFICATION_TTL: 300_000,
  SESSION_TTL: 30_000,
  AUTH_VERIFIER: 'bcrypt',
  BCRYPT_COST: 10,
  WEBHOOK_CONNECT_TIMEOUT: 5_000,
  WEBHOOK_TOTAL_TIMEOUT: 10_000,
  WEBHOOK_MAX_RETRIES: 3,
  WEBHOOK_CIRCUIT_THRESHOLD: 5,
  WEBHOOK_CIRCUIT_DURATION: 300_000,
  WEBHOOK_CONCURRENCY: 100,
  WEBHOOK_ALLOW_CIDRS: [],
  STARTUP_TIMEOUT: 120_000,
  SHUTDOWN_TIMEOUT: 25_000,
}

/** Any text but the empty one will do for these, or is found wrong only when it is used. */
const FREE_TEXT = ['HOST', 'INTERNAL_HOST', 'DATA_DIR', 'WEBHOOK_CA_FILE']

const NOT_NUMBERS = [
  'x',
  '-1',
  '1.5',
  '1e3',
  '0x10',
  ' 5',
  '5 ',
  '99999999999999999',
  'NaN',
  'Infinity',
  '١',
]
const NOT_DURATIONS = ['5', '5 s', '5sec', '-5s', '1.5s', '1d', 's', '5S', '0s', '9999999999s']
const port = {
  wrong: [...NOT_NUMBERS, '65536'],
  right: 'a whole number from 0 to 65535',
  good: ['0', '65535'],
}
const limit = {
  wrong: [...NOT_NUMBERS, '0', '1000000001'],
  right: 'a whole number from 1 to 1000000000',
  good: ['1', '1000000000'],
}
const cidrs = {
  wrong: [
    '10.0.0.1',
    '10.0.0.0/33',
    '10.0.0.0/8;10.1.0.0/16',
    'fe80::/129',
    'localhost/8',
    '10.0.0.0/8,x',
  ],
  right: 'comma-separated CIDR ranges',
  good: ['10.0.0.0/8', '10.0.0.0/8, fd00::/8,', '0.0.0.0/0'],
}
const between = (low: number, high: number) => ({
  wrong: [...NOT_NUMBERS, String(low - 1), String(high + 1)].filter(
    (text) => text !== '-1' || low > 0,
  ),
  right: `a whole number from ${low} to ${high}`,
  good: [String(low), String(high)],
})
const lasting = (low: string, high: string, ...wrong: string[]) => ({
  wrong: [...NOT_DURATIONS, ...wrong],
  right: `a duration between ${low} and ${high}`,
  good: [low, high],
})
const oneOf = (...options: string[]) => ({
  wrong: ['x', options[0]?.toUpperCase() ?? '', `${options[0]} `],
  right: `one of ${options.join(', ')}`,
  good: options,
})

const postgresUrl = {
  wrong: ['localhost', 'mysql://localhost', 'http://localhost', '//localhost'],
  right: 'a URL beginning with postgres:// or postgresql://',
  good: [],
}

const RULES: Record<string, { wrong: string[]; right: string; good: string[] }> = {
  PORT: port,
  INTERNAL_PORT: port,
  OBSERVE_PORT: port,
  DATABASE_URL: postgresUrl,
  OBSERVE_DATABASE_URL: postgresUrl,
  DATABASE_POOL_MODE: oneOf('session', 'transaction'),
  DATABASE_MAX_CONNECTIONS: between(1, 1_000),
  REDIS_URL: {
    wrong: ['localhost:6379', 'http://localhost'],
    right: 'a URL beginning with redis:// or rediss://',
    good: [],
  },
  REDIS_MODE: oneOf('single', 'cluster'),
  NATS_URL: {
    wrong: ['localhost', 'nats://a,localhost', 'http://a', 'nats://'],
    right: 'comma-separated URLs beginning with nats:// or tls://',
    good: [],
  },
  NATS_ADMIN_URL: {
    wrong: ['localhost', 'nats://a,localhost', 'http://a', 'nats://'],
    right: 'comma-separated URLs beginning with nats:// or tls://',
    good: [],
  },
  EVENTS_REPLICAS: between(1, 5),
  TRUSTED_PROXIES: cidrs,
  WEBHOOK_ALLOW_CIDRS: cidrs,
  LOG_LEVEL: oneOf('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'),
  RATE_LIMIT_MESSAGE_PER_MIN: limit,
  RATE_LIMIT_STATE_READ_PER_MIN: limit,
  RATE_LIMIT_STATE_WRITE_PER_MIN: limit,
  RATE_LIMIT_REGISTRY_READ_PER_MIN: limit,
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: limit,
  RATE_LIMIT_WEBHOOK_PER_MIN: limit,
  RATE_LIMIT_OBSERVE_PER_MIN: limit,
  OBSERVE_MAX_STREAMS: between(0, 5_000),
  RATE_LIMIT_IPV6_PREFIX: between(1, 128),
  REQUESTS_MAX_BYTES: {
    ...between(56_623_104, Number.MAX_SAFE_INTEGER),
    wrong: [...NOT_NUMBERS, '56623103'],
  },
  ANSWERS_MAX_BYTES: {
    ...between(56_623_104, Number.MAX_SAFE_INTEGER),
    wrong: [...NOT_NUMBERS, '56623103'],
  },
  STATE_CAPACITY_BYTES: {
    ...between(1, Number.MAX_SAFE_INTEGER),
    wrong: [...NOT_NUMBERS, '0', '9007199254740993'],
  },
  STATE_MAX_KEY_BYTES: between(1, 2_000),
  STATE_MAX_VALUE_BYTES: between(1, 1_048_576),
  MESSAGE_MAX_CONTENT_BYTES: between(1, 1_048_576),
  MESSAGE_MAX_QUEUE_PER_AGENT: between(1, 1_000_000),
  TERMS_URL: {
    wrong: ['terms', 'ftp://example.org/terms', 'javascript:alert(1)', '//example.org'],
    right: 'a URL beginning with https:// or http://',
    good: ['https://example.org/terms', 'http://localhost/terms'],
  },
  VERIFICATION_GATE: oneOf('pipeline', 'stub'),
  VERIFICATION_TTL: lasting('1s', '1h', '999ms', '61m'),
  SESSION_TTL: lasting('1s', '30s', '999ms', '31s', '1m'),
  AUTH_VERIFIER: { ...oneOf('bcrypt', 'hmac'), good: ['bcrypt'] },
  AUTH_HMAC_KEY: {
    wrong: ['short', 'x'.repeat(31)],
    right: 'at least 32 characters from a random source',
    good: ['x'.repeat(32)],
  },
  BCRYPT_COST: between(4, 15),
  WEBHOOK_CONNECT_TIMEOUT: lasting('10ms', '1m', '9ms', '61s'),
  WEBHOOK_TOTAL_TIMEOUT: lasting('10ms', '5m', '9ms', '6m'),
  WEBHOOK_MAX_RETRIES: between(0, 10),
  WEBHOOK_CIRCUIT_THRESHOLD: between(1, 1_000),
  WEBHOOK_CIRCUIT_DURATION: lasting('10ms', '24h', '9ms', '25h'),
  WEBHOOK_CONCURRENCY: between(1, 10_000),
  WEBHOOK_SECRET_KEY: {
    wrong: ['short', 'a'.repeat(63), 'g'.repeat(64), 'a'.repeat(65), `${'a'.repeat(64)},short`],
    right: '64 hexadecimal digits from a random source',
    good: [],
  },
  HTTP_KEEP_ALIVE_TIMEOUT: lasting('1s', '1h', '999ms', '2h'),
  STARTUP_TIMEOUT: lasting('1ms', '1h', '61m'),
  SHUTDOWN_TIMEOUT: lasting('100ms', '10m', '99ms', '11m'),
}

function messageOf(environment: Record<string, string>): string {
  try {
    loadConfig(environment)
  } catch (error) {
    if (error instanceof ConfigError) return error.message
    throw error
  }
  return ''
}

describe('settings', () => {
  it('have the promised defaults', () => {
    expect(loadConfig({})).toMatchObject(DEFAULTS)
    expect(loadConfig({}).cluster).toBeUndefined()
  })

  it('are all known to this test', () => {
    expect([...settingNames].toSorted()).toEqual([...Object.keys(RULES), ...FREE_TEXT].toSorted())
  })

  it.each(Object.entries(RULES))(
    '%s: a wrong value is refused with its name, its value and what would be right',
    (name, { wrong, right }) => {
      expect(wrong).not.toEqual([])
      for (const value of wrong) {
        const message = messageOf({ [name]: value })
        expect(message, value).toContain(`${name}=`)
        expect(message, value).toContain(`must be ${right}`)
        expect(message.split('\n'), value).toHaveLength(1)
        if (!/URL|KEY/.test(name)) expect(message).toContain(JSON.stringify(value))
      }
    },
  )

  it.each(Object.entries(RULES))('%s: the bounds are allowed', (name, { good }) => {
    for (const value of good) expect(messageOf({ [name]: value })).toBe('')
  })

  it('of all sorts: every wrong one is named at once', () => {
    const lines = messageOf({
      PORT: 'x',
      LOG_LEVEL: 'loud',
      SESSION_TTL: '1h',
      TRUSTED_PROXIES: 'me',
    }).split('\n')
    expect(lines.map((line) => line.split('=')[0]).toSorted()).toEqual([
      'LOG_LEVEL',
      'PORT',
      'SESSION_TTL',
      'TRUSTED_PROXIES',
    ])
  })

  it('that are empty count as unset', () => {
    expect(loadConfig(Object.fromEntries(settingNames.map((name) => [name, ''])))).toEqual(
      loadConfig({}),
    )
  })

  it('take durations in their units', () => {
    const of = (text: string) =>
      loadConfig({ WEBHOOK_CIRCUIT_DURATION: text }).WEBHOOK_CIRCUIT_DURATION
    expect([of('250ms'), of('90s'), of('2m'), of('3h')]).toEqual([250, 90_000, 120_000, 10_800_000])
  })

  it('take lists with blanks', () => {
    expect(loadConfig({ TRUSTED_PROXIES: ' 10.0.0.0/8 , fd00::/8 ,' }).TRUSTED_PROXIES).toEqual([
      '10.0.0.0/8',
      'fd00::/8',
    ])
  })

  it('of others are none of their business', () => {
    expect(() =>
      loadConfig({ PATH: '/bin', PORTS: 'x', constructor: 'x', __proto__: 'x' }),
    ).not.toThrow()
  })

  it('whatever the text, are either taken or refused with a ConfigError', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...settingNames),
        fc.string({ unit: 'binary' }),
        (name, value) => {
          const message = messageOf({ [name]: value })
          expect(message === '' || message.includes(name)).toBe(true)
        },
      ),
      { numRuns: 2_000 },
    )
  })
})

describe('secrets', () => {
  it.each([
    ['DATABASE_URL', 'mysql://user:hunter2@host'],
    ['REDIS_URL', 'http://:hunter2@host'],
    ['NATS_URL', 'nats:/user:hunter2@host'],
    ['AUTH_HMAC_KEY', 'hunter2'],
    ['WEBHOOK_SECRET_KEY', `${'a'.repeat(64)},hunter2`],
  ])('in %s are not shown', (name, value) => {
    const message = messageOf({ [name]: value })
    expect(message).toContain(`${name}=(not shown): must be`)
    expect(message).not.toContain('hunter2')
  })
})

it('WEBHOOK_SECRET_KEY is one key of 32 bytes, or several in their order', () => {
  expect(loadConfig({}).WEBHOOK_SECRET_KEY).toEqual([])
  const [one, other] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)]
  expect(loadConfig({ WEBHOOK_SECRET_KEY: one.toString('hex') }).WEBHOOK_SECRET_KEY).toEqual([one])
  const list = `${one.toString('hex')}, ${other.toString('hex')}`
  expect(loadConfig({ WEBHOOK_SECRET_KEY: list }).WEBHOOK_SECRET_KEY).toEqual([one, other])
})

describe('combinations', () => {
  const cluster = {
    DATABASE_URL: 'postgres://a/b',
    REDIS_URL: 'redis://c',
    NATS_URL: 'nats://d,tls://e',
  }

  it('of all three servers make a cluster', () => {
    expect(loadConfig(cluster).cluster).toEqual({
      databaseUrl: 'postgres://a/b',
      redisUrl: 'redis://c',
      natsUrls: ['nats://d', 'tls://e'],
    })
  })

  it.each([
    [['DATABASE_URL'], 'REDIS_URL and NATS_URL missing'],
    [['REDIS_URL'], 'DATABASE_URL and NATS_URL missing'],
    [['NATS_URL'], 'DATABASE_URL and REDIS_URL missing'],
    [['DATABASE_URL', 'REDIS_URL'], 'NATS_URL missing'],
    [['DATABASE_URL', 'NATS_URL'], 'REDIS_URL missing'],
    [['REDIS_URL', 'NATS_URL'], 'DATABASE_URL missing'],
  ] as const)('of %s alone are refused, naming what is missing', (names, expected) => {
    const environment = Object.fromEntries(names.map((name) => [name, cluster[name]]))
    expect(messageOf(environment)).toContain(expected)
    expect(() => loadConfig(environment, { partOfCluster: true })).not.toThrow()
  })

  it('of hmac without its key are refused', () => {
    expect(messageOf({ AUTH_VERIFIER: 'hmac' })).toContain('AUTH_HMAC_KEY is missing')
    expect(loadConfig({ AUTH_VERIFIER: 'hmac', AUTH_HMAC_KEY: 'x'.repeat(32) }).AUTH_VERIFIER).toBe(
      'hmac',
    )
  })
})

describe('the internal port', () => {
  const cluster = { DATABASE_URL: 'postgres://a/b', REDIS_URL: 'redis://c', NATS_URL: 'nats://d' }

  it('is on 127.0.0.1 for serve, where the other is for a cluster, or where INTERNAL_HOST says', () => {
    expect(loadConfig({ HOST: '10.0.0.1' }).internalHost).toBe('127.0.0.1')
    expect(loadConfig(cluster).internalHost).toBe('0.0.0.0')
    expect(loadConfig({ ...cluster, HOST: '10.0.0.1' }).internalHost).toBe('10.0.0.1')
    // What needs but some of a cluster's servers is probed from outside as well.
    const { REDIS_URL, ...part } = cluster
    expect(loadConfig(part, { partOfCluster: true }).internalHost).toBe('0.0.0.0')
    expect(loadConfig({}, { partOfCluster: true }).internalHost).toBe('127.0.0.1')
    for (const servers of [{}, cluster]) {
      expect(loadConfig({ ...servers, INTERNAL_HOST: '::1' }).internalHost).toBe('::1')
    }
  })

  it.each([
    { PORT: '9090' },
    { INTERNAL_PORT: '8080', INTERNAL_HOST: '0.0.0.0' },
    { PORT: '1', INTERNAL_PORT: '1', HOST: '127.0.0.1' },
    { PORT: '1', INTERNAL_PORT: '1', HOST: '10.0.0.1', INTERNAL_HOST: '::' },
  ])('cannot be that of agents: %j', (environment) => {
    expect(() => checkPorts(loadConfig(environment))).toThrow(
      /^PORT and INTERNAL_PORT are both \d+/,
    )
  })

  it.each([{ PORT: '0', INTERNAL_PORT: '0' }, { PORT: '9090', HOST: '10.0.0.1' }, {}])(
    'can be, where they do not meet: %j',
    (environment) => {
      expect(() => checkPorts(loadConfig(environment))).not.toThrow()
    },
  )
})

describe('settings that do not exist', () => {
  it.each([
    ['PROT', 'PORT'],
    ['PORTS', 'PORT'],
    ['port', 'PORT'],
    ['RATE_LIMIT_MESSAGES_PER_MIN', 'RATE_LIMIT_MESSAGE_PER_MIN'],
    ['RATE_LIMIT_STATE_WRITES', 'RATE_LIMIT_STATE_WRITE_PER_MIN'],
    ['LOGLEVEL', 'LOG_LEVEL'],
    ['DATADIR', 'DATA_DIR'],
    ['WEBHOOK_RETRIES', 'WEBHOOK_MAX_RETRIES'],
    ['STATE_CAPACITY', 'STATE_CAPACITY_BYTES'],
    ['DATABASE_URI', 'DATABASE_URL'],
    ['REDIS_URLS', 'REDIS_URL'],
    ['NATS_URLS', 'NATS_URL'],
    ['TRUSTED_PROXY', 'TRUSTED_PROXIES'],
  ])('%s is said to be near %s', (name, nearest) => {
    expect(unknownSettings({ [name]: 'x' })).toEqual([{ name, nearest }])
  })

  it('are not taken for ours where they are other programs’', () => {
    const others = [
      ...[
        'HOME',
        'HOSTNAME',
        'PATH',
        'PWD',
        'TERM',
        'USER',
        'SHELL',
        'LANG',
        'PS1',
        'POSIX',
        'HOSTTYPE',
        'MAIL',
        'TZ',
      ],
      ...[
        'SESSION_MANAGER',
        'STATE_DIRECTORY',
        'NODE_ENV',
        'NODE_COMPILE_CACHE',
        'PGDATA',
        'CI',
        'http_proxy',
      ],
      ...[
        'REDIS_SERVICE_HOST',
        'REDIS_PORT',
        'NATS_PORT_4222_TCP_ADDR',
        'NATS_SERVER_BIN',
        'REDIS_KERNEL_PASSWORD',
      ],
    ]
    expect(unknownSettings(Object.fromEntries(others.map((name) => [name, 'x'])))).toEqual([])
  })

  it('are not those that the configuration of the servers is made with', () => {
    const files = [
      'docker-compose.yml',
      '.env.example',
      'deploy/nats/nats.conf',
      'deploy/redis/start.sh',
      'docs/deploying.md',
    ]
    const names = files.flatMap(
      (file) => readFileSync(file, 'utf8').match(/\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b/g) ?? [],
    )
    expect(names.length).toBeGreaterThan(50)
    expect(unknownSettings(Object.fromEntries(names.map((name) => [name, 'x'])))).toEqual([])
  })

  it('are not the ones that do, nor those that are empty', () => {
    expect(unknownSettings(Object.fromEntries(settingNames.map((name) => [name, 'x'])))).toEqual([])
    expect(unknownSettings({ PROT: '' })).toEqual([])
  })

  it('whatever their names, are found without an error', () => {
    fc.assert(
      fc.property(
        fc.dictionary(fc.string(), fc.string()),
        (environment) => void unknownSettings(environment),
      ),
    )
  })
})
