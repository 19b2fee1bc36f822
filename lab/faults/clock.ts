/**
 * Clocks that are set: of processes of the kernel, and of Redis and Postgres as far as it shows in
 * what they have stored.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import type { ClusterProcess } from '../cluster.ts'

/** More than any lease, session or time-out. */
export const HOUR_MS = 3_600_000
const SET_DEADLINE_MS = 30_000
const POLL_MS = 20
const MAX_TRIES = 10
const DEADLOCK = '40P01'

/** All times after which something is over, or from which its age is counted. */
const TIMES = [
  ['projections', 'lease_expires_at'],
  ['webhook_lanes', 'next_at'],
  ['webhook_lanes', 'open_until'],
  ['webhook_lanes', 'bucket_full_at'],
  ['state', 'delete_until'],
  ['state_allotments', 'renewed_at'],
  ['state_reservations', 'reserved_at'],
  ['challenges', 'expires_at'],
] as const

/** Times to live, and the buckets of limits, which are the times at which they are full again. */
const LATER = `
local cursor = '0'
local changed = 0
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local left = redis.call('PTTL', key)
    if left > 0 then
      redis.call('PEXPIRE', key, left + ARGV[1])
      changed = changed + 1
      if string.sub(key, 1, 7) == 'bucket:' then
        local full = string.format('%.17g', redis.call('GET', key) + ARGV[1])
        redis.call('SET', key, full, 'KEEPTTL')
      end
    end
  end
until cursor == '0'
return changed`

/** The wall clocks of processes that were started with `shifted-clock.ts`. */
export class Clocks {
  readonly file: string

  constructor(directory: string) {
    this.file = join(directory, 'clock')
  }

  /**
   * Shifts those of these processes, from what the machine's says. Resolves when they have said
   * that they are.
   */
  async shift(members: readonly ClusterProcess[], shiftMs: number): Promise<void> {
    const said = `${shiftMs} ms since ${performance.now()}`
    writeFileSync(this.file, said)
    // One that has ended has the machine's clock when it is started again.
    const running = members.filter(({ process }) => process.running)
    for (const { process } of running) process.signal('SIGUSR2')
    const deadline = performance.now() + SET_DEADLINE_MS
    while (!running.every((member) => !member.process.running || member.output().includes(said))) {
      if (performance.now() > deadline)
        throw new Error(`clocks were not set within ${SET_DEADLINE_MS} ms`)
      await sleep(POLL_MS)
    }
  }
}

/**
 * Leaves what Redis and Postgres have stored as it is where their clocks were set back since. They
 * are not run with such a clock, as libfaketime ends the Redis of Debian; nor are the times in
 * streams changed, which test/cluster/clocks.test.ts has. Resolves to how many times it changed.
 */
export async function setStoredTimesBack(
  servers: { readonly redisAdminUrl: string; readonly superuserUrl: string },
  byMs: number,
): Promise<number> {
  const redis = new Redis(servers.redisAdminUrl, { retryStrategy: () => null })
  const sql = postgres(servers.superuserUrl, { max: 1, onnotice: () => {} })
  try {
    let changed = Number(await redis.eval(LATER, 0, byMs))
    for (const [table, column] of TIMES) changed += await setBack(sql, table, column, byMs)
    return changed
  } finally {
    redis.disconnect()
    await sql.end()
  }
}

async function setBack(
  sql: postgres.Sql,
  table: string,
  column: string,
  byMs: number,
): Promise<number> {
  for (let tries = 1; ; tries++) {
    try {
      const later = sql`${sql(column)} + ${byMs} * interval '1 millisecond'`
      const result =
        await sql`update ${sql(table)} set ${sql(column)} = ${later} where ${sql(column)} is not null`
      return result.count
    } catch (error) {
      if (
        !(error instanceof postgres.PostgresError) ||
        error.code !== DEADLOCK ||
        tries === MAX_TRIES
      )
        throw error
    }
  }
}
