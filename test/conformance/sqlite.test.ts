/** The conformance suites on embedded storage: SQLite, and what lives in the process. */
import { setTimeout as sleep } from 'node:timers/promises'
import { MemoryAdmission } from '../../src/access/memory-admission.ts'
import { SqliteEventLog } from '../../src/events/sqlite-event-log.ts'
import { SqliteStateStore } from '../../src/state/sqlite-state-store.ts'
import { openFreshSqlite } from '../support/embedded-database.ts'
import { describeAdmission } from './admission.ts'
import { describeEventLog } from './event-log.ts'
import { describeStateStore } from './state-store.ts'

describeEventLog('SQLite', async () => {
  const { reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite()
  return { log: new SqliteEventLog(reader, writer), [Symbol.asyncDispose]: dispose }
})

describeStateStore('SQLite', async ({ capacityBytes }) => {
  const { reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite({ capacityBytes })
  return {
    nodes: [new SqliteStateStore(reader, writer)],
    log: new SqliteEventLog(reader, writer),
    [Symbol.asyncDispose]: dispose,
  }
})

describeAdmission('in memory', async (options) => {
  let time = Date.now()
  const now = () => time
  return {
    nodes: [new MemoryAdmission({ ...options, now, elapsed: now })],
    now,
    pass: async (ms) => {
      time += ms
      // The cache of sessions asks for the time once in a millisecond.
      await sleep(5)
    },
    async [Symbol.asyncDispose]() {},
  }
})
