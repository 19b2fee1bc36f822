/** Configuration that only a deployment uses, run by its real programs. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { describe, expect, test, vi } from 'vitest'
import { DEPLOY } from '../../lab/servers/deploy.ts'
import {
  makeDirectory,
  releasePorts,
  removeDirectory,
  reservePorts,
} from '../../lab/servers/directory.ts'
import { findProgram } from '../../lab/servers/programs.ts'
import { dashboardQueries } from '../support/dashboard.ts'
import { startNameServer } from '../unit/webhooks/name-server.ts'

const run = promisify(execFile)

describe('Prometheus', { timeout: 600_000 }, () => {
  const promtool = async (...args: string[]) =>
    (await run(await findProgram('promtool'), args)).stdout

  test('accepts its configuration and its rules', async () => {
    const stdout = await promtool('check', 'config', join(DEPLOY, 'prometheus', 'prometheus.yml'))
    expect(stdout).toMatch(/SUCCESS: \d+ rules found/)
  })

  test('alerts when it should, and when all is well does not', async () => {
    expect(
      await promtool('test', 'rules', join(import.meta.dirname, 'prometheus-rules.yml')),
    ).toContain('SUCCESS')
  })

  test('understands each query of the dashboard', async () => {
    const directory = makeDirectory('dashboard')
    const queries = dashboardQueries().map((query) => query.replaceAll('$__rate_interval', '1m'))
    expect(queries.length).toBeGreaterThan(20)
    const rules = queries.map((expr, index) => ({ record: `query_${index}`, expr }))
    const file = join(directory, 'queries.yml')
    // YAML reads JSON.
    writeFileSync(file, JSON.stringify({ groups: [{ name: 'dashboard', rules }] }))
    expect(await promtool('check', 'rules', file)).toContain(
      `SUCCESS: ${queries.length} rules found`,
    )
    await removeDirectory(directory)
  })
})

test('HAProxy finds nodes and observers by DNS, new ones too, and gives up those that are gone', {
  timeout: 180_000,
}, async () => {
  const ports = (await reservePorts(4)) as [number, number, number, number]
  const [port, observePort, metricsPort, nodePort] = ports
  const directory = makeDirectory('haproxy-dns')
  await using stack = new AsyncDisposableStack()
  stack.defer(async () => {
    await removeDirectory(directory)
    releasePorts(ports)
  })
  /** All nodes have the same port, as in containers, and an address each. */
  const nodes = ['127.88.0.1', '127.88.0.2', '127.88.0.3']
  for (const address of nodes) {
    const server = createServer((_, response) => response.end(address)).listen(nodePort, address)
    await once(server, 'listening')
    stack.defer(() => {
      server.close()
      server.closeAllConnections()
    })
  }
  let known = nodes.slice(0, 2)
  const names = stack.use(
    await startNameServer((name, type) =>
      !['api', 'observe'].includes(name) ? 'missing' : type === 'A' ? known : [],
    ),
  )
  const backend = readFileSync(join(DEPLOY, 'haproxy', 'backend-dns.cfg'), 'utf8')
  const ours = backend.replace('parse-resolv-conf', `nameserver test ${names.address}`)
  expect(ours).not.toBe(backend)
  // By default silence takes all nodes away after 30 s.
  expect(backend).toMatch(/hold timeout 1h/)
  writeFileSync(join(directory, 'backend.cfg'), ours)
  const haproxy = spawn(
    await findProgram('haproxy'),
    ['-db', '-f', join(DEPLOY, 'haproxy', 'haproxy.cfg'), '-f', join(directory, 'backend.cfg')],
    {
      cwd: directory,
      env: {
        PORT: String(port),
        OBSERVE_PORT: String(observePort),
        HAPROXY_BIND: '127.0.0.1',
        HAPROXY_METRICS_BIND: '127.0.0.1',
        HAPROXY_METRICS_PORT: String(metricsPort),
        API_PORT: String(nodePort),
        OBSERVERS_NODE_PORT: String(nodePort),
        INTERNAL_PORT: String(nodePort),
      },
      stdio: 'ignore',
    },
  )
  const serving = async () => {
    const answers = new Set<string>()
    for (let request = 0; request < 9; request++) {
      const answer = await fetch(`http://127.0.0.1:${port}/`, {
        headers: { Connection: 'close' },
      }).catch(() => undefined)
      if (answer?.ok) answers.add(await answer.text())
    }
    return [...answers].sort()
  }
  const becomes = async (wanted: readonly string[]) => {
    const deadline = Date.now() + 45_000
    let now = await serving()
    while (now.join() !== wanted.join() && Date.now() < deadline) {
      await sleep(100)
      now = await serving()
    }
    expect(now).toEqual(wanted)
  }
  await becomes(nodes.slice(0, 2))
  known = nodes
  await becomes(nodes)
  known = nodes.slice(1)
  await becomes(nodes.slice(1))
  // One client gets to one process.
  const watched = async () =>
    await fetch(`http://127.0.0.1:${observePort}/`, { headers: { Connection: 'close' } })
      .then(async (answer) => (answer.ok ? await answer.text() : undefined))
      .catch(() => undefined)
  const first = await watched()
  expect(nodes.slice(1)).toContain(first)
  known = nodes.filter((node) => node !== first)
  await vi.waitFor(async () => expect(known).toContain(await watched()), {
    timeout: 45_000,
    interval: 100,
  })
  haproxy.kill('SIGTERM')
})
