import { join } from 'node:path'
import { defineConfig } from 'vitest/config'

/** Projects with the same order run together, the next order when they are done: measurements want a quiet machine. */
const ORDER = { quick: 0, contractCluster: 1, cluster: 2, faults: 3, fuzz: 4 }

/** Real processes are started, on a machine that may be busy with other tests. */
const TIMEOUTS = { testTimeout: 30_000, hookTimeout: 30_000 }

export default defineConfig({
  test: {
    projects: [
      project('unit', ['test/unit/**/*.test.ts', 'test/conformance/**/*.test.ts'], ORDER.quick),
      project('contract', ['test/contract/**/*.test.ts'], ORDER.quick, { TABULUM_TEST_TARGET: 'embedded' }),
      project('contract-cluster', ['test/contract/**/*.test.ts'], ORDER.contractCluster, {
        TABULUM_TEST_TARGET: 'cluster',
      }),
      project('cluster', ['test/cluster/**/*.test.ts'], ORDER.cluster),
      project('faults', ['test/faults/**/*.test.ts'], ORDER.faults),
      project('fuzz', ['test/fuzz/**/*.test.ts'], ORDER.fuzz),
    ],
  },
})

/** The many kernel processes that tests start load their code from here after the first. */
process.env.NODE_COMPILE_CACHE ??= join(import.meta.dirname, 'node_modules/.cache/node-compile')

function project(name: string, include: string[], groupOrder: number, env: Record<string, string> = {}) {
  return {
    test: {
      name,
      include,
      env,
      ...TIMEOUTS,
      globalSetup: ['test/support/prepared-data.ts'],
      pool: 'forks' as const,
      maxWorkers: 2,
      sequence: { groupOrder },
    },
  }
}
