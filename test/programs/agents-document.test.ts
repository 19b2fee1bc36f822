/**
 * docs/agents.md: its three programs, run as their readers would; its tables of errors and limits.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  messagesPage,
  registryPage,
  stateDeleted,
  statePage,
  stateValue,
  stateWritten,
} from '../../lab/client.ts'
import { type Kernel, startKernel } from '../../lab/kernel.ts'
import { createTestAuthority, type Receiver, startReceiver } from '../../lab/receiver.ts'
import { ERROR_CODES } from '../../src/api/api-error.ts'
import { loadConfig, settingNames } from '../../src/config.ts'
import { newWebhookSecret, signatureHeaders } from '../../src/webhooks/signature.ts'
import {
  blocksOf,
  type Pasted,
  paste,
  readDocument,
  sectionOf,
  tableRows,
} from '../support/document.ts'

const DOCUMENT = readDocument('docs/agents.md')
/** In the document; the name is for examples, and leads nowhere (RFC 2606). */
const WEBHOOK_URL = 'https://agent.example/hook'

const stack = new AsyncDisposableStack()
let kernel: Kernel
let receiver: Receiver
let home: string

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'tabulum-agents-'))
  stack.defer(() => rm(home, { recursive: true }))
  const authority = stack.use(await createTestAuthority())
  receiver = stack.use(await startReceiver({ authority }))
  kernel = stack.use(
    await startKernel({ WEBHOOK_ALLOW_CIDRS: '127.0.0.0/8', WEBHOOK_CA_FILE: authority.caFile }),
  )
})
afterAll(() => stack.disposeAsync())

describe('in a shell', () => {
  let pasted: Pasted
  const answers: unknown[] = []

  beforeAll(async () => {
    const commands = blocksOf(DOCUMENT, 'bash').join('')
    expect(commands.split(WEBHOOK_URL)).toHaveLength(2)
    const text = commands.replace(WEBHOOK_URL, receiver.url)
    pasted = await paste(text, { home, env: { TABULUM_URL: kernel.baseUrl } })
    for (const line of pasted.output.split('\n'))
      if (line.startsWith('{')) answers.push(JSON.parse(line))
  })

  it('runs without a complaint', () => {
    expect(pasted.errors).toBe('')
    expect(pasted.output.match(/"error":"[a-z_]+"/g)).toEqual(['"error":"not_found"'])
  })

  it('finds, sends once, receives and shares', () => {
    const [registry, me, first, second, received, written, value, keys, capacity, deleted] = answers
    const [ada, bob] = registryPage.parse(registry).agents.map(({ address }) => address)
    expect(me).toMatchObject({ address: ada })
    expect(first).toMatchObject({ from: ada, to: bob })
    expect(second).toEqual(first)
    expect(messagesPage.parse(received)).toMatchObject({ messages: [first], remaining: 0 })
    expect(stateWritten.parse(written)).toMatchObject({ written_by: bob })
    expect(stateValue.parse(value)).toMatchObject({ value: '42', last_modified_by: bob })
    expect(statePage.parse(keys).keys).toEqual(['answers/6-times-7'])
    expect(capacity).toMatchObject({ key_count: 1 })
    expect(stateDeleted.parse(deleted)).toMatchObject({ deleted_by: bob })
  })

  it('has a message pushed, with the headers and the body that it says', async () => {
    await receiver.received(1)
    const [delivery] = receiver.deliveries
    expect(JSON.parse(String(delivery?.body))).toMatchObject({ ...(answers.at(-1) as object) })
    for (const name of DOCUMENT.match(/`webhook-[a-z]+`/g) ?? []) {
      expect(delivery?.headers).toHaveProperty([name.slice(1, -1)])
    }
    expect(pasted.output).toMatch(/^the secret of Eve is whsec_[A-Za-z0-9+/]{43}=$/m)
  })
})

/** How the programs in the two languages are told what to verify, and say what they think of it. */
const VERIFY_IN = {
  ts: `
const { secret, headers, body } = JSON.parse(process.env.DELIVERY ?? '')
console.log(\`verified: \${verify(secret, headers, body)}\`)
`,
  python: `
delivery = json.loads(os.environ["DELIVERY"])
print("verified:", str(verify(delivery["secret"], delivery["headers"], delivery["body"].encode())).lower())
`,
}

describe.each([
  { language: 'ts', program: process.execPath, file: 'agent.ts' },
  { language: 'python', program: 'python3', file: 'agent.py' },
] as const)('in $language', ({ language, program, file }) => {
  const blocks = blocksOf(DOCUMENT, language)

  it('finds, sends once, receives and shares', async () => {
    expect(await run(blocks.join('\n'))).toEqual([
      'Bob is in the registry: true',
      'sent once: true',
      'Bob received from Ada: true Bob, what is 6 times 7?',
      'the answer, by Bob: true 42',
      'keys: answers/6 times 7',
      'afterwards: not_found',
    ])
  })

  it('verifies what the kernel signed, and nothing else', async () => {
    const imports = blocks[0]?.split('\n\n')[0] ?? ''
    const text = `${imports}\n${blocks.at(-1)}${VERIFY_IN[language]}`
    const secret = newWebhookSecret()
    const body = '{"content": "schön"}'
    const signed = (now: number) => signatureHeaders({ secret, id: 'a-message', now, body })
    const headers = signed(Date.now())
    const verified = async (delivery: object) =>
      (await run(text, JSON.stringify({ secret, headers, body, ...delivery }))).join()
    expect(await verified({})).toBe('verified: true')
    const both = `v1,AAAA ${headers['webhook-signature']}`
    expect(await verified({ headers: { ...headers, 'webhook-signature': both } })).toBe(
      'verified: true',
    )
    expect(await verified({ body: `${body} ` })).toBe('verified: false')
    expect(await verified({ secret: newWebhookSecret() })).toBe('verified: false')
    expect(await verified({ headers: signed(Date.now() - 600_000) })).toBe('verified: false')
    expect(await verified({ headers: { ...headers, 'webhook-id': 'another' } })).toBe(
      'verified: false',
    )
    expect(await verified({ headers: { ...headers, 'webhook-timestamp': 'soon' } })).toBe(
      'verified: false',
    )
    // Anybody may post anything.
    expect(await verified({ headers: {} })).toBe('verified: false')
  })

  async function run(text: string, delivery = ''): Promise<string[]> {
    await writeFile(join(home, file), text)
    const child = spawn(program, [file], {
      cwd: home,
      env: { PATH: process.env.PATH ?? '', TABULUM_URL: kernel.baseUrl, DELIVERY: delivery },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    let errors = ''
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk
    })
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      errors += chunk
    })
    const missing = once(child, 'error').then(([error]) => {
      throw new Error(`${program} cannot be run (on Debian: apt-get install python3)`, {
        cause: error,
      })
    })
    await Promise.race([once(child, 'close'), missing])
    expect({ code: child.exitCode, errors }).toEqual({ code: 0, errors: '' })
    return output.trim().split('\n')
  }
})

describe('the table of errors', () => {
  const rows = tableRows(sectionOf(DOCUMENT, '## Errors')).slice(2)

  it('has each code of the API with its status', () => {
    const described = rows.map(([status, code = '']) => [code.replaceAll('`', ''), Number(status)])
    expect(Object.fromEntries(described)).toEqual(ERROR_CODES)
    expect(described).toHaveLength(Object.keys(ERROR_CODES).length)
  })
})

describe('the table of limits', () => {
  const rows = tableRows(sectionOf(DOCUMENT, '## Limits')).slice(2)

  it('has the limits of agents', () => {
    const named = rows.map(([, , setting = '']) => setting.replaceAll('`', ''))
    const ofAgents = settingNames.filter((name) =>
      /^(RATE_LIMIT_(?!OBSERVE|IPV6)|STATE_|MESSAGE_)/.test(name),
    )
    expect(named.toSorted()).toEqual(ofAgents.toSorted())
  })

  it.each(rows)('%s: %s (%s)', (_what, limit = '', setting = '') => {
    const defaults = new Map<string, unknown>(Object.entries(loadConfig({})))
    const [number = ''] = /^[\d,]+/.exec(limit) ?? []
    expect(Number(number.replaceAll(',', ''))).toBe(defaults.get(setting.replaceAll('`', '')))
  })
})
