/**
 * The checker of the faults program beside a public one, porcupine: both judge the same histories
 * alike, those of a simulated kernel, those with a fault put in, and one of a real cluster that is
 * broken and mended. Needs Go.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { z } from 'zod'
import { check } from '../../lab/faults/checker.ts'
import { exportHistory } from '../../lab/faults/export.ts'
import type { History } from '../../lab/faults/history.ts'
import { run } from '../../lab/faults/run.ts'
import { planFaults } from '../../lab/faults/schedule.ts'
import { seededRandom } from '../../lab/random.ts'
import { BROKEN, SOUND, simulate } from './simulated-history.ts'

const PORCUPINE = join(import.meta.dirname, '../../lab/faults/porcupine')
const GO = process.env.GO_BIN ?? 'go'
const SIMULATIONS = 20
const SEED = Number(process.env.LONG_SEED ?? 1)
/** Of a real run; a history of a minute is judged within seconds. */
const FAULTS_MS = 60_000
/** Go may have to fetch and build the module first. */
const TIMEOUT_MS = 600_000

const verdict = z.object({
  file: z.string(),
  partitions: z.int(),
  operations: z.int(),
  broken: z.array(z.string()),
  undecided: z.array(z.string()),
})

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tabulum-cross-check-'))
})
afterAll(() => rm(directory, { recursive: true, force: true }))

/** What porcupine says of each history. */
async function judge(histories: readonly History[]): Promise<z.infer<typeof verdict>[]> {
  const files = histories.map((_, index) => join(directory, `${index}.ndjson`))
  await Promise.all(
    histories.map((history, index) => writeFile(files[index] as string, exportHistory(history))),
  )
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const options = { cwd: PORCUPINE, maxBuffer: 64 * 1_048_576 }
  execFile(GO, ['run', '.', ...files], options, (error, stdout, stderr) => {
    // Its exit code says as well that a history is broken; without a line for each there is another
    // reason.
    if (stdout.trim().split('\n').length === files.length) resolve(stdout)
    else
      reject(
        new Error(
          `«go run» in lab/faults/porcupine failed (Go is needed, or GO_BIN): ${error}\n${stderr}`,
        ),
      )
  })
  return (await promise)
    .trim()
    .split('\n')
    .map((line) => verdict.parse(JSON.parse(line)))
}

const sound = Array.from({ length: SIMULATIONS }, (_, index) =>
  simulate(seededRandom(SEED * 1_000 + index)),
)

it('both pass what keeps every promise', { timeout: TIMEOUT_MS }, async () => {
  const histories = [...sound, ...Object.values(SOUND).map((goOn) => goOn(sound[0] as History))]
  for (const history of histories) expect(check(history)).toEqual([])
  for (const { broken, undecided, operations } of await judge(histories)) {
    expect({ broken, undecided }).toEqual({ broken: [], undecided: [] })
    expect(operations).toBeGreaterThan(100)
  }
})

it('both catch each fault that is put in', { timeout: TIMEOUT_MS }, async () => {
  const names = Object.keys(BROKEN)
  const histories = names.flatMap((name) =>
    sound.slice(0, 3).map((history) => BROKEN[name]?.(history) ?? history),
  )
  const verdicts = await judge(histories)
  for (const [index, history] of histories.entries()) {
    const name = names[Math.floor(index / 3)]
    expect(check(history).length, `${name}, by our own`).toBeGreaterThan(0)
    expect(verdicts[index]?.broken.length, `${name}, by porcupine`).toBe(1)
    expect(verdicts[index]?.undecided).toEqual([])
  }
})

it('both pass what a real cluster did while it was broken and mended', {
  timeout: TIMEOUT_MS,
}, async () => {
  const random = seededRandom(SEED)
  const { history, output } = await run({
    random,
    paceMs: 100,
    plan: (possible) => planFaults(random, possible, FAULTS_MS),
    say: console.log,
  })
  const violations = check(history)
  if (violations.length > 0) console.error(output)
  expect(violations).toEqual([])
  const [real] = await judge([history])
  console.log(`porcupine: ${real?.operations} operations on ${real?.partitions} keys and queues`)
  expect(real).toMatchObject({ broken: [], undecided: [] })
  expect(real?.operations).toBeGreaterThan(500)
})
