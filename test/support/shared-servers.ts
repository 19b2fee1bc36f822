/**
 * Starts the servers that all tests of a run share, and says at its end which versions they were.
 */

import { findAllPrograms, versionsOf } from '../../lab/servers/programs.ts'
import { shareServers } from '../../lab/servers/shared.ts'

/** Of these programs the versions matter. */
const SERVERS = ['postgres', 'pgbouncer', 'redis-server', 'nats-server', 'haproxy'] as const

/** Set once that has been done: each project has an instance of this file. */
const IS_SET_UP = 'TABULUM_TEST_IS_SET_UP'

/** For vitest's `globalSetup`, of any number of projects. */
export default async function setup(): Promise<(() => Promise<void>) | undefined> {
  if (process.env[IS_SET_UP] !== undefined) return undefined
  process.env[IS_SET_UP] = 'yes'
  // That one is missing is said before any test has run.
  await findAllPrograms()
  const servers = await shareServers()
  return async () => {
    await servers[Symbol.asyncDispose]()
    console.log(`\nRan on ${(await versionsOf(SERVERS)).join(', ')}, Node.js ${process.version}.`)
  }
}
