/**
 * Runs docker-compose.yml for real, as docs/deploying.md says to: `npm run test:compose`, or with
 * the names of some of its parts. Not in `npm test`, as it wants a Docker engine (DOCKER_HOST, 28
 * or later) whose published ports are on 127.0.0.1 here. It has a project, volumes and passwords of
 * its own, and removes what it made, also when it fails or is stopped (SIGINT, SIGTERM, SIGHUP).
 * Ports: PUBLISH_PORT, or 18080, OBSERVE_PORT, or 18090, 19091, and 8443 for the receiver of the
 * load tests. COMPOSE_FILE may add files to docker-compose.yml.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { get } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { json } from 'node:stream/consumers'
import { z } from 'zod'
import {
  answers,
  counted,
  isWaiting,
  isWatched,
  leave,
  sendTo,
  stateIsThere,
  tour,
  underLoad,
} from './agents.ts'
import {
  areHealthy,
  checkEngine,
  command,
  compose,
  composeWith,
  containers,
  docker,
  expect,
  kill,
  ROOT,
  removeAll,
  set,
  setExample,
  setNew,
  states,
  stop,
  UPGRADED,
  until,
  up,
} from './engine.ts'
import { hasOnlyItsOwn, outlivesAProcess, rebuilds, removes, seesTheTour } from './observers.ts'

const wanted = process.argv.slice(2)

const SERVICES = [
  'haproxy',
  'api',
  'worker',
  'observe',
  'postgres',
  'redis',
  'nats-1',
  'nats-2',
  'nats-3',
]
/** Files that docs/deploying.md adds for a while; those of COMPOSE_FILE are in all commands. */
const withReceiver = [
  ...(process.env.COMPOSE_FILE?.split(':') ?? ['docker-compose.yml']),
  'load-tests/compose.yml',
].flatMap((file) => ['--file', file])

const seconds = (since: number) => `${((Date.now() - since) / 1_000).toFixed(1)} s`

/** Says of each service how long it took, and what the load saw of it. */
async function toEach(doWith: (service: string) => Promise<unknown>): Promise<void> {
  for (const service of SERVICES) {
    const start = Date.now()
    const load = await underLoad(async () => {
      await doWith(service)
      await until(`an answer of the API after what was done to ${service}`, answers)
      await until(`the health of all after what was done to ${service}`, areHealthy)
    })
    console.log(`  ${service}: ${counted(load)} (${seconds(start)})`)
  }
}

async function noDifferences(): Promise<void> {
  const said = (await compose('run', '--rm', 'worker', 'verify')).toString()
  expect('what verify says', said.includes('no differences'), true)
}

/** The last is the one that changes them. */
const ROLES: Readonly<Record<string, string>> = {
  TABULUM: 'tabulum',
  TABULUM_OBSERVER: 'tabulum_observer',
  TABULUM_OWNER: 'tabulum_owner',
  POSTGRES: 'postgres',
}

/**
 * As docs/deploying.md says; the server keeps the passwords that it began with until it is told.
 */
async function alterRole(setting: string, value: string): Promise<void> {
  const psql =
    'PGPASSWORD=$POSTGRES_PASSWORD psql --username=postgres --dbname=tabulum --set=ON_ERROR_STOP=1'
  const role = ROLES[setting.replace(/_PASSWORD$/, '')]
  await composeWith(
    `ALTER ROLE ${role} PASSWORD '${value}'`,
    'exec',
    '-T',
    'postgres',
    'sh',
    '-c',
    psql,
  )
}

const parts: Record<string, () => Promise<string>> = {
  async example() {
    await up()
    await tour()
    await until('an event to be watched', isWatched)
    return 'healthy, the tour works, and it can be watched'
  },
  async observe() {
    await seesTheTour()
    await hasOnlyItsOwn()
    const counts = await outlivesAProcess()
    await removes()
    await rebuilds()
    await noDifferences()
    return `sees all, outlives each of its processes (${counts}), shows no more of what is removed, and is built anew`
  },
  async scale() {
    set({ API_REPLICAS: '5', WORKER_REPLICAS: '1' })
    await up()
    expect('api nodes', (await containers('api')).length, 5)
    await up()
    expect('api nodes after another up', (await containers('api')).length, 5)
    expect('workers', (await containers('worker')).length, 1)
    set({ API_REPLICAS: '3', WORKER_REPLICAS: '2' })
    await up()
    expect('api nodes', (await containers('api')).length, 3)
    await stateIsThere()
    return '3 to 5 to 3 api nodes'
  },
  async monitoring() {
    const profile = ['--profile', 'monitoring']
    await compose(...profile, 'up', '--detach', '--wait')
    const query = 'wget -q -O - "http://127.0.0.1:9090/api/v1/query?query=count(up==1)"'
    // 3 api nodes, 2 workers, 2 observers and HAProxy; and Prometheus itself.
    await until('Prometheus, which is to see 9 targets', async () => {
      const said = (
        await compose(...profile, 'exec', '-T', 'prometheus', 'sh', '-c', query)
      ).toString()
      return said.includes('"9"')
    })
    await compose(...profile, 'rm', '--stop', '--force', 'prometheus')
    return 'Prometheus sees nodes, workers, observers and HAProxy'
  },
  async upgrade() {
    const image = z
      .object({ services: z.object({ api: z.object({ image: z.string() }) }) })
      .parse(JSON.parse((await compose('config', '--format', 'json')).toString())).services
      .api.image
    const kernel = ['api', 'worker', 'observe']
    const running = async () => (await Promise.all(kernel.map(containers))).flat()
    const before = await running()
    const id = async () =>
      (await docker(['image', 'inspect', '--format', '{{.Id}}', image])).toString().trim()
    const old = await id()
    await docker(
      ['build', '--quiet', '--tag', image, '-'],
      `FROM ${image}\nLABEL ${UPGRADED}=${Date.now()}\n`,
    )
    const load = await underLoad(async () => {
      await compose('run', '--rm', 'migrate')
      const twice = ['--scale', 'api=6', '--scale', 'worker=4', '--scale', 'observe=4']
      await up('--no-deps', '--no-recreate', ...twice, ...kernel)
      await up()
    }).finally(() => docker(['tag', old, image]))
    const after = await running()
    expect('api nodes, workers and observers', after.length, 7)
    expect(
      'old ones that are left',
      after.filter((container) => before.includes(container)).length,
      0,
    )
    expect(`failed requests of ${load.requests}`, load.failed, [])
    return counted(load)
  },
  async restarts() {
    await toEach((service) => compose('restart', service))
    await noDifferences()
    return 'all come back, and verify finds no differences'
  },
  async kills() {
    await toEach(async (service) => {
      const [id = ''] = await containers(service)
      await kill(service, id)
    })
    await noDifferences()
    return 'all come back, and verify finds no differences'
  },
  async passwords() {
    const password = () => `p${randomBytes(20).toString('hex')}`
    const change = async (server: string, settings: readonly string[]) => {
      const values = settings.map((name) => [`${name}_PASSWORD`, password()] as const)
      if (server === 'postgres') for (const [name, value] of values) await alterRole(name, value)
      set(Object.fromEntries(values))
      await up()
      await until(`an answer of the API with new passwords of ${server}`, answers)
      await until(`an event to be watched with new passwords of ${server}`, isWatched)
    }
    await change('postgres', Object.keys(ROLES))
    await change('redis', ['REDIS_KERNEL', 'REDIS_ADMIN'])
    await change('nats', [
      'NATS_ROUTE',
      'NATS_KERNEL',
      'NATS_ADMIN',
      'NATS_OBSERVER',
      'NATS_SYSTEM',
    ])
    await stateIsThere()
    return 'all changed, of a server at once, and the data is there'
  },
  async refusal() {
    const refused = (values: Readonly<Record<string, string>>) => {
      set(values)
      return up().then(
        () => 'started',
        (error: unknown) => String(error),
      )
    }
    const running = await containers('worker')
    const none = await refused({ WORKER_REPLICAS: '0' })
    expect('up itself says what must not be 0', /WORKER_REPLICAS.* must not be 0/.test(none), true)
    expect('workers, which it left alone', await containers('worker'), running)

    const wrong = await refused({ ENVIRONMENT: 'production', WORKER_REPLICAS: '00' })
    expect('up names where to look', wrong.includes('check-environment-see-its-log'), true)
    const log = (await compose('logs', 'check-environment-see-its-log')).toString()
    expect(
      'the log names the key',
      log.includes('WEBHOOK_SECRET_KEY has the value of .env.example'),
      true,
    )
    expect('the log names the number', log.includes('WORKER_REPLICAS must be'), true)
    set({ ENVIRONMENT: 'development', WORKER_REPLICAS: '2' })
    await up()
    await stateIsThere()
    return 'no workers and public passwords are refused, and up says why, or where the reasons are'
  },
  async receiver() {
    const files = ['load-tests/receiver.key', 'load-tests/receiver.pem'].map((file) =>
      join(ROOT, file),
    )
    const made = files.filter((file) => !existsSync(file))
    const [key = '', certificate = ''] = files
    if (made.length > 0) await makeCertificate(key, certificate)
    try {
      await compose(...withReceiver, 'up', '--detach', '--wait')
      await sendTo('https://receiver:8443/test/bob', 'message 1')
      await until(
        'the message that is pushed to the receiver',
        async () => (await report(certificate)).received === 1,
      )
      await up('--remove-orphans')
      await stateIsThere()
      expect(
        'containers of the receiver',
        await docker(['ps', '--quiet', '--filter', 'name=receiver']),
        Buffer.of(),
      )
    } finally {
      for (const file of made) rmSync(file, { force: true })
    }
    return 'a message is pushed to it, and the way back works'
  },
  async again() {
    await leave('over a night')
    await compose('down')
    await up()
    await stateIsThere()
    await isWaiting('over a night')
    return 'down and up, the data is there'
  },
  async own() {
    await compose('down', '--volumes')
    await setNew()
    await up()
    await tour()
    return 'from nothing with passwords of make-environment.sh, and the tour works'
  },
  async restore() {
    const directory = mkdtempSync(join(tmpdir(), 'tabulum-backup-'))
    const user = [
      '--user',
      `${process.getuid?.()}:${process.getgid?.()}`,
      '--volume',
      `${directory}:/backup`,
    ]
    const nats = (...args: readonly string[]) =>
      compose('run', '--rm', '-T', ...user, 'nats-tool', ...args)
    const inPostgres = (program: string, input: Buffer | string = '') =>
      composeWith(
        input,
        ...['exec', '-T', 'postgres', 'sh', '-c'],
        `PGPASSWORD=$TABULUM_OWNER_PASSWORD ${program} --host=127.0.0.1 --username=tabulum_owner --dbname=tabulum`,
      )
    try {
      await leave('of the backup')
      const dump = await inPostgres('pg_dump --format=custom --exclude-schema="observation*"')
      await nats('stream', 'backup', 'EVENTS', '/backup/events')
      await compose('down', '--volumes')
      await up('postgres', 'redis', 'nats-1', 'nats-2', 'nats-3')
      await nats('stream', 'restore', '/backup/events', '--replicas=3')
      await inPostgres('pg_restore --clean --if-exists --no-owner', dump)
      await up()
      await noDifferences()
      await stateIsThere()
      await isWaiting('of the backup')
      await until('an event to be watched', isWatched)
    } finally {
      rmSync(directory, { recursive: true })
    }
    return 'into empty servers, and verify finds no differences'
  },
}

/** As load-tests/README.md says. */
async function makeCertificate(key: string, certificate: string): Promise<void> {
  const names = 'subjectAltName=DNS:receiver,DNS:localhost,IP:127.0.0.1'
  const curve = [
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:prime256v1',
    '-nodes',
    '-days',
    '30',
  ]
  const subject = ['-subj', '/CN=receiver', '-addext', names]
  await command('openssl', [
    'req',
    '-x509',
    ...curve,
    ...subject,
    '-keyout',
    key,
    '-out',
    certificate,
  ])
  await command('chmod', ['644', key])
}

/** What the receiver has had. */
async function report(certificate: string): Promise<{ received: number }> {
  const { promise, resolve, reject } = Promise.withResolvers<unknown>()
  const url = 'https://127.0.0.1:8443/test'
  get(url, { ca: readFileSync(certificate), signal: AbortSignal.timeout(10_000) }, (response) =>
    resolve(json(response)),
  ).once('error', reject)
  return z.object({ received: z.int() }).parse(await promise)
}

async function runParts(): Promise<void> {
  for (const [name, part] of Object.entries(parts)) {
    // All others are on what the first began.
    if (name !== 'example' && wanted.length > 0 && !wanted.includes(name)) continue
    const start = Date.now()
    try {
      console.log(`${name}: ${await part()} (${seconds(start)})`)
    } catch (error) {
      const now = await states().catch(() => '')
      throw new Error(`${name}, after ${seconds(start)}: ${String(error)}\n${now}`, {
        cause: error,
      })
    }
  }
}

async function main(): Promise<void> {
  const unknown = wanted.filter((name) => !(name in parts))
  if (unknown.length > 0)
    throw new Error(
      `no such part: ${unknown.join(', ')}; there are ${Object.keys(parts).join(', ')}`,
    )
  await checkEngine()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => stop(new Error(`stopped by ${signal}`)))
  const start = Date.now()
  try {
    setExample()
    // Of a run that could not.
    await removeAll()
    await compose('build')
    await runParts()
    console.log(`all in ${seconds(start)}`)
  } finally {
    // Whatever is under way still.
    stop(new Error('the run is over'))
    await removeAll()
  }
}

await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
})
