/** Starts the servers that all tests of a run share, and says at its end which versions they were. */

import { findProgram, versionsOf } from '../../lab/servers/programs.ts'
import { shareServers } from '../../lab/servers/shared.ts'

/** Those that tests start sooner or later: that one is missing is said before any has run. */
const PROGRAMS = ['postgres', 'initdb', 'psql', 'pgbouncer', 'redis-server', 'nats-server', 'haproxy'] as const
/** Of these the versions matter. */
const SERVERS = ['postgres', 'pgbouncer', 'redis-server', 'nats-server', 'haproxy'] as const

/** Set once that has been done: each project has an instance of this file. */
const IS_SET_UP = 'TABULUM_TEST_IS_SET_UP'

/** For vitest's `globalSetup`, of any number of projects. */
export default async function setup(): Promise<(() => Promise<void>) | undefined> {
  if (process.env[IS_SET_UP] !== undefined) return undefined
  process.env[IS_SET_UP] = 'yes'
  for (const program of PROGRAMS) await findProgram(program)
  const servers = await shareServers()
  return async () => {
    await servers[Symbol.asyncDispose]()
    console.log(`\nRan on ${(await versionsOf(SERVERS)).join(', ')}, Node.js ${process.version}.`)
  }
}
