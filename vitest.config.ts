import { join } from 'node:path'
import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/**
 * So many files at once. Most that are not about code alone wait, so that three find a processor
 * where there are two.
 */
const MAX_WORKERS = 3

/** Real processes are started, on a machine that may be busy with other tests. */
const TIMEOUTS = { testTimeout: 120_000, hookTimeout: 120_000 }

/** What is set up once, for the tests of all projects that name it. */
const ON_SERVERS = ['test/support/shared-servers.ts']

const PROJECTS = [
  project('faults', ['test/faults/**/*.test.ts'], {}, ON_SERVERS),
  project('cluster', ['test/cluster/**/*.test.ts'], {}, ON_SERVERS),
  project(
    'contract-cluster',
    ['test/contract/**/*.test.ts'],
    { TABULUM_TEST_TARGET: 'cluster' },
    ON_SERVERS,
  ),
  project('fuzz', ['test/fuzz/**/*.test.ts']),
  project('programs', ['test/programs/**/*.test.ts']),
  project('contract', ['test/contract/**/*.test.ts'], { TABULUM_TEST_TARGET: 'embedded' }),
  project('unit', ['test/unit/**/*.test.ts', 'test/conformance/**/*.test.ts']),
  // Only where it is asked for: `npm run test:long`.
  ...(process.env.TABULUM_TEST_LONG
    ? [project('long', ['test/long/**/*.test.ts'], {}, ON_SERVERS)]
    : []),
]

/**
 * Projects in the order above: those first whose files take long, so that no such file is left over
 * at the end.
 */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const order = PROJECTS.map(({ test }) => test.name)
    const placeOf = (file: TestSpecification) => order.indexOf(file.project.name)
    return (await super.sort(files)).toSorted((one, other) => placeOf(one) - placeOf(other))
  }
}

export default defineConfig({ test: { projects: PROJECTS, sequence: { sequencer: LongestFirst } } })

/** The many kernel processes that tests start load their code from here after the first. */
process.env.NODE_COMPILE_CACHE ??= join(import.meta.dirname, 'node_modules/.cache/node-compile')

function project(
  name: string,
  include: string[],
  env: Record<string, string> = {},
  globalSetup: string[] = [],
) {
  return {
    test: {
      name,
      include,
      env,
      ...TIMEOUTS,
      globalSetup,
      pool: 'forks' as const,
      // Files share a process, one after the other: the loading of code is a good part of what a
      // small one takes.
      isolate: false,
      maxWorkers: MAX_WORKERS,
    },
  }
}
