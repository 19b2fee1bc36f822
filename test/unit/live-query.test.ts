/** Which events a request asks for, by its query. */
import { expect, it } from 'vitest'
import { ApiError } from '../../src/api/api-error.ts'
import { readEventFilter, readSeq } from '../../src/observe/query.ts'

const AGENT = `tab_${'a1'.repeat(10)}`
const query = (text: string) =>
  new Map(text.split('&').map((pair) => pair.split('=', 2) as [string, string]))

it.each([
  ['', {}],
  ['type=&agent=', {}],
  ['type=state_read', { types: new Set(['state_read']) }],
  [
    'type=state_read%2Cmessage_sent,message_sent',
    { types: new Set(['state_read', 'message_sent']) },
  ],
  [`agent=${AGENT}&type=registry_read`, { agent: AGENT, types: new Set(['registry_read']) }],
])('%j is %j', (text, filter) => {
  expect(readEventFilter(query(text))).toEqual(filter)
})

it.each([
  ['type=unknown', /type must be some of operator_created, /],
  ['type=state_read,', /type must be/],
  ['type=State_Read', /type must be/],
  ['type=constructor', /type must be/],
  ['type=%zz', /type must be percent-encoded/],
  ['agent=a', /agent must be an address/],
  [`agent=${AGENT}x`, /agent must be an address/],
  [`agent=${AGENT.toUpperCase()}`, /agent must be an address/],
])('%j is refused', (text, message) => {
  expect(() => readEventFilter(query(text))).toThrow(ApiError)
  expect(() => readEventFilter(query(text))).toThrow(message)
})

it('a place is a whole number', () => {
  expect(readSeq(query('since=0'), 'since')).toBe(0)
  expect(readSeq(query('since=999999999999999'), 'since')).toBe(999_999_999_999_999)
  expect(readSeq(query('since='), 'since')).toBeUndefined()
  expect(readSeq(query('other=1'), 'since')).toBeUndefined()
  for (const text of ['-1', '1.5', '1e3', 'x', '%201', '9999999999999999']) {
    expect(() => readSeq(query(`since=${text}`), 'since')).toThrow(
      /since must be the seq of an event/,
    )
  }
})
