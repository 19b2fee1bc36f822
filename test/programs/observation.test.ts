/**
 * The observation service of `serve`: what becomes of read models that are damaged, and what it
 * shows of a key that was removed.
 */
import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, it, vi } from 'vitest'
import { Client } from '../../lab/client.ts'
import { freshDataDirectory, startKernel } from '../../lab/kernel.ts'
import { removeDirectory } from '../../lab/servers/directory.ts'
import { REDACTED } from '../../src/removal/redaction.ts'
import { runCommand } from '../support/command.ts'

const WAIT = { timeout: 60_000, interval: 100 }
const PAGE_BYTES = 4_096

/** Overwrites all of a database but its first page, which says how it is made. */
async function damage(path: string): Promise<void> {
  const file = await open(path, 'r+')
  const { size } = await file.stat()
  expect(size).toBeGreaterThan(2 * PAGE_BYTES)
  await file.write(Buffer.alloc(size - PAGE_BYTES, 0xa5), 0, size - PAGE_BYTES, PAGE_BYTES)
  await file.close()
}

it('read models that are damaged are built anew, and agents notice nothing', async () => {
  const dataDir = await freshDataDirectory()
  try {
    await using first = await startKernel({}, { dataDir })
    const agent = await new Client(first.baseUrl).registerAgent()
    await agent.write('kept', 'fine')
    const path = `/observe/agents/${agent.address}`
    const before = await fetch(`${first.observeUrl}${path}`).then((answer) => answer.json())
    expect(before).toMatchObject({ state_writes: 1 })
    await first.stop()
    await damage(join(dataDir, 'observation-1.db'))

    await using again = await startKernel({}, { dataDir })
    const token = agent.token
    const read = await new Client(again.baseUrl).request('GET', '/v1/state/kept', { token })
    expect(read.json).toMatchObject({ value: 'fine' })
    await vi.waitFor(async () => {
      const answer = await fetch(`${again.observeUrl}${path}`)
      expect(await answer.json()).toEqual(before)
    }, WAIT)
    expect((await runCommand(dataDir, 'verify')).out).toMatch(
      /^Compared the observation, .*\n.*no differences/,
    )
    expect((await readdir(dataDir)).filter((name) => name.endsWith('.db')).sort()).toEqual([
      'observation-1.db',
      'tabulum.db',
    ])
  } finally {
    await removeDirectory(dataDir)
  }
})

it('of a key that was removed the redaction is shown at every place that it had a value at, and since', async () => {
  await using kernel = await startKernel()
  const agent = await new Client(kernel.baseUrl).registerAgent()
  await agent.write('bad', 'illegal')
  const removed = await runCommand(
    kernel.dataDir,
    'remove',
    'state',
    '--key',
    'bad',
    '--reason',
    'court',
    '--yes',
  )
  expect(removed.code, removed.err).toBe(0)
  const ask = async (query: string) => {
    const answer = await fetch(`${kernel.observeUrl}/observe/state/bad${query}`)
    return { status: answer.status, json: (await answer.json()) as { value?: string } }
  }
  const events = await kernel.events()
  const seqOf = (wanted: string) => events.find(({ type }) => type === wanted)?.seq as number
  const shown = { key: 'bad', value: REDACTED, redacted: true, reason: 'court' }
  for (const query of [
    '',
    `?at=${seqOf('state_written')}`,
    `?at=${seqOf('state_key_removed')}`,
    '?at=999999',
  ]) {
    expect(await ask(query), query).toMatchObject({ status: 200, json: shown })
  }
  expect((await ask(`?at=${seqOf('state_written') - 1}`)).status).toBe(404)
  await agent.write('bad', 'well')
  expect(await ask('')).toMatchObject({ status: 200, json: { value: 'well' } })
})
