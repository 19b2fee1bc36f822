/**
 * The configuration of every server, checked by that server, in whichever version the tests run
 * (`HAPROXY_BIN`, `REDIS_SERVER_BIN`, …). Prometheus is in `deployment.test.ts`.
 */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { describe, expect, test, vi } from 'vitest'
import { DEPLOY } from '../../lab/servers/deploy.ts'
import {
  makeDirectory,
  releasePorts,
  removeDirectory,
  reservePorts,
} from '../../lab/servers/directory.ts'
import { Process } from '../../lab/servers/process.ts'
import { findProgram } from '../../lab/servers/programs.ts'
import { startNats, startPostgres, startRedis } from '../../lab/servers.ts'

const run = promisify(execFile)
const START_TIMEOUT_MS = 180_000
/** For what a server says when it has started, on a machine that may be busy. */
const SOON = { timeout: 60_000, interval: 50 }

/** The lines of a file that say something. */
function linesOf(...path: string[]): string[] {
  const lines = readFileSync(join(DEPLOY, ...path), 'utf8').split('\n')
  return lines.flatMap((line) => (line.trim() === '' || line.startsWith('#') ? [] : line.trim()))
}

describe('HAProxy', () => {
  const files = ['haproxy.cfg', 'backend-dns.cfg'].flatMap((file) => [
    '-f',
    join(DEPLOY, 'haproxy', file),
  ])

  const nodes = { API_HOST: 'tabulum-api', API_PORT: '8081', INTERNAL_PORT: '9091' }
  const observers = {
    OBSERVERS_HOST: 'tabulum-observe',
    OBSERVERS_NODE_PORT: '8091',
    HAPROXY_OBSERVE_CONNECTIONS: '100',
  }
  test.each([{}, { PORT: '18080', OBSERVE_PORT: '18090', ...nodes, ...observers }])(
    'accepts its configuration without a warning, with %j in the environment',
    async (env) => {
      // -dW: a warning is an error.
      const { stdout, stderr } = await run(await findProgram('haproxy'), ['-c', '-dW', ...files], {
        env,
      })
      expect(`${stdout}${stderr}`).not.toMatch(/WARNING|ALERT/)
    },
  )

  test('starts on it as the image does, without a warning about it', {
    timeout: START_TIMEOUT_MS,
  }, async () => {
    const directory = makeDirectory('haproxy-configuration')
    const [port, observePort, metricsPort] = (await reservePorts(3)) as [number, number, number]
    const haproxy = new Process({
      name: 'haproxy',
      file: await findProgram('haproxy'),
      args: ['-W', '-db', ...files],
      env: {
        PORT: String(port),
        OBSERVE_PORT: String(observePort),
        HAPROXY_BIND: '127.0.0.1',
        HAPROXY_METRICS_PORT: String(metricsPort),
        HAPROXY_METRICS_BIND: '127.0.0.1',
      },
      directory,
    })
    haproxy.start()
    try {
      await vi.waitFor(
        async () =>
          expect((await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).status).toBe(200),
        SOON,
      )
      // What it says about servers that it has yet to find, and about the user of the tests, is no
      // warning about the configuration.
      const OTHERS =
        /[Ss]erver (?:api|observe)\/|backend .(?:api|observe). has no|started as (?:the )?root/
      const said = haproxy.output().split('\n')
      expect(said.filter((line) => /WARNING|ALERT/.test(line) && !OTHERS.test(line))).toEqual([])
    } finally {
      await removeDirectory(directory)
      releasePorts([port, observePort, metricsPort])
    }
  })
})

test('Postgres runs on every setting of its configuration', {
  timeout: START_TIMEOUT_MS,
}, async () => {
  await using server = await startPostgres({ durable: true })
  const sql = postgres(server.superuserUrl, { max: 1 })
  try {
    const names = linesOf('postgres', 'postgresql.conf').map(
      (line) => line.split(/\s*=/, 1)[0] ?? '',
    )
    // Of what stands in the file, `applied` is false for what the server does not know or cannot
    // use, or the command line overrides.
    const wrong = await sql<{ name: string; error: string }[]>`
      SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL AND error <> 'setting could not be applied'`
    expect([...wrong]).toEqual([])
    const known = await sql<{ name: string }[]>`SELECT lower(name) AS name FROM pg_file_settings`
    expect(known.map(({ name }) => name)).toEqual(
      expect.arrayContaining(names.map((name) => name.toLowerCase())),
    )
    const rules = await sql<
      { error: string }[]
    >`SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL`
    expect([...rules]).toEqual([])
  } finally {
    await sql.end()
  }
})

test('Redis runs on every setting of its configuration', {
  timeout: START_TIMEOUT_MS,
}, async () => {
  await using server = await startRedis()
  const admin = new Redis(server.adminUrl)
  try {
    for (const line of linesOf('redis', 'redis.conf')) {
      const [name = '', value = ''] = line.split(/ (.*)/s)
      // Where it listens is said anew on the command line.
      if (name === 'bind' || name === 'port') continue
      expect(await admin.config('GET', name)).toEqual([name, value.replaceAll('"', '')])
    }
  } finally {
    admin.disconnect()
  }
  expect(server.process.output()).not.toMatch(
    /# (?!WARNING Memory overcommit)WARNING|FATAL|Bad directive/,
  )
})

test('NATS runs on its configuration', { timeout: START_TIMEOUT_MS }, async () => {
  await using cluster = await startNats()
  for (const server of cluster.servers)
    expect(server.process.output()).not.toMatch(/\[FTL\]|unknown field|deprecated/)
})
