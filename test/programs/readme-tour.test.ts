/** What the README says: its tour, run as a reader would; its settings; the files and folders that it names. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { messageAccepted, messagesPage, registryPage, statePage, stateValue, stateWritten } from '../../lab/client.ts'
import { type Event, startKernel } from '../../lab/kernel.ts'
import { loadConfig, settingNames } from '../../src/config.ts'

const ROOT = join(import.meta.dirname, '..', '..')
const readme = await readFile(join(ROOT, 'README.md'), 'utf8')

describe('the first screen', () => {
  it('has the two commands', () => {
    const screen = readme.split('\n').slice(0, 25).join('\n')
    expect(screen).toContain('npm ci && npm start')
    expect(screen).toContain('npm ci && npm test')
  })
})

describe('the tour', () => {
  const answers: unknown[] = []
  let output = ''
  let errors = ''
  let events: Event[] = []

  beforeAll(async () => {
    await using kernel = await startKernel()
    const home = await mkdtemp(join(tmpdir(), 'tabulum-tour-'))
    try {
      ;({ output, errors } = await paste(tourFor(kernel.baseUrl, kernel.observeUrl), home))
      events = await kernel.events()
    } finally {
      await rm(home, { recursive: true })
    }
    for (const line of output.split('\n')) if (line.startsWith('{')) answers.push(JSON.parse(line))
  }, 240_000)

  it('runs without a complaint', () => {
    expect(errors).toBe('')
    expect(output).not.toContain('"error"')
  })

  it('registers an operator', () => {
    expect(output.split('\n')[0]).toMatch(/^the operator is [0-9a-f-]{36}$/)
  })

  it('shows the two agents in the registry, the messages, and the state', () => {
    const [registry, question, received, reply, read, written, value, keys] = z
      .tuple([
        registryPage,
        messageAccepted,
        messagesPage,
        messageAccepted,
        messagesPage,
        stateWritten,
        stateValue,
        statePage,
      ])
      .parse(answers.slice(0, 8))
    const [ada, bob] = registry.agents.map(({ address }) => address)
    expect(registry.total).toBe(2)
    expect(question).toMatchObject({ from: ada, to: bob })
    expect(received.messages).toEqual([{ ...question, content: 'Bob, what is 6 times 7?' }])
    expect(reply).toMatchObject({ from: bob, to: ada })
    expect(read.messages).toEqual([{ ...reply, content: '42, Ada.' }])
    expect(written).toMatchObject({ key: 'answers/6-times-7', written_by: ada })
    expect(value).toMatchObject({ key: 'answers/6-times-7', value: '42', last_modified_by: ada })
    expect(keys).toEqual({ keys: ['answers/6-times-7'], next_cursor: null, total: 1 })
  })

  it('ends with what everybody may see: the event log, the network, the state', () => {
    const [log, network, value] = answers.slice(8) as [{ events: unknown[] }, { edges: unknown[] }, object]
    const shown = log.events
    expect(network.edges).toHaveLength(2)
    expect(value).toMatchObject({ key: 'answers/6-times-7', value: '42' })
    // What is recorded after an answer may follow those that were shown.
    expect(shown).toEqual(events.slice(0, shown.length))
    expect(shown).toEqual(
      expect.arrayContaining(
        ['operator_created', 'agent_registered', 'message_sent', 'state_written'].map((type) =>
          expect.objectContaining({ type }),
        ),
      ),
    )
  })
})

describe('the table of settings', () => {
  const rows = tableRows()
    .filter(([first = '']) => /^`[A-Z0-9_]+`$/.test(first))
    .map(([name = '', value = '']) => ({ name: name.slice(1, -1), value }))

  it('names all settings, in the order of src/config.ts, and no others', () => {
    expect(rows.map(({ name }) => name)).toEqual(settingNames)
  })

  it.each(rows)('has the default of $name', ({ name, value }) => {
    const defaults = new Map(Object.entries(loadConfig({})))
    if (value === '–') {
      expect(defaults.get(name) ?? []).toEqual([])
      return
    }
    const text = /^`(.+)`$/.exec(value)?.[1]
    expect(text).toBeDefined()
    expect(new Map(Object.entries(loadConfig({ [name]: text }))).get(name)).toEqual(defaults.get(name))
  })
})

describe('what the README names is there', () => {
  const prose = readme.replace(/^```.*?^```$/gms, '')
  const links = [...prose.matchAll(/\]\(([^)#]+)[^)]*\)/g)].map(([, target = '']) => target)

  it.each(links.filter((target) => !target.startsWith('http')))('%s', (target) => {
    expect(existsSync(join(ROOT, target))).toBe(true)
  })

  const folders = tableRows()
    .filter(([first = '']) => /^`[a-z].*\//.test(first))
    .flatMap(([first = '']) => [...first.matchAll(/`([^`]+)`/g)].map(([, path = '']) => path))

  it('names folders', () => {
    expect(folders.length).toBeGreaterThan(10)
  })

  it.each(folders)('%s', (path) => {
    expect(existsSync(join(ROOT, path))).toBe(true)
  })

  it('every folder of sources is described', async () => {
    const entries = await readdir(join(ROOT, 'src'), { withFileTypes: true, recursive: true })
    const sources = entries.filter((entry) => entry.isFile() && entry.parentPath !== join(ROOT, 'src'))
    const used = new Set(sources.map(({ parentPath }) => parentPath.slice(ROOT.length + 1).split('/')[1]))
    expect(folders).toEqual(expect.arrayContaining([...used].map((name) => `src/${name}/`)))
  })

  it.each([...new Set([...readme.matchAll(/npm run ([a-z:]+)/g)].map(([, name = '']) => name))])(
    'npm run %s',
    async (name) => {
      const { scripts } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'))
      expect(Object.keys(scripts)).toContain(name)
    },
  )
})

/** The cells of all rows of all tables. */
function tableRows(): string[][] {
  const lines = readme.split('\n').filter((line) => line.startsWith('|'))
  return lines.map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  )
}

/** The blocks of the tour, for a kernel that is elsewhere than the README says. */
function tourFor(baseUrl: string, observeUrl: string): string {
  const [, tour = ''] = /^## A tour.*?$(.*?)^## /ms.exec(readme) ?? []
  const blocks = [...tour.matchAll(/^```bash\n(.*?)^```$/gms)].map(([, block]) => block)
  const text = blocks.join('')
  for (const url of ['http://localhost:8080', 'http://localhost:8090']) expect(text.split(url)).toHaveLength(2)
  return text.replace('http://localhost:8080', baseUrl).replace('http://localhost:8090', observeUrl)
}

/**
 * Gives bash the text line by line on its standard input, as pasting does: a command that reads its input would swallow
 * lines, and an exclamation mark would be expanded from the history.
 */
async function paste(text: string, home: string): Promise<{ output: string; errors: string }> {
  const shell = spawn('bash', ['--norc', '--noprofile'], {
    env: { PATH: process.env.PATH ?? '', HOME: home, HISTFILE: '' },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let output = ''
  let errors = ''
  shell.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    output += chunk
  })
  shell.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    errors += chunk
  })
  shell.stdin.end(`set -o history -o histexpand\n${text}`)
  await once(shell, 'close')
  return { output, errors }
}
