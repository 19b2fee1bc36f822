/** Who may stand on whom, among the directories of this repository. */
import { globSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { expect, it } from 'vitest'

const ROOT = join(import.meta.dirname, '..', '..')

/**
 * What tests, measurements and faults share is in `lab/`, so that each of the three can change
 * without the others.
 */
const STANDS_ON: Readonly<Record<string, readonly string[]>> = {
  src: [],
  lab: ['src'],
  test: ['src', 'lab', 'examples', 'vitest.config.ts'],
  bench: ['src', 'lab'],
  faults: ['src', 'lab'],
  examples: [],
  'load-tests': [],
}
/**
 * `import … from './x.ts'`, `export … from`, `import './x.ts'`, `import('./x.ts')`, and what
 * `vi.mock` names.
 */
const RELATIVE_IMPORT = /\b(?:from|import|import\(|mock\()\s*['"](\.[^'"]+)['"]/g

const directoryOf = (path: string) => path.split('/')[0] ?? ''

function importsOf(file: string): string[] {
  const text = readFileSync(join(ROOT, file), 'utf8')
  return [...text.matchAll(RELATIVE_IMPORT)].map(([, to = '']) =>
    relative(ROOT, join(ROOT, dirname(file), to)),
  )
}

it.each(Object.entries(STANDS_ON))('%s/ imports only from itself and [%s]', (directory, others) => {
  const files = globSync(`${directory}/**/*.{ts,tsx}`, { cwd: ROOT })
  expect(files).not.toEqual([])
  const imports = files.flatMap((file) => importsOf(file).map((to) => ({ file, to })))
  expect(imports.filter(({ to }) => ![directory, ...others].includes(directoryOf(to)))).toEqual([])
})

/** As they are written; a type is imported by nobody when the program runs. */
const STATIC_IMPORT = /^(?:import|export) (?!type )(?:[^'"]*? from )?['"]([^'"]+)['"]/gm

/** Packages that a program loads when it starts, by whatever way. */
function packagesOf(program: string): string[] {
  const packages = new Set<string>()
  const seen = new Set([program])
  for (const file of seen) {
    const text = readFileSync(join(ROOT, file), 'utf8')
    for (const [, to = ''] of text.matchAll(STATIC_IMPORT)) {
      if (to.startsWith('.')) seen.add(join(dirname(file), to))
      else if (!to.startsWith('node:')) packages.add(to.split('/')[0] ?? '')
    }
  }
  return [...packages].sort()
}

/** Each thread has a copy of its own of all that it loads: on a small server that counts. */
it.each([
  { program: 'src/commands/serve.ts', without: ['kysely', 'postgres', 'ioredis', 'nats', 'ws'] },
  { program: 'src/observe/thread.ts', without: ['piscina', 'postgres', 'ioredis', 'nats'] },
])('$program loads none of $without', ({ program, without }) => {
  const packages = packagesOf(program)
  expect(packages).toContain('hono')
  expect(packages.filter((name) => without.includes(name))).toEqual([])
})

it('the thread that writes loads no package at all', () => {
  expect(packagesOf('src/storage/embedded-writer.ts')).toEqual([])
})
