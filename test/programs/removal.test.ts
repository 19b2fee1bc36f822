/** `remove` on embedded storage: beside a kernel that runs, and without one. */
import { execFile } from 'node:child_process'
import { hash, randomUUID } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { freshDataDirectory, type Kernel, startKernel } from '../../lab/kernel.ts'
import { REDACTED } from '../../src/removal/redaction.ts'
import { runCommand } from '../support/command.ts'

const ROOT = join(import.meta.dirname, '..', '..')
const execute = promisify(execFile)
const TEST_MS = 240_000
const NOTHING_WRONG = /no differences\.\n$/
const UNLIMITED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
}
const sha256 = (text: string) => hash('sha256', text)
const WHY = ['--reason', 'court order 12'] as const

async function started(): Promise<{ kernel: Kernel; agents: [Agent, Agent] }> {
  const kernel = await startKernel(UNLIMITED)
  const agents = await new Client(kernel.baseUrl).registerAgents(2)
  return { kernel, agents: agents as [Agent, Agent] }
}

function expectRefusal(
  ended: { code: number | null; out: string; err: string },
  message: string | RegExp,
): void {
  expect({ code: ended.code, out: ended.out }, ended.err).toEqual({ code: 2, out: '' })
  expect(ended.err.trim().split('\n').at(-1)).toMatch(message)
}

async function expectVerified(dataDir: string): Promise<void> {
  const { out, err } = await runCommand(dataDir, 'verify')
  expect(out + err).toMatch(NOTHING_WRONG)
}

describe('a state key', () => {
  it('is gone for agents at once, while the kernel runs, and its room is free', {
    timeout: TEST_MS,
  }, async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one, two] = agents
    await one.write('kept', 'fine')
    const before = await one.capacity()
    await one.write('bad/é', 'illegal, first')
    await two.write('bad/é', 'illegal')
    const removing = ['remove', 'state', '--key', 'bad/é', ...WHY]

    const dry = await runCommand(kernel.dataDir, ...removing, '--dry-run')
    expect(dry).toMatchObject({ code: 0, out: 'Nothing was changed: this was a dry run.\n' })
    expect(dry.err).toContain(`its value has 7 bytes, SHA-256 ${sha256('illegal')}`)
    expectRefusal(
      await runCommand(kernel.dataDir, ...removing),
      'there is no terminal to ask on: add --yes',
    )
    expect((await one.read('bad/é')).value).toBe('illegal')

    const removed = await runCommand(kernel.dataDir, ...removing, '--yes')
    expect(removed, removed.err).toMatchObject({ code: 0 })
    expect(removed.out).toContain(`SHA-256 ${sha256('illegal')}`)
    for (const agent of agents) expect((await agent.tryRead('bad/é')).status).toBe(404)
    expect(await one.keys()).toEqual(['kept'])
    expect(await two.capacity()).toEqual(before)
    const [event] = (await kernel.events()).filter(({ type }) => type === 'state_key_removed')
    expect(event?.agent).toBeUndefined()
    expect(event?.data).toEqual({
      key: 'bad/é',
      reason: 'court order 12',
      performed_by: 'operator',
      content_hash: sha256('illegal'),
    })

    expectRefusal(
      await runCommand(kernel.dataDir, ...removing, '--yes'),
      /^state key "bad\/é" was removed already, .*: court order 12$/,
    )
    // Written again it can be removed again.
    await one.write('bad/é', 'again')
    const again = await runCommand(kernel.dataDir, ...removing, '--yes', '--by', 'Ada')
    expect(again.out, again.err).toContain(sha256('again'))
    const { out } = await runCommand(kernel.dataDir, 'remove', 'list')
    expect(out.trim().split('\n')).toEqual([
      expect.stringMatching(
        / state_key_removed "bad\/é" [0-9a-f]{64} by operator: court order 12$/,
      ),
      expect.stringMatching(/ state_key_removed "bad\/é" [0-9a-f]{64} by Ada: court order 12$/),
    ])
    await expectVerified(kernel.dataDir)
  })

  it('that agents have deleted is redacted by its last value, without a kernel too', {
    timeout: TEST_MS,
  }, async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one] = agents
    await one.write('a\0b', 'first')
    await one.write('a\0b', 'last')
    await one.remove('a\0b')
    expect(await kernel.stop()).toBe(0)
    const removed = await runCommand(
      kernel.dataDir,
      'remove',
      'state',
      '--encoded-key',
      'a%00b',
      ...WHY,
      '--yes',
    )
    expect(removed.out, removed.err).toContain(`Removed state key "a\\u0000b"`)
    expect(removed.out).toContain(sha256('last'))
    expectRefusal(
      await runCommand(
        kernel.dataDir,
        'remove',
        'state',
        '--encoded-key',
        'a%00b',
        ...WHY,
        '--yes',
      ),
      'was removed already',
    )
    await expectVerified(kernel.dataDir)
  })
})

describe('a message', () => {
  it('that waits arrives with the redaction, in its place and once', {
    timeout: TEST_MS,
  }, async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [sender, recipient] = agents
    const contents = ['0', 'illegal', '2', 'illegal '.repeat(5_000), '4']
    const sent = []
    for (const content of contents) sent.push(await sender.send(recipient.address, content))
    for (const index of [1, 3]) {
      const id = sent[index]?.message_id ?? ''
      // As somebody may have copied it.
      const removed = await runCommand(
        kernel.dataDir,
        'remove',
        'message',
        '--id',
        id.toUpperCase(),
        ...WHY,
        '--yes',
      )
      expect(removed.out, removed.err).toContain(`Removed message ${id}: event`)
      expect(removed.out).toContain(sha256(contents[index] ?? ''))
      expect(removed.err).toContain(`from ${sender.address} to ${recipient.address}`)
      expect(removed.out + removed.err).not.toContain('illegal')
    }
    const received = await recipient.receiveAll()
    expect(received.map(({ content }) => content)).toEqual(['0', REDACTED, '2', REDACTED, '4'])
    expect(received.map(({ message_id }) => message_id)).toEqual(
      sent.map(({ message_id }) => message_id),
    )
    expect(await recipient.receiveAll()).toEqual([])
    await expectVerified(kernel.dataDir)

    // One that was delivered is found in the log.
    const [first] = sent
    const id = first?.message_id ?? ''
    const late = await runCommand(kernel.dataDir, 'remove', 'message', '--id', id, ...WHY, '--yes')
    expect(late.out, late.err).toContain(sha256('0'))
    expectRefusal(
      await runCommand(kernel.dataDir, 'remove', 'message', '--id', id, ...WHY, '--yes'),
      `message ${id} was removed already`,
    )
    expect(
      (await runCommand(kernel.dataDir, 'remove', 'list')).out.trim().split('\n'),
    ).toHaveLength(3)
    expect(await recipient.receiveAll()).toEqual([])
    await expectVerified(kernel.dataDir)
  })
})

/** Runs `remove` in a terminal, types something when it asks, and says how it ended. */
const IN_A_TERMINAL = `
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
  os.execv(sys.argv[1], [sys.argv[1], 'src/main.ts', 'remove', 'state', '--key', 'key', '--reason', 'law'])
shown = b''
while b'Type yes: ' not in shown:
  shown += os.read(terminal, 65536)
os.write(terminal, sys.argv[2].encode())
try:
  while True:
    part = os.read(terminal, 65536)
    if not part: break
    shown += part
except OSError:
  pass
print(shown.decode())
print('ended with', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`

it('at a terminal it asks, and takes nothing but yes for that', { timeout: TEST_MS }, async () => {
  const { kernel, agents } = await started()
  await using _ = kernel
  await agents[0].write('key', 'value')
  const answered = async (text: string) => {
    const env = { ...process.env, DATA_DIR: kernel.dataDir }
    const { stdout } = await execute('python3', ['-c', IN_A_TERMINAL, process.execPath, text], {
      cwd: ROOT,
      env,
    })
    return stdout
  }
  for (const no of ['no\n', '\n', '\x03', '\x04']) {
    expect(await answered(no)).toMatch(
      /Remove it for "law", which is public, for ever\?.*Nothing was changed.*with 1\n$/s,
    )
  }
  expect((await agents[0].read('key')).value).toBe('value')
  expect(await answered('yes\n')).toMatch(/Removed state key "key".*ended with 0\n$/s)
  expect((await agents[0].tryRead('key')).status).toBe(404)
})

it('what is not there is refused, and nothing is changed', { timeout: TEST_MS }, async () => {
  const { kernel } = await started()
  await using _ = kernel
  const id = randomUUID()
  const remove = (...args: string[]) =>
    runCommand(kernel.dataDir, 'remove', ...args, ...WHY, '--yes')
  expectRefusal(
    await remove('state', '--key', 'unknown'),
    'there is no state key "unknown", and never was',
  )
  expectRefusal(await remove('message', '--id', id), `there is no message ${id} in the log`)
  expectRefusal(
    await runCommand(await freshDataDirectory(), 'remove', 'list'),
    'there is no database in',
  )
  expect(await runCommand(kernel.dataDir, 'remove', 'list')).toEqual({ code: 0, out: '', err: '' })
  expect((await kernel.events()).filter(({ type }) => /removed|redacted/.test(type))).toEqual([])
})

describe('what is erased', () => {
  const SECRET = 'illegal-4c0f1e'
  /**
   * Of each kind that a database keeps otherwise: in a row, in pages of its own, as JSON writes it.
   */
  const CONTENTS = [`${SECRET} small`, `${SECRET} `.repeat(4_000), `"${SECRET}"\n\u0000 ü`]

  /** The files of a data directory in which it is. */
  async function filesWith(dataDir: string): Promise<string[]> {
    const names = await readdir(dataDir)
    const contents = await Promise.all(
      names.map((name) => readFile(join(dataDir, name)).catch(() => Buffer.of())),
    )
    return names.filter((_, index) => contents[index]?.includes(SECRET))
  }

  it('is in no file any more, while the kernel runs and writes, and the log stays whole', {
    timeout: TEST_MS,
  }, async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one, two] = agents
    const json = (content: string) => ({
      json: { to: two.address, content },
      headers: { 'Idempotency-Key': 'once' },
    })
    for (const content of CONTENTS) {
      await one.write('bad', content)
      await one.write(`fine/${content.length}`, 'x'.repeat(content.length))
    }
    await one.write('deleted', CONTENTS[1] ?? '')
    await one.remove('deleted')
    const ids: string[] = []
    for (const content of CONTENTS) ids.push((await one.send(two.address, content)).message_id)
    const first = (await one.request('POST', '/v1/messages', json(`${SECRET} once`))).json as {
      message_id: string
    }
    expect(await filesWith(kernel.dataDir)).not.toEqual([])
    // An event that is long past what the removals are about.
    const before = await kernel.events()

    const erase = async (...args: string[]) => {
      const { code, out, err } = await runCommand(
        kernel.dataDir,
        'remove',
        ...args,
        ...WHY,
        '--yes',
        '--erase',
      )
      expect(code, out + err).toBe(0)
      return out
    }
    expect(await erase('state', '--key', 'bad')).toContain(
      'Erased what state key "bad" said from 3 events of the log.',
    )
    // As somebody may have begun it.
    const removed = await runCommand(
      kernel.dataDir,
      'remove',
      'state',
      '--key',
      'deleted',
      ...WHY,
      '--yes',
    )
    expect(removed.code, removed.err).toBe(0)
    expect(await filesWith(kernel.dataDir)).not.toEqual([])
    expect(await erase('state', '--key', 'deleted')).toContain('from 1 event of the log.')
    for (const id of [...ids, first.message_id])
      expect(await erase('message', '--id', id)).toContain('from 1 event of')
    expect(await erase('message', '--id', ids[0] ?? '')).toContain('from 0 events of the log.')
    expect(await filesWith(kernel.dataDir)).toEqual([])

    const after = await kernel.events()
    expect(after.slice(0, before.length).map(({ seq, type }) => ({ seq, type }))).toEqual(
      before.map(({ seq, type }) => ({ seq, type })),
    )
    const [write] = after.filter(({ type, data }) => type === 'state_written' && data.key === 'bad')
    expect(write?.data).toMatchObject({
      value: REDACTED,
      redacted: true,
      redacted_reason: 'court order 12',
    })
    // A retry is what it was, and another message under its key is refused as ever.
    const again = await one.request('POST', '/v1/messages', json(`${SECRET} once`))
    expect({ status: again.status, json: again.json }).toMatchObject({ status: 202, json: first })
    expect((await one.request('POST', '/v1/messages', json('another'))).status).toBe(400)
    expect((await two.receiveAll()).map(({ content }) => content)).toEqual(
      Array(ids.length + 1).fill(REDACTED),
    )
    await expectVerified(kernel.dataDir)
    expect(await filesWith(kernel.dataDir)).toEqual([])
    expect(await kernel.stop()).toBe(0)
    expect(await erase('state', '--key', 'bad')).not.toContain('Left to you')
    await expectVerified(kernel.dataDir)
  })
})
