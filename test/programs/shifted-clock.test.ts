/** The clock that the faults program sets: of a process that is started with it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it, vi } from 'vitest'
import type { ClusterProcess } from '../../lab/cluster.ts'
import { Clocks, HOUR_MS } from '../../lab/faults/clock.ts'
import { Process } from '../../lab/servers.ts'

const WAIT = { timeout: 60_000, interval: 20 }
const PRELOAD = new URL('../../lab/faults/shifted-clock.ts', import.meta.url).href
/**
 * Says what time it is by all ways to ask, and how long it has run by the clock that never goes
 * back.
 */
const PROGRAM = `
setInterval(() => console.log(JSON.stringify({
  times: [Date.now(), new Date().getTime(), +new Date(Date.now()), Date.parse(Date())], ran: performance.now(),
})), 20)`

const directory = mkdtempSync(join(tmpdir(), 'tabulum-clock-'))
const clocks = new Clocks(directory)
writeFileSync(join(directory, 'program.js'), PROGRAM)
const program = new Process({
  name: 'program',
  file: process.execPath,
  args: [`--import=${PRELOAD}`, join(directory, 'program.js')],
  env: { PATH: process.env.PATH ?? '', CLOCK_FILE: clocks.file },
  directory,
})
const member = { process: program, output: () => program.output() } as unknown as ClusterProcess

afterAll(async () => {
  await program.kill()
  rmSync(directory, { recursive: true })
})

/** What it said last after it has said something new. */
async function said(): Promise<{ times: number[]; ran: number }> {
  const before = program.output().length
  return vi.waitFor(() => {
    const line = program.output().slice(before).split('\n').at(-2)
    expect(line).toMatch(/^\{/)
    return JSON.parse(line ?? '') as { times: number[]; ran: number }
  }, WAIT)
}

it.each([HOUR_MS, -HOUR_MS, 0])(
  'is shifted by %i ms, whatever it was before, and timers go on',
  async (shiftMs) => {
    if (!program.running) program.start()
    const { ran: before } = await said()
    await clocks.shift([member], shiftMs)
    const { times, ran } = await said()
    for (const time of times)
      expect(Math.abs(time - Date.now() - shiftMs)).toBeLessThan(HOUR_MS / 10)
    expect(ran).toBeGreaterThan(before)
    expect(ran - before).toBeLessThan(HOUR_MS / 10)
  },
)
