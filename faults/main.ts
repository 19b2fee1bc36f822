/**
 * `npm run faults -- [--seed 1] [--minutes 10] [--faults "redis wiped,nats"] [--pace 60] [--history
 * file]`
 *
 * Breaks a cluster of real processes while agents work on it, and checks from their histories what
 * the kernel promises (docs/guarantees.md). `--faults` takes names, or beginnings of them; all
 * unless given. `--pace` is ms between the requests of a loop. Exit code 1 means that a promise was
 * broken: it prints the history around each case, and how to make the run again. A seed repeats the
 * choices of a run, not its timing.
 */
import { randomInt } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { check, type Violation } from '../lab/faults/checker.ts'
import { FAULTS } from '../lab/faults/faults.ts'
import type { History, Operation } from '../lab/faults/history.ts'
import { reportOf } from '../lab/faults/report.ts'
import { RunFailed, run } from '../lab/faults/run.ts'
import { planFaults } from '../lab/faults/schedule.ts'
import { seededRandom } from '../lab/random.ts'

/** Of each violation, so many operations before and after it; and so many violations. */
const SHOWN_AROUND = 12
const SHOWN_VIOLATIONS = 10

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: String(randomInt(2 ** 31)) },
    minutes: { type: 'string', default: '10' },
    faults: { type: 'string', default: '' },
    pace: { type: 'string', default: '60' },
    history: { type: 'string' },
  },
})
const seed = positive('seed', values.seed)
const minutes = positive('minutes', values.minutes)
const paceMs = positive('pace', values.pace)
const wanted = values.faults.split(',').map((name) => name.trim())
const names = FAULTS.map(({ name }) => name).filter((name) =>
  wanted.some((beginning) => name.startsWith(beginning)),
)
if (names.length === 0) {
  console.error(
    `--faults: there is none of these; there are ${FAULTS.map(({ name }) => name).join(', ')}`,
  )
  process.exit(2)
}

console.log(`seed ${seed}, ${minutes} minutes`)
const random = seededRandom(seed)
const again = `Make it again:
  npm run faults -- --seed ${seed} --minutes ${minutes}${values.faults && ` --faults '${values.faults}'`} --pace ${paceMs} --history history.json`
const { history, output } = await run({
  random,
  paceMs,
  plan: (possible) =>
    planFaults(
      random,
      possible.filter(({ name }) => names.includes(name)),
      minutes * 60_000,
    ),
  say: console.log,
}).catch(async (error: unknown) => {
  if (!(error instanceof RunFailed)) throw error
  if (values.history !== undefined)
    await writeFile(values.history, linesOf({ seed, output: error.output }))
  console.log(`${error.stack}\n\nThe run could not be brought to its end. ${again}`)
  process.exit(1)
})
const violations = check(history)
console.log(summaryOf(history))
console.log(reportOf(history))
if (violations.length === 0) {
  console.log('No promise was broken.')
} else {
  for (const violation of violations.slice(0, SHOWN_VIOLATIONS))
    console.log(`\n${describe(violation, history)}`)
  console.log(`
${violations.length} violations, of ${[...new Set(violations.map(({ rule }) => rule))].join(', ')}. ${again}`)
}
if (values.history !== undefined)
  await writeFile(values.history, linesOf({ seed, violations, ...history, output }))
// Not by itself: Node 26.10 may turn for ever while it closes sockets that were reset.
process.exit(violations.length === 0 ? 0 : 1)

/**
 * Lines of JSON, each with a name and one thing of that name: a history of minutes is longer than a
 * string may be.
 */
function* linesOf(things: Readonly<Record<string, unknown>>): Generator<string> {
  for (const [name, value] of Object.entries(things)) {
    if (name === 'watches') {
      for (const { seen, ...watch } of value as History['watches']) {
        yield* linesOf({ watch, seen })
      }
    } else {
      for (const each of Array.isArray(value) ? value : [value])
        yield `${JSON.stringify({ [name]: each })}\n`
    }
  }
}

function summaryOf({ operations, pushes, faults, events, watches }: History): string {
  const counts = [...Map.groupBy(operations, ({ kind }) => kind)].map(([kind, all]) => {
    const statuses = [...Map.groupBy(all, ({ status }) => status)].map(
      ([status, some]) => `${status}: ${some.length}`,
    )
    return `  ${kind} ${statuses.join(', ')}`
  })
  const seen = watches.map(
    ({ name, seen, connections }) =>
      `  ${name} saw ${seen.length} events over ${connections} connections`,
  )
  return [
    `${faults.length} faults, ${operations.length} requests, ${pushes.length} pushes, ${events.length} events`,
    ...counts,
    ...seen,
  ].join('\n')
}

/** A violation with what was broken, and what was asked about the same, around it. */
function describe({ rule, what, at, subject }: Violation, { operations, faults }: History): string {
  const about = operations
    .filter((operation) => isAbout(operation, subject))
    .toSorted((one, other) => one.ended - other.ended)
  const place = about.findLastIndex(({ ended }) => ended <= at)
  const lines = [
    ...about.slice(Math.max(0, place - SHOWN_AROUND), place + SHOWN_AROUND).map((operation) => ({
      at: operation.ended,
      text: `${time(operation.began)} to ${time(operation.ended)} ${shown(operation)}`,
    })),
    ...faults
      .filter(({ began, repaired }) => began - 10_000 < at && repaired + 10_000 > at)
      .map(({ name, began, repaired }) => ({
        at: began,
        text: `${time(began)} to ${time(repaired)} BROKEN: ${name}`,
      })),
  ]
  const around = lines.toSorted((one, other) => one.at - other.at).map(({ text }) => `    ${text}`)
  return `${rule} at ${time(at)}: ${what}\n${around.join('\n')}`
}

function isAbout(operation: Operation, subject: string): boolean {
  if (operation.agent === subject) return true
  if ('key' in operation) return operation.key === subject
  if ('content' in operation) return operation.content === subject
  if ('messages' in operation) return operation.messages.some(({ content }) => content === subject)
  return false
}

function shown(operation: Operation): string {
  const { kind, agent, status, began, ended, ...rest } = operation
  return `${kind} by ${agent}: ${status} ${JSON.stringify(rest).slice(0, 200)}`
}

function time(ms: number): string {
  return `${(ms / 1_000).toFixed(3)} s`
}

function positive(name: string, text: string): number {
  const value = Number(text)
  if (value > 0) return value
  console.error(`--${name} is a number greater than 0`)
  process.exit(2)
}
