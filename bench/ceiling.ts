/**
 * How many events a second one stream takes and one projector applies, on the servers and settings
 * that we deploy: what the next step of growth has to divide.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Cluster, startCluster } from '../lab/cluster.ts'
import type { EventOf, NewEvent } from '../src/events/event.ts'
import { JetStreamEventLog } from '../src/events/jetstream-event-log.ts'
import { createLogger } from '../src/platform/logger.ts'
import { connectNats } from '../src/platform/nats.ts'
import { cpuTimes, type Pids, serverPids } from './load.ts'

/** Appends under way at once, each of which waits for its own. */
const AT_ONCE = [1, 32, 256, 2_048]
const AGENTS = 1_000
const KEYS = 10_000
const POLL_MS = 50
const DEADLINE_MS = 600_000

interface Ceiling {
  readonly 'events/s': number
  /** CPU milliseconds an event. */
  readonly [cpu: `CPU ms ${string}`]: number
}

/** @param events that the log is filled with for the projector */
export async function benchCeiling(
  seconds: number,
  events: number,
): Promise<Record<string, Ceiling>> {
  await using cluster = await startCluster({ nodes: 0, workers: 0 })
  const connection = await connectNats(
    cluster.nats.url.split(','),
    'bench',
    createLogger('warn', 'bench'),
  )
  const log = await JetStreamEventLog.open(connection, 3)
  const pids: Pids = { writer: () => [process.pid], ...serverPids(cluster) }
  const figures: Record<string, Ceiling> = {}
  try {
    for (const atOnce of AT_ONCE) {
      const end = performance.now() + seconds * 1_000
      figures[`one stream, ${atOnce} appends at once`] = await measure(pids, async () => {
        const counts = await inParallel(atOnce, async () => {
          let count = 0
          for (; performance.now() < end; count++) await log.append(message())
          return count
        })
        return counts.reduce((sum, count) => sum + count, 0)
      })
    }
    let last = 0
    let next = 0
    await inParallel(2_048, async () => {
      while (next < events) {
        next += 4
        // As a society does: most messages are fetched soon, and some keys are written.
        const first = message()
        const { seq: about } = await log.append(first)
        const appended = await Promise.all([
          log.append(deliveryOf(first), { about }),
          log.append(message()),
          log.append(written(next % KEYS)),
        ])
        last = Math.max(last, ...appended.map(({ seq }) => seq))
      }
    })
    figures['one worker, both projections'] = await project(cluster, last, next)
    return figures
  } finally {
    await log.close()
  }
}

/** Has one worker apply the log, from nothing up to `last`. */
async function project(cluster: Cluster, last: number, events: number): Promise<Ceiling> {
  const worker = await cluster.startWorker({ LOG_LEVEL: 'warn' })
  return measure({ worker: () => [worker.pid], ...serverPids(cluster) }, async () => {
    const deadline = performance.now() + DEADLINE_MS
    let begun: number | undefined
    for (;;) {
      const metrics = await (await fetch(`${worker.internalUrl}/metrics`)).text()
      const applied = [...metrics.matchAll(/^tabulum_projection_applied_seq\{.*\} (\d+)$/gm)].map(
        ([, seq]) => Number(seq),
      )
      // What it had applied before it was looked at does not count.
      begun ??= Math.min(...applied, last) / last
      if (applied.length === 2 && applied.every((seq) => seq >= last)) return events * (1 - begun)
      if (performance.now() > deadline)
        throw new Error(`the projections are at ${applied}, not at ${last}`)
      await sleep(POLL_MS)
    }
  })
}

async function measure(pids: Pids, run: () => Promise<number>): Promise<Ceiling> {
  const before = cpuTimes(pids)
  const start = performance.now()
  const events = await run()
  const seconds = (performance.now() - start) / 1_000
  const used = Object.entries(cpuTimes(pids)).map(([name, ms]): [`CPU ms ${string}`, number] => [
    `CPU ms ${name}`,
    Number(((ms - (before[name] ?? 0)) / events).toFixed(4)),
  ])
  return { 'events/s': Math.round(events / seconds), ...Object.fromEntries(used) }
}

function inParallel<T>(count: number, run: () => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: count }, run))
}

const agent = () => `tab_${String(Math.floor(Math.random() * AGENTS)).padStart(20, '0')}`

function message(): EventOf<'message_sent'> {
  const [from, to, content] = [agent(), agent(), 'x'.repeat(100)]
  const data = { message_id: randomUUID(), from, to, content, content_length: content.length }
  return { ts: new Date().toISOString(), type: 'message_sent', agent: from, data }
}

function deliveryOf({ ts, data: { message_id, to } }: EventOf<'message_sent'>): NewEvent {
  return {
    ts,
    type: 'message_delivered',
    agent: to,
    data: { message_id, to, delivery_method: 'pull' },
  }
}

function written(key: number): NewEvent {
  const [by, value] = [agent(), 'x'.repeat(100)]
  const data = { key: `key/${key}`, value, value_length: value.length, written_by: by }
  return { ts: new Date().toISOString(), type: 'state_written', agent: by, data }
}
