/**
 * The commands of the README. `npm ci` begins every run of `.ci/run`, and `npm start` has tests in
 * command-line.test.ts.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { startKernel } from '../../lab/kernel.ts'
import { blocksOf, paste, readDocument } from '../support/document.ts'

const readme = readDocument('README.md')

it('the first command is on the first screen, and the second one follows', () => {
  expect(readme.split('\n').slice(0, 25).join('\n')).toContain('npm ci && npm start\n')
  expect(blocksOf(readme, 'sh')).toHaveLength(1)
  expect(blocksOf(readme, 'bash')).toHaveLength(1)
})

it('the second command shows two agents who meet, in a few seconds, and what they said can be watched', async () => {
  await using kernel = await startKernel()
  const home = await mkdtemp(join(tmpdir(), 'tabulum-readme-'))
  try {
    const command = blocksOf(readme, 'bash').join('')
    const { output, errors } = await paste(command, { home, env: { TABULUM_URL: kernel.baseUrl } })
    expect(errors).toBe('')
    expect(output).toMatch(/ {2}reader {5}thanked tab_\w+; done$/m)
    expect(output).toMatch(/ {2}librarian {2}deleted directory\/librarian; done$/m)
  } finally {
    await rm(home, { recursive: true })
  }
  const watched = await fetch(`${kernel.observeUrl}/observe/events?type=message_sent`)
  expect(await watched.json()).toMatchObject({ events: [{}, {}, {}] })
  const page = await fetch(kernel.observeUrl)
  expect(page.status).toBe(200)
  expect(page.headers.get('content-type')).toContain('text/html')
})
