/** The conformance suites on embedded storage: SQLite, and what lives in the process. */
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { MemoryAdmission } from '../../src/access/memory-admission.ts'
import { createAppend } from '../../src/events/sqlite-append.ts'
import { SqliteEventLog } from '../../src/events/sqlite-event-log.ts'
import { migrateSqlite, openSqlite, transaction } from '../../src/platform/sqlite.ts'
import { SqliteRemovals } from '../../src/removal/sqlite-removals.ts'
import { SqliteStateStore } from '../../src/state/sqlite-state-store.ts'
import { readModels } from '../../src/storage/read-models.ts'
import { openFreshSqlite } from '../support/embedded-database.ts'
import { describeAdmission } from './admission.ts'
import { describeEventLog } from './event-log.ts'
import { describeRemovals } from './removals.ts'
import { describeStateStore } from './state-store.ts'
import { keyRemoved, read, registryRead, written } from './support.ts'

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

it('who follows the log hears soon of what another process has appended', async () => {
  await using fresh = await openFreshSqlite()
  const { file, reader, writer } = fresh
  const other = openSqlite(file)
  const stop = new AbortController()
  const following = new SqliteEventLog(reader, writer)
    .follow(0, stop.signal)
    [Symbol.asyncIterator]()
  try {
    expect((await following.next()).value).toEqual([])
    const next = following.next()
    const append = createAppend(other, readModels({ maxQueue: 10 }), Date.now)
    transaction(other.connection, () => append(keyRemoved('a')))
    expect((await next).value).toMatchObject([{ seq: 1, type: 'state_key_removed' }])
  } finally {
    stop.abort()
    await following.return?.()
    other.connection.close()
  }
})

describeRemovals('SQLite', async () => {
  const { reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite()
  const log = new SqliteEventLog(reader, writer)
  return {
    removals: new SqliteRemovals(reader),
    apply: async (event) => (await log.append(event)).seq,
    [Symbol.asyncDispose]: dispose,
  }
})

describeStateStore('SQLite', async ({ capacityBytes }) => {
  const {
    reader,
    writer,
    [Symbol.asyncDispose]: dispose,
  } = await openFreshSqlite({ capacityBytes })
  return {
    nodes: [new SqliteStateStore(reader, writer)],
    log: new SqliteEventLog(reader, writer),
    [Symbol.asyncDispose]: dispose,
  }
})

it('a page of keys costs the same wherever it begins', async () => {
  const sqlite = openSqlite(':memory:')
  try {
    migrateSqlite(sqlite)
    sqlite.connection.exec(`
      with recursive n(i) as (select 0 union all select i + 1 from n where i < 199999)
      insert into state (key, value, seq, modified_by, modified_at)
      select cast(printf('k/%06d', i) as blob), x'', i, '', '' from n;
      delete from state_blocks;
      insert into state_blocks select 1, iif(seq = 0, x'', key), 200 from state where seq % 200 = 0;
      insert into state_blocks select 2, iif(seq = 0, x'', key), 20000 from state where seq % 20000 = 0;`)
    const unused = { run: () => Promise.reject(new Error('nothing is written')) }
    const store = new SqliteStateStore(sqlite, unused)
    // The quickest of some, as the machine may be busy with other things.
    const quickest = async (after: string | undefined) => {
      let least = Number.POSITIVE_INFINITY
      for (let round = 0; round < 20; round++) {
        const begin = performance.now()
        const { keys, total } = await store.page(
          'k/',
          after === undefined ? undefined : Buffer.from(after),
          50,
        )
        expect(total).toBe(200_000)
        least = Math.min(least, performance.now() - begin)
        expect(String(keys[0])).toBe(after === undefined ? 'k/000000' : 'k/199950')
        expect(keys).toHaveLength(50)
      }
      return least
    }
    expect(await quickest('k/199949')).toBeLessThan(5 * (await quickest(undefined)))
    // A place before the prefix is no place in it.
    expect((await store.page('k/19', Buffer.from('k/0'), 1)).keys.map(String)).toEqual(['k/190000'])
  } finally {
    sqlite.connection.close()
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
