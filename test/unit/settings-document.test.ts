/**
 * docs/settings.md says what src/config.ts does: each setting, its default, its bounds, and the
 * commands that read it.
 */
import { globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { ConfigError, loadConfig, settingNames } from '../../src/config.ts'
import { ROOT, readDocument } from '../support/document.ts'

interface Described {
  name: string
  /** As it would be set; undefined where there is none. */
  fallback: string | undefined
  value: string
  commands: string[]
  text: string
}

/** What the sections of the document say, each a setting. */
const SECTIONS = readDocument('docs/settings.md')
  .split(/^### /m)
  .slice(1)
  .map((section) => section.split(/^## /m)[0] ?? '')
  .map((section): Described => {
    const [, name = '', fallback, value = '', commands = '', text = ''] =
      /^`([A-Z0-9_]+)`\n\n- Default: (?:none|`([^`]+)`)\n- Value: (.+)\n- Read by: (.+)\n\n(.+)$/s.exec(
        section.trim(),
      ) ?? []
    const named = [...commands.matchAll(/`([a-z-]+)`/g)].map(([, command = '']) => command)
    return { name, fallback, value, commands: named, text }
  })

/** What the program says would be right, of a value that is wrong wherever one can be. */
function rightOf(name: string): string {
  try {
    loadConfig({ [name]: '!' })
    return 'any text'
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    const [, right = ''] = /: must be (.+)$/s.exec(error.message) ?? []
    return right.replace(', such as 250ms, 30s, 5m or 1h', '')
  }
}

it('has all settings, each once, and no others', () => {
  expect(SECTIONS.map(({ name }) => name).toSorted()).toEqual(settingNames.toSorted())
})

describe.each(SECTIONS)('$name', ({ name, fallback, value, commands, text }) => {
  it('has its default', () => {
    const defaults = new Map(Object.entries(loadConfig({})))
    if (fallback === undefined) expect(defaults.get(name) ?? []).toEqual([])
    else
      expect(new Map(Object.entries(loadConfig({ [name]: fallback }))).get(name)).toEqual(
        defaults.get(name),
      )
  })

  it('has its bounds', () => {
    expect(value.replace(/\s+/g, ' ')).toBe(rightOf(name))
  })

  it('says what it does', () => {
    expect(text).toMatch(/^[A-Zl`].+\.$/s)
  })

  it('is read by commands that have it, and by no other that names it', () => {
    expect(commands).not.toEqual([])
    for (const command of commands) expect(filesThatRead(name, command), command).not.toEqual([])
    const ownFiles = COMMANDS.filter((command) => namesSetting(`src/commands/${command}.ts`, name))
    expect(commands).toEqual(expect.arrayContaining(ownFiles))
  })
})

/** Each is a file of its own; the others in there are parts of several. */
const COMMANDS = globSync('src/commands/*.ts', { cwd: ROOT })
  .map((file) => file.slice('src/commands/'.length, -'.ts'.length))
  .filter((name) => !['node', 'pushing'].includes(name))

/** Imports, and files that are run in a thread of their own. */
const IMPORT = /(?:\bfrom|\bimport\(|new URL\()\s*['"](\.[^'"]+\.ts)['"]/g

function importsOf(file: string): string[] {
  const text = readFileSync(join(ROOT, file), 'utf8')
  return [...text.matchAll(IMPORT)].map(([, to = '']) => join(dirname(file), to))
}

/** What src/config.ts makes of several settings, and who takes that. */
const MADE_OF = [
  { of: ['HOST', 'INTERNAL_HOST'], as: ['config\\.internalHost\\b'] },
  { of: ['DATABASE_URL', 'REDIS_URL', 'NATS_URL'], as: ['\\bclusterServers\\('] },
]

/** A file that takes the setting out of the configuration, and does not only speak of it. */
function namesSetting(file: string, name: string): boolean {
  const made = MADE_OF.find(({ of }) => of.includes(name))?.as ?? []
  return new RegExp([`config\\.${name}\\b`, `\\b${name}: `, ...made].join('|')).test(
    readFileSync(join(ROOT, file), 'utf8'),
  )
}

const reached = new Map<string, string[]>()

/** The files that a command is made of. */
function filesOf(command: string): string[] {
  const known = reached.get(command)
  if (known) return known
  const files = new Set([`src/commands/${command}.ts`])
  for (const file of files) for (const more of importsOf(file)) files.add(more)
  reached.set(command, [...files])
  return [...files]
}

function filesThatRead(name: string, command: string): string[] {
  return filesOf(command).filter((file) => file !== 'src/config.ts' && namesSetting(file, name))
}
