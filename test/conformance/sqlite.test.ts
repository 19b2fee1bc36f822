/** The conformance suites on embedded storage: SQLite, and what lives in the process. */
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { MemoryAdmission } from '../../src/access/memory-admission.ts'
import { SqliteEventLog } from '../../src/events/sqlite-event-log.ts'
import { openSqlite } from '../../src/platform/sqlite.ts'
import { SqliteStateStore } from '../../src/state/sqlite-state-store.ts'
import { openFreshSqlite } from '../support/embedded-database.ts'
import { describeAdmission } from './admission.ts'
import { describeEventLog } from './event-log.ts'
import { describeStateStore } from './state-store.ts'
import { read, registryRead, written } from './support.ts'

describeEventLog('SQLite', async () => {
  const { reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite()
  return { log: new SqliteEventLog(reader, writer), [Symbol.asyncDispose]: dispose }
})

it('that somebody read something comes before what is changed later, and is on the disk after an orderly end', async () => {
  const { file, writer, reader, [Symbol.asyncDispose]: dispose } = await openFreshSqlite()
  const log = new SqliteEventLog(reader, writer)
  const typesOf = (events: { type: string }[]) => events.map(({ type }) => type)
  void log.append(read('a'))
  void log.append(registryRead())
  await log.append(written('a', '1'))
  expect(typesOf(await log.read(0, 10))).toEqual(['state_read', 'registry_read', 'state_written'])
  void log.append(read('a'))
  await writer.close()
  const again = openSqlite(file, { readOnly: true })
  try {
    expect(typesOf(await new SqliteEventLog(again).read(3, 10))).toEqual(['state_read'])
  } finally {
    again.connection.close()
    await dispose()
  }
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
