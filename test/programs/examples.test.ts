/**
 * The two agents in examples/, run as their README says, against a kernel: the real client of an
 * end-to-end test.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { type Agent, Client, type Message, type Operator, solvePipeline } from '../../lab/client.ts'
import { type Event, startKernel } from '../../lab/kernel.ts'
import { releasePorts, reservePorts } from '../../lab/servers/directory.ts'
import { listen, startBadProxy } from '../support/bad-proxy.ts'

const ROOT = join(import.meta.dirname, '..', '..')
/** Seconds that a program may take; less than a test may. */
const WAIT = '100'
const TEST = { timeout: 150_000 }

const kernel = await startKernel({ RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '100' })
afterAll(() => kernel[Symbol.asyncDispose]())
const client = new Client(kernel.baseUrl)

interface Ended {
  code: number | null
  /** Lines of the transcript, without their time. */
  said: string[]
  errors: string
}

interface RunOptions {
  /** Given as the argument. Default: none, which leaves TABULUM_URL. */
  url?: string
  wait?: string
  env?: Record<string, string>
}

async function run(
  program: 'reader' | 'librarian',
  { url, wait = WAIT, env = {} }: RunOptions = {},
): Promise<Ended> {
  const [command, file] =
    program === 'reader'
      ? [process.execPath, 'examples/reader.ts']
      : ['python3', 'examples/librarian.py']
  const child = spawn(command, [file, ...(url === undefined ? [] : [url]), '--wait', wait], {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? '', TABULUM_URL: kernel.baseUrl, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  let errors = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text
  })
  const [code] = (await once(child, 'close')) as [number | null]
  const lines = output.split('\n').filter((line) => line !== '')
  const said = lines.map((line) => {
    const [, who, what] = /^\d\d:\d\d:\d\d {2}(\w+) +(.*)$/.exec(line) ?? []
    if (who !== program || what === undefined)
      throw new Error(`not a line of a transcript: ${line}`)
    return what
  })
  return { code, said, errors }
}

/** The address in the line `registered as …`. */
function addressOf({ said }: Ended): string {
  return (
    said.find((line) => line.startsWith('registered as '))?.slice('registered as '.length) ?? ''
  )
}

function expectSuccess(...programs: Ended[]): void {
  for (const { code, errors } of programs) expect({ code, errors }).toEqual({ code: 0, errors: '' })
}

async function lastSeq(): Promise<number> {
  return (await kernel.events()).at(-1)?.seq ?? 0
}

function ofType(events: readonly Event[], type: string): Event[] {
  return events.filter((event) => event.type === type)
}

async function onlooker(): Promise<{ operator: Operator; agent: Agent }> {
  const operator = await client.registerOperator()
  return { operator, agent: await operator.registerAgent() }
}

describe('the reader and the librarian', TEST, () => {
  it('find each other, talk and share state', async () => {
    const since = await lastSeq()
    const [reader, librarian] = await Promise.all([
      run('reader', { url: kernel.baseUrl, env: { TABULUM_URL: 'http://nowhere.invalid' } }),
      run('librarian'),
    ])
    expectSuccess(reader, librarian)
    const [readerAddress, librarianAddress] = [addressOf(reader), addressOf(librarian)]
    const [textKey, countKey] = [`shelf/${readerAddress}/text`, `shelf/${readerAddress}/words`]

    expect(reader.said).toEqual([
      expect.stringMatching(/^registered operator [0-9a-f-]{36}$/),
      `registered as ${readerAddress}`,
      `wrote ${textKey}: "Give me a place to stand, and I will move the world."`,
      expect.stringMatching(
        `^found the librarian: ${librarianAddress}, in the registry since .+Z$`,
      ),
      `asked ${librarianAddress}: how many words are in ${textKey}?`,
      `${librarianAddress} answered: 12 words`,
      `read ${countKey}: 12, written by ${librarianAddress}`,
      `thanked ${librarianAddress}; done`,
    ])
    expect(librarian.said).toEqual([
      expect.stringMatching(/^registered operator [0-9a-f-]{36}$/),
      `registered as ${librarianAddress}`,
      `wrote directory/librarian: ${librarianAddress}`,
      expect.stringMatching(
        `^${readerAddress}, in the registry since .+Z, asks: how many words are in ${textKey}\\?$`,
      ),
      `wrote ${countKey}: 12`,
      `answered ${readerAddress}: 12 words`,
      `${readerAddress} says thanks`,
      'deleted directory/librarian; done',
    ])

    const { agent } = await onlooker()
    expect(await agent.read(countKey)).toMatchObject({
      value: '12',
      last_modified_by: librarianAddress,
    })
    expect(await agent.read(textKey)).toMatchObject({ last_modified_by: readerAddress })
    expect((await agent.tryRead('directory/librarian')).status).toBe(404)
    const { agents } = await agent.registry()
    expect(agents.map(({ address }) => address)).toEqual(
      expect.arrayContaining([readerAddress, librarianAddress]),
    )

    const events = await vi.waitFor(
      async () => {
        const all = await kernel.events(since)
        expect(ofType(all, 'message_delivered')).toHaveLength(3)
        return all
      },
      { timeout: 20_000 },
    )
    expect(
      ofType(events, 'message_sent').map(({ data }) => [data.from, data.to, kindOf(data.content)]),
    ).toEqual([
      [readerAddress, librarianAddress, 'question'],
      [librarianAddress, readerAddress, 'answer'],
      [readerAddress, librarianAddress, 'thanks'],
    ])
    expect(
      ofType(events, 'state_written')
        .map(({ data }) => data.key)
        .sort(),
    ).toEqual(['directory/librarian', countKey, textKey].sort())
    expect(ofType(events, 'state_deleted').map(({ data }) => data.key)).toEqual([
      'directory/librarian',
    ])
  })

  it('register under an operator that is given', async () => {
    const since = await lastSeq()
    const { operator } = await onlooker()
    const env = { OPERATOR_KEY: operator.token }
    const [reader, librarian] = await Promise.all([
      run('reader', { env }),
      run('librarian', { env }),
    ])
    expectSuccess(reader, librarian)
    const events = await kernel.events(since)
    expect(ofType(events, 'operator_created').map(({ data }) => data.operator_id)).toEqual([
      operator.id,
    ])
    const registered = ofType(events, 'agent_registered').filter(
      ({ data }) => data.operator_id === operator.id,
    )
    expect(registered.map(({ data }) => data.address)).toEqual(
      expect.arrayContaining([addressOf(reader), addressOf(librarian)]),
    )
  })

  it('get past a librarian who has left, and past what strangers say', async () => {
    const { agent: stranger } = await onlooker()
    const librarianWorking = run('librarian')
    const { value: librarian } = await vi.waitFor(() => stranger.read('directory/librarian'), {
      timeout: 60_000,
      interval: 500,
    })
    // Now, as the librarian leaves when the reader, who does not know it yet, has said thanks.
    await stranger.send(librarian, JSON.stringify(['not', 'an', 'object']))
    await stranger.send(librarian, JSON.stringify({ kind: 'thanks' }))
    await stranger.write('directory/librarian', stranger.address)
    const reading = run('reader')
    // The reader asks the stranger, who is in the directory but no librarian.
    const question = await firstMessage(stranger)
    await stranger.send(question.from, 'not JSON \u001b[31m')
    await stranger.send(
      question.from,
      JSON.stringify({ kind: 'answer', answers: 'another question', words: 7 }),
    )
    await stranger.write('directory/librarian', librarian)

    const [reader, librarianEnded] = await Promise.all([reading, librarianWorking])
    expectSuccess(reader, librarianEnded)
    expect(
      reader.said.filter((line) => line.startsWith(`did not understand ${stranger.address}`)),
    ).toHaveLength(2)
    // What a stranger sent is shown without what would drive a terminal.
    expect(reader.said.join()).toContain('not JSON \\u001b[31m')
    expect(
      librarianEnded.said.filter((line) => line.startsWith('did not understand')),
    ).toHaveLength(2)
    expect(reader.said).toContain(`${librarian} answered: 12 words`)
  })

  it('get through refusals for now, and lost answers, with each message sent once', async () => {
    const since = await lastSeq()
    await using proxy = await startBadProxy(kernel.baseUrl)
    const [reader, librarian] = await Promise.all([
      run('reader', { url: proxy.url }),
      run('librarian', { url: proxy.url }),
    ])
    expectSuccess(reader, librarian)
    expect(proxy.refused).toBeGreaterThan(2)
    expect(proxy.lost).toBeGreaterThan(0)
    expect(proxy.impatience).toEqual([])
    const sent = ofType(await kernel.events(since), 'message_sent')
    expect(sent.map(({ data }) => kindOf(data.content))).toEqual(['question', 'answer', 'thanks'])
  })
})

describe.each(['reader', 'librarian'] as const)('the %s', TEST, (program) => {
  it('says so when there is no kernel', async () => {
    // Reserved, as any other that is free may be another test's by now.
    const ports = await reservePorts(1)
    onTestFinished(() => releasePorts(ports))
    const url = `http://127.0.0.1:${ports[0]}`
    const { code, said, errors } = await run(program, { url })
    expect(code).toBe(1)
    expect(said).toEqual([])
    expect(errors).toMatch(
      new RegExp(
        `^${program}: There is no kernel at ${url} \\(.*refused.*\\): start one.*\n$`,
        'i',
      ),
    )
  })

  it('says so when it may not register', async () => {
    const { code, errors } = await run(program, {
      env: { OPERATOR_KEY: `sk_live_${'0'.repeat(64)}` },
    })
    expect(code).toBe(1)
    expect(errors).toMatch(
      new RegExp(`^${program}: GET /v1/agents/verification-challenge was answered 401 .*\n$`),
    )
  })

  it('knows every operation of a challenge, and takes a new one when it is refused', async () => {
    const responses: unknown[] = []
    await using examiner = await listen(async (request, response) => {
      if (request.url === '/v1/health') {
        response.end('{"status":"ok","version":"0.1.0"}')
      } else if (request.url === '/v1/agents/verification-challenge') {
        const number = responses.length
        response.end(
          JSON.stringify({ challenge_id: String(number), challenge_data: CHALLENGES[number] }),
        )
      } else {
        responses.push(JSON.parse(await text(request)))
        response.writeHead(403).end('{"error":"verification_failed","message":"no"}')
      }
    })
    const { code, errors } = await run(program, {
      url: examiner.url,
      env: { OPERATOR_KEY: 'a key' },
    })
    expect(code).toBe(1)
    expect(errors).toMatch(
      new RegExp(`^${program}: POST /v1/agents was answered 403 .*verification_failed.*\n$`),
    )
    expect(responses).toEqual(
      CHALLENGES.map((challenge, number) => ({
        verification_response: { challenge_id: String(number), response: solvePipeline(challenge) },
      })),
    )
  })

  it('gives up in time when nobody is there', async () => {
    const start = performance.now()
    const { code, errors } = await run(program, { wait: '3' })
    expect(code).toBe(1)
    expect(errors).toMatch(
      new RegExp(`^${program}: (No librarian is there|Nobody asked).*--wait 3 .*\n$`),
    )
    expect(performance.now() - start).toBeLessThan(60_000)
  })

  it('gives up at once when it would have to wait for longer than it may', async () => {
    await using limited = await listen((request, response) => {
      if (request.url === '/v1/health') response.end('{"status":"ok","version":"0.1.0"}')
      else
        response
          .writeHead(429, { 'Retry-After': '700' })
          .end('{"error":"rate_limited","message":"later"}')
    })
    const { code, errors } = await run(program, { url: limited.url })
    expect(code).toBe(1)
    expect(errors).toMatch(
      new RegExp(`^${program}: POST /v1/operators was answered 429 .*rate_limited.* 700 s\n$`),
    )
  })
})

/**
 * All operations of the contract, each where doing it otherwise, or not at all, comes to something
 * else.
 */
const CHALLENGES = [
  [
    'prepend:a:b',
    'append:é😀',
    'reverse',
    'base64_encode',
    'rot13',
    'uppercase',
    'lowercase',
    'sha256',
  ],
  [
    'base64_encode',
    'base64_decode',
    'append:Ünï',
    'hex_encode',
    'rot13',
    'reverse',
    'prepend:Zz',
    'uppercase',
  ],
  [
    'append:NoßzZmMaA',
    'rot13',
    'reverse',
    'lowercase',
    'append:',
    'prepend:Xyz',
    'base64_encode',
    'hex_encode',
  ],
].map((operations) => ({
  seed: '00112233445566778899aabbccddeeff',
  operations: operations.map((op) => ({ op })),
}))

function kindOf(content: unknown): unknown {
  return JSON.parse(String(content)).kind
}

async function firstMessage(agent: Agent): Promise<Message> {
  return vi.waitFor(
    async () => {
      const { messages } = await agent.receive()
      const [message] = messages
      if (!message) throw new Error('no message yet')
      return message
    },
    // An agent may ask once a second.
    { timeout: 60_000, interval: 1_000 },
  )
}
