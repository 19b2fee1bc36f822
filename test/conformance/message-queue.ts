/**
 * The conformance suite of the `MessageQueue` port: the log is appended to, a projector applies it,
 * the queue is leased from.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { newAddress } from '../../src/access/tokens.ts'
import type { NewEvent } from '../../src/events/event.ts'
import type { EventLog } from '../../src/events/event-log.ts'
import type { LeasedMessage, MessageQueue } from '../../src/messaging/message-queue.ts'
import { REDACTED } from '../../src/removal/redaction.ts'
import { inParallel, inSequence, now, redacted, sent } from './support.ts'

export interface MessageQueueHarness extends AsyncDisposable {
  /** One queue for each API node; where storage has room for one node only, one. */
  readonly nodes: readonly [MessageQueue, ...MessageQueue[]]
  readonly log: EventLog
  /**
   * Resolves when what the queues are read from has taken in the log up to this place. A projector
   * runs all the time.
   */
  applied(seq: number): Promise<void>
}

/** What the harness is to be created with, as its adapter's setting MESSAGE_MAX_QUEUE_PER_AGENT. */
export const MAX_QUEUE = 25

const LARGEST_CONTENT = '\0'.repeat(65_536)

export function describeMessageQueue(
  name: string,
  create: (options: { maxQueue: number }) => Promise<MessageQueueHarness>,
): void {
  describe(`message queue: ${name}`, () => {
    let harness: MessageQueueHarness
    let queue: MessageQueue
    /** The queue of another node, where there is one. */
    let other: MessageQueue
    beforeAll(async () => {
      harness = await create({ maxQueue: MAX_QUEUE })
      queue = harness.nodes[0]
      other = harness.nodes[1] ?? queue
    })
    afterAll(() => harness[Symbol.asyncDispose]())

    /** Sends, as the API does; resolves when all of them can be received. */
    async function send(
      to: string,
      contents: readonly string[],
      from = newAddress(),
    ): Promise<number[]> {
      const results = await inSequence(contents.length, (index) => {
        const event = sent(to, contents[index] as string, from)
        return harness.log.append(event, { id: event.data.message_id })
      })
      const seqs = results.map(({ seq }) => seq)
      await harness.applied(Math.max(...seqs))
      return seqs
    }

    /**
     * Records that these were delivered, as the API does; resolves to the place of the last record.
     */
    async function record(messages: readonly LeasedMessage[]): Promise<number> {
      const results = await inParallel(messages.length, (index) => {
        const { seq, message_id, to } = messages[index] as LeasedMessage
        const data = { message_id, to, delivery_method: 'pull' } as const
        return harness.log.append(
          { ts: now(), type: 'message_delivered', agent: to, data },
          { about: seq, id: `delivered-${message_id}` },
        )
      })
      return Math.max(...results.map(({ seq }) => seq))
    }

    async function deliver(recipient: string, messages: readonly LeasedMessage[]): Promise<void> {
      await harness.applied(await record(messages))
      await queue.remove(recipient, messages)
    }

    const numbered = (count: number, first = 0) =>
      Array.from({ length: count }, (_, index) => String(first + index))
    const contents = (messages: readonly LeasedMessage[]) => messages.map(({ content }) => content)

    it('is empty for an agent to whom nobody has written', async () => {
      expect(await queue.lease(newAddress(), 10)).toMatchObject({ messages: [], remaining: 0 })
    })

    it('leases messages in the order of the log, as they were sent', async () => {
      const [to, from] = [newAddress(), newAddress()]
      const event = sent(to, 'hello', from)
      const { seq } = await harness.log.append(event, { id: event.data.message_id })
      await send(to, numbered(4))
      const { messages, remaining } = await queue.lease(to, 10)
      expect(messages[0]).toEqual({
        seq,
        message_id: event.data.message_id,
        from,
        to,
        content: 'hello',
        timestamp: event.ts,
      })
      expect(contents(messages)).toEqual(['hello', ...numbered(4)])
      const seqs = messages.map(({ seq: place }) => place)
      expect(seqs).toEqual(seqs.toSorted((a, b) => a - b))
      expect(remaining).toBe(0)
    })

    it('keeps the order of messages from several senders', async () => {
      const to = newAddress()
      const results = await inParallel(4, (sender) => send(to, numbered(5, sender * 100)))
      const { messages } = await queue.lease(to, 100)
      expect(messages.map(({ seq }) => seq)).toEqual(results.flat().toSorted((a, b) => a - b))
      for (const [sender] of results.entries()) {
        expect(
          contents(messages).filter((text) => Math.floor(Number(text) / 100) === sender),
        ).toEqual(numbered(5, sender * 100))
      }
    })

    it('leases at most the limit, the oldest, and says how many more are queued', async () => {
      const to = newAddress()
      await send(to, numbered(10))
      const first = await queue.lease(to, 3)
      expect(contents(first.messages)).toEqual(numbered(3))
      expect(first.remaining).toBe(7)
      const second = await other.lease(to, 4)
      expect(contents(second.messages)).toEqual(numbered(4, 3))
      expect(second.remaining).toBe(3)
      const third = await queue.lease(to, 100)
      expect(contents(third.messages)).toEqual(numbered(3, 7))
      expect(third.remaining).toBe(0)
    })

    it('gives no message to two leases at the same time', async () => {
      const to = newAddress()
      await send(to, numbered(20))
      const leases = await inParallel(8, (index) => (index % 2 === 0 ? queue : other).lease(to, 3))
      const all = leases.flatMap(({ messages }) => contents(messages))
      expect(all.toSorted((a, b) => Number(a) - Number(b))).toEqual(numbered(20))
      for (const { messages } of leases)
        expect(contents(messages)).toEqual(
          contents(messages).toSorted((a, b) => Number(a) - Number(b)),
        )
      expect(await other.lease(to, 3)).toMatchObject({ messages: [], remaining: 0 })
    })

    it('keeps agents apart', async () => {
      const [one, two] = [newAddress(), newAddress()]
      await send(one, ['for one'])
      await send(two, ['for two'])
      expect(contents((await queue.lease(one, 10)).messages)).toEqual(['for one'])
      expect(contents((await queue.lease(two, 10)).messages)).toEqual(['for two'])
    })

    it('forgets what was delivered', async () => {
      const to = newAddress()
      await send(to, numbered(5))
      const { messages } = await queue.lease(to, 2)
      await deliver(to, messages)
      const rest = await other.lease(to, 10)
      expect(contents(rest.messages)).toEqual(numbered(3, 2))
      expect(rest.remaining).toBe(0)
      await deliver(to, rest.messages)
      expect(await queue.lease(to, 10)).toMatchObject({ messages: [], remaining: 0 })
      await send(to, ['later'])
      expect(contents((await queue.lease(to, 10)).messages)).toEqual(['later'])
    })

    it('forgets what is removed while its delivery is still on its way to the log', async () => {
      const to = newAddress()
      await send(to, numbered(3))
      const { messages } = await queue.lease(to, 2)
      await queue.remove(to, messages)
      const rest = await other.lease(to, 10)
      expect(contents(rest.messages)).toEqual(['2'])
      expect(rest.remaining).toBe(0)
      await rest.release()
      await harness.applied(await record(messages))
      const again = await other.lease(to, 10)
      expect(contents(again.messages)).toEqual(['2'])
      expect(again.remaining).toBe(0)
    })

    it('forgets what the log says was delivered, though nobody removes it', async () => {
      const to = newAddress()
      await send(to, numbered(3))
      const lease = await queue.lease(to, 2)
      await harness.applied(await record(lease.messages))
      // Their lease is over too, should this have been another process's.
      await lease.release().catch(() => {})
      const rest = await other.lease(to, 10)
      expect(contents(rest.messages)).toEqual(['2'])
      expect(rest.remaining).toBe(0)
    })

    it('puts what is released back in its place', async () => {
      const to = newAddress()
      await send(to, numbered(6))
      const first = await queue.lease(to, 2)
      const second = await queue.lease(to, 2)
      await second.release()
      await first.release()
      const again = await other.lease(to, 3)
      expect(contents(again.messages)).toEqual(numbered(3))
      expect(again.remaining).toBe(3)
      const rest = await queue.lease(to, 10)
      expect(contents(rest.messages)).toEqual(numbered(3, 3))
      expect(rest.remaining).toBe(0)
    })

    it('counts what was released as queued again', async () => {
      const to = newAddress()
      await send(to, numbered(6))
      await (await queue.lease(to, 3)).release()
      expect((await other.lease(to, 1)).remaining).toBe(5)
    })

    it('leaves what is still leased to others alone when some are released', async () => {
      const to = newAddress()
      await send(to, numbered(4))
      await queue.lease(to, 1)
      await (await queue.lease(to, 1)).release()
      const { messages: again, remaining } = await other.lease(to, 10)
      expect(contents(again)).toEqual(numbered(3, 1))
      expect(remaining).toBe(0)
    })

    it('takes the removing and releasing of nothing', async () => {
      const to = newAddress()
      await send(to, ['x'])
      await queue.remove(to, [])
      await (await queue.lease(newAddress(), 1)).release()
      expect(contents((await queue.lease(to, 10)).messages)).toEqual(['x'])
    })

    it('holds at most its bound: past that the oldest are dropped, and stay in the log', async () => {
      const to = newAddress()
      const seqs = await send(to, numbered(MAX_QUEUE + 7))
      const { messages, remaining } = await queue.lease(to, 10)
      expect(contents(messages)).toEqual(numbered(10, 7))
      expect(remaining).toBe(MAX_QUEUE - 10)
      expect(contents((await queue.lease(to, 100)).messages)).toEqual(numbered(MAX_QUEUE - 10, 17))
      expect(await harness.log.get(seqs)).toHaveLength(MAX_QUEUE + 7)
    })

    it('holds its bound where one message comes at a time, and as many again when they are gone', async () => {
      const to = newAddress()
      for (const content of numbered(MAX_QUEUE + 2)) await send(to, [content])
      const { messages } = await queue.lease(to, 100)
      expect(contents(messages)).toEqual(numbered(MAX_QUEUE, 2))
      await deliver(to, messages)
      await send(to, numbered(MAX_QUEUE + 1))
      const again = await queue.lease(to, 100)
      expect(contents(again.messages)).toEqual(numbered(MAX_QUEUE, 1))
      expect(again.remaining).toBe(0)
    })

    it('hands out all that is left when leased messages are dropped meanwhile', async () => {
      const to = newAddress()
      await send(to, numbered(MAX_QUEUE))
      const first = await queue.lease(to, 2)
      await send(to, ['one more', 'and another'])
      const { messages } = await queue.lease(to, 10)
      expect(contents(messages)).toEqual(numbered(10, 2))
      const rest = await queue.lease(to, 100)
      expect(contents(rest.messages)).toEqual([
        ...numbered(MAX_QUEUE - 12, 12),
        'one more',
        'and another',
      ])
      await deliver(to, [...first.messages, ...messages, ...rest.messages])
      expect(await queue.lease(to, 10)).toMatchObject({ messages: [], remaining: 0 })
    })

    it('brings a message that an agent sends to itself', async () => {
      const self = newAddress()
      await send(self, ['note'], self)
      const { messages } = await queue.lease(self, 10)
      expect(messages).toMatchObject([{ from: self, to: self, content: 'note' }])
    })

    it('keeps contents byte for byte, small and of the greatest size', async () => {
      const to = newAddress()
      const texts = [
        '\0',
        '\0 😀 \u{10ffff} \uffff \\u0000 "\r\n',
        'x'.repeat(1_024),
        'x'.repeat(1_025),
        LARGEST_CONTENT,
        'ü'.repeat(32_768),
      ]
      await send(to, texts)
      const { messages } = await queue.lease(to, 10)
      expect(messages.map(({ content }, index) => content === texts[index])).toEqual(
        texts.map(() => true),
      )
    })

    it('holds no messages that are pushed', async () => {
      const to = newAddress()
      const event = sent(to, 'pushed')
      const { seq } = await harness.log.append(event, { via: 'webhook', id: event.data.message_id })
      await harness.applied(seq)
      expect(await queue.lease(to, 10)).toMatchObject({ messages: [], remaining: 0 })
      await send(to, ['pulled'])
      expect(contents((await queue.lease(to, 10)).messages)).toEqual(['pulled'])
    })

    it('takes in what could not be pushed, in order, with its content', async () => {
      const to = newAddress()
      const texts = ['small', LARGEST_CONTENT]
      const events = texts.map((text) => sent(to, text))
      const appended = await inSequence(events.length, (index) => {
        const event = events[index] as (typeof events)[number]
        return harness.log.append(event, { via: 'webhook', id: event.data.message_id })
      })
      const moved = await inSequence(events.length, (index) => {
        const { message_id } = (events[index] as (typeof events)[number]).data
        const { seq: about } = appended[index] as (typeof appended)[number]
        return harness.log.append(
          {
            ts: now(),
            type: 'push_failed',
            agent: to,
            data: { message_id, to, reason: 'undeliverable' },
          },
          { about, id: `queued-${message_id}` },
        )
      })
      await harness.applied(Math.max(...moved.map(({ seq }) => seq)))
      const { messages, remaining } = await queue.lease(to, 10)
      expect(contents(messages)).toEqual(texts)
      expect(messages.map(({ seq }) => seq)).toEqual(appended.map(({ seq }) => seq))
      expect(remaining).toBe(0)
      await deliver(to, messages)
      expect(await queue.lease(to, 10)).toMatchObject({ messages: [], remaining: 0 })
    })

    describe('of messages that were redacted', () => {
      const LARGE = 'x'.repeat(10_000)

      /** Appends the redaction of a message, and waits until the queue has taken it in. */
      async function redact(
        to: string,
        { seq, message_id }: Pick<LeasedMessage, 'seq' | 'message_id'>,
      ): Promise<void> {
        const { seq: place } = await harness.log.append(redacted(message_id), {
          about: seq,
          recipient: to,
        })
        await harness.applied(place)
      }

      /** Sends, and says which messages they are. */
      async function sendKnown(to: string, texts: readonly string[]) {
        const messages = texts.map((text) => sent(to, text))
        const appended = await inSequence(messages.length, (index) =>
          harness.log.append(messages[index] as NewEvent),
        )
        await harness.applied(Math.max(...appended.map(({ seq }) => seq)))
        return messages.map(({ data: { message_id } }, index) => ({
          message_id,
          seq: appended[index]?.seq ?? 0,
        }))
      }

      it('hands out the redaction in the place of the content, small or large, in order and once', async () => {
        const to = newAddress()
        const messages = await sendKnown(to, ['0', 'small', '2', LARGE, '4'])
        for (const index of [1, 3]) await redact(to, messages[index] as LeasedMessage)
        const { messages: leased, remaining } = await other.lease(to, 10)
        expect(leased.map(({ content, message_id }) => ({ content, message_id }))).toEqual(
          ['0', REDACTED, '2', REDACTED, '4'].map((content, index) => ({
            content,
            message_id: messages[index]?.message_id,
          })),
        )
        expect(remaining).toBe(0)
        await send(to, ['5'])
        await deliver(to, leased)
        expect(contents((await queue.lease(to, 10)).messages)).toEqual(['5'])
      })

      it('leaves leases as they are: what is released comes redacted, what is delivered is gone', async () => {
        const to = newAddress()
        const messages = await sendKnown(to, ['0', '1', '2', '3'])
        const [one, two] = [await queue.lease(to, 1), await other.lease(to, 2)]
        for (const message of messages.slice(0, 3)) await redact(to, message)
        const rest = await queue.lease(to, 10)
        expect(contents(rest.messages)).toEqual(['3'])
        await deliver(to, one.messages)
        await two.release()
        await rest.release()
        const again = await other.lease(to, 10)
        expect(contents(again.messages)).toEqual([REDACTED, REDACTED, '3'])
        expect(again.remaining).toBe(0)
      })

      it('takes a redaction that comes with its message, or when it was delivered', async () => {
        const to = newAddress()
        const event = sent(to, 'at once')
        const { message_id } = event.data
        const { seq: about } = await harness.log.append(event)
        await redact(to, { seq: about, message_id })
        const { messages } = await queue.lease(to, 10)
        expect(contents(messages)).toEqual([REDACTED])
        await deliver(to, messages)
        await redact(to, { seq: about, message_id })
        await send(to, ['next'])
        expect(contents((await other.lease(to, 10)).messages)).toEqual(['next'])
      })
    })

    it('loses and doubles nothing while many send, receive and give back at once', async () => {
      const to = newAddress()
      const total = 5 * MAX_QUEUE
      const received: string[] = []
      let sentSoFar = 0
      let gone = 0
      const sender = (async () => {
        while (sentSoFar < total) {
          // Never more than fit, so that none may be dropped.
          if (sentSoFar - gone + 5 <= MAX_QUEUE) {
            await send(to, numbered(5, sentSoFar))
            sentSoFar += 5
          } else await nextTurn()
        }
      })()
      const receivers = inParallel(4, async (index) => {
        for (let turn = index; received.length < total; turn++) {
          const lease = await (index % 2 === 0 ? queue : other).lease(to, 3)
          const { messages } = lease
          // A queue in the process answers at once, and must not keep it from all else.
          await nextTurn()
          if (turn % 3 === 0) await lease.release()
          else if (messages.length > 0) {
            received.push(...contents(messages))
            await deliver(to, messages)
            gone += messages.length
          }
        }
      })
      await Promise.all([sender, receivers])
      expect(received.toSorted((a, b) => Number(a) - Number(b))).toEqual(numbered(total))
    })
  })
}
