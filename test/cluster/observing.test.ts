/**
 * What docs/observing.md says to observers, run as they would: with their password, on the servers'
 * configuration of deploy/.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { connect, type NatsConnection } from 'nats'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { type NatsCluster, natsOptions, startNats } from '../../lab/servers.ts'
import type { NewEvent } from '../../src/events/event.ts'
import { eventLineSchema } from '../../src/events/event-schema.ts'
import { JetStreamEventLog } from '../../src/events/jetstream-event-log.ts'
import { createLogger } from '../../src/platform/logger.ts'
import { connectNats } from '../../src/platform/nats.ts'
import {
  inParallel,
  inSequence,
  read,
  registryRead,
  sent,
  written,
} from '../conformance/support.ts'

const ROOT = join(import.meta.dirname, '..', '..')
const WAIT = { timeout: 60_000, interval: 50 }
const START_MS = 180_000

const stack = new AsyncDisposableStack()
let nats: NatsCluster
let admin: NatsConnection
let log: JetStreamEventLog
/** Code blocks of TypeScript, in their order. */
let blocks: string[]
let document: string

beforeAll(async () => {
  document = await readFile(join(ROOT, 'docs', 'observing.md'), 'utf8')
  blocks = [...document.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code as string)
  nats = stack.use(await startNats())
  log = await JetStreamEventLog.open(
    await connectNats(nats.url.split(','), 'test', createLogger('warn', 'test')),
    3,
  )
  stack.defer(() => log.close())
  admin = await connect(natsOptions(nats.adminUrl))
  stack.defer(() => admin.close())
}, START_MS)
afterAll(() => stack.disposeAsync(), START_MS)

/** Runs TypeScript as an observer, until disposed of. */
function observe(code: string, since = 0) {
  const servers = nats.observerUrl.split(',').map((url) => new URL(url))
  const child: ChildProcess = spawn(
    process.execPath,
    ['--input-type=module-typescript', '--eval', code],
    {
      cwd: ROOT,
      env: {
        ...process.env,
        NATS_URL: servers.map(({ host }) => host).join(','),
        NATS_OBSERVER_PASSWORD: servers[0]?.password ?? '',
        SINCE: String(since),
      },
    },
  )
  let output = ''
  child.stdout?.on('data', (chunk: Buffer) => (output += chunk.toString()))
  child.stderr?.on('data', (chunk: Buffer) => (output += chunk.toString()))
  return {
    output: () => output,
    /** The numbers at the beginnings of its lines. */
    numbers: () => [...output.matchAll(/^(\d+)\b/gm)].map(([, number]) => Number(number)),
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null) return
      child.kill('SIGKILL')
      await once(child, 'exit')
    },
  }
}

/** Some of all classes, in batches. */
async function append(): Promise<number[]> {
  const appended = await inParallel(120, (index) =>
    log.append(
      index % 4 === 0
        ? read('k')
        : index % 4 === 1
          ? sent('tab_x', 'line\nbreak')
          : written('k', 'v'),
    ),
  )
  return appended.map(({ seq }) => seq).toSorted((one, other) => one - other)
}

it('the subscriber gets each event once and in order, and goes on where it was', {
  timeout: START_MS,
}, async () => {
  const seqs = await append()
  const [subscriber = ''] = blocks
  expect(subscriber.trim().split('\n').length).toBeLessThanOrEqual(24)
  {
    await using first = observe(subscriber)
    await vi.waitFor(() => expect(first.numbers(), first.output()).toEqual(seqs), WAIT)
    seqs.push(...(await append()))
    await vi.waitFor(() => expect(first.numbers(), first.output()).toEqual(seqs), WAIT)
  }
  const since = seqs[100] as number
  await using later = observe(subscriber, since)
  await vi.waitFor(() => expect(later.numbers(), later.output()).toEqual(seqs.slice(101)), WAIT)
})

it('several share the work, with acks: none is worked off again', {
  timeout: START_MS,
}, async () => {
  const [subscriber = '', shared = ''] = blocks
  const beginning = subscriber.slice(0, subscriber.indexOf('const name'))
  const code = `${beginning}
const workOff = async (message: { seq: number }) => console.log(message.seq)
${shared}`
  const manager = await admin.jetstreamManager()
  const { last_seq: last } = (await manager.streams.info('EVENTS')).state
  await using one = observe(code)
  await using other = observe(code)
  const all = Array.from({ length: last }, (_, index) => index + 1)
  const done = () => [...one.numbers(), ...other.numbers()].toSorted((a, b) => a - b)
  await vi.waitFor(() => expect(done(), one.output() + other.output()).toEqual(all), WAIT)
  await vi.waitFor(async () => {
    const { num_ack_pending, num_pending } = await manager.consumers.info('EVENTS', 'observers')
    expect({ num_ack_pending, num_pending }).toEqual({ num_ack_pending: 0, num_pending: 0 })
  }, WAIT)
})

it('the schema is that of the lines, and refuses what is none', async () => {
  const ajv = new Ajv2020({ strict: false })
  addFormats.default(ajv)
  const validate = ajv.compile(eventLineSchema())
  const id = 'x'
  const ts = new Date().toISOString()
  const others: NewEvent[] = [
    {
      ts,
      type: 'operator_created',
      data: { operator_id: id, contact_hash: 'c', accepted_terms: true },
    },
    {
      ts,
      type: 'agent_registered',
      agent: 'tab_x',
      data: { address: 'tab_x', operator_id: id, has_webhook: true },
    },
    {
      ts,
      type: 'push_failed',
      agent: 'tab_x',
      data: { message_id: id, to: 'tab_x', reason: 'circuit_open' },
    },
    registryRead(),
  ]
  await inSequence(others.length, (index) =>
    log.append(others[index] as NewEvent, { about: 1_000 }),
  )
  await log.append(sent('tab_x', 'pushed'), { via: 'webhook' })
  const manager = await admin.jetstreamManager()
  const { last_seq: last } = (await manager.streams.info('EVENTS')).state
  for (let seq = 1; seq <= last; seq++) {
    const { subject, data } = await manager.streams.getMessage('EVENTS', { seq })
    expect(['events.registry', 'events.message', 'events.state', 'events.read']).toContain(subject)
    for (const line of Buffer.from(data).toString().split('\n'))
      expect(validate(JSON.parse(line)), `${line}: ${ajv.errorsText(validate.errors)}`).toBe(true)
  }
  expect(validate({ ts, type: 'state_read', agent: 'tab_x', data: { key: 1 } })).toBe(false)
  expect(validate({ ts, type: 'unknown', data: {} })).toBe(false)
  // As a document says what a line looks like.
  const example = /^```json\n(.*?)\n```$/ms.exec(document)?.[1] ?? ''
  expect(validate(JSON.parse(example))).toBe(true)
})
