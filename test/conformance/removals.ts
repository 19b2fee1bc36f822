/**
 * The conformance suite of the `Removals` port, and of what it shows in the place of what was
 * removed.
 */
import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { LoggedEvent, NewEvent } from '../../src/events/event.ts'
import { REDACTED, redact } from '../../src/removal/redaction.ts'
import type { Removals } from '../../src/removal/removals.ts'
import { deleted, keyRemoved, redacted, sent, written } from './support.ts'

export interface RemovalsHarness extends AsyncDisposable {
  readonly removals: Removals
  /** Takes an event in; returns its place. */
  apply(event: NewEvent): Promise<number>
}

/** With what a store might take for something else. */
const KEYS = ['a', 'a\0b', 'é/😀', "it's", '%', '\\x61']

export function describeRemovals(name: string, create: () => Promise<RemovalsHarness>): void {
  describe(`removals: ${name}`, () => {
    let harness: RemovalsHarness
    let removals: Removals
    beforeAll(async () => {
      harness = await create()
      removals = harness.removals
    })
    afterAll(() => harness[Symbol.asyncDispose]())

    it('are none at first', async () => {
      expect(await removals.list({ limit: 10 })).toEqual({ removals: [], total: 0 })
      expect(await removals.ofMessages([randomUUID()])).toEqual(new Map())
      expect(await removals.ofKeys(['a'])).toEqual(new Map())
      expect(await removals.ofKeys([])).toEqual(new Map())
    })

    it('are listed from the oldest on, page by page, as their events tell them', async () => {
      const events = KEYS.flatMap((key) => [
        keyRemoved(key, { reason: `of ${key.length}` }),
        redacted(randomUUID()),
      ])
      const expected: object[] = []
      for (const event of events) {
        const { ts, type: action, data } = event
        expected.push({ seq: await harness.apply(event), ts, action, ...data })
      }
      const listed: object[] = []
      for (let after: number | undefined; ; ) {
        const page = await removals.list({ limit: 5, ...(after !== undefined && { after }) })
        expect(page.total).toBe(events.length)
        expect(page.removals.length).toBeLessThanOrEqual(5)
        if (page.removals.length === 0) break
        listed.push(...page.removals)
        after = page.removals.at(-1)?.seq
      }
      expect(listed).toEqual(expected)
    })

    it('are found by key, each the latest', async () => {
      for (const key of KEYS) await harness.apply(keyRemoved(key, { reason: 'first' }))
      const again = await harness.apply(keyRemoved('a', { reason: 'again' }))
      const found = await removals.ofKeys([...KEYS, 'a', 'A', 'another'])
      expect([...found.keys()].toSorted()).toEqual(KEYS.toSorted())
      expect(found.get('a')).toMatchObject({ seq: again, key: 'a', reason: 'again' })
      expect(found.get('a\0b')).toMatchObject({ key: 'a\0b', reason: 'first' })
    })

    it('are found by message, however many are asked for', async () => {
      const ids = Array.from({ length: 3 }, () => randomUUID())
      for (const id of ids) await harness.apply(redacted(id, { reason: id }))
      const others = Array.from({ length: 1_500 }, () => randomUUID())
      const found = await removals.ofMessages([...others, ...ids, 'no id', ''])
      expect([...found.keys()].toSorted()).toEqual(ids.toSorted())
      for (const id of ids) expect(found.get(id)).toMatchObject({ message_id: id, reason: id })
    })

    it('are shown in the place of each message and of each value from before them, and of nothing else', async () => {
      const message = sent('tab_x', 'illegal')
      const other = sent('tab_x', 'fine')
      const events: NewEvent[] = [
        message,
        other,
        written('shown', 'illegal'),
        written('other', 'fine'),
        keyRemoved('shown'),
        redacted(message.data.message_id, { reason: 'court order' }),
        written('shown', 'new'),
        deleted('shown'),
      ]
      const logged: LoggedEvent[] = []
      for (const event of events) logged.push({ ...event, seq: await harness.apply(event) })
      const shown = await redact(logged, removals)
      expect(shown.map(({ seq, type }) => ({ seq, type }))).toEqual(
        logged.map(({ seq, type }) => ({ seq, type })),
      )
      expect(shown[0]?.data).toEqual({
        ...message.data,
        content: REDACTED,
        redacted: true,
        redacted_reason: 'court order',
      })
      expect(shown[2]?.data).toEqual({
        ...logged[2]?.data,
        value: REDACTED,
        redacted: true,
        redacted_reason: 'illegal',
      })
      for (const index of [1, 3, 4, 5, 6, 7]) expect(shown[index]).toEqual(logged[index])
      // Nothing of what was given is changed.
      expect(message.data.content).toBe('illegal')
    })
  })
}
