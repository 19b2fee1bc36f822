/** What the read model of messages keeps in SQLite, beside a model that keeps lists. */
import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { afterEach, beforeEach, expect, it } from 'vitest'
import type { NewEvent } from '../../src/events/event.ts'
import { type Append, createAppend } from '../../src/events/sqlite-append.ts'
import { messageReadModel } from '../../src/messaging/message-read-model.ts'
import { migrateSqlite, openSqlite, type Sqlite } from '../../src/platform/sqlite.ts'

const MAX_QUEUE = 3
const AGENTS = ['tab_one', 'tab_two'] as const

let sqlite: Sqlite
let append: Append
beforeEach(() => {
  sqlite = openSqlite(':memory:')
  migrateSqlite(sqlite)
  append = createAppend(sqlite, [messageReadModel({ maxQueue: MAX_QUEUE })], Date.now)
})
afterEach(() => sqlite.connection.close())

interface Message {
  seq: number
  id: string
  to: string
  pushed: boolean
}

/** Of what was sent so far, the one at `index`, counted from the newest. */
type Step = { what: 'send' | 'push'; to: string } | { what: 'deliver' | 'move'; index: number }

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    what: fc.constantFrom('send' as const, 'push' as const),
    to: fc.constantFrom(...AGENTS),
  }),
  fc.record({
    what: fc.constantFrom('deliver' as const, 'move' as const),
    index: fc.nat({ max: 5 }),
  }),
)

const ts = '2026-01-01T00:00:00.000Z'

function sent(id: string, to: string): NewEvent {
  const data = { message_id: id, from: 'tab_sender', to, content: '', content_length: 0 }
  return { ts, type: 'message_sent', agent: 'tab_sender', data }
}

function ended(what: 'deliver' | 'move', { id, to }: Message): NewEvent {
  return what === 'deliver'
    ? {
        ts,
        type: 'message_delivered',
        agent: to,
        data: { message_id: id, to, delivery_method: 'pull' },
      }
    : { ts, type: 'push_failed', agent: to, data: { message_id: id, to, reason: 'undeliverable' } }
}

const rows = (query: string) => sqlite.connection.prepare(query).all()

it('whatever comes: queues and lanes hold what was not delivered, and count it', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      sqlite.connection.exec('begin')
      const all: Message[] = []
      let waiting: Message[] = []
      const droppedOf: Record<string, number> = {}
      const newest: Record<string, number> = {}
      for (const each of steps) {
        let dropped = 0
        let result: ReturnType<Append>
        if ('to' in each) {
          const id = randomUUID()
          const pushed = each.what === 'push'
          result = append(sent(id, each.to), { ...(pushed && { via: 'webhook' as const }) })
          const message = { seq: result.seq, id, to: each.to, pushed }
          all.unshift(message)
          waiting.push(message)
          if (pushed) newest[each.to] = result.seq
        } else {
          const message = all[each.index]
          if (!message) continue
          result = append(ended(each.what, message), { about: message.seq })
          if (each.what === 'deliver') waiting = waiting.filter((other) => other !== message)
          else if (waiting.includes(message)) message.pushed = false
        }
        for (const agent of AGENTS) {
          const queue = waiting
            .filter(({ to, pushed }) => to === agent && !pushed)
            .toSorted((a, b) => a.seq - b.seq)
          const surplus = queue.slice(0, Math.max(0, queue.length - MAX_QUEUE))
          waiting = waiting.filter((message) => !surplus.includes(message))
          droppedOf[agent] = (droppedOf[agent] ?? 0) + surplus.length
          dropped += surplus.length
        }
        expect(result.dropped).toBe(dropped)
      }
      const inOrder = waiting.toSorted((a, b) => a.seq - b.seq)
      expect(
        rows(
          'select seq, message_id as id, recipient as "to", via_webhook as pushed from queued_messages order by seq',
        ),
      ).toEqual(inOrder.map((message) => ({ ...message, pushed: Number(message.pushed) })))
      for (const { recipient, length, dropped } of rows('select * from queues')) {
        expect(length).toBe(inOrder.filter(({ to, pushed }) => to === recipient && !pushed).length)
        expect(dropped).toBe(droppedOf[String(recipient)])
      }
      const lanes = rows('select recipient, last_seq, pending, next_at from webhook_lanes')
      expect(Object.fromEntries(lanes.map((lane) => [lane.recipient, lane.last_seq]))).toEqual(
        newest,
      )
      for (const { recipient, pending, next_at } of lanes) {
        expect(pending).toBe(inOrder.filter(({ to, pushed }) => to === recipient && pushed).length)
        expect(next_at).toBeLessThanOrEqual(Date.now())
      }
      expect(rows('select pending from webhook_totals')).toEqual([
        { pending: inOrder.filter(({ pushed }) => pushed).length },
      ])
      sqlite.connection.exec('rollback')
    }),
    { numRuns: 300 },
  )
})

it('a queue that may hold fewer than it has loses the oldest with the next message', () => {
  const [to] = AGENTS
  const larger = createAppend(sqlite, [messageReadModel({ maxQueue: 10 })], Date.now)
  const seqs = Array.from({ length: 10 }, () => larger(sent(randomUUID(), to)).seq)
  expect(append(sent(randomUUID(), to)).dropped).toBe(8)
  expect(rows('select length, dropped from queues')).toEqual([{ length: 3, dropped: 8 }])
  expect(rows('select min(seq) as oldest from queued_messages')).toEqual([{ oldest: seqs[8] }])
})
