/**
 * Embedded storage on a disk that is full, and over files that are damaged or gone, while the
 * kernel runs.
 */
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { type Agent, type Answer, Client, keyPath } from '../../lab/client.ts'
import { type Kernel, startKernel } from '../../lab/kernel.ts'
import { SqliteUnavailable, verdictOn } from '../../src/platform/sqlite.ts'
import { SqliteWriter } from '../../src/platform/sqlite-writer.ts'
import { runCommand } from '../support/command.ts'

const UNLIMITED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
}
const WAIT = { timeout: 60_000, interval: 50 }
/** The promise is 5 s; the machine may be busy with other tests. */
const BACK_MS = 5_000 * 3
const database = (kernel: Kernel) => join(kernel.dataDir, 'tabulum.db')

/** What a file may grow to, in bytes, from now on. */
function limitFiles(kernel: Kernel, bytes: number | 'unlimited'): void {
  execFileSync('prlimit', ['--pid', String(kernel.pid), `--fsize=${bytes}:unlimited`])
}

async function readiness(
  kernel: Kernel,
): Promise<{ status: string; parts: Record<string, string> }> {
  const answer = await fetch(`${kernel.internalUrl}/readyz`)
  return (await answer.json()) as { status: string; parts: Record<string, string> }
}

const isReady = async (kernel: Kernel) => (await readiness(kernel)).status

function expectOutage(answer: Answer): void {
  expect(answer.status, `${answer}`).toBe(503)
  expect(answer.headers['retry-after']).toBe('1')
}

async function started(settings: Record<string, string> = {}) {
  const kernel = await startKernel({ ...UNLIMITED, ...settings })
  const client = new Client(kernel.baseUrl)
  return { kernel, client, agents: (await client.registerAgents(3)) as [Agent, Agent, Agent] }
}

describe('a full disk', () => {
  it('is told, loses nothing that was acknowledged, and is over by itself when there is room', async () => {
    const { kernel, client, agents } = await started({ LOG_LEVEL: 'debug' })
    await using _ = kernel
    const [one, two, three] = agents
    const operator = await client.registerOperator()
    await one.write('kept', 'before')
    const { message_id } = await one.send(two.address, 'waits')
    expect(await isReady(kernel)).toBe('ready')

    // Under load, until writes fail.
    limitFiles(kernel, statSync(`${database(kernel)}-wal`).size + 200_000)
    const written = new Map<string, string>()
    let failed = 0
    for (let round = 0; failed < 5; round++) {
      const key = `load/${round % 20}`
      const answer = await one.tryWrite(key, `secret-value-${round} ${'x'.repeat(5_000)}`)
      if (answer.status === 200) written.set(key, `secret-value-${round}`)
      else {
        expectOutage(answer)
        failed++
      }
    }
    limitFiles(kernel, 0)
    expectOutage(await one.tryWrite('new', 'secret-value-new'))
    expectOutage(await one.trySend(three.address, 'secret-content'))
    expectOutage(await one.tryRemove('kept'))
    expectOutage(
      await client.request('POST', '/v1/operators', {
        json: { contact_hash: 'secret-contact', accept_terms: true },
      }),
    )
    expectOutage(await operator.request('GET', '/v1/agents/verification-challenge'))
    await expect
      .poll(() => readiness(kernel), WAIT)
      .toMatchObject({
        status: 'degraded',
        parts: { storage: expect.stringContaining('the database cannot be written') },
      })
    // Reads go on, and what is fetched is fetched once.
    expect(await one.read('kept')).toMatchObject({ value: 'before' })
    expect((await one.list('?prefix=load')).total).toBe(written.size)
    expect(await two.receive()).toMatchObject({ messages: [{ message_id }], remaining: 0 })
    expect(await two.receive()).toMatchObject({ messages: [], remaining: 0 })
    expect((await kernel.events()).length).toBeGreaterThan(0)
    // An operator is told as well.
    expect((await runCommand(kernel.dataDir, 'verify')).code).toBe(0)

    limitFiles(kernel, 'unlimited')
    const since = performance.now()
    // Nobody asks for anything but this.
    await expect.poll(() => isReady(kernel), WAIT).toBe('ready')
    expect(performance.now() - since).toBeLessThan(BACK_MS)
    await one.write('after', 'there is room')
    for (const [key, value] of written) expect((await one.read(key)).value).toContain(`${value} `)
    expect(await two.receive()).toMatchObject({ messages: [], remaining: 0 })
    await expect
      .poll(
        async () =>
          (await kernel.events()).filter(({ type }) => type === 'message_delivered').length,
        WAIT,
      )
      .toBe(1)

    // A line for each reason, which are few, and one when it is over, of however many answers.
    const lines = (text: string) => kernel.output().split(`"${text}"`).length - 1
    await expect.poll(() => lines('no more of: unavailable'), WAIT).toBe(1)
    expect(lines('unavailable')).toBeGreaterThan(0)
    expect(lines('unavailable')).toBeLessThanOrEqual(5)

    // Over the death of the process too.
    await kernel.kill()
    await using again = await startKernel(UNLIMITED, { dataDir: kernel.dataDir })
    const later = new Client(again.baseUrl)
    for (const [key, value] of written) {
      const answer = await later.request('GET', keyPath(key), { token: one.token })
      expect(answer.json).toMatchObject({ value: expect.stringContaining(`${value} `) })
    }
    const queued = await later.request('GET', '/v1/messages', { token: two.token })
    expect(queued.json).toMatchObject({ messages: [] })
    const { out } = await runCommand(kernel.dataDir, 'verify')
    expect(out).toContain('no differences')
    for (const secret of [one.token, two.token, operator.token, 'secret-']) {
      expect(kernel.output()).not.toContain(secret)
    }
  })

  it.each([
    ['SQLITE_FULL', 13, 'outage'],
    ['SQLITE_IOERR_WRITE', 778, 'outage'],
    ['SQLITE_IOERR_SHMSIZE', 4874, 'outage'],
    ['SQLITE_BUSY_SNAPSHOT', 517, 'outage'],
    ['SQLITE_NOMEM', 7, 'outage'],
    ['SQLITE_IOERR_FSYNC', 1034, 'ruin'],
    ['SQLITE_IOERR_READ', 266, 'ruin'],
    ['SQLITE_CORRUPT_INDEX', 779, 'ruin'],
    ['SQLITE_NOTADB', 26, 'ruin'],
    ['SQLITE_READONLY_DBMOVED', 1032, 'ruin'],
    ['SQLITE_CONSTRAINT_UNIQUE', 2067, 'defect'],
    ['SQLITE_ERROR', 1, 'defect'],
  ] as const)('%s', (_name, errcode, verdict) => {
    expect(verdictOn(Object.assign(new Error('x'), { errcode }))).toBe(verdict)
  })
})

const KEYS = 40
const VALUE = 'x'.repeat(500_000)

describe('a database that is damaged while the kernel runs ends it, with a message', () => {
  const cases: [string, (file: string) => void][] = [
    ['removed', (file) => rmSync(file)],
    [
      'replaced',
      (file) => {
        copyFileSync(file, `${file}.copy`)
        renameSync(`${file}.copy`, file)
      },
    ],
    ['its write-ahead log removed', (file) => rmSync(`${file}-wal`)],
    ['the index of the log removed', (file) => rmSync(`${file}-shm`)],
    ['cut short', (file) => truncateSync(file, 8_192)],
    ['emptied', (file) => truncateSync(file, 0)],
    [
      'overwritten',
      (file) => {
        const noise = Buffer.alloc(statSync(file).size - 4_096, 0xa5)
        writeSync(openSync(file, 'r+'), noise, 0, noise.length, 4_096)
      },
    ],
  ]
  it.each(cases)('%s', async (_what, damage) => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one] = agents
    // So much that it is in the database, and not in memory or in the log.
    for (let index = 0; index < KEYS; index++) await one.write(`${index}`, VALUE)
    const other = new DatabaseSync(database(kernel))
    other.exec('pragma wal_checkpoint')
    other.close()
    expect(statSync(database(kernel)).size).toBeGreaterThan(20_000_000)
    const ended = new Promise<number | null>((resolve) => kernel.process.once('exit', resolve))
    damage(database(kernel))
    // Somebody reads all of it sooner or later.
    const reading = async () => {
      for (let index = 0; kernel.process.exitCode === null; index++) {
        const answer = await one.tryRead(`${index % KEYS}`).catch(() => undefined)
        if (answer?.status === 200) expect((answer.json as { value: string }).value).toBe(VALUE)
      }
    }
    const read = reading()
    expect(await ended).toBe(1)
    await read
    expect(kernel.output()).toContain('the database cannot be used any more: the process ends')
    expect(kernel.output()).not.toContain('xxxxx')
  })
})

/** A thread that does what a test tells it. */
const thread = (body: string) =>
  new URL(
    `data:text/javascript,${encodeURIComponent(`
      import { parentPort } from 'node:worker_threads'
      parentPort.on('message', (calls) => { if (calls === undefined) parentPort.close(); else { ${body} } })
      parentPort.postMessage({ ready: true })`)}`,
  )

describe('the thread that writes', () => {
  it.each([
    ['throws', `throw new Error('a defect')`, 'a defect'],
    ['ends', 'process.exit()', 'the thread that writes has ended'],
  ])('is missed where it %s', async (_what, body, reason) => {
    const ruin = Promise.withResolvers<Error>()
    const writer = await SqliteWriter.open({
      thread: thread(body),
      data: undefined,
      onRuin: ruin.resolve,
    })
    await expect(writer.run('x', undefined as never)).rejects.toThrow(SqliteUnavailable)
    expect((await ruin.promise).message).toContain(reason)
    expect(writer.outage).toContain(reason)
    await expect(writer.run('x', undefined as never)).rejects.toThrow(SqliteUnavailable)
  })

  it('that does not answer is an outage until it does', async () => {
    const silent =
      'if (!globalThis.asked) { globalThis.asked = true; setTimeout(answer, 3_000) } else answer(calls)'
    const body = `const answer = () => parentPort.postMessage({ outcomes: calls.map(() => ({ value: 1 })) }); ${silent}`
    const options = { thread: thread(body), data: undefined, onRuin: () => {}, deadlineMs: 1_000 }
    const writer = await SqliteWriter.open(options)
    await expect(writer.run('x', undefined as never)).rejects.toThrow(
      'the disk did not answer within 1 s',
    )
    expect(writer.outage).toContain('the disk did not answer within 1 s')
    await expect(writer.run('x', undefined as never)).rejects.toThrow(SqliteUnavailable)
    await expect.poll(() => writer.outage, WAIT).toBeUndefined()
    expect(await writer.run('x', undefined as never)).toBe(1)
    await writer.close()
  })
})

/** As `Retry-After` says. */
const RETRY_MS = 1_000

describe('bounds', () => {
  it('60 values of 1 MiB at once are all written in 512 MiB, by clients that come again when they are told to', async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one, two] = agents
    const value = 'x'.repeat(1_048_576)
    let refused = 0
    const write = async (index: number) => {
      for (;;) {
        const answer = await (index % 2 ? one : two).tryWrite(`${index}`, value)
        if (answer.status === 200) return
        expectOutage(answer)
        refused++
        await sleep(RETRY_MS)
      }
    }
    await Promise.all(Array.from({ length: 60 }, (_, index) => write(index)))
    const peak = await peakMiB(kernel)
    console.log(`${refused} times told to come again, peak ${peak} MiB`)
    expect(peak).toBeLessThan(512)
  })

  it('60 values of 1 MiB that JSON writes six times as long take no more either', async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one, two] = agents
    const value = '\0'.repeat(1_048_576)
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, index) => (index % 2 ? one : two).tryWrite(`${index}`, value)),
    )
    // 360 MB take more than the 30 s that a request may on a machine that is busy with other
    // things.
    for (const answer of answers)
      if (answer.status !== 200 && answer.status !== 408) expectOutage(answer)
    const written = answers.filter(({ status }) => status === 200).length
    expect(written).toBeGreaterThan(0)
    const peak = await peakMiB(kernel)
    console.log(`${written} written, peak ${peak} MiB`)
    expect(peak).toBeLessThan(512)
  })
})

async function peakMiB({ pid }: Kernel): Promise<number> {
  const kilobytes = /^VmHWM:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Math.round(Number(kilobytes) / 1_024)
}

it('what was acknowledged under load before SIGTERM is there afterwards', async () => {
  const { kernel, agents } = await started()
  await using _ = kernel
  const written = new Map<string, string>()
  let isStopping = false
  const working = agents.flatMap((agent, actor) =>
    Array.from({ length: 8 }, async (_unused, worker) => {
      for (let round = 0; ; round++) {
        const [key, value] = [`${actor}/${worker}`, `${round}`]
        // A connection that is refused, or an answer that says so, ends it.
        const answer = await agent.tryWrite(key, value).catch(() => undefined)
        if (answer?.status === 200) written.set(key, value)
        else if (isStopping) return
      }
    }),
  )
  await expect
    .poll(() => [...written.values()].every((round) => Number(round) > 3) && written.size, WAIT)
    .toBe(24)
  isStopping = true
  expect(await kernel.stop()).toBe(0)
  await Promise.all(working)
  await using again = await startKernel(UNLIMITED, { dataDir: kernel.dataDir })
  const client = new Client(again.baseUrl)
  for (const [key, value] of written) {
    const answer = await client.request('GET', keyPath(key), { token: agents[0].token })
    // One more may have been done whose answer did not come.
    expect(Number((answer.json as { value: string }).value)).toBeOneOf([
      Number(value),
      Number(value) + 1,
    ])
  }
  expect((await runCommand(kernel.dataDir, 'verify')).out).toContain('no differences')
})

it('pages of the log under load: each event once, in order, whatever the limit', async () => {
  const { kernel, agents } = await started()
  await using _ = kernel
  let isOver = false
  const working = agents.map(async (agent) => {
    for (let round = 0; !isOver; round++)
      await agent.write(`${agent.address}/${round % 10}`, 'x'.repeat(20_000))
  })
  const page = async (query: string) => {
    const answer = await fetch(`${kernel.internalUrl}/events${query}`)
    const text = await answer.text()
    return {
      status: answer.status,
      seqs: text.split('\n').flatMap((line) => (line ? JSON.parse(line).seq : [])),
    }
  }
  await expect.poll(async () => (await kernel.events()).length, WAIT).toBeGreaterThan(60)
  for (const limit of [1, 7, 1_000]) {
    let last = 0
    while (last < 50) {
      const { status, seqs } = await page(`?since=${last}&limit=${limit}`)
      expect(status).toBe(200)
      expect(seqs).toEqual(Array.from(seqs, (_seq, index) => last + index + 1))
      expect(seqs.length).toBeGreaterThan(0)
      expect(seqs.length).toBeLessThanOrEqual(limit)
      last = seqs.at(-1) ?? last
    }
  }
  expect(await page('?limit=0')).toEqual({ status: 200, seqs: [] })
  expect(await page('?since=999999999999999')).toEqual({ status: 200, seqs: [] })
  for (const query of [
    '?since=-1',
    '?since=x',
    '?limit=1.5',
    '?limit=',
    `?since=${'9'.repeat(16)}`,
  ]) {
    const answer = await fetch(`${kernel.internalUrl}/events${query}`)
    expect(answer.status, query).toBe(400)
  }
  isOver = true
  await Promise.all(working)
})

it('a queue holds its newest messages, and the log all', async () => {
  const { kernel, client, agents } = await started({ MESSAGE_MAX_QUEUE_PER_AGENT: '200' })
  await using _ = kernel
  const [one, two] = agents
  const SENT = 300
  const ids: string[] = []
  for (let from = 0; from < SENT; from += 50) {
    const sent = await Promise.all(
      Array.from({ length: 50 }, (_unused, index) => one.send(two.address, `${from + index}`)),
    )
    ids.push(...sent.map(({ message_id }) => message_id))
  }
  const first = await two.receive('?limit=1')
  expect(first.remaining).toBe(199)
  const held = [...first.messages, ...(await two.receiveAll())].map(({ message_id }) => message_id)
  expect(held).toHaveLength(200)
  const log = (await kernel.events())
    .filter(({ type }) => type === 'message_sent')
    .map(({ data }) => data.message_id)
  expect(log.toSorted()).toEqual(ids.toSorted())
  expect(held).toEqual(log.slice(SENT - 200))
  expect((await client.request('GET', '/v1/health')).status).toBe(200)
  expect((await runCommand(kernel.dataDir, 'verify')).out).toContain('no differences')
})
