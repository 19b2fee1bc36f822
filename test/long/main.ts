/**
 * `npm run test:long -- [--minutes 60] [--seed 1]`
 *
 * What `npm test` does for a minute each, for as long as it is given and with fresh seeds: the
 * checkers beside each other, crashes of `serve`, power failures, hostile requests, and a cluster
 * that is broken. Prints each seed before it is used; ends with the first failure, exit code 1.
 */
import { spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

const ROOT = join(import.meta.dirname, '../..')
const VITEST = [join(ROOT, 'node_modules/vitest/vitest.mjs'), 'run', '--project']
/** Of one round. */
const KILLS = 30
const FAULTS_MINUTES = 8

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '60' },
    seed: { type: 'string', default: String(randomInt(2 ** 31)) },
  },
})
const [minutes, first] = [Number(values.minutes), Number(values.seed)]
if (!(minutes > 0) || !Number.isSafeInteger(first) || first < 0) {
  console.error('--minutes is a number greater than 0, --seed a whole number')
  process.exit(2)
}

const end = performance.now() + minutes * 60_000
await run('the checkers beside each other', [...VITEST, 'long'], {
  TABULUM_TEST_LONG: '1',
  LONG_SEED: String(first),
})
for (let seed = first; performance.now() < end; seed++) {
  const left = (end - performance.now()) / 60_000
  const faultsMinutes = String(Math.max(1, Math.min(FAULTS_MINUTES, left)))
  const crashes = { CRASH_SEED: String(seed), CRASH_KILLS: String(KILLS) }
  await run('crashes', [...VITEST, 'faults', 'test/faults/crash.test.ts'], crashes)
  await run('power failures', [...VITEST, 'faults', 'test/faults/power-failure.test.ts'], {
    POWER_SEED: String(seed),
  })
  await run('hostile requests', [...VITEST, 'fuzz'], { FUZZ_SEED: String(seed) })
  await run('faults', ['faults/main.ts', '--seed', String(seed), '--minutes', faultsMinutes], {})
}
console.log(`No failure in ${minutes} minutes, from seed ${first}.`)

/** Runs a program of Node to its end. Ends this one where it fails. */
async function run(
  what: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<void> {
  const settings = Object.entries(env).map(([name, value]) => `${name}=${value}`)
  console.log(`\n${what}: ${[...settings, 'node', ...args].join(' ').replaceAll(`${ROOT}/`, '')}`)
  const child = spawn(process.execPath, args, {
    cwd: ROOT,
    env: { ...process.env, ...env },
    stdio: 'inherit',
  })
  const code = await new Promise((resolve) => child.once('close', resolve))
  if (code === 0) return
  console.error(`${what}: ended with ${code}. The line above it makes it again.`)
  process.exit(1)
}
