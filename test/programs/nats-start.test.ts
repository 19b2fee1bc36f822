/**
 * `deploy/nats/start.sh` and `alive.sh` on a stand-in for the server: when it is ended, and when it
 * is not.
 */
import { spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { installNc } from '../../lab/servers.ts'

const START = join(import.meta.dirname, '../../deploy/nats/start.sh')
/** Questions in a row that have to be answered no. */
const TIMES = 6
const WAIT = { timeout: 30_000, interval: 10 }

async function start(initially: { started?: boolean; jetStream?: boolean } = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'nats-start-'))
  onTestFinished(() => rmSync(directory, { recursive: true }))
  const server = join(directory, 'nats-server')
  writeFileSync(
    server,
    '#!/bin/sh\necho "runs $*"\ntrap "exit 7" TERM\nwhile :; do sleep 0.05; done\n',
  )
  chmodSync(server, 0o755)
  installNc(directory)
  // As nats-server answers: whether it takes clients, whether it has JetStream, and what else is
  // wrong.
  const health = { started: true, jetStream: true, error: '', asked: 0, ...initially }
  const monitor = createServer(({ url = '' }, response) => {
    health.asked++
    const wrong = {
      '/healthz?js-server-only=true': health.started ? '' : 'not ready for connections',
      '/healthz?js-enabled-only=true': health.jetStream ? '' : 'JetStream not enabled',
      '/healthz': health.error,
    }[url]
    response.writeHead(wrong === '' ? 200 : 503).end(JSON.stringify({ error: wrong }))
  })
  await new Promise<void>((resolve) => monitor.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void monitor.close())
  const child = spawn('sh', [START, 'nats-server', '--config', 'x.conf'], {
    env: {
      PATH: `${directory}:${process.env.PATH}`,
      NATS_MONITOR_PORT: String((monitor.address() as AddressInfo).port),
      NATS_WATCH_SECONDS: '0.05',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  const said = { out: '', error: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said.out += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said.error += text
  })
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve))
  /** Resolves when the health was asked for so often again. */
  const askedAgain = async (times: number) => {
    const before = health.asked
    await vi.waitFor(() => expect(health.asked - before).toBeGreaterThanOrEqual(times), WAIT)
  }
  return { child, health, said, ended, askedAgain }
}

test('a server that is reading its log at the start is left alone; one whose JetStream went off is ended', async () => {
  const { child, health, said, ended, askedAgain } = await start({
    started: false,
    jetStream: false,
  })
  await askedAgain(2 * TIMES)
  expect(child.exitCode).toBeNull()
  expect(said.out).toBe('runs --config x.conf\n')
  health.jetStream = true
  health.started = true
  await askedAgain(4)
  // A short no is none.
  health.jetStream = false
  await askedAgain(2)
  health.jetStream = true
  await askedAgain(4 * TIMES)
  expect(child.exitCode).toBeNull()
  health.jetStream = false
  expect(await ended).toBe(7)
  expect(said.error).toContain('JetStream is off')
})

test('a server that started without JetStream is ended', async () => {
  const { said, ended } = await start({ jetStream: false })
  expect(await ended).toBe(7)
  expect(said.error).toContain('JetStream is off')
})

test('a server with a write error is ended; one that has no quorum or is behind is not', async () => {
  const { child, health, said, ended, askedAgain } = await start()
  for (const error of [
    'JetStream has not established contact with a meta leader',
    "JetStream stream 'KERNEL > EVENTS' is not current",
  ]) {
    health.error = error
    await askedAgain(4 * TIMES)
    expect(child.exitCode).toBeNull()
  }
  health.error = "JetStream stream 'KERNEL > EVENTS' stream write error: no space left on device"
  expect(await ended).toBe(7)
  expect(said.error).toContain('write error')
})

test('signals reach the server', async () => {
  const { child, said, ended } = await start()
  await vi.waitFor(() => expect(said.out).not.toBe(''), WAIT)
  child.kill('SIGTERM')
  expect(await ended).toBe(7)
})
