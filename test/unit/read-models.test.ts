/** Read models in SQLite: one is added without touching anything else. */
import { expect, it } from 'vitest'
import { createAppend } from '../../src/events/sqlite-append.ts'
import { verifySqlite } from '../../src/maintenance/verify-sqlite.ts'
import { migrateSqlite, openSqlite } from '../../src/platform/sqlite.ts'
import { readModels } from '../../src/storage/read-models.ts'
import { deleted, read, sent, written } from '../conformance/support.ts'
import { lastWrites, TABLE } from '../support/last-writes.ts'

it('one that is added takes its own events in, and verify makes its checks', () => {
  const models = [...readModels({ maxQueue: 10 }), lastWrites]
  const sqlite = openSqlite(':memory:')
  const { connection } = sqlite
  try {
    migrateSqlite(sqlite)
    connection.exec(TABLE)
    const append = createAppend(sqlite, models, Date.now)
    for (const event of [
      written('a', '1', 'tab_one'),
      written('a', '2', 'tab_two'),
      sent('tab_two', 'x'),
      read('a'),
      deleted('a', 'tab_one'),
      written('b', '3', 'tab_one'),
    ])
      append(event)
    const rows = connection.prepare('select * from last_writes order by writer').all()
    expect(rows.map((row) => ({ ...row }))).toEqual([
      { writer: 'tab_one', writes: 2, seq: 6 },
      { writer: 'tab_two', writes: 1, seq: 2 },
    ])
    const differences = () => {
      const told: string[] = []
      verifySqlite(sqlite, models, (difference) => told.push(difference))
      return told
    }
    expect(differences()).toEqual([])
    connection.exec(`update last_writes set seq = 5 where writer = 'tab_one'`)
    expect(differences()).toEqual(['last writes: tab_one wrote last at 6'])
  } finally {
    connection.close()
  }
})
