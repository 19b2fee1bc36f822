/**
 * The files that deploy the kernel, checked without an engine: schemas, and that they agree with
 * the program and each other.
 */
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, statSync, symlinkSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Ajv } from 'ajv'
import formats from 'ajv-formats'
import ipaddr from 'ipaddr.js'
import { collectDefaultMetrics, Registry } from 'prom-client'
import { describe, expect, test } from 'vitest'
import { parse, parseAllDocuments } from 'yaml'
import { z } from 'zod'
import { makeDirectory, removeDirectory } from '../../lab/servers/directory.ts'
import { findProgram } from '../../lab/servers/programs.ts'
import { loadConfig, settingNames } from '../../src/config.ts'
import { createSecretBox } from '../../src/webhooks/secret-box.ts'
import { dashboardQueries } from '../support/dashboard.ts'

const run = promisify(execFile)
/** Here, because it may have to be installed first, which takes longer than a test may. */
const kubectl = await findProgram('kubectl')
const ROOT = join(import.meta.dirname, '..', '..')
const read = (path: string) => readFileSync(join(ROOT, path), 'utf8')
const packageJson = z.object({ version: z.string(), engines: z.object({ node: z.string() }) })
const { version, engines } = packageJson.parse(JSON.parse(read('package.json')))

const environmentFile = (text: string) =>
  Object.fromEntries(
    text
      .split('\n')
      .flatMap((line) => (/^\w+=/.test(line) ? [line.split(/=(.*)/s).slice(0, 2)] : [])),
  )

const strings = z.record(z.string(), z.string())
const service = z.looseObject({
  image: z.string(),
  user: z.string(),
  read_only: z.boolean(),
  cap_drop: z.array(z.string()),
  cap_add: z.array(z.string()).default([]),
  security_opt: z.array(z.string()),
  command: z.array(z.string()).default([]),
  environment: strings.default({}),
  env_file: z.array(z.object({ path: z.string(), required: z.boolean() })).default([]),
  volumes: z.array(z.string()).default([]),
  ports: z.array(z.string()).default([]),
  networks: z.array(z.string()).default([]),
  depends_on: z.record(z.string(), z.object({ condition: z.string() })).default({}),
  healthcheck: z.looseObject({ test: z.array(z.string()).optional() }).optional(),
  deploy: z
    .looseObject({
      replicas: z.string().optional(),
      resources: z.looseObject({ limits: z.looseObject({}) }),
    })
    .optional(),
  stop_grace_period: z.string().optional(),
  memswap_limit: z.string().optional(),
  build: z.string().optional(),
  pull_policy: z.string().optional(),
  restart: z.string().optional(),
  network_mode: z.string().optional(),
})
const composeFile = z.looseObject({
  services: z.record(z.string(), service),
  networks: z.record(
    z.string(),
    z.looseObject({
      internal: z.boolean().default(false),
      driver_opts: strings.default({}),
      ipam: z.object({ config: z.array(z.object({ subnet: z.string() })) }).optional(),
    }),
  ),
})
const composed = parse(read('docker-compose.yml'), { merge: true })
const compose = composeFile.parse(composed)
const services = Object.entries(compose.services)
/** Its name is what an operator sees when it fails. */
const CHECK = 'check-environment-see-its-log'
/** Whose image has a health check already. */
const isKernel = (image: string) => image.startsWith('tabulum-kernel:')
const kernelServices = services.filter(([, { image }]) => isKernel(image))

/**
 * As Compose fills in `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `${NAME:+,${NAME}}`.
 */
function filledIn(text: string, environment: Readonly<Record<string, string>>): string {
  const added = text.replace(/\$\{(\w+):\+([^{}]*\$\{\w+\})\}/g, (_, name: string, more: string) =>
    environment[name] ? more : '',
  )
  return added.replace(
    /\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}/g,
    (_, name: string, fallback = '') => environment[name] || fallback,
  )
}

const EXPECTED_SETTINGS = new Set(settingNames)

describe('Dockerfile', () => {
  const dockerfile = read('Dockerfile')

  test('builds from one pinned Node that the program can run on', () => {
    const images = [...dockerfile.matchAll(/^FROM (\S+)/gm)].map(([, image]) => image)
    expect(new Set(images).size).toBe(1)
    expect(images[0]).toMatch(/^node:\d+\.\d+\.\d+-\w+-slim$/)
    expect(`>=${/^node:(\d+)/.exec(images[0] ?? '')?.[1]}`).toBe(engines.node)
    // The one that the tests run on.
    const lock = z.object({
      packages: z.record(z.string(), z.looseObject({ version: z.string().optional() })),
    })
    const { packages } = lock.parse(JSON.parse(read('package-lock.json')))
    expect(images[0]).toContain(`:${packages['node_modules/node']?.version}-`)
  })

  test('runs the program itself, as nobody in particular, without development dependencies', () => {
    expect(dockerfile).toMatch(
      /^ENTRYPOINT \["node", "--max-old-space-size-percentage=33", "--max-semi-space-size=8", "src\/main\.ts"\]$/m,
    )
    expect(dockerfile).toMatch(/^USER 1000:1000$/m)
    expect(dockerfile).toContain('npm ci --omit=dev --ignore-scripts')
    const { PORT, OBSERVE_PORT, INTERNAL_PORT } = loadConfig({})
    expect(dockerfile).toContain(`EXPOSE ${PORT} ${OBSERVE_PORT} ${INTERNAL_PORT}`)
    // Each container would get one, of which only `serve` has a use.
    expect(dockerfile).not.toMatch(/^VOLUME/m)
  })

  test('is healthy while the process is ready, and only then', async () => {
    let status = 200
    const server = createServer((request, response) => {
      response.writeHead(request.url === '/readyz' ? status : 404).end()
    })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    const { port } = server.address() as AddressInfo
    const [program = '', ...args] = z
      .array(z.string())
      .parse(JSON.parse(/^HEALTHCHECK [^[]*(\[.*\])$/m.exec(dockerfile)?.[1] ?? ''))
    const env = { PATH: process.env.PATH ?? '', INTERNAL_PORT: String(port) }
    const isHealthy = () =>
      run(program, args, { env }).then(
        () => true,
        () => false,
      )
    expect(await isHealthy()).toBe(true)
    status = 503
    expect(await isHealthy()).toBe(false)
    server.close()
    await once(server, 'close')
    expect(await isHealthy()).toBe(false)
  })

  test('copies only what exists and is let through to it', () => {
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(
      ([, names = '']) => names.split(' '),
    )
    const letThrough = read('.dockerignore')
      .split('\n')
      .flatMap((line) => (line.startsWith('!') ? [line.slice(1)] : []))
    expect([...new Set(copied)].toSorted()).toEqual(letThrough.toSorted())
    for (const name of copied) expect(readdirSync(ROOT)).toContain(name)
  })
})

describe('docker-compose.yml', () => {
  test('follows its schema', () => {
    const ajv = new Ajv({ strict: false, allErrors: true })
    formats.default(ajv)
    const validate = ajv.compile(JSON.parse(read('test/support/compose-spec.json')) as object)
    expect(validate(composed), JSON.stringify(validate.errors)).toBe(true)
    expect(validate({ ...composed, services: { api: { imag: 'x' } } })).toBe(false)
    expect(validate(parse(read('load-tests/compose.yml'))), JSON.stringify(validate.errors)).toBe(
      true,
    )
  })

  test('takes the receiver of the load tests beside it', () => {
    const beside = z.object({
      services: z.object({
        receiver: service,
        api: z.object({ environment: strings, networks: z.array(z.string()) }),
        worker: z.object({
          environment: strings,
          networks: z.array(z.string()),
          volumes: z.array(z.string()),
        }),
      }),
      // A network of docker-compose.yml that changes would have to be made anew on the way there
      // and back.
      networks: z.strictObject({
        receiver: z.object({
          ipam: z.object({ config: z.array(z.object({ subnet: z.string() })) }),
        }),
      }),
    })
    const { services: added, networks } = beside.parse(parse(read('load-tests/compose.yml')))
    const { receiver, api, worker } = added
    expect(receiver.image).toBe(`tabulum-kernel:${version}`)
    expect(receiver.read_only).toBe(true)
    // It shares a network with who asks for its address and with who pushes, and with nobody else.
    expect(receiver.networks).toEqual(['receiver'])
    expect(receiver.healthcheck?.test).toBeDefined()
    for (const { environment, networks: joined } of [api, worker]) {
      expect(joined).toEqual(['receiver'])
      for (const setting of Object.keys(environment)) expect(EXPECTED_SETTINGS).toContain(setting)
      expect(environment.WEBHOOK_ALLOW_CIDRS).toBe(networks.receiver.ipam.config[0]?.subnet)
    }
    expect(worker.volumes).toEqual([
      `./load-tests/receiver.pem:${worker.environment.WEBHOOK_CA_FILE}:ro`,
    ])
  })

  test.each(services)('runs %s with nothing that it does not need', (name, definition) => {
    expect(definition.image).toMatch(/^[\w/-]+:v?\d+(\.\d+){1,2}(-\w+)?$/)
    expect(definition.read_only).toBe(true)
    expect(definition.cap_drop).toEqual(['ALL'])
    expect(definition.security_opt).toEqual(['no-new-privileges:true'])
    const mayChown = name === 'nats-volumes'
    expect(definition.cap_add).toEqual(mayChown ? ['CHOWN'] : [])
    expect(definition.user.startsWith('0:')).toBe(mayChown)
    const endsByItself = ['migrate', 'nats-volumes', 'nats-tool', CHECK].includes(name)
    // `up` waits for what ends by itself, and says so when it fails: not after many tries.
    expect(definition.restart).toBe(endsByItself ? 'no' : 'unless-stopped')
    if (!endsByItself)
      expect(definition.healthcheck?.test ?? isKernel(definition.image)).toBeTruthy()
    if (definition.network_mode !== 'none')
      expect(definition.deploy?.resources.limits).toHaveProperty('memory', definition.memswap_limit)
    // What is mounted from here is there, and cannot be written.
    for (const volume of definition.volumes.filter((text) => text.startsWith('./'))) {
      const [source = '', , mode] = volume.split(':')
      expect(mode).toBe('ro')
      expect(() =>
        readdirSync(join(ROOT, source, source.includes('.', 2) ? '..' : '')),
      ).not.toThrow()
    }
  })

  test('publishes HAProxy, and Prometheus on the machine itself', () => {
    const published = services.filter(([, { ports }]) => ports.length > 0)
    expect(published.map(([name]) => name)).toEqual(['haproxy', 'prometheus'])
    expect(compose.services.prometheus?.ports[0]).toMatch(/^127\.0\.0\.1:/)
    const outward = Object.entries(compose.networks).flatMap(([name, { internal }]) =>
      internal ? [] : [name],
    )
    expect(outward).toEqual(['published', 'outbound'])
    const members = (network: string) =>
      services.flatMap(([name, { networks }]) => (networks.includes(network) ? [name] : []))
    expect(members('published')).toEqual(['haproxy', 'prometheus'])
    expect(members('outbound')).toEqual(['api', 'worker'])
    expect(members('entry')).toEqual(['haproxy', 'api'])
    expect(members('observers')).toEqual(['haproxy', 'observe'])
    expect(members('monitoring')).toEqual(['api', 'worker', 'observe', 'prometheus'])
    // The name `api` must lead HAProxy to where its own address is one that nodes trust, whichever
    // network is asked first; `observe` alike.
    const { haproxy, api, observe } = compose.services
    expect(haproxy?.networks.filter((network) => api?.networks.includes(network))).toEqual([
      'entry',
    ])
    expect(haproxy?.networks.filter((network) => observe?.networks.includes(network))).toEqual([
      'observers',
    ])
    // A server reaches those who use it and no other server.
    expect(members('database')).toEqual(['api', 'worker', 'observe', 'migrate', 'postgres'])
    expect(members('queues')).toEqual(['api', 'worker', 'redis'])
    expect(members('log')).toEqual([
      'api',
      'worker',
      'observe',
      'nats-1',
      'nats-2',
      'nats-3',
      'nats-tool',
    ])
    for (const [name, { internal, driver_opts }] of Object.entries(compose.networks)) {
      const noGateway = { 'com.docker.network.bridge.gateway_mode_ipv4': 'isolated' }
      if (internal) expect(driver_opts, name).toEqual(noGateway)
    }
    expect(compose.networks.outbound?.driver_opts).toEqual({
      'com.docker.network.bridge.enable_icc': 'false',
    })
  })

  test('has ranges that settings say, outside those that Docker gives to others', () => {
    const example = environmentFile(read('.env.example'))
    const docker = [ipaddr.parseCIDR('172.16.0.0/12'), ipaddr.parseCIDR('192.168.0.0/16')] as const
    for (const name of ['published', 'outbound', 'entry', 'observers']) {
      const written = compose.networks[name]?.ipam?.config[0]?.subnet ?? ''
      const setting = `${name.toUpperCase()}_SUBNET`
      expect(filledIn(written, { [setting]: '10.1.2.0/24' })).toBe('10.1.2.0/24')
      const usual = filledIn(written, {})
      expect(usual).toBe(example[setting])
      const [address] = ipaddr.parseCIDR(usual)
      for (const range of docker) expect(address.match(range), usual).toBe(false)
    }
    for (const [service, setting] of [
      ['api', 'ENTRY_SUBNET'],
      ['observe', 'OBSERVERS_SUBNET'],
    ] as const) {
      const trusted = (environment: Record<string, string>) =>
        filledIn(compose.services[service]?.environment.TRUSTED_PROXIES ?? '', environment)
      expect(trusted({})).toBe(example[setting])
      expect(trusted({ [setting]: '10.1.2.0/24', TRUSTED_PROXIES: '10.1.3.1/32' })).toBe(
        '10.1.2.0/24,10.1.3.1/32',
      )
    }
  })

  test('builds the image once, and asks no registry for it', () => {
    expect(
      kernelServices.filter(([, { build }]) => build !== undefined).map(([name]) => name),
    ).toEqual(['migrate'])
    for (const [name, { pull_policy }] of kernelServices)
      if (name !== 'migrate') expect(pull_policy, name).toBe('never')
  })

  test('has as many api nodes, workers and observers as settings say', () => {
    for (const name of ['api', 'worker', 'observe']) {
      const replicas = String(compose.services[name]?.deploy?.replicas)
      const setting = `${name.toUpperCase()}_REPLICAS`
      expect(filledIn(replicas, { [setting]: '7' })).toBe('7')
      expect(filledIn(replicas, {})).toBe(environmentFile(read('.env.example'))[setting])
    }
  })

  test('is not read by Compose where a number is 0, as containers would go before the check says so', () => {
    const numbers = Object.keys(environmentFile(read('.env.example'))).filter((name) =>
      /REPLICAS$|PORT$/.test(name),
    )
    expect(numbers).toHaveLength(6)
    const files = (settings: Readonly<Record<string, string>>) =>
      compose.services[CHECK]?.env_file.map(({ path }) => filledIn(path, settings)) ?? []
    const refusal = 'deploy/compose/refused/0'
    // A variable that is set to nothing but to a sentence that says what it lacks.
    expect(read(refusal)).toMatch(/^REFUSED=\$\{NOBODY_SETS_THIS:\?.*must not be 0\}$/m)
    for (const name of numbers) {
      expect(files({ [name]: '0' }), name).toContain(refusal)
      expect(read(refusal)).toContain(name)
    }
    // They are read only where they are.
    for (const { required } of compose.services[CHECK]?.env_file ?? []) expect(required).toBe(false)
    for (const file of files({})) expect(existsSync(join(ROOT, file)), file).toBe(false)
  })

  test('starts nothing before the environment is checked and the schema is there', () => {
    const waitsFor = (name: string): string[] =>
      Object.keys(compose.services[name]?.depends_on ?? {}).flatMap((other) => [
        other,
        ...waitsFor(other),
      ])
    for (const [name] of services) {
      if (![CHECK, 'nats-tool', 'prometheus'].includes(name))
        expect(waitsFor(name), name).toContain(CHECK)
    }
    for (const name of ['api', 'worker', 'observe'])
      expect(compose.services[name]?.depends_on.migrate?.condition).toBe(
        'service_completed_successfully',
      )
  })

  test('asks HAProxy whether it lives, and not for the nodes: `up` would end with them all replaced, and fail', () => {
    const { healthcheck, environment, depends_on } = compose.services.haproxy ?? {}
    expect(healthcheck?.test?.at(-1)).toBe(
      `http://127.0.0.1:${environment?.HAPROXY_METRICS_PORT}/livez`,
    )
    // It looks for nodes before they are healthy, and so has found them when `up` ends.
    expect(depends_on).toEqual({
      api: { condition: 'service_started' },
      observe: { condition: 'service_started' },
    })
  })

  test('gives the kernel settings that it accepts, and just these', () => {
    const example = environmentFile(read('.env.example'))
    expect(kernelServices.map(([name]) => name)).toEqual(['api', 'worker', 'observe', 'migrate'])
    for (const [
      name,
      { environment, image, command, stop_grace_period: grace = '' },
    ] of kernelServices) {
      expect(image).toBe(`tabulum-kernel:${version}`)
      expect(command).toEqual([name])
      for (const setting of Object.keys(environment)) expect(EXPECTED_SETTINGS).toContain(setting)
      const values = Object.fromEntries(
        Object.entries(environment).map(([key, value]) => [key, filledIn(value, example)]),
      )
      const config = loadConfig(values, { partOfCluster: ['migrate', 'observe'].includes(name) })
      if (name === 'migrate') continue
      expect(config.NATS_URL).toHaveLength(config.EVENTS_REPLICAS)
      expect(Number.parseInt(grace, 10) * 1_000).toBeGreaterThan(config.SHUTDOWN_TIMEOUT)
      if (name === 'observe') {
        // It has no password but its own, and no key.
        const secrets = Object.keys(example).filter((setting) => /PASSWORD|KEY/.test(setting))
        const has = secrets.filter((setting) =>
          JSON.stringify(values).includes(example[setting] ?? ''),
        )
        expect(has).toEqual(['TABULUM_OBSERVER_PASSWORD', 'NATS_OBSERVER_PASSWORD'])
        continue
      }
      expect(config.cluster).toBeDefined()
      expect(createSecretBox(Buffer.from(values.WEBHOOK_SECRET_KEY ?? '', 'hex'))).toBeDefined()
    }
  })

  test('gives the servers just what their configurations read', () => {
    const variables = new Set(
      [...read('deploy/nats/common.conf').matchAll(/\$(NATS_\w+)/g)].map(([, name]) => name ?? ''),
    )
    for (const name of [...read('deploy/nats/jetstream.conf').matchAll(/\$(NATS_\w+)/g)])
      variables.add(name[1] ?? '')
    for (const name of ['nats-1', 'nats-2', 'nats-3']) {
      const { environment = {} } = compose.services[name] ?? {}
      expect(Object.keys(environment).toSorted()).toEqual([...variables].toSorted())
      expect(environment.NATS_SERVER_NAME).toBe(name)
    }
    for (const name of Object.keys(compose.services.haproxy?.environment ?? {})) {
      expect(read('deploy/haproxy/haproxy.cfg') + read('deploy/haproxy/backend-dns.cfg')).toContain(
        `presetenv ${name} `,
      )
    }
    const [targets, file] = [
      read('deploy/prometheus/prometheus.yml'),
      parse(read('deploy/prometheus/prometheus.yml')),
    ]
    expect(file.scrape_configs).toHaveLength(5)
    for (const name of ['api', 'worker', 'observe'])
      expect(targets).toContain(`names: [${name}], type: A, port: ${loadConfig({}).INTERNAL_PORT}`)
    expect(targets).toContain(
      `names: [haproxy], type: A, port: ${compose.services.haproxy?.environment.HAPROXY_METRICS_PORT}`,
    )
  })
})

describe('what is watched', () => {
  const alert = z.object({
    alert: z.string(),
    expr: z.string(),
    labels: z.object({ severity: z.string() }),
  })
  const rules = z
    .object({ groups: z.array(z.object({ rules: z.array(alert) })) })
    .parse(parse(read('deploy/prometheus/rules.yml')))
    .groups.flatMap((group) => group.rules)

  test('is measured by the program', () => {
    const defaults = new Registry()
    collectDefaultMetrics({ prefix: 'tabulum_', register: defaults })
    const sources = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts'))
      .map((file) => read(join('src', file)))
      .join('\n')
    const measured = [...sources.matchAll(/'(tabulum_\w+)'/g)].map(([, name]) => name)
    const known = new Set([...measured, ...defaults.getMetricsAsArray().map(({ name }) => name)])
    const asked = [...rules.map(({ expr }) => expr), ...dashboardQueries()].flatMap((query) =>
      [...query.matchAll(/tabulum_\w+/g)].map(([name]) => name.replace(/_bucket$/, '')),
    )
    expect(new Set(asked).size).toBeGreaterThan(20)
    for (const name of asked) expect(known, name).toContain(name)
  })

  test('has a case for each alert in the test of the rules', () => {
    const cases = read('test/cluster/prometheus-rules.yml')
    for (const { alert: name } of rules) expect(cases).toContain(`{alertname="${name}"}`)
    expect(new Set(rules.map(({ labels }) => labels.severity))).toEqual(new Set(['page', 'ticket']))
  })

  test('has the limits that docker-compose.yml sets', () => {
    const expression = (name: string) => rules.find((rule) => rule.alert === name)?.expr
    const [, gigabytes] = /NATS_MAX_FILE_STORE:-(\d+)GB/.exec(read('docker-compose.yml')) ?? []
    expect(expression('LogFillsItsDisk')).toBe(
      `max(tabulum_log_bytes) > 0.8 * ${gigabytes} * 1024 ^ 3`,
    )
    const [, streams] = /OBSERVE_MAX_STREAMS:-(\d+)/.exec(read('docker-compose.yml')) ?? []
    expect(expression('StreamsInUse')).toBe(
      `max by (instance) (tabulum_observe_watchers) > 0.9 * ${streams}`,
    )
    expect(Number(streams)).toBe(loadConfig({}).OBSERVE_MAX_STREAMS)
    expect(expression('PushSlotsInUse')).toContain(`0.9 * ${loadConfig({}).WEBHOOK_CONCURRENCY}`)
  })
})

describe('the environment of docker-compose.yml', () => {
  const check = join(ROOT, 'deploy/compose/check-environment.sh')
  const attempt = async (environment: Record<string, string>) => {
    const env = { PATH: process.env.PATH ?? '', ...environment }
    return await run('sh', [check], { env }).then(
      () => 'accepted',
      (error: { stderr: string }) => error.stderr,
    )
  }
  const example = environmentFile(read('.env.example'))
  const make = join(ROOT, 'deploy/compose/make-environment.sh')
  const made = async () => {
    const directory = makeDirectory('environment')
    await run('sh', [make], { cwd: directory })
    const text = readFileSync(join(directory, '.env'), 'utf8')
    await removeDirectory(directory)
    return environmentFile(text)
  }

  test('is written for its owner alone, and never over another', async () => {
    const directory = makeDirectory('environment')
    const file = join(directory, 'settings')
    await run('sh', ['-c', `umask 022; sh ${make} ${file}`])
    expect(statSync(file).mode & 0o777).toBe(0o600)
    const before = readFileSync(file, 'utf8')
    await expect(run('sh', [make, file])).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringContaining('is there already'),
    })
    expect(readFileSync(file, 'utf8')).toBe(before)
    // Not through a link either, wherever it leads.
    symlinkSync(join(directory, 'elsewhere'), join(directory, 'link'))
    await expect(run('sh', [make, join(directory, 'link')])).rejects.toMatchObject({ code: 1 })
    expect(readdirSync(directory).toSorted()).toEqual(['link', 'settings'])
    await removeDirectory(directory)
  })

  test('is complete, in the example and when made', async () => {
    const used = new Set(
      [...read('docker-compose.yml').matchAll(/\$\{(\w+)(?!\w|:-)/g)].map(([, name]) => name ?? ''),
    )
    for (const name of used) expect(Object.keys(example)).toContain(name)
    expect(Object.keys(await made())).toEqual(Object.keys(example))
    expect(Object.keys(compose.services[CHECK]?.environment ?? {}).toSorted()).toEqual(
      Object.keys(example).toSorted(),
    )
  })

  test('has in the example and when made what is set where nothing is said', async () => {
    const others = [...read('docker-compose.yml').matchAll(/\$\{(\w+):-([^}]*)\}/g)]
    expect(others.length).toBeGreaterThan(10)
    const both = [example, await made()]
    for (const [, name = '', value] of others)
      for (const settings of both)
        if (name !== 'ENVIRONMENT') expect(settings[name], name).toBe(value)
  })

  test.each([
    ['API_REPLICAS', ['0', '-1', 'many', '', '03', '33', '40', '100'], ['1', '12', '32']],
    ['WORKER_REPLICAS', ['0'], ['1', '40']],
    ['OBSERVE_REPLICAS', ['0', '33'], ['1']],
    ['OBSERVE_MAX_STREAMS', ['-1', 'many', '5001', '10000'], ['0', '100', '5000']],
    ['OBSERVE_PORT', ['0', '8090-8091', '8080', '99999'], ['80', '18090']],
    ['ENTRY_SUBNET', ['foo', '10.1.2.3', '10.213.88.0/99', '10.213.89.0/24'], ['10.9.0.0/16']],
    ['PUBLISH_ADDRESS', ['localhost', ''], ['127.0.0.1']],
    ['PUBLISH_PORT', ['0', '00', '8080-8090', ''], ['80', '18080']],
    ['PROMETHEUS_PORT', ['0'], ['9091']],
    ['NATS_MAX_FILE_STORE', ['1', '0GB', '20', 'lots', '20 GB', '100MB'], ['1GB', '2TB']],
    [
      'TRUSTED_PROXIES',
      ['everyone', '10.0.0.1', '10.0.0.0/8;10.1.0.0/16'],
      ['', '10.0.0.0/8, fd00::/8', '10.1.2.3/32,'],
    ],
    ['LOG_LEVEL', ['loud', 'INFO'], ['debug']],
    ['TERMS_URL', ['terms', 'ftp://example.com'], ['', 'https://example.com/terms']],
    [
      'WEBHOOK_SECRET_KEY',
      ['z'.repeat(64), 'a'.repeat(63)],
      ['a'.repeat(64), `${'a'.repeat(64)},${'b'.repeat(64)}`],
    ],
  ])(
    'is refused where %s would not give what is meant, or containers that start again and again',
    async (name, wrong, right) => {
      const good = await made()
      for (const value of wrong)
        expect(await attempt({ ...good, [name]: value }), value).toMatch(
          new RegExp(`${name} must (not )?be|must not be the same as ${name}`),
        )
      for (const value of right) {
        expect(await attempt({ ...good, [name]: value }), value).toBe('accepted')
        // The kernel is of the same opinion.
        if (settingNames.includes(name))
          expect(() => loadConfig({ [name]: value }), value).not.toThrow()
      }
    },
  )

  test('is new each time, and accepted', async () => {
    const [one, other] = [await made(), await made()]
    expect(await attempt(one)).toBe('accepted')
    expect(one.NATS_KERNEL_PASSWORD).not.toBe(other.NATS_KERNEL_PASSWORD)
    expect(createSecretBox(Buffer.from(one.WEBHOOK_SECRET_KEY ?? '', 'hex'))).toBeDefined()
  })

  test('is accepted as in the example for development on the machine itself, and nowhere else', async () => {
    expect(await attempt(example)).toBe('accepted')
    expect(await attempt({ ...example, PUBLISH_ADDRESS: '0.0.0.0' })).toMatch(
      /^PUBLISH_ADDRESS must be 127.0.0.1/,
    )
    expect(await attempt({ ...example, ENVIRONMENT: 'production' })).toMatch(
      /POSTGRES_PASSWORD has the value of .env.example/,
    )
  })

  test.each(Object.keys(example).filter((name) => /PASSWORD|KEY/.test(name)))(
    'is refused with the example, no or a weak %s',
    async (name) => {
      const good = await made()
      expect(await attempt({ ...good, [name]: example[name] ?? '' })).toContain(
        `${name} has the value of .env.example`,
      )
      expect(await attempt({ ...good, [name]: '' })).toContain(`${name} is not set`)
      expect(await attempt({ ...good, [name]: 'short' })).toContain(
        `${name} must have at least 16 characters`,
      )
      if (name.endsWith('PASSWORD'))
        for (const value of ['1234567890abcdefgh', 'password:with@url/signs'])
          expect(await attempt({ ...good, [name]: value })).toContain(`${name} must be letters`)
    },
  )
})

const object = z.looseObject({
  apiVersion: z.string(),
  kind: z.string(),
  metadata: z.looseObject({ name: z.string() }),
  spec: z.looseObject({}).optional(),
  data: strings.optional(),
  stringData: strings.optional(),
})
type KubernetesObject = z.infer<typeof object>
const objectsIn = (text: string) =>
  parseAllDocuments(text).map((document) => object.parse(document.toJS()))

type Validate = ((data: unknown) => boolean) & { errors?: unknown }

/**
 * What is wrong with an object. The schemas let fields through that they do not know, which a
 * cluster drops: so what the validation did not look at is wrong too.
 */
async function problems(candidate: KubernetesObject): Promise<string[]> {
  const [group = '', apiGroupVersion = ''] = candidate.apiVersion.includes('/')
    ? candidate.apiVersion.split('/')
    : ['core', candidate.apiVersion]
  const capitalised = (word: string) => word.charAt(0).toUpperCase() + word.slice(1)
  const schema = `IoK8sApi${capitalised(group.split('.')[0] ?? '')}${capitalised(apiGroupVersion)}${candidate.kind}`
  const { validate } = (await import(`kubernetes-models/_schemas/${schema}`)) as {
    validate: Validate
  }
  const unread = new Set<string>()
  if (!validate(watched(candidate, '', unread))) return [JSON.stringify(validate.errors)]
  return [...unread].map(
    (path) => `${candidate.kind} ${candidate.metadata.name} has an unknown field ${path}`,
  )
}

/** The same value, with the paths of all that nobody has read yet in `unread`. */
function watched(value: unknown, path: string, unread: Set<string>): unknown {
  if (typeof value !== 'object' || value === null) return value
  const children = Object.fromEntries(
    Object.entries(value).map(([key, child]) => {
      unread.add(`${path}/${key}`)
      return [key, watched(child, `${path}/${key}`, unread)]
    }),
  )
  return new Proxy(value, {
    get(target, key, receiver) {
      if (typeof key !== 'string' || !Object.hasOwn(children, key))
        return Reflect.get(target, key, receiver)
      unread.delete(`${path}/${key}`)
      return children[key]
    },
  })
}

const container = z.looseObject({
  name: z.string(),
  image: z.string(),
  command: z.array(z.string()).default([]),
  args: z.array(z.string()).default([]),
  env: z.array(z.looseObject({ name: z.string(), value: z.string().optional() })).default([]),
  envFrom: z
    .array(z.looseObject({ secretRef: z.object({ name: z.string() }).optional() }))
    .default([]),
  ports: z.array(z.object({ name: z.string(), containerPort: z.number() })).default([]),
  resources: z.object({ requests: strings, limits: strings }),
  securityContext: z.looseObject({}),
  volumeMounts: z.array(z.looseObject({ mountPath: z.string() })).default([]),
  startupProbe: z
    .looseObject({ periodSeconds: z.number(), failureThreshold: z.number() })
    .optional(),
})
const pod = z.looseObject({
  automountServiceAccountToken: z.boolean(),
  securityContext: z.looseObject({ runAsUser: z.number(), runAsGroup: z.number() }),
  terminationGracePeriodSeconds: z.number().optional(),
  containers: z.tuple([container]),
})
const workload = z.looseObject({
  kind: z.string(),
  metadata: z.looseObject({ name: z.string() }),
  spec: z.looseObject({
    template: z.looseObject({ metadata: z.looseObject({ labels: strings }), spec: pod }),
  }),
})

describe.each(['small', 'production'])('k8s/%s', (overlay) => {
  const build = async () =>
    objectsIn((await run(kubectl, ['kustomize', join(ROOT, 'k8s', overlay)])).stdout)
  const built = build()
  const workloads = async () =>
    (await built)
      .filter(({ spec }) => spec !== undefined && 'template' in spec)
      .map((found) => workload.parse(found))
  const secrets = async () =>
    objectsIn((await run('sh', [join(ROOT, 'k8s/small/make-secrets.sh')])).stdout)
  const configuration = async () =>
    (await built).find(
      ({ kind, metadata }) => kind === 'ConfigMap' && metadata.name.startsWith('kernel-'),
    )?.data ?? {}

  test('has objects that a cluster knows, in every field', async () => {
    const found = await Promise.all((await built).map(problems))
    expect(found.flat()).toEqual([])
    const kinds = new Set((await built).map(({ kind }) => kind))
    for (const kind of [
      'Deployment',
      'Job',
      'Service',
      'Ingress',
      'ConfigMap',
      'HorizontalPodAutoscaler',
      'PodDisruptionBudget',
    ])
      expect(kinds).toContain(kind)
    expect(kinds).not.toContain('Secret')
    expect(kinds.has('StatefulSet')).toBe(overlay === 'small')
  })

  test('would notice a field that is misspelt or of the wrong type', async () => {
    const api = (await built).find(({ kind }) => kind === 'Deployment') as KubernetesObject
    const misspelt = structuredClone(api)
    const { containers } = (
      misspelt.spec as { template: { spec: { containers: Record<string, unknown>[] } } }
    ).template.spec
    Object.assign(containers[0] ?? {}, { readinesProbe: {} })
    expect(await problems(misspelt)).toEqual([
      expect.stringContaining('/spec/template/spec/containers/0/readinesProbe'),
    ])
    const mistyped = structuredClone(api)
    Object.assign(mistyped.spec ?? {}, { minReadySeconds: 'many' })
    expect(await problems(mistyped)).toEqual([expect.stringContaining('minReadySeconds')])
  })

  test('runs everything with nothing that it does not need', async () => {
    for (const { metadata, spec } of await workloads()) {
      const { securityContext, automountServiceAccountToken, containers } = spec.template.spec
      const where = metadata.name
      expect(automountServiceAccountToken, where).toBe(false)
      expect(securityContext, where).toMatchObject({
        runAsNonRoot: true,
        seccompProfile: { type: 'RuntimeDefault' },
      })
      expect(securityContext.runAsUser, where).toBeGreaterThan(0)
      expect(containers[0].securityContext, where).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      })
      for (const amount of ['cpu', 'memory']) {
        expect(containers[0].resources.requests, where).toHaveProperty(amount)
        expect(containers[0].resources.limits, where).toHaveProperty(amount)
      }
    }
  })

  test('runs the images and users of docker-compose.yml', async () => {
    for (const { metadata, spec } of await workloads()) {
      const { securityContext, containers } = spec.template.spec
      const same = compose.services[metadata.name === 'nats' ? 'nats-1' : metadata.name]
      expect(containers[0].image.split('/').at(-1)).toBe(same?.image)
      expect(`${securityContext.runAsUser}:${securityContext.runAsGroup}`).toBe(same?.user)
      // An image may begin with an entry point of its own; what it is told is the same.
      expect(containers[0].args).toEqual(same?.command)
    }
  })

  test('gives the kernel settings that it accepts', async () => {
    const settings = await configuration()
    for (const name of Object.keys(settings)) expect(EXPECTED_SETTINGS).toContain(name)
    const secret =
      (await secrets()).find(({ metadata }) => metadata.name === 'kernel')?.stringData ?? {}
    for (const name of Object.keys(secret)) expect(EXPECTED_SETTINGS).toContain(name)
    const config = loadConfig({ ...settings, ...secret })
    expect(config.cluster?.natsUrls).toHaveLength(config.EVENTS_REPLICAS)
    expect(createSecretBox(Buffer.from(secret.WEBHOOK_SECRET_KEY ?? '', 'hex'))).toBeDefined()
    // The observation service has no setting of theirs that it could do harm with.
    const own =
      (await secrets()).find(({ metadata }) => metadata.name === 'observe')?.stringData ?? {}
    expect(Object.keys(own)).toEqual(['DATABASE_URL', 'NATS_URL'])
    const ofObservers = loadConfig({ ...settings, ...own }, { partOfCluster: true })
    expect(ofObservers.NATS_URL).toHaveLength(config.EVENTS_REPLICAS)
    expect(
      [ofObservers.DATABASE_URL, ...ofObservers.NATS_URL].map(
        (url) => URL.parse(url ?? '')?.username,
      ),
    ).toEqual(['tabulum_observer', ...ofObservers.NATS_URL.map(() => 'observer')])
    expect(ofObservers.internalHost).toBe(config.internalHost)
    for (const { metadata, spec } of (await workloads()).filter(({ metadata: { name } }) =>
      ['api', 'worker', 'observe'].includes(name),
    )) {
      const { containers, terminationGracePeriodSeconds: grace = 0 } = spec.template.spec
      const ports = Object.fromEntries(
        containers[0].ports.map(({ name, containerPort }) => [name, containerPort]),
      )
      expect(ports.internal).toBe(config.INTERNAL_PORT)
      const asked = containers[0].envFrom.flatMap(({ secretRef }) => secretRef?.name ?? [])
      expect(asked).toEqual([metadata.name === 'observe' ? 'observe' : 'kernel'])
      if (metadata.name === 'api') expect(ports.http).toBe(config.PORT)
      if (metadata.name === 'observe') expect(ports.http).toBe(config.OBSERVE_PORT)
      expect(grace * 1_000).toBeGreaterThan(config.SHUTDOWN_TIMEOUT + 5_000)
      const probe = (path: string) => ({ httpGet: { path, port: 'internal' } })
      expect(containers[0]).toMatchObject({
        startupProbe: probe('/livez'),
        livenessProbe: probe('/livez'),
        readinessProbe: probe('/readyz'),
      })
      // They wait for a first start of the servers, and nobody ends them meanwhile.
      const { periodSeconds, failureThreshold } = containers[0].startupProbe ?? {
        periodSeconds: 0,
        failureThreshold: 0,
      }
      expect(periodSeconds * failureThreshold * 1_000).toBeGreaterThan(
        config.STARTUP_TIMEOUT + 30_000,
      )
      expect(config.STARTUP_TIMEOUT).toBeGreaterThanOrEqual(120_000)
    }
  })

  test('believes pods of the ingress controller, and not every private address', async () => {
    const ranges = ((await configuration()).TRUSTED_PROXIES ?? '')
      .split(',')
      .map((range) => ipaddr.parseCIDR(range))
    for (const [, bits] of ranges) expect(bits).toBeGreaterThanOrEqual(16)
  })

  test('takes bodies of 7 MB, once', async () => {
    const ingress = (await built).find(
      ({ kind, metadata }) => kind === 'Ingress' && metadata.name === 'api',
    )
    expect(ingress?.metadata.annotations).toMatchObject({
      'nginx.ingress.kubernetes.io/proxy-body-size': '8m',
      'nginx.ingress.kubernetes.io/proxy-next-upstream': 'off',
    })
  })

  test('sends whoever watches to the observation service, and one client to one pod', async () => {
    const named = (wanted: string) => (found: KubernetesObject) =>
      found.kind === wanted && found.metadata.name === 'observe'
    const ingress = (await built).find(named('Ingress'))
    expect(ingress?.metadata.annotations).toMatchObject({
      'nginx.ingress.kubernetes.io/upstream-hash-by': '$remote_addr',
    })
    const text = JSON.stringify(ingress?.spec)
    // In `small` agents have the same host: there the page is the root alone.
    const paths = [...text.matchAll(/"path":"([^"]+)","pathType":"(\w+)"/g)].map(
      ([, path, kind]) => `${kind} ${path}`,
    )
    expect(paths).toEqual(
      overlay === 'small' ? ['Prefix /observe', 'Prefix /assets', 'Exact /'] : ['Prefix /'],
    )
    expect(text.split('{"service":{"name":"observe","port":{"name":"http"}}}')).toHaveLength(
      paths.length + 1,
    )
    expect((await built).find(named('Service'))?.spec).toMatchObject({
      sessionAffinity: 'ClientIP',
    })
    expect((await built).find(named('PodDisruptionBudget'))?.spec).toMatchObject({
      maxUnavailable: 1,
    })
  })

  test('allows the arrows of the design and nothing else', async () => {
    const policies = (await built).filter(({ kind }) => kind === 'NetworkPolicy')
    const denied = policies.find(({ metadata }) => metadata.name === 'deny-all')
    expect(denied?.spec).toEqual({ podSelector: {}, policyTypes: ['Ingress', 'Egress'] })
    const { entering, leaving } = arrowsOf(
      policies.filter(({ metadata }) => metadata.name !== 'deny-all'),
    )
    const kernel = ['api', 'worker']
    const outside = [
      'tabulum/ingress > api:8080',
      'tabulum/ingress > observe:8090',
      ...[...kernel, 'observe'].map((app) => `tabulum/monitoring > ${app}:9090`),
    ]
    const names = ['53', '53/udp', '5353', '5353/udp'].flatMap((port) =>
      ['kube-system', 'openshift-dns', '169.254.20.10/32'].map((server) => `* > ${server}:${port}`),
    )
    const to = (port: number, from: readonly string[], server: string) =>
      from.map((app) => `${app} > ${server}:${port}`)
    const servers = (name: (server: string) => string) => [
      ...to(5432, [...kernel, 'observe', 'migrate'], name('postgres')),
      ...to(6379, kernel, name('redis')),
      ...to(4222, [...kernel, 'observe'], name('nats')),
    ]
    const webhooks = ['worker > 0.0.0.0/0', 'worker > 2000::/3']
    if (overlay === 'small') {
      const inside = [...servers((server) => server), 'nats > nats:6222']
      expect(entering).toEqual([...outside, ...inside].toSorted())
      expect(leaving).toEqual([...names, ...webhooks, ...inside].toSorted())
    } else {
      expect(entering).toEqual(outside.toSorted())
      expect(leaving).toEqual([...names, ...webhooks, ...servers(() => '10.20.0.0/16')].toSorted())
    }
  })
})

const selector = z.object({
  matchLabels: strings.default({}),
  matchExpressions: z.array(z.object({ values: z.array(z.string()) })).default([]),
})
const peer = z.strictObject({
  podSelector: selector.optional(),
  namespaceSelector: selector.optional(),
  ipBlock: z.object({ cidr: z.string() }).optional(),
})
const rule = z.object({
  from: z.array(peer).default([]),
  to: z.array(peer).default([]),
  ports: z.array(z.object({ protocol: z.enum(['TCP', 'UDP']), port: z.number() })).default([]),
})
const policy = z.object({
  spec: z.object({
    podSelector: selector,
    policyTypes: z.array(z.string()),
    ingress: z.array(rule).default([]),
    egress: z.array(rule).default([]),
  }),
})

/** Who may reach whom, as each end says it: `api > redis:6379`. */
function arrowsOf(policies: readonly KubernetesObject[]): {
  entering: string[]
  leaving: string[]
} {
  const apps = ({ matchLabels, matchExpressions }: z.infer<typeof selector>) => {
    const named = [
      ...Object.values(matchLabels),
      ...matchExpressions.flatMap(({ values }) => values),
    ]
    return named.length > 0 ? named : ['*']
  }
  const named = ({ podSelector, namespaceSelector, ipBlock }: z.infer<typeof peer>) => {
    if (podSelector !== undefined) return apps(podSelector)
    if (ipBlock !== undefined) return [ipBlock.cidr]
    const labels = Object.entries(namespaceSelector?.matchLabels ?? {})
    return labels.map(([key, value]) => (value === 'allowed' ? key : value))
  }
  const others = (peers: readonly z.infer<typeof peer>[]) =>
    peers.length > 0 ? peers.flatMap(named) : ['anybody']
  const entering: string[] = []
  const leaving: string[] = []
  for (const { spec } of policies.map((found) => policy.parse(found))) {
    const here = apps(spec.podSelector)
    const ports = (one: z.infer<typeof rule>) =>
      one.ports.length > 0
        ? one.ports.map(({ protocol, port }) => `:${port}${protocol === 'UDP' ? '/udp' : ''}`)
        : ['']
    for (const one of spec.ingress)
      for (const port of ports(one))
        for (const other of others(one.from))
          for (const app of here) entering.push(`${other} > ${app}${port}`)
    for (const one of spec.egress)
      for (const port of ports(one))
        for (const other of others(one.to))
          for (const app of here) leaving.push(`${app} > ${other}${port}`)
  }
  return { entering: entering.toSorted(), leaving: leaving.toSorted() }
}

describe('k8s/small', () => {
  test('has a Secret for each that is asked for, with what the servers read', async () => {
    const { stdout } = await run('sh', [join(ROOT, 'k8s/small/make-secrets.sh')])
    const secrets = objectsIn(stdout)
    expect((await Promise.all(secrets.map(problems))).flat()).toEqual([])
    const built = objectsIn((await run(kubectl, ['kustomize', join(ROOT, 'k8s/small')])).stdout)
    const containers = built.flatMap(
      (found) => workload.safeParse(found).data?.spec.template.spec.containers ?? [],
    )
    const asked = new Set(
      containers.flatMap(({ envFrom }) =>
        envFrom.flatMap(({ secretRef }) => secretRef?.name ?? []),
      ),
    )
    expect(secrets.map(({ metadata }) => metadata.name).toSorted()).toEqual([...asked].toSorted())
    for (const { name, env } of containers.filter(
      ({ image }) => !image.startsWith('tabulum-kernel:'),
    )) {
      const secret = Object.keys(
        secrets.find(({ metadata }) => metadata.name === name)?.stringData ?? {},
      )
      const given = [...secret, ...env.map((variable) => variable.name)]
      const same = Object.keys(
        compose.services[name === 'nats' ? 'nats-1' : name]?.environment ?? {},
      )
      expect(given.toSorted()).toEqual(same.toSorted())
    }
  })
})

test('nothing that is deployed holds a password', async () => {
  const files = ['deploy', 'k8s'].flatMap((directory) =>
    readdirSync(join(ROOT, directory), { recursive: true, withFileTypes: true }).flatMap((entry) =>
      entry.isFile() ? join(entry.parentPath, entry.name) : [],
    ),
  )
  expect(files.length).toBeGreaterThan(20)
  for (const file of [...files, join(ROOT, 'docker-compose.yml')])
    expect(readFileSync(file, 'utf8'), file).not.toMatch(/:\/\/\w+:[a-z0-9]{6,}@/i)
})
