/** The tour in docs/tour.md, run as a reader would. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, expect, it } from 'vitest'
import { z } from 'zod'
import {
  messageAccepted,
  messagesPage,
  registryPage,
  statePage,
  stateValue,
  stateWritten,
} from '../../lab/client.ts'
import { type Event, startKernel } from '../../lab/kernel.ts'
import { blocksOf, paste, readDocument } from '../support/document.ts'

const answers: unknown[] = []
let output = ''
let errors = ''
let events: Event[] = []

beforeAll(async () => {
  await using kernel = await startKernel()
  const home = await mkdtemp(join(tmpdir(), 'tabulum-tour-'))
  try {
    ;({ output, errors } = await paste(tourFor(kernel.baseUrl, kernel.observeUrl), { home }))
    events = await kernel.events()
  } finally {
    await rm(home, { recursive: true })
  }
  for (const line of output.split('\n')) if (line.startsWith('{')) answers.push(JSON.parse(line))
}, 240_000)

it('runs without a complaint', () => {
  expect(errors).toBe('')
  expect(output).not.toContain('"error"')
})

it('registers an operator', () => {
  expect(output.split('\n')[0]).toMatch(/^the operator is [0-9a-f-]{36}$/)
})

it('shows the two agents in the registry, the messages, and the state', () => {
  const [registry, question, received, reply, read, written, value, keys] = z
    .tuple([
      registryPage,
      messageAccepted,
      messagesPage,
      messageAccepted,
      messagesPage,
      stateWritten,
      stateValue,
      statePage,
    ])
    .parse(answers.slice(0, 8))
  const [ada, bob] = registry.agents.map(({ address }) => address)
  expect(registry.total).toBe(2)
  expect(question).toMatchObject({ from: ada, to: bob })
  expect(received.messages).toEqual([{ ...question, content: 'Bob, what is 6 times 7?' }])
  expect(reply).toMatchObject({ from: bob, to: ada })
  expect(read.messages).toEqual([{ ...reply, content: '42, Ada.' }])
  expect(written).toMatchObject({ key: 'answers/6-times-7', written_by: ada })
  expect(value).toMatchObject({ key: 'answers/6-times-7', value: '42', last_modified_by: ada })
  expect(keys).toEqual({ keys: ['answers/6-times-7'], next_cursor: null, total: 1 })
})

it('ends with what everybody may see: the event log, the network, the state', () => {
  const [log, network, value] = answers.slice(8) as [
    { events: unknown[] },
    { edges: unknown[] },
    object,
  ]
  const shown = log.events
  expect(network.edges).toHaveLength(2)
  expect(value).toMatchObject({ key: 'answers/6-times-7', value: '42' })
  // What is recorded after an answer may follow those that were shown.
  expect(shown).toEqual(events.slice(0, shown.length))
  expect(shown).toEqual(
    expect.arrayContaining(
      ['operator_created', 'agent_registered', 'message_sent', 'state_written'].map((type) =>
        expect.objectContaining({ type }),
      ),
    ),
  )
})

/** The blocks of the tour, for a kernel that is elsewhere than it says. */
function tourFor(baseUrl: string, observeUrl: string): string {
  const text = blocksOf(readDocument('docs/tour.md'), 'bash').join('')
  for (const url of ['http://localhost:8080', 'http://localhost:8090'])
    expect(text.split(url)).toHaveLength(2)
  return text.replace('http://localhost:8080', baseUrl).replace('http://localhost:8090', observeUrl)
}
