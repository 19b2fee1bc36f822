import { describe, expect, it } from 'vitest'
import { Client, message, messageAccepted } from '../../lab/client.ts'
import type { Event } from '../../lab/kernel.ts'
import { ownTarget, sharedTarget } from '../support/target.ts'
import {
  byteLength,
  eventually,
  expectRefusal,
  inParallel,
  lastSeq,
  ofType,
  queuesFilled,
} from './support.ts'

const target = await sharedTarget()
const bounded = await ownTarget({ MESSAGE_MAX_QUEUE_PER_AGENT: '20' })
const client = new Client(target.baseUrl)

const MAX_CONTENT_BYTES = 65_536

/** Two fresh agents, so that queues are empty. */
async function pair() {
  const [sender, recipient] = await client.registerAgents(2)
  if (sender === undefined || recipient === undefined) throw new Error('no agents')
  return { sender, recipient }
}

const contents = (messages: readonly { content: string }[]) =>
  messages.map(({ content }) => content)

describe('POST /v1/messages', () => {
  it('answers 202 {"message_id": "<uuid>", "from": "<sender>", "to": "…", "timestamp": "…"}', async () => {
    const { sender, recipient } = await pair()
    const before = Date.now()
    const accepted = (await sender.trySend(recipient.address, 'hello')).as(202, messageAccepted)
    expect(accepted).toMatchObject({ from: sender.address, to: recipient.address })
    expect(Date.parse(accepted.timestamp)).toBeGreaterThan(before - 2_000)
    expect(Date.parse(accepted.timestamp)).toBeLessThan(Date.now() + 2_000)
  })

  it('from is the authenticated agent, whatever the body says', async () => {
    const { sender, recipient } = await pair()
    const json = {
      from: recipient.address,
      to: recipient.address,
      content: 'x',
      message_id: 'y',
      timestamp: 'z',
    }
    const accepted = (await sender.request('POST', '/v1/messages', { json })).as(
      202,
      messageAccepted,
    )
    expect(accepted.from).toBe(sender.address)
    await queuesFilled(target)
    const { messages } = await recipient.receive()
    expect(messages).toEqual([{ ...accepted, content: 'x' }])
  })

  it('gives each message an id of its own, also for the same content at the same time', async () => {
    const { sender, recipient } = await pair()
    const accepted = await inParallel(20, () => sender.send(recipient.address, 'same'))
    expect(new Set(accepted.map(({ message_id }) => message_id)).size).toBe(20)
    await queuesFilled(target)
    expect(await recipient.receiveAll()).toHaveLength(20)
  })

  it('an agent may write to itself', async () => {
    const { sender } = await pair()
    const accepted = await sender.send(sender.address, 'note to self')
    await queuesFilled(target)
    expect((await sender.receive()).messages).toEqual([{ ...accepted, content: 'note to self' }])
  })

  it('is 404 for an unknown recipient', async () => {
    const { sender } = await pair()
    expectRefusal(await sender.trySend(`tab_${'0'.repeat(20)}`, 'x'), 404)
  })

  it('an accepted message can be received at once', async () => {
    const { sender, recipient } = await pair()
    for (let round = 0; round < 50; round++) {
      const { message_id } = await sender.send(recipient.address, `round ${round}`)
      const { messages, remaining } = await recipient.receive()
      expect(messages.map((received) => received.message_id)).toEqual([message_id])
      expect(remaining).toBe(0)
    }
  })
})

describe('content', () => {
  it.each([
    ['1 byte', 'x'],
    ['65,536 bytes', 'x'.repeat(MAX_CONTENT_BYTES)],
    ['65,536 bytes in characters of 2', 'é'.repeat(MAX_CONTENT_BYTES / 2)],
    ['65,536 bytes in characters of 3 and 1', `${'€'.repeat(21_845)}x`],
    ['65,536 bytes in characters of 4', '😀'.repeat(MAX_CONTENT_BYTES / 4)],
    ['65,536 bytes that JSON escapes to 6 each', '\u0001'.repeat(MAX_CONTENT_BYTES)],
    ['65,536 times U+0000', '\u0000'.repeat(MAX_CONTENT_BYTES)],
  ])('may have 1 to 65,536 bytes: %s', async (_, content) => {
    const { sender, recipient } = await pair()
    await sender.send(recipient.address, content)
    await queuesFilled(target)
    const [received] = (await recipient.receive()).messages
    expect(received?.content === content).toBe(true)
  })

  it.each([
    ['no bytes', ''],
    ['65,537 bytes', 'x'.repeat(MAX_CONTENT_BYTES + 1)],
    ['65,537 bytes in characters of 2 and 1', `${'é'.repeat(MAX_CONTENT_BYTES / 2)}x`],
    ['65,538 bytes in 21,846 characters', '€'.repeat(21_846)],
    ['65,540 bytes in 16,385 characters', '😀'.repeat(MAX_CONTENT_BYTES / 4 + 1)],
    ['65,537 bytes that JSON escapes to 6 each', '\u0001'.repeat(MAX_CONTENT_BYTES + 1)],
    ['100,000 bytes', 'x'.repeat(100_000)],
  ])('over or under the limit is 400: %s', async (_, content) => {
    const { sender, recipient } = await pair()
    expectRefusal(await sender.trySend(recipient.address, content), 400)
    expect(await recipient.receive()).toMatchObject({ messages: [], remaining: 0 })
  })

  it.each([
    ['U+0000', '\u0000'],
    ['U+0000 inside', 'a\u0000b\u0000'],
    ['all of U+0000 to U+02FF', String.fromCodePoint(...Array(0x300).keys())],
    ['astral characters', '😀𝔘\u{10000}\u{10ffff}'],
    ['a byte order mark first', '\ufeffx'],
    ['noncharacters', '\uffff\ufffe\ufdd0\u{1ffff}'],
    ['the replacement character', '\ufffd'],
    ['line separators', 'a\u2028b\u2029c\r\nd\n'],
    ['composed and decomposed letters', 'é e\u0301 ﬁ ᄀ\u1161'],
    ['spaces at its ends', '  x\t\n'],
    ['what looks like JSON', '{"a":"\\u0000"}'],
    ['what looks like an escape', '\\u0000 \\x00 %00 &#0; \\\\'],
    ['what looks like a number', '1e3'],
    ['private use', '\ue000\uf8ff\u{f0000}'],
  ])('is opaque and arrives byte for byte: %s', async (_, content) => {
    const { sender, recipient } = await pair()
    const since = await lastSeq(target)
    const { message_id } = await sender.send(recipient.address, content)
    await queuesFilled(target)
    const { messages } = await recipient.receive()
    expect(messages.map((received) => [...received.content])).toEqual([[...content]])
    const [sent] = ofType(await target.events(since), 'message_sent')
    expect(sent?.data).toEqual({
      message_id,
      from: sender.address,
      to: recipient.address,
      content,
      content_length: byteLength(content),
    })
  })

  it('spelled with escapes or without arrives the same', async () => {
    const { sender, recipient } = await pair()
    for (const spelling of ['é😀/', '\\u00e9\\ud83d\\ude00\\/', '\\u00E9\\uD83D\\uDE00/']) {
      const body = `{"to":"${recipient.address}","content":"${spelling}"}`
      const headers = { 'Content-Type': 'application/json' }
      expect((await sender.request('POST', '/v1/messages', { headers, body })).status).toBe(202)
    }
    await queuesFilled(target)
    expect(contents(await recipient.receiveAll())).toEqual(['é😀/', 'é😀/', 'é😀/'])
  })
})

describe('GET /v1/messages', () => {
  it('answers 200 {"messages": [{"message_id","from","to","content","timestamp"}…], "remaining"}', async () => {
    const { sender, recipient } = await pair()
    const accepted = await sender.send(recipient.address, 'hello')
    await queuesFilled(target)
    const { messages, remaining } = await recipient.receive()
    expect(messages.map((received) => message.parse(received))).toEqual([
      { ...accepted, content: 'hello' },
    ])
    expect(remaining).toBe(0)
  })

  it('is empty when nothing is queued', async () => {
    const { recipient } = await pair()
    expect(await recipient.receive()).toMatchObject({ messages: [], remaining: 0 })
  })

  it("returns no other agent's messages", async () => {
    const { sender, recipient } = await pair()
    await sender.send(recipient.address, 'for one')
    await queuesFilled(target)
    expect((await sender.receive()).messages).toEqual([])
    expect((await recipient.receive()).messages).toHaveLength(1)
  })

  it('returns messages in the order received', async () => {
    const { sender, recipient } = await pair()
    for (let index = 0; index < 30; index++) await sender.send(recipient.address, String(index))
    await queuesFilled(target)
    expect(contents(await recipient.receiveAll())).toEqual(
      Array.from({ length: 30 }, (_, index) => String(index)),
    )
  })

  it('returns messages of many senders in the one order of the log, through pages too', async () => {
    const { recipient } = await pair()
    const senders = await client.registerAgents(8)
    const since = await lastSeq(target)
    await Promise.all(
      senders.map(async (sender) => {
        for (let index = 0; index < 10; index++)
          await sender.send(recipient.address, `${sender.address} ${index}`)
      }),
    )
    const logged = ofType(await target.events(since), 'message_sent').map(
      ({ data }) => data.message_id,
    )
    await queuesFilled(target)
    const received: string[] = []
    for (let page = 0; page < 12; page++) {
      received.push(
        ...(await recipient.receive('?limit=7')).messages.map(({ message_id }) => message_id),
      )
    }
    expect(logged).toHaveLength(80)
    expect(received).toEqual(logged)
  })

  it('a returned message is gone from the queue', async () => {
    const { sender, recipient } = await pair()
    await inParallel(3, (index) => sender.send(recipient.address, String(index)))
    await queuesFilled(target)
    expect((await recipient.receive()).messages).toHaveLength(3)
    expect(await recipient.receive()).toMatchObject({ messages: [], remaining: 0 })
  })

  it('remaining is how many are still queued', async () => {
    const { sender, recipient } = await pair()
    await inParallel(7, (index) => sender.send(recipient.address, String(index)))
    await queuesFilled(target)
    expect((await recipient.receive('?limit=3')).remaining).toBe(4)
    await sender.send(recipient.address, 'one more')
    await queuesFilled(target)
    expect((await recipient.receive('?limit=3')).remaining).toBe(2)
    expect((await recipient.receive('?limit=3')).remaining).toBe(0)
  })

  it('asked many times at once returns each message once', async () => {
    const { sender, recipient } = await pair()
    const sent = await inParallel(60, (index) => sender.send(recipient.address, String(index)))
    await queuesFilled(target)
    const pages = await inParallel(20, () => recipient.receive('?limit=5'))
    const received = [
      ...pages.flatMap(({ messages }) => messages),
      ...(await recipient.receiveAll()),
    ]
    expect(received.map(({ message_id }) => message_id).toSorted()).toEqual(
      sent.map(({ message_id }) => message_id).toSorted(),
    )
  })

  it('asked while messages arrive loses none and repeats none', async () => {
    const { recipient } = await pair()
    const senders = await client.registerAgents(4)
    const sending = { isDone: false }
    const receivers = Array.from({ length: 3 }, async () => {
      const received: string[] = []
      while (!sending.isDone)
        received.push(...contents((await recipient.receive('?limit=4')).messages))
      return received
    })
    const sent = await Promise.all(
      senders.map(async (sender) => {
        const own = Array.from({ length: 25 }, (_, index) => `${sender.address} ${index}`)
        for (const content of own) await sender.send(recipient.address, content)
        return own
      }),
    )
    sending.isDone = true
    await queuesFilled(target)
    const received = [
      ...(await Promise.all(receivers)).flat(),
      ...contents(await recipient.receiveAll()),
    ]
    expect(received.toSorted()).toEqual(sent.flat().toSorted())
  })
})

describe('limit', () => {
  it('is how many messages are returned, from 1 to 100', async () => {
    const { sender, recipient } = await pair()
    await inParallel(103, (index) => sender.send(recipient.address, String(index)))
    await queuesFilled(target)
    expect((await recipient.receive('?limit=1')).messages).toHaveLength(1)
    expect((await recipient.receive('?limit=100')).messages).toHaveLength(100)
    expect((await recipient.receive('?limit=100')).messages).toHaveLength(2)
  })

  it('is 50 by default', async () => {
    const { sender, recipient } = await pair()
    await inParallel(51, (index) => sender.send(recipient.address, String(index)))
    await queuesFilled(target)
    const { messages, remaining } = await recipient.receive()
    expect(messages).toHaveLength(50)
    expect(remaining).toBe(1)
  })

  it.each(['', '0', '-1', '101', 'abc', '5.5', '0x5', '99999999999999999999'])(
    'that is anything else means the default: %j',
    async (limit) => {
      const { sender, recipient } = await pair()
      await inParallel(51, (index) => sender.send(recipient.address, String(index)))
      await queuesFilled(target)
      expect((await recipient.receive(`?limit=${limit}`)).messages).toHaveLength(50)
    },
  )
})

describe('the queue', () => {
  it('holds at most so many messages an agent; past that the oldest is dropped, and stays in the event log', async () => {
    const boundedClient = new Client(bounded.baseUrl)
    const recipient = await boundedClient.registerAgent()
    const other = await boundedClient.registerAgent()
    const since = await lastSeq(bounded)
    await other.send(other.address, 'of another queue')
    const sent = Array.from({ length: 25 }, (_, index) => String(index))
    for (const content of sent) await other.send(recipient.address, content)
    await queuesFilled(bounded)

    const first = await recipient.receive('?limit=5')
    expect(contents(first.messages)).toEqual(sent.slice(5, 10))
    expect(first.remaining).toBe(15)
    for (const content of ['25', '26', '27', '28', '29', '30'])
      await other.send(recipient.address, content)
    await queuesFilled(bounded)
    const rest = await recipient.receive('?limit=100')
    expect(contents(rest.messages)).toEqual(
      Array.from({ length: 20 }, (_, index) => String(index + 11)),
    )
    expect(rest.remaining).toBe(0)

    expect(contents(await other.receiveAll())).toEqual(['of another queue'])
    const ofQueues = (events: readonly Event[], type: string) =>
      ofType(events, type).filter(({ data }) =>
        [recipient.address, other.address].includes(String(data.to)),
      )
    const log = await eventually(bounded, since, (events) =>
      expect(ofQueues(events, 'message_delivered')).toHaveLength(26),
    )
    expect(ofQueues(log, 'message_sent')).toHaveLength(32)
    expect(ofQueues(log, 'message_sent').map(({ data }) => data.content)).toEqual(
      expect.arrayContaining(['0', '1', '2', '3', '4', '10']),
    )
  })

  it('survives a restart', async () => {
    const { sender, recipient } = await pair()
    await sender.send(recipient.address, 'before')
    await sender.send(recipient.address, 'second')
    await queuesFilled(target)
    expect(contents((await recipient.receive('?limit=1')).messages)).toEqual(['before'])
    await target.restart()
    expect(contents(await recipient.receiveAll())).toEqual(['second'])
  })
})
