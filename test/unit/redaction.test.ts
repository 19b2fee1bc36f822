/**
 * What it costs to show redactions: no question where nothing can have been removed, one where
 * something can.
 */
import { expect, it, vi } from 'vitest'
import type { LoggedEvent } from '../../src/events/event.ts'
import { redact } from '../../src/removal/redaction.ts'
import { deleted, noRemovals, read, sent, written } from '../conformance/support.ts'

it('asks once for all messages and once for all keys, and not at all where there are none', async () => {
  const ofMessages = vi.fn(noRemovals.ofMessages)
  const ofKeys = vi.fn(noRemovals.ofKeys)
  const logged = (...events: object[]) =>
    events.map((event, index) => ({ ...event, seq: index + 1 }) as LoggedEvent)
  const nothing = logged(deleted('a'), read('b'))
  expect(await redact(nothing, { ofMessages, ofKeys })).toEqual(nothing)
  expect(await redact([], { ofMessages, ofKeys })).toEqual([])
  expect(ofMessages).not.toHaveBeenCalled()
  expect(ofKeys).not.toHaveBeenCalled()
  const [one, two] = [sent('tab_x', '1'), sent('tab_x', '2')]
  await redact(logged(written('a', '1'), one, written('a', '2'), two, written('b', '3')), {
    ofMessages,
    ofKeys,
  })
  expect(ofMessages.mock.calls).toEqual([[[one.data.message_id, two.data.message_id]]])
  expect(ofKeys.mock.calls).toEqual([[['a', 'b']]])
})
