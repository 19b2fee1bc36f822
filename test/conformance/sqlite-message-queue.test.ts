/** The conformance suite of the pull queues on embedded storage. */
import { SqliteEventLog } from '../../src/events/sqlite-event-log.ts'
import { SqliteMessageQueue } from '../../src/messaging/sqlite-message-queue.ts'
import { openFreshSqlite } from '../support/embedded-database.ts'
import { describeMessageQueue } from './message-queue.ts'

describeMessageQueue('SQLite', async ({ maxQueue }) => {
  const { reader, writer, [Symbol.asyncDispose]: dispose } = await openFreshSqlite({ maxQueue })
  const log = new SqliteEventLog(reader, writer)
  return {
    nodes: [new SqliteMessageQueue(reader, log, { maxContentBytes: 65_536 })],
    log,
    // An append is.
    applied: async () => {},
    async [Symbol.asyncDispose]() {
      await log.close()
      await dispose()
    },
  }
})
