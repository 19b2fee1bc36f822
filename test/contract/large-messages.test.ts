/** Pages of messages that are large: bounded by their bytes, and each message comes once. */
import { expect, it } from 'vitest'
import { Client } from '../../lab/client.ts'
import { ownTarget } from '../support/target.ts'
import { inParallel, queuesFilled } from './support.ts'

const MEBIBYTE = 1_048_576
/** As JSON it takes six bytes for each of its own: no two of them fit on a page. */
const LARGEST = '\0'.repeat(MEBIBYTE - 3)
const SENT = 5

const target = await ownTarget({ MESSAGE_MAX_CONTENT_BYTES: String(MEBIBYTE) })
const client = new Client(target.baseUrl)

it('a page holds as many messages as fit, and says how many are left', async () => {
  const [sender, recipient] = await client.registerAgents(2)
  if (sender === undefined || recipient === undefined) throw new Error('no agents')
  const content = (number: number) => LARGEST + String(number).padStart(3, '0')
  for (let number = 0; number < SENT; number++)
    await sender.send(recipient.address, content(number))
  await sender.send(recipient.address, 'small')
  await queuesFilled(target)
  const pages: number[][] = []
  for (let left = SENT + 1; left > 0; ) {
    const { messages, remaining } = await recipient.receive('?limit=100')
    pages.push(
      messages.map((message) =>
        message.content === 'small' ? SENT : Number(message.content.slice(-3)),
      ),
    )
    left -= messages.length
    expect(remaining).toBe(left)
  }
  // Five of 6.3 MB, and the small one beside the last of them.
  expect(pages).toEqual([[0], [1], [2], [3], [4, SENT]])
})

it('those who ask at once get each message once', async () => {
  const [sender, recipient] = await client.registerAgents(2)
  if (sender === undefined || recipient === undefined) throw new Error('no agents')
  for (let number = 0; number < SENT; number++) await sender.send(recipient.address, LARGEST)
  await queuesFilled(target)
  const received: string[] = []
  while (received.length < SENT)
    for (const answer of await inParallel(3, () => recipient.request('GET', '/v1/messages'))) {
      // Answers of one agent may hold so much and no more.
      expect([200, 503]).toContain(answer.status)
      if (answer.status === 200)
        received.push(
          ...(answer.json as { messages: { message_id: string }[] }).messages.map(
            (one) => one.message_id,
          ),
        )
    }
  expect(new Set(received).size).toBe(SENT)
  expect(received).toHaveLength(SENT)
})
