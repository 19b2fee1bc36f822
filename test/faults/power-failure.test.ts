/**
 * Embedded storage over a power failure: the files as the disk may have them at random moments of a
 * running workload, by the flushes that the process made, hold all that was acknowledged until
 * then.
 *
 * POWER_SEED repeats a run's choices (not its timing).
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { Client } from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'
import { seededRandom } from '../../lab/random.ts'
import { makeDirectory } from '../../lab/servers/directory.ts'
import { findProgram } from '../../lab/servers/programs.ts'
import { verifySqlite } from '../../src/maintenance/verify-sqlite.ts'
import { openSqlite } from '../../src/platform/sqlite.ts'
import { readModels } from '../../src/storage/read-models.ts'
import { filesAfterPowerFailure, readTrace, straceArguments } from '../support/disk-trace.ts'

const SEED = Number(process.env.POWER_SEED ?? 1)
const ACTORS = 8
const ROUNDS = 25
const FAILURES = 20
const TIMEOUT_MS = 600_000
const UNLIMITED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
}

/** The event that an answer stands for, and when the answer was here. */
interface Acknowledged {
  readonly what: string
  readonly at: number
}

it('what was acknowledged is on the disk', { timeout: TIMEOUT_MS }, async () => {
  console.log(`POWER_SEED=${SEED}`)
  const random = seededRandom(SEED)
  const trace = join(makeDirectory('trace'), 'calls')
  const acknowledged: Acknowledged[] = []
  const note = (what: string) =>
    acknowledged.push({ what, at: performance.timeOrigin + performance.now() })
  const began = Date.now()
  let dataDir: string
  let pid: number
  {
    await using kernel = await startKernel(UNLIMITED, {
      under: [await findProgram('strace'), ...straceArguments(trace)],
    })
    dataDir = kernel.dataDir
    pid = kernel.pid
    const operator = await new Client(kernel.baseUrl).registerOperator()
    const agents = await Promise.all(Array.from({ length: ACTORS }, () => operator.registerAgent()))
    for (const { address } of agents) note(`registered ${address}`)
    await Promise.all(
      agents.map(async (agent, actor) => {
        for (let round = 0; round < ROUNDS; round++) {
          const key = `${actor}/${round % 20}`
          // Some of many pages, so that a flush is more than one write.
          const value = `${actor} ${round} ${'x'.repeat(Math.floor(random() ** 4 * 60_000))}`
          await agent.write(key, value)
          note(`wrote ${key} ${value}`)
          const { message_id } = await agent.send(
            agents[(actor + 1) % ACTORS]?.address ?? '',
            `${actor} ${round}`,
          )
          note(`sent ${message_id}`)
        }
      }),
    )
    expect(await kernel.stop()).toBe(0)
  }
  const operations = await readTrace(trace, pid, dataDir)
  const ended = acknowledged.at(-1)?.at ?? 0
  const moments = Array.from({ length: FAILURES }, () => began + random() * (ended - began)).concat(
    ended,
  )

  for (const moment of moments) {
    const directory = makeDirectory('power')
    await mkdir(directory, { recursive: true })
    for (const [name, content] of filesAfterPowerFailure(operations, moment, random)) {
      // The index of the log is no file that a disk keeps: who opens the database first makes it
      // anew.
      if (name.startsWith('tabulum.db') && !name.endsWith('-shm'))
        await writeFile(join(directory, name), content)
    }
    const expected = acknowledged.filter(({ at }) => at <= moment)
    if (expected.length === 0) continue
    const sqlite = openSqlite(join(directory, 'tabulum.db'))
    try {
      expect(sqlite.sql.get`pragma integrity_check`).toMatchObject({ integrity_check: 'ok' })
      const events = sqlite.sql.all`select type, data from events`.map(({ type, data }) =>
        describe(type, data),
      )
      const kept = new Set(events)
      expect(
        expected.filter(({ what }) => !kept.has(what)).map(({ what }) => what.slice(0, 80)),
      ).toEqual([])
      const differences: string[] = []
      verifySqlite(sqlite, readModels({ maxQueue: 10 }), (difference) =>
        differences.push(difference),
      )
      expect(differences).toEqual([])
    } finally {
      sqlite.connection.close()
    }
  }
  // A run in which little was flushed proves little.
  expect(operations.filter(({ kind }) => kind === 'flush').length).toBeGreaterThan(ROUNDS)
})

function describe(type: unknown, json: unknown): string | undefined {
  const data = JSON.parse(String(json))
  if (type === 'agent_registered') return `registered ${data.address}`
  if (type === 'state_written') return `wrote ${data.key} ${data.value}`
  if (type === 'message_sent') return `sent ${data.message_id}`
  return undefined
}
