/**
 * The checker of the faults program: histories that keep every promise pass, and each way to break
 * one is caught.
 */
import { describe, expect, it } from 'vitest'
import { check, RECOVERY_MS } from '../../../lab/faults/checker.ts'
import type {
  FaultRecord,
  History,
  NodeView,
  ObserverView,
  Operation,
  Part,
  Push,
  Watch,
} from '../../../lab/faults/history.ts'
import type { Event } from '../../../lab/kernel.ts'

const [ANNA, BERT] = ['tab_anna', 'tab_bert']
const TS = '2026-01-01T00:00:00.000Z'
const LATER = '2026-01-01T00:00:01.000Z'

type Loose<T> = T extends Operation
  ? Omit<T, 'agent' | 'status'> & { agent?: string; status?: number }
  : never

/** A history of these requests; the rest is as a sound kernel would have it. */
function historyOf(
  operations: readonly Loose<Operation>[],
  events: readonly Omit<Event, 'ts'>[],
  rest: Partial<History> & { ts?: string } = {},
): History {
  const log = events.map((event) => ({ ts: TS, ...event }))
  return {
    operations: operations.map(
      (operation) =>
        ({ agent: ANNA, status: operation.kind === 'send' ? 202 : 200, ...operation }) as Operation,
    ),
    events: log,
    pushes: [],
    faults: [],
    crashes: [],
    capacityBytes: 1_000,
    limitPerMinute: 3,
    nodes: [],
    observers: [],
    watches: [],
    refusedTokens: [],
    ...rest,
  }
}

const rulesOf = (history: History) => check(history).map(({ rule }) => rule)

/** During `from` to `to` and some time after, this is broken. */
const broken = (from: number, to: number, ...hits: Part[]): FaultRecord => ({
  name: 'fault',
  hits,
  began: from,
  repaired: to,
})

const send = (content: string, began: number, ended: number, more: object = {}) =>
  ({
    kind: 'send',
    to: BERT,
    content,
    messageId: `id of ${content}`,
    began,
    ended,
    ...more,
  }) as const
const receive = (contents: readonly string[], began: number, ended: number, more: object = {}) =>
  ({
    kind: 'receive',
    agent: BERT,
    messages: contents.map(arrived),
    began,
    ended,
    ...more,
  }) as const
const arrived = (content: string) => ({ id: `id of ${content}`, from: ANNA, to: BERT, content })
const pushed = (content: string, at: number): Push => ({ ...arrived(content), at })
const sent = (seq: number, content: string) => ({
  seq,
  type: 'message_sent',
  agent: ANNA,
  data: { message_id: `id of ${content}`, from: ANNA, to: BERT, content },
})
const delivered = (seq: number, content: string) => ({
  seq,
  type: 'message_delivered',
  agent: BERT,
  data: { message_id: `id of ${content}`, to: BERT },
})
const write = (value: string, began: number, ended: number, more: object = {}) =>
  ({ kind: 'write', key: 'k', value, began, ended, ...more }) as const
const read = (value: string | undefined, began: number, ended: number, more: object = {}) =>
  ({
    kind: 'read',
    key: 'k',
    value,
    began,
    ended,
    status: value === undefined ? 404 : 200,
    ...more,
  }) as const
const remove = (began: number, ended: number, more: object = {}) =>
  ({ kind: 'remove', key: 'k', deletedAt: TS, began, ended, ...more }) as const
const written = (seq: number, value: string) => ({
  seq,
  type: 'state_written',
  agent: ANNA,
  data: { key: 'k', value },
})
const removed = (seq: number) => ({ seq, type: 'state_deleted', agent: ANNA, data: { key: 'k' } })

describe('messages', () => {
  const events = [sent(1, 'a'), sent(2, 'b'), delivered(3, 'a'), delivered(4, 'b')]
  const sends = [send('a', 0, 10), send('b', 20, 30)]

  it('pass when each arrives once and in order', () => {
    expect(rulesOf(historyOf([...sends, receive(['a', 'b'], 40, 50)], events))).toEqual([])
    expect(
      rulesOf(historyOf(sends, events, { pushes: [pushed('a', 40), pushed('b', 41)] })),
    ).toEqual([])
  })

  it('that were acknowledged and never arrive are lost, even if the log has their delivery', () => {
    expect(rulesOf(historyOf([...sends, receive(['b'], 40, 50)], events))).toEqual(['lost message'])
  })

  it('that were not acknowledged may arrive or not', () => {
    const outage = { faults: [broken(0, 10, 'nats')] }
    const unknown = send('a', 0, 10, { status: 503, retryAfter: '1', messageId: undefined })
    expect(rulesOf(historyOf([unknown], [], outage))).toEqual([])
    expect(rulesOf(historyOf([unknown, receive(['a'], 40, 50)], [sent(1, 'a')], outage))).toEqual(
      [],
    )
  })

  it('may be lost with the load balancer that carried them, and only so', () => {
    const lost = [send('a', 0, 10), receive([], 40, 50, { status: 0 })]
    const log = [sent(1, 'a'), delivered(2, 'a')]
    expect(rulesOf(historyOf(lost, log, { faults: [broken(45, 60, 'haproxy')] }))).toEqual([])
    expect(rulesOf(historyOf(lost, log, { faults: [broken(45, 60, 'api')] }))).toEqual([
      'lost message',
    ])
    expect(
      rulesOf(historyOf(lost, [sent(1, 'a')], { faults: [broken(45, 60, 'haproxy')] })),
    ).toEqual(['lost message'])
  })

  it('that come twice are repeated, unless their node may have died before it recorded them', () => {
    const twice = [send('a', 0, 10), receive(['a'], 40, 50), receive(['a'], 60, 70)]
    const log = [sent(1, 'a'), delivered(2, 'a')]
    expect(rulesOf(historyOf(twice, log))).toEqual(['repeated message'])
    expect(rulesOf(historyOf(twice, log, { faults: [broken(51, 55, 'api')] }))).toEqual([])
    expect(rulesOf(historyOf(twice, log, { faults: [broken(51, 55, 'redis')] }))).toEqual([
      'repeated message',
    ])
    expect(rulesOf(historyOf(twice, log, { faults: [broken(90_000, 90_001, 'api')] }))).toEqual([
      'repeated message',
    ])
  })

  it('that are pushed twice are repeated, unless their worker was in trouble', () => {
    const twice = { pushes: [pushed('a', 40), pushed('a', 60)] }
    const log = [sent(1, 'a'), delivered(2, 'a')]
    expect(rulesOf(historyOf([send('a', 0, 10)], log, twice))).toEqual(['repeated message'])
    expect(
      rulesOf(historyOf([send('a', 0, 10)], log, { ...twice, faults: [broken(41, 55, 'worker')] })),
    ).toEqual([])
    expect(
      rulesOf(historyOf([send('a', 0, 10)], log, { ...twice, faults: [broken(41, 55, 'redis')] })),
    ).toEqual(['repeated message'])
  })

  it('that overtake each other are reordered, in one answer and over several', () => {
    expect(rulesOf(historyOf([...sends, receive(['b', 'a'], 40, 50)], events))).toEqual([
      'reordered messages',
    ])
    expect(
      rulesOf(historyOf([...sends, receive(['b'], 40, 50), receive(['a'], 60, 70)], events)),
    ).toEqual(['reordered messages'])
    expect(
      rulesOf(historyOf(sends, events, { pushes: [pushed('b', 40), pushed('a', 41)] })),
    ).toEqual(['reordered messages'])
  })

  it('that were sent at the same time have no order', () => {
    const together = [send('a', 0, 30), send('b', 20, 30)]
    expect(rulesOf(historyOf([...together, receive(['b', 'a'], 40, 50)], events))).toEqual([])
  })

  it('may be overtaken while they are in the hands of a node that died, which shows in a receive that failed', () => {
    const failed = receive([], 35, 38, { status: 503, retryAfter: '1' })
    const late = [...sends, failed, receive(['b'], 40, 50), receive(['a'], 60, 70)]
    expect(rulesOf(historyOf(late, events, { faults: [broken(36, 37, 'api')] }))).toEqual([])
    expect(rulesOf(historyOf(late, events, { faults: [broken(36, 37, 'redis')] }))).toEqual([
      'reordered messages',
    ])
  })

  it('that nobody sent, to others, under other ids, after a refusal or before they were sent are forged', () => {
    const log = [sent(1, 'a'), delivered(2, 'a')]
    const one = send('a', 0, 10)
    expect(rulesOf(historyOf([receive(['a'], 0, 10), send('a', 20, 30)], log))).toEqual([
      'forged message',
    ])
    expect(rulesOf(historyOf([one, receive(['a', 'c'], 40, 50)], log))).toEqual(['forged message'])
    const elsewhere = {
      ...receive([], 40, 50),
      agent: ANNA,
      messages: [{ ...arrived('a'), to: ANNA }],
    }
    expect(rulesOf(historyOf([one, elsewhere], log))).toEqual(['forged message'])
    const other = { ...receive([], 40, 50), messages: [{ ...arrived('a'), id: 'another' }] }
    expect(rulesOf(historyOf([one, other], log))).toEqual(['forged message'])
    const refused = send('a', 0, 10, { status: 404, messageId: undefined })
    expect(rulesOf(historyOf([refused, receive(['a'], 40, 50)], log))).toEqual([
      'undocumented answer',
      'forged message',
      'log',
    ])
  })

  it('sent again under one idempotency key count once', () => {
    const outage = { faults: [broken(0, 10, 'nats')] }
    const tries = [
      send('a', 0, 10, { status: 503, retryAfter: '1', messageId: undefined }),
      send('a', 20, 30),
    ]
    const log = [sent(1, 'a'), delivered(2, 'a')]
    expect(rulesOf(historyOf([...tries, receive(['a'], 40, 50)], log, outage))).toEqual([])
    expect(
      rulesOf(historyOf([...tries, receive(['a'], 40, 50)], [...log, sent(3, 'a')], outage)),
    ).toEqual(['log'])
  })
})

describe('the log', () => {
  it('goes forward, has no change that nobody asked for, and no delivery twice', () => {
    const history = historyOf(
      [send('a', 0, 10), receive(['a'], 20, 30)],
      [sent(1, 'a'), delivered(2, 'a')],
    )
    const withLog = (...events: Omit<Event, 'ts'>[]) =>
      rulesOf({ ...history, events: events.map((event) => ({ ts: TS, ...event })) })
    expect(withLog(sent(2, 'a'), delivered(1, 'a'))).toEqual(['log'])
    expect(withLog(sent(1, 'a'), delivered(2, 'a'), delivered(3, 'a'))).toEqual(['log'])
    expect(withLog(sent(1, 'a'), delivered(2, 'a'), sent(3, 'z'))).toEqual(['log'])
    expect(withLog(sent(1, 'a'), delivered(2, 'a'), written(3, 'z'))).toEqual(['log'])
    expect(withLog(sent(1, 'a'), delivered(2, 'a'), removed(3))).toEqual(['log'])
    expect(withLog(delivered(2, 'a'))).toEqual(['log'])
  })

  it('has every registration that was acknowledged', () => {
    const register = {
      kind: 'register',
      address: 'tab_new',
      status: 201,
      began: 0,
      ended: 1,
    } as const
    const event = {
      seq: 1,
      type: 'agent_registered',
      agent: 'tab_new',
      data: { address: 'tab_new' },
    }
    expect(rulesOf(historyOf([register], [event]))).toEqual([])
    expect(rulesOf(historyOf([register], []))).toEqual(['log'])
  })
})

describe('state', () => {
  it('passes when every read is of a value that the key had meanwhile', () => {
    const operations = [
      read(undefined, 0, 5),
      write('1', 10, 20),
      read('1', 30, 40),
      write('2', 50, 80),
      // While the write is under way, either will do; and once the new one was seen, it stays.
      read('1', 55, 60, { agent: BERT }),
      read('2', 62, 70, { agent: BERT }),
      remove(90, 100),
      read(undefined, 110, 120),
      write('3', 130, 140),
      read('3', 135, 145, { agent: BERT }),
    ]
    expect(
      rulesOf(
        historyOf(operations, [written(1, '1'), written(2, '2'), removed(3), written(4, '3')]),
      ),
    ).toEqual([])
  })

  const two = [written(1, '1'), written(2, '2')]

  it('an acknowledged write that is not in the log is lost', () => {
    expect(rulesOf(historyOf([write('1', 0, 10)], []))).toEqual(['lost write'])
    expect(rulesOf(historyOf([write('1', 0, 10), remove(20, 30)], [written(1, '1')]))).toEqual([
      'lost write',
    ])
  })

  it('a write that is in the log twice, or was refused, is wrong', () => {
    expect(rulesOf(historyOf([write('1', 0, 10)], [written(1, '1'), written(2, '1')]))).toEqual([
      'log',
    ])
    expect(rulesOf(historyOf([write('1', 0, 10, { status: 507 })], [written(1, '1')]))).toEqual([
      'log',
    ])
  })

  it('an order of writes that real time denies is wrong, across agents too', () => {
    expect(
      rulesOf(historyOf([write('2', 0, 10), write('1', 20, 30, { agent: BERT })], two)),
    ).toEqual(['order of writes'])
    expect(
      rulesOf(historyOf([write('2', 0, 10), write('1', 5, 30, { agent: BERT })], two)),
    ).toEqual([])
  })

  it('a read older than an acknowledged write is stale, across agents too', () => {
    const writes = [write('1', 0, 10), write('2', 20, 30)]
    expect(rulesOf(historyOf([...writes, read('1', 40, 50)], two))).toEqual(['stale read'])
    expect(rulesOf(historyOf([...writes, read('1', 40, 50, { agent: BERT })], two))).toEqual([
      'stale read',
    ])
    expect(rulesOf(historyOf([...writes, read(undefined, 40, 50)], two))).toEqual(['stale read'])
    expect(rulesOf(historyOf([...writes, read('1', 25, 50)], two))).toEqual([])
  })

  it('a read older than an earlier one is stale, even while the write is under way', () => {
    const operations = [
      write('1', 0, 10),
      write('2', 20, 90),
      read('2', 30, 40),
      read('1', 50, 60, { agent: BERT }),
    ]
    expect(rulesOf(historyOf(operations, two))).toEqual(['stale read'])
  })

  it('a read of what was only written later, or ahead of a write that began later, is wrong', () => {
    expect(rulesOf(historyOf([write('1', 20, 30), read('1', 0, 10)], [written(1, '1')]))).toEqual([
      'stale read',
    ])
    const ahead = [write('1', 50, 60), write('2', 0, 70, { agent: BERT }), read('2', 10, 20)]
    expect(rulesOf(historyOf(ahead, two))).toEqual(['stale read'])
  })

  it('nothing may be found only where a removal could have been', () => {
    const log = [written(1, '1'), removed(2), written(3, '3')]
    const operations = [write('1', 0, 10), remove(20, 30), write('3', 40, 50)]
    expect(rulesOf(historyOf([...operations, read(undefined, 31, 39)], log))).toEqual([])
    expect(rulesOf(historyOf([...operations, read(undefined, 11, 19)], log))).toEqual([
      'stale read',
    ])
    expect(rulesOf(historyOf([...operations, read(undefined, 51, 59)], log))).toEqual([
      'stale read',
    ])
  })

  it('a value that nobody wrote is wrong', () => {
    expect(rulesOf(historyOf([read('x', 0, 10)], []))).toEqual(['read of nothing that was written'])
  })

  it('a write that was not acknowledged may take effect late, or never, but only once begun', () => {
    const faults = [broken(20, 30, 'nats')]
    const unknown = write('1', 20, 30, { status: 503, retryAfter: '1' })
    const late = [unknown, write('2', 40, 50), read('1', 60, 70)]
    expect(rulesOf(historyOf(late, [written(1, '2'), written(2, '1')], { faults }))).toEqual([])
    expect(
      rulesOf(
        historyOf([write('2', 40, 50), unknown, read('2', 60, 70)], [written(1, '2')], { faults }),
      ),
    ).toEqual([])
    expect(rulesOf(historyOf([read('1', 0, 10), unknown], [written(1, '1')], { faults }))).toEqual([
      'stale read',
    ])
    const removal = remove(20, 30, { status: 503, retryAfter: '1', deletedAt: undefined })
    expect(
      rulesOf(
        historyOf(
          [write('2', 0, 10), removal, read(undefined, 60, 70)],
          [written(1, '2'), removed(2)],
          { faults },
        ),
      ),
    ).toEqual([])
  })

  it('acknowledged removals are told apart by their time', () => {
    const operations = [
      write('1', 0, 10),
      remove(20, 30),
      write('2', 40, 50),
      remove(60, 70, { deletedAt: LATER }),
    ]
    const log = [written(1, '1'), removed(2), written(3, '2'), { ...removed(4), ts: LATER }]
    expect(rulesOf(historyOf(operations, log))).toEqual([])
    expect(rulesOf(historyOf(operations, log.slice(0, 3)))).toEqual(['lost write'])
  })
})

describe('a machine that stood still', () => {
  it('excuses what came late, and nothing else', () => {
    const stall = [broken(0, 10, 'machine')]
    const late = {
      kind: 'read',
      key: 'k',
      value: undefined,
      status: 503,
      retryAfter: '1',
      began: 5,
      ended: 6,
    } as const
    expect(rulesOf(historyOf([late], [], { faults: stall }))).toEqual([])
    expect(rulesOf(historyOf([late], []))).toEqual(['late recovery'])
    expect(rulesOf(historyOf([send('a', 1, 2)], [sent(1, 'a')], { faults: stall }))).toEqual([
      'lost message',
    ])
  })
})

describe('processes', () => {
  it('do not end by themselves', () => {
    expect(
      rulesOf(historyOf([], [], { crashes: [{ name: 'api-1', at: 1, output: 'TypeError' }] })),
    ).toEqual(['crash'])
  })
})

describe('answers', () => {
  const asked = (more: object) =>
    ({ kind: 'read', key: 'k', began: 100, ended: 110, ...more }) as Loose<Operation>
  const nats = { faults: [broken(90, 95, 'nats')] }

  it('are those of the contract', () => {
    expect(rulesOf(historyOf([asked({ status: 500 })], [], nats))).toEqual(['undocumented answer'])
    expect(rulesOf(historyOf([asked({ status: 429, retryAfter: '1' })], [], nats))).toEqual([
      'undocumented answer',
    ])
    expect(rulesOf(historyOf([asked({ status: 503, retryAfter: '1' })], [], nats))).toEqual([])
    const clock = { faults: [broken(0, 10, 'clock')] }
    expect(rulesOf(historyOf([asked({ status: 429, retryAfter: '1' })], [], clock))).toEqual([])
    expect(rulesOf(historyOf([asked({ status: 429 })], [], clock))).toEqual(['undocumented answer'])
    expect(rulesOf(historyOf([asked({ status: 503 })], [], nats))).toEqual(['undocumented answer'])
    expect(rulesOf(historyOf([asked({ status: 503, retryAfter: '0' })], [], nats))).toEqual([
      'undocumented answer',
    ])
    const limited = { kind: 'limited', status: 429, began: 0, ended: 1 } as const
    expect(rulesOf(historyOf([{ ...limited, retryAfter: '2' }], []))).toEqual([])
    expect(rulesOf(historyOf([limited], []))).toEqual(['undocumented answer'])
  })

  it('come, unless what carries them is killed', () => {
    expect(rulesOf(historyOf([asked({ status: 0 })], [], nats))).toEqual(['undocumented answer'])
    expect(
      rulesOf(historyOf([asked({ status: 0 })], [], { faults: [broken(90, 95, 'api')] })),
    ).toEqual([])
  })

  it('are no failures where nothing is broken, and a while after a repair', () => {
    const at = 95 + RECOVERY_MS
    const failed = (began: number) =>
      asked({ status: 503, retryAfter: '1', began, ended: began + 10 })
    expect(rulesOf(historyOf([failed(at)], [], nats))).toEqual([])
    expect(rulesOf(historyOf([failed(at + 1)], [], nats))).toEqual(['late recovery'])
    expect(rulesOf(historyOf([failed(50)], [], nats))).toEqual(['late recovery'])
    expect(rulesOf(historyOf([failed(100)], [], { faults: [broken(90, 120)] }))).toEqual([
      'late recovery',
    ])
  })
})

it('capacity is never overrun, in the log and in what agents are told', () => {
  const big = 'x'.repeat(1_000)
  expect(rulesOf(historyOf([write(big, 0, 10)], [written(1, big)]))).toEqual(['capacity'])
  expect(
    rulesOf(historyOf([write(big, 0, 10)], [written(1, big)], { capacityBytes: 1_001 })),
  ).toEqual([])
  const told = { kind: 'capacity', usedBytes: 1_001, began: 0, ended: 1 } as const
  expect(rulesOf(historyOf([told], []))).toEqual(['capacity'])
})

it('a limit is a full bucket and what refills it, and begins afresh with Redis', () => {
  const requests = (...times: number[]) =>
    times.map((began) => ({ kind: 'limited', began, ended: began + 1 }) as const)
  // Three at once, and one every 20 s; one more for what rounding may take.
  expect(rulesOf(historyOf(requests(0, 1, 2, 20_003), []))).toEqual([])
  expect(rulesOf(historyOf(requests(0, 1, 2, 3, 4), []))).toEqual(['limit'])
  expect(rulesOf(historyOf(requests(0, 1, 2, 20_003, 20_004, 20_005), []))).toEqual(['limit'])
  expect(
    rulesOf(historyOf(requests(0, 1, 2, 90, 91, 92), [], { faults: [broken(50, 60, 'redis')] })),
  ).toEqual([])
  expect(
    rulesOf(historyOf(requests(0, 1, 2, 90, 91, 92), [], { faults: [broken(50, 60, 'nats')] })),
  ).toEqual(['limit'])
})

it('in the end the log, every node and verify agree', () => {
  const agreed: NodeView = {
    node: 'api-1',
    state: { k: '1' },
    usedBytes: 2,
    keyCount: 1,
    agents: 1,
  }
  const log = [
    written(1, '1'),
    { seq: 2, type: 'agent_registered', agent: 'tab_new', data: { address: 'tab_new' } },
  ]
  const withNodes = (nodes: NodeView[], rest: Partial<History> = {}) =>
    rulesOf(historyOf([write('1', 0, 10)], log, { nodes, ...rest }))
  expect(withNodes([agreed])).toEqual([])
  expect(withNodes([agreed, { ...agreed, state: { k: '0' } }])).toEqual(['disagreement'])
  expect(withNodes([{ ...agreed, state: {} }])).toEqual(['disagreement'])
  expect(withNodes([{ ...agreed, state: { k: '1', more: '' } }])).toEqual(['disagreement'])
  expect(withNodes([{ ...agreed, usedBytes: 3 }])).toEqual(['disagreement'])
  expect(withNodes([{ ...agreed, keyCount: 2 }])).toEqual(['disagreement'])
  expect(withNodes([{ ...agreed, agents: 2 }])).toEqual(['disagreement'])
  expect(withNodes([agreed], { differences: 'k differs' })).toEqual(['disagreement'])
  expect(withNodes([agreed], { refusedTokens: [ANNA] })).toEqual(['disagreement'])
})

it('in the end every observer counts what the log has', () => {
  const log = [
    written(1, '1'),
    { seq: 2, type: 'agent_registered', agent: 'tab_new', data: { address: 'tab_new' } },
  ]
  const agreed: ObserverView = { observer: 'observe-1', agents: 1, events: 2 }
  const withObservers = (observers: ObserverView[]) =>
    rulesOf(historyOf([write('1', 0, 10)], log, { observers }))
  expect(withObservers([agreed])).toEqual([])
  expect(withObservers([agreed, { ...agreed, agents: 2 }])).toEqual(['disagreement'])
  expect(withObservers([{ ...agreed, events: 1 }])).toEqual(['disagreement'])
  expect(withObservers([{ ...agreed, events: 3 }])).toEqual(['disagreement'])
})

describe('who watches', () => {
  const log: Omit<Event, 'ts'>[] = [
    written(1_000, '1'),
    { seq: 1_001, type: 'state_read', agent: ANNA, data: { key: 'k' } },
    written(2_000, '2'),
    written(3_000, '3'),
  ]
  const writes = [write('1', 0, 10), write('2', 20, 30), write('3', 40, 50)]
  const [first, looked, second, third] = log.map((event) => ({ ts: TS, ...event })) as [
    Event,
    Event,
    Event,
    Event,
  ]
  const saw = (seen: Event[], more: Partial<Watch> = {}) =>
    rulesOf(
      historyOf(writes, log, {
        watches: [{ name: 'who', since: 0, seen, connections: 1, ...more }],
      }),
    )

  it('sees each event of the log, once and in order', () => {
    expect(saw([first, looked, second, third])).toEqual([])
  })

  it('sees what it has asked for, and nothing else', () => {
    const types = ['state_written']
    expect(saw([first, second, third], { types })).toEqual([])
    expect(saw([first, looked, second, third], { types })).toEqual(['forged event'])
    expect(saw([first, third], { types })).toEqual(['missed event'])
    expect(saw([second, third], { since: 1_001 })).toEqual([])
    expect(saw([looked, second, third], { since: 1_001 })).toContain('forged event')
    expect(saw([], { types: ['message_sent'] })).toEqual([])
  })

  it('misses an event where there is a gap: at the beginning, within, and at the end', () => {
    expect(saw([looked, second, third])).toEqual(['missed event'])
    expect(saw([first, second, third])).toEqual(['missed event'])
    expect(saw([first, looked, second])).toEqual(['missed event'])
    expect(saw([])).toEqual(['missed event'])
  })

  it('gets one again where it comes twice, at once and after others', () => {
    expect(saw([first, first, looked, second, third])).toEqual(['repeated event'])
    expect(saw([first, looked, second, looked, second, third])).toEqual([
      'repeated event',
      'repeated event',
    ])
  })

  it('gets them out of order where one comes after a later one', () => {
    expect(saw([first, second, looked, third])).toEqual(['reordered events'])
    expect(saw([third, first, looked, second])).toEqual([
      'reordered events',
      'reordered events',
      'reordered events',
    ])
  })

  it('is shown an event that there is not, or another in its place', () => {
    expect(saw([first, looked, { ...second, seq: 1_002 }, second, third])).toEqual(['forged event'])
    expect(saw([first, looked, { ...second, data: { key: 'k', value: '1' } }, third])).toEqual([
      'forged event',
    ])
  })

  it('is judged apart from others', () => {
    const watches = [
      { name: 'one', since: 0, seen: [first, looked, second, third], connections: 2 },
      { name: 'other', since: 0, seen: [first, looked, third], connections: 1 },
    ]
    const [violation, ...more] = check(historyOf(writes, log, { watches }))
    expect(violation).toMatchObject({ rule: 'missed event', subject: 'other' })
    expect(more).toEqual([])
  })
})
