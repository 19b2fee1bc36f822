/** The read models of the observation in SQLite. */
import { DatabaseSync } from 'node:sqlite'
import { observationSchema } from '../../src/observe/observation-database.ts'
import { SqliteObservation } from '../../src/observe/sqlite-observation.ts'
import { describeObservation } from './observation.ts'

describeObservation('SQLite', async () => {
  const connection = new DatabaseSync(':memory:')
  const { tables, indexes } = observationSchema('sqlite')
  connection.exec(tables + indexes)
  const database = new SqliteObservation(connection, (error) => {
    throw error
  })
  return {
    database,
    verified: { database, begin: 'begin', bytes: 'blob' },
    execute: async (statement) => connection.exec(statement),
    async [Symbol.asyncDispose]() {
      connection.close()
    },
  }
})
