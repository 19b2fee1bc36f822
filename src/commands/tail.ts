/** `tail`: prints the event log, one event a line, as it happens. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config.ts'
import { formatEvent } from '../events/event.ts'
import { type EventLog, readEvents } from '../events/event-log.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import { StartupError } from '../platform/startup-error.ts'
import { connectLog } from '../storage/cluster.ts'
import { readDatabase } from '../storage/embedded.ts'

const POLL_MS = 500

export async function tail(config: Config, sinceText = '0'): Promise<void> {
  if (!/^\d{1,15}$/.test(sinceText))
    throw new StartupError('tail takes the place of the event to begin after: a whole number')
  const since = Number(sinceText)
  // Who read it has gone; `console` says nothing of that.
  process.stdout.once('error', () => process.exit(0))
  if (config.cluster) await follow(await connectLog(config, 'tail'), since)
  else await readDatabase(config, (sqlite) => follow(new SqliteEventLog(sqlite), since))
}

async function follow(log: Pick<EventLog, 'read'>, since: number): Promise<never> {
  for (let position = since; ; await sleep(POLL_MS)) {
    for await (const event of readEvents(log, position)) {
      console.log(formatEvent(event))
      position = event.seq
    }
  }
}
