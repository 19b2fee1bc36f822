/** `tail`: prints the event log, one event a line, as it happens. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config.ts'
import { formatEvent, type LoggedEvent } from '../events/event.ts'
import { type EventLog, readEvents } from '../events/event-log.ts'
import { SqliteEventLog } from '../events/sqlite-event-log.ts'
import { StartupError } from '../platform/startup-error.ts'
import { escapeControls } from '../platform/terminal.ts'
import { connectLog } from '../storage/cluster.ts'
import { readDatabase } from '../storage/embedded-database.ts'

const POLL_MS = 500

export interface TailOptions {
  /** Sequence number of the event to begin after. Default: from the beginning. */
  readonly since?: string | undefined
  /** Each line is an event as JSON. */
  readonly json: boolean
}

export async function tail(
  config: Config,
  { since: sinceText = '0', json }: TailOptions,
): Promise<void> {
  if (!/^\d{1,15}$/.test(sinceText))
    throw new StartupError(
      'tail takes the sequence number of the event to begin after: a whole number',
    )
  const since = Number(sinceText)
  const print = (event: LoggedEvent) => console.log(json ? formatEvent(event) : toText(event))
  // Who read it has gone; `console` says nothing of that.
  process.stdout.once('error', () => process.exit(0))
  if (config.cluster) await follow(await connectLog(config, 'tail'), since, print)
  else await readDatabase(config, (sqlite) => follow(new SqliteEventLog(sqlite), since, print))
}

async function follow(
  log: Pick<EventLog, 'read'>,
  since: number,
  print: (event: LoggedEvent) => void,
): Promise<never> {
  for (let position = since; ; await sleep(POLL_MS)) {
    for await (const event of readEvents(log, position)) {
      print(event)
      position = event.seq
    }
  }
}

/** Of data in a line for people. */
const MAX_DATA_CHARACTERS = 160
const TYPE_COLUMNS = 'message_delivered'.length

/** For people: when, where in the log, what, who, and the beginning of what it carries. */
function toText({ seq, ts, type, agent = '-', data }: LoggedEvent): string {
  const all = JSON.stringify(data)
  const shown = all.length > MAX_DATA_CHARACTERS ? `${all.slice(0, MAX_DATA_CHARACTERS)}…` : all
  return `${ts} ${seq} ${type.padEnd(TYPE_COLUMNS)} ${agent} ${escapeControls(shown)}`
}
