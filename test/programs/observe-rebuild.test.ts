/**
 * `observe --rebuild` on embedded storage, beside a kernel that serves observers: what they see
 * does not go back.
 */
import { readdir } from 'node:fs/promises'
import { expect, it, vi } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'
import { startWatcher } from '../../lab/watcher.ts'
import { runCommand } from '../support/command.ts'

const UNLIMITED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
}
const WAIT = { timeout: 60_000, interval: 50 }
const TIMES = 3

it('the service goes on with those that were built, as far as it was, and they are exact', async () => {
  await using kernel = await startKernel(UNLIMITED)
  const [agent, other] = (await new Client(kernel.baseUrl).registerAgents(2)) as [Agent, Agent]
  const urls = [kernel.observeUrl]
  const types = ['message_sent']
  const watcher = startWatcher({ transport: 'SSE', urls, types })
  let isOver = false
  const counts: number[] = []
  const working = (async () => {
    while (!isOver) {
      // What was acknowledged before is in every answer.
      await agent.send(other.address, 'counted')
      const answer = await fetch(`${kernel.observeUrl}/observe/agents/${agent.address}`)
      counts.push(((await answer.json()) as { messages_sent: number }).messages_sent)
    }
  })()
  for (let times = 0; times < TIMES; times++) {
    const rebuilt = await runCommand(kernel.dataDir, 'observe', '--rebuild')
    expect(rebuilt.code, rebuilt.err).toBe(0)
    // Those before are removed by whoever goes on with the new ones.
    await vi.waitFor(async () => {
      const files = (await readdir(kernel.dataDir)).filter((name) =>
        /^observation-\d+\.db$/.test(name),
      )
      expect(files).toEqual([`observation-${times + 2}.db`])
    }, WAIT)
  }
  const enough = counts.length + 10
  await vi.waitFor(() => expect(counts.length).toBeGreaterThan(enough), WAIT)
  isOver = true
  await working
  expect(counts).toEqual(counts.map((_, index) => index + 1))
  const sent = (await kernel.events()).filter(({ type }) => types.includes(type))
  await vi.waitFor(() => expect(watcher.seen.length).toBeGreaterThanOrEqual(sent.length), WAIT)
  await watcher.stop()
  expect(watcher.seen).toEqual(sent)
  const verified = await runCommand(kernel.dataDir, 'verify')
  expect(verified.out).toMatch(
    /^Compared the observation, \d+ events, up to \d+\.\n.*: no differences\.\n$/,
  )
  // Nothing is complained of.
  expect(kernel.output()).not.toContain('"level"')
})
