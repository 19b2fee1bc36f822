import { join } from 'node:path'
import { defineConfig } from 'vitest/config'

/**
 * Projects of the same stage run together, those of the next when they are done. Most tests of failures wait, so that three files at once find a
 * processor; a cluster of the contract tests, which is nine processes, is busy all the time.
 */
const STAGES = {
  mixed: { groupOrder: 0, maxWorkers: 3 },
  contract: { groupOrder: 1, maxWorkers: 2 },
  long: { groupOrder: 2, maxWorkers: 2 },
}

/** Real processes are started, on a machine that may be busy with other tests. */
const TIMEOUTS = { testTimeout: 120_000, hookTimeout: 120_000 }

/** What is set up once, for the tests of all projects that name it. */
const ON_SERVERS = ['test/support/prepared-postgres.ts']

export default defineConfig({
  test: {
    projects: [
      project('unit', ['test/unit/**/*.test.ts', 'test/conformance/**/*.test.ts'], STAGES.mixed),
      project('contract', ['test/contract/**/*.test.ts'], STAGES.mixed, { TABULUM_TEST_TARGET: 'embedded' }),
      project(
        'contract-cluster',
        ['test/contract/**/*.test.ts'],
        STAGES.contract,
        { TABULUM_TEST_TARGET: 'cluster' },
        ON_SERVERS,
      ),
      project('cluster', ['test/cluster/**/*.test.ts'], STAGES.mixed, {}, ON_SERVERS),
      project('faults', ['test/faults/**/*.test.ts'], STAGES.long, {}, ON_SERVERS),
      project('fuzz', ['test/fuzz/**/*.test.ts'], STAGES.long),
      // Only where it is asked for: `npm run test:long`.
      ...(process.env.TABULUM_TEST_LONG
        ? [project('long', ['test/long/**/*.test.ts'], STAGES.long, {}, ON_SERVERS)]
        : []),
    ],
  },
})

/** The many kernel processes that tests start load their code from here after the first. */
process.env.NODE_COMPILE_CACHE ??= join(import.meta.dirname, 'node_modules/.cache/node-compile')

function project(
  name: string,
  include: string[],
  { groupOrder, maxWorkers }: (typeof STAGES)['mixed'],
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
      // Files share a process, one after the other: the loading of code is a good part of what a small one takes.
      isolate: false,
      maxWorkers,
      sequence: { groupOrder },
    },
  }
}
