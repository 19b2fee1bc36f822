/** `tail`: prints the event log, an event a line, as it happens. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config.ts'
import { formatEvent } from '../events/event.ts'
import { readEvents } from '../events/event-log.ts'
import { StartupError } from '../platform/startup-error.ts'
import { urlHost } from '../platform/url-host.ts'
import { openForReading } from './verify.ts'

const POLL_MS = 500
const PAGE = 1_000

export async function tail(config: Config, sinceText = '0'): Promise<void> {
  if (!/^\d{1,15}$/.test(sinceText))
    throw new StartupError('tail takes the place of the event to begin after: a whole number')
  const since = Number(sinceText)
  if (config.cluster) await tailCluster(config, since)
  else await tailEmbedded(config, since)
}

async function tailCluster(config: Config, since: number): Promise<void> {
  const { log } = await openForReading(config)
  for (let position = since; ; await sleep(POLL_MS)) {
    for await (const event of readEvents(log, position)) {
      console.log(formatEvent(event))
      position = event.seq
    }
  }
}

/** Embedded storage is held by the running kernel, which is asked. */
async function tailEmbedded(config: Config, since: number): Promise<void> {
  const host = urlHost(config.internalHost)
  for (let position = since; ; ) {
    const url = `http://${host}:${config.INTERNAL_PORT}/events?since=${position}&limit=${PAGE}`
    const response = await fetch(url, { signal: AbortSignal.timeout(30_000) }).catch((error: unknown) => {
      throw new StartupError(
        `no kernel answers on internal port ${config.INTERNAL_PORT}: start one, or set INTERNAL_PORT (${error})`,
      )
    })
    if (!response.ok) throw new StartupError(`the kernel cannot read its event log: ${await response.text()}`)
    const lines = (await response.text()).split('\n').filter((line) => line !== '')
    for (const line of lines) console.log(line)
    const last = lines.at(-1)
    if (last) position = JSON.parse(last).seq
    else await sleep(POLL_MS)
  }
}
