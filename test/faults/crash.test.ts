/**
 * Kills the kernel at random moments of a running workload, time after time on the same data, and
 * then compares log, state, queues and registry with what agents were told.
 *
 * CRASH_SEED repeats a run's choices (not its timing); CRASH_KILLS sets how many times.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { Client } from '../../lab/client.ts'
import { freshDataDirectory, type Kernel, startKernel } from '../../lab/kernel.ts'
import { seededRandom } from '../../lab/random.ts'
import {
  auditDeliveries,
  auditLog,
  auditReads,
  auditStores,
  auditTokens,
  queuedByLog,
  replay,
} from './crash-audit.ts'
import { History, Workload } from './crash-workload.ts'

const SEED = Number(process.env.CRASH_SEED ?? 1)
const KILLS = Number(process.env.CRASH_KILLS ?? 10)
const TIMEOUT_MS = 60_000 + KILLS * 30_000

const ACTORS = 6
/** A life of the kernel has up to so many answers before it is killed. */
const MAX_ANSWERS = 400
/** And the kill then comes within so long, at whatever the kernel is doing. */
const MAX_DELAY_MS = 30
/** Every so many-th start is killed too, within this time. */
const KILL_WHILE_STARTING_EVERY = 5
const MAX_START_MS = 1_500

const SETTINGS = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
  // Little enough that writes are refused now and then.
  STATE_CAPACITY_BYTES: '700000',
}

it(
  `keeps what it acknowledged, and leaves nothing half done, when it is killed ${KILLS} times`,
  async () => {
    console.log(`CRASH_SEED=${SEED}`)
    const random = seededRandom(SEED)
    const history = new History()
    const dataDir = await freshDataDirectory()
    let kernel: Kernel | undefined
    try {
      let kills = 0
      for (let life = 1; kills < KILLS; life++) {
        if (life % KILL_WHILE_STARTING_EVERY === 0) {
          await killWhileStarting(dataDir, random() * MAX_START_MS)
          kills++
        }
        kernel = await startKernel(SETTINGS, { dataDir })
        await liveAndDie(kernel, history, random, life)
        kills++
      }

      kernel = await startKernel(SETTINGS, { dataDir })
      const client = new Client(kernel.baseUrl)
      const before = replay(await kernel.events())
      const collector = new Workload(history, random, client, Number.POSITIVE_INFINITY, () => {})
      const queued = queuedByLog(before)
      for (const agent of history.agents) {
        const held: string[] = []
        for (;;) {
          await collector.receive(agent)
          const { messages } = history.receives.at(-1) ?? {}
          if (!messages?.length) break
          held.push(...messages.map(({ message_id }) => message_id))
        }
        expect(held, `queue of ${agent.name}`).toEqual(queued.get(agent.name) ?? [])
        queued.delete(agent.name)
      }
      // Of registrations whose answer was cut nobody has the token; nobody could write to them
      // either.
      expect([...queued.keys()]).toEqual([])

      // A delivery is recorded after its answer; the last is in when a change that came later is.
      const { events, log } = await completeLog(kernel, history)
      const reader = history.agents[0]
      if (!reader) throw new Error('nobody has registered')
      const report = {
        log: [...log.wrong, ...auditLog(events, history, log)],
        reads: auditReads(events, history),
        deliveries: auditDeliveries(history, log),
        stores: await auditStores(client, reader, log),
        tokens: await auditTokens(client, history),
      }
      console.log(
        `${kills} kills; ${log.sent.size} messages, ${log.state.size} keys, ${log.agents.size} agents; answers:`,
        history.statuses,
      )
      expect(report).toEqual({ log: [], reads: [], deliveries: [], stores: [], tokens: [] })
      // A run that did not do what it is about proves nothing.
      expect(log.sent.size).toBeGreaterThan(KILLS)
      expect(history.receives.some(({ messages }) => messages.length > 0)).toBe(true)
      expect(await kernel.stop()).toBe(0)
    } finally {
      await kernel?.[Symbol.asyncDispose]()
      await rm(dataDir, { recursive: true, force: true })
    }
  },
  TIMEOUT_MS,
)

/** Lets agents work until a random number of answers, and kills the kernel soon after that. */
async function liveAndDie(
  kernel: Kernel,
  history: History,
  random: () => number,
  life: number,
): Promise<void> {
  const answers = 1 + Math.floor(random() * MAX_ANSWERS)
  const delay = random() * MAX_DELAY_MS
  let counted = -1
  let killed: Promise<void> | undefined
  const workload = new Workload(history, random, new Client(kernel.baseUrl), life, () => {
    if (counted >= 0 && ++counted === answers) killed = sleep(delay).then(() => kernel.kill())
  })
  if (history.operators.length === 0) await workload.registerOperator()
  for (const operator of history.operators.slice(0, 1)) {
    while (history.agents.length < ACTORS) await workload.register(operator)
  }
  counted = 0
  await workload.run(ACTORS)
  await killed
}

async function killWhileStarting(dataDir: string, afterMs: number): Promise<void> {
  const child = spawn(process.execPath, ['src/main.ts', 'serve'], {
    cwd: join(import.meta.dirname, '..', '..'),
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: '0',
      INTERNAL_PORT: '0',
      OBSERVE_PORT: '0',
      DATA_DIR: dataDir,
      LOG_LEVEL: 'fatal',
    },
    stdio: 'ignore',
  })
  const closed = once(child, 'close')
  await sleep(afterMs)
  child.kill('SIGKILL')
  await closed
}

/**
 * The log when every message that was received has its delivery recorded; as it is after ten
 * seconds if that does not come.
 */
async function completeLog(kernel: Kernel, history: History) {
  const received = new Set(
    history.receives.flatMap(({ messages }) => messages.map(({ message_id }) => message_id)),
  )
  const deadline = performance.now() + 10_000
  for (;;) {
    const events = await kernel.events()
    const log = replay(events)
    const isComplete = [...received].every((id) => log.delivered.has(id))
    if (isComplete || performance.now() > deadline) return { events, log }
    await sleep(20)
  }
}
