/** What documents name is there: files, headings, folders, scripts. */
import { existsSync, globSync, readdirSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { describe, expect, it } from 'vitest'
import { ALL_TYPES } from '../../src/observe/changes.ts'
import {
  anchorsOf,
  blocksOf,
  linksOf,
  proseOf,
  ROOT,
  readDocument,
  sectionOf,
  tableRows,
} from '../support/document.ts'

const DOCUMENTS = globSync(['*.md', 'docs/*.md', 'examples/*.md', 'k8s/*.md', 'load-tests/*.md'], {
  cwd: ROOT,
}).sort()

describe('links', () => {
  const links = DOCUMENTS.flatMap((from) =>
    linksOf(readDocument(from))
      .filter((target) => !/^[a-z]+:/.test(target))
      .map((target) => ({ from, target })),
  )

  it('are there', () => {
    expect(links.length).toBeGreaterThan(30)
  })

  it.each(links)('in $from: $target', ({ from, target }) => {
    const [path = '', anchor] = target.split('#')
    const file = path === '' ? from : normalize(join(dirname(from), path))
    expect(existsSync(join(ROOT, file))).toBe(true)
    if (anchor !== undefined) expect(anchorsOf(readDocument(file))).toContain(anchor)
  })
})

/** Where the code is; what is elsewhere may be made when it runs. */
const OURS =
  /^(?:src|test|lab|bench|faults|examples|deploy|migrations|k8s|load-tests|docs)\/[\w./-]*$/

describe('files that are named', () => {
  const named = DOCUMENTS.flatMap((from) =>
    [...proseOf(readDocument(from)).matchAll(/`([^`\s]+)`/g)]
      .map(([, path = '']) => ({ from, path }))
      .filter(({ path }) => OURS.test(path)),
  )

  it.each(named)('in $from: $path', ({ path }) => {
    expect(existsSync(join(ROOT, path))).toBe(true)
  })
})

describe('the table of folders', () => {
  const rows = tableRows(readDocument('docs/contributing.md')).filter(([first = '']) =>
    /^`[a-z].*\//.test(first),
  )
  const folders = rows.flatMap(([first = '']) =>
    [...first.matchAll(/`([^`]+)`/g)].map(([, path = '']) => path),
  )

  it('has some', () => {
    expect(folders.length).toBeGreaterThan(10)
  })

  it.each(folders)('%s is there', (path) => {
    expect(existsSync(join(ROOT, path))).toBe(true)
  })

  it('has every folder of sources', () => {
    const entries = readdirSync(join(ROOT, 'src'), { withFileTypes: true, recursive: true })
    const sources = entries.filter(
      (entry) => entry.isFile() && entry.parentPath !== join(ROOT, 'src'),
    )
    const used = new Set(
      sources.map(({ parentPath }) => parentPath.slice(ROOT.length + 1).split('/')[1]),
    )
    expect(folders).toEqual(expect.arrayContaining([...used].map((name) => `src/${name}/`)))
  })
})

describe('scripts that documents name', () => {
  const scripts = Object.keys(JSON.parse(readDocument('package.json')).scripts)
  const named = DOCUMENTS.flatMap((from) =>
    [...readDocument(from).matchAll(/npm run ([a-z:]+)/g)].map(([, name = '']) => ({ from, name })),
  )

  it.each(named)('in $from: npm run $name', ({ name }) => {
    expect(scripts).toContain(name)
  })
})

describe('the glossary', () => {
  const entries = readDocument('docs/glossary.md').split(/^(?=- |#|\*\*)/m)
  const names = entries.flatMap((entry) => {
    const [, inCode = ''] = entry.split(/in\s+code:/i)
    return [...inCode.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name)
  })
  const code = globSync(['src/**/*.{ts,sql,lua}', 'migrations/**/*.sql'], { cwd: ROOT })
    .map(readDocument)
    .join('\n')

  it('has names of the code', () => {
    expect(names.length).toBeGreaterThan(30)
  })

  it.each([...new Set(names)])('%s is one', (name) => {
    expect(code).toMatch(new RegExp(`\\b${name}\\b`))
  })

  it('has each word once', () => {
    const words = entries.flatMap((entry) => /^- \*\*([^*]+)\*\*/.exec(entry)?.[1] ?? [])
    expect(words).toEqual([...new Set(words)])
  })
})

it.each(DOCUMENTS)('diagrams in %s have no semicolon, which ends a statement there', (document) => {
  expect(blocksOf(readDocument(document), 'mermaid').join('')).not.toContain(';')
})

/** Characters of a line, so that a difference between two versions can be read. */
const WIDTH = 120

describe('lines have at most 120 characters', () => {
  const narrow = DOCUMENTS.filter((path) => /^(?:docs\/|examples\/|[^/]+$)/.test(path))

  it.each(narrow)('in %s', (document) => {
    expect(
      readDocument(document)
        .split('\n')
        .filter((line) => line.length > WIDTH),
    ).toEqual([])
  })
})

/** Columns of a comment; of code the formatter takes care, but for strings and statements. */
const COLUMNS = 100
const SOURCE = globSync(
  [
    '{src,lab,bench,test,faults,examples,load-tests}/**/*.{ts,tsx,js,lua,sql}',
    'migrations/**/*.sql',
    '{deploy,k8s}/**/*.{yml,yaml,conf,cfg,sh}',
    '*.{ts,yml}',
  ],
  { cwd: ROOT, exclude: (path) => /(^|\/)(dist|node_modules)(\/|$)/.test(path) },
)

it('comments have lines of at most 100 columns', () => {
  expect(SOURCE.length).toBeGreaterThan(400)
  const long = SOURCE.flatMap((path) =>
    readDocument(path)
      .split('\n')
      .filter((line) => line.length > COLUMNS && /^\s*(\/\/|\/?\*+|--|#)( |$)/.test(line))
      .map((line) => `${path}: ${line.trim()}`),
  )
  expect(long).toEqual([])
})

it('docs/observing.md has a line for each type of event', () => {
  const rows = tableRows(sectionOf(readDocument('docs/observing.md'), '### Types of events'))
  expect(rows.slice(2).map(([type = '']) => type.replaceAll('`', ''))).toEqual(ALL_TYPES)
})
