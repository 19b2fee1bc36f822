/**
 * What a worker does with a lane, turn by turn; lanes, log and client are stand-ins that a test
 * scripts.
 */
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { newAddress } from '../../../src/access/tokens.ts'
import type { LoggedEvent, NewEvent } from '../../../src/events/event.ts'
import { type AppendOptions, type EventLog, LogUnavailable } from '../../../src/events/event-log.ts'
import { Progress } from '../../../src/events/progress.ts'
import { DatabaseUnavailable } from '../../../src/platform/database.ts'
import { createLogger } from '../../../src/platform/logger.ts'
import { REDACTED } from '../../../src/removal/redaction.ts'
import type { Removal } from '../../../src/removal/removals.ts'
import type { DeliveryOutcome } from '../../../src/webhooks/delivery-outcome.ts'
import { Doorbell } from '../../../src/webhooks/doorbell.ts'
import { SecretNotOpened } from '../../../src/webhooks/secret-box.ts'
import { newWebhookSecret } from '../../../src/webhooks/signature.ts'
import type { WebhookPost } from '../../../src/webhooks/webhook-client.ts'
import type { ClaimedLane, LaneTurn } from '../../../src/webhooks/webhook-lanes.ts'
import type { WebhookSecret } from '../../../src/webhooks/webhook-secrets.ts'
import { runWebhookWorker } from '../../../src/webhooks/webhook-worker.ts'
import { noRemovals } from '../../conformance/support.ts'

const MINUTE_MS = 60_000
const DELIVERED: DeliveryOutcome = { kind: 'delivered', status: 200 }
const FAILED: DeliveryOutcome = { kind: 'failed', stage: 'connect', reason: 'ECONNREFUSED' }

const recipient = newAddress()
let stop: AbortController
let progress: Progress
let pushes: Doorbell
let heartbeat: NodeJS.Timeout
let stored: LoggedEvent[]
let appended: { event: NewEvent; options: AppendOptions | undefined }[]
let released: LaneTurn[]
let toClaim: ClaimedLane[]
/** The place of the last event that changes something, where it is not that of the last message. */
let last: number | undefined
let post: ReturnType<
  typeof vi.fn<
    (url: string | URL, message: WebhookPost, signal?: AbortSignal) => Promise<DeliveryOutcome>
  >
>
let renew: (recipients: readonly string[]) => Promise<Set<string>>
let append: () => Promise<void>
let openSecret: () => WebhookSecret
/** By message. */
let removals: Map<string, Removal>
let running: Promise<void> | undefined

beforeEach(() => {
  stop = new AbortController()
  pushes = new Doorbell()
  progress = new Progress()
  // As a projector does that is there.
  progress.advance(1_000)
  heartbeat = setInterval(() => progress.advance(1_000), 50)
  stored = []
  appended = []
  released = []
  toClaim = []
  last = undefined
  removals = new Map()
  post = vi.fn(async () => DELIVERED)
  renew = async (recipients) => new Set(recipients)
  append = async () => {}
  const secret = newWebhookSecret()
  openSecret = () => ({ secret, authorization: undefined })
})
afterEach(async () => {
  vi.useRealTimers()
  stop.abort()
  await running
  clearInterval(heartbeat)
})

/** A lane with so many messages, oldest first. */
function lane(messages: number, changes: Partial<ClaimedLane> = {}): ClaimedLane {
  const events = Array.from({ length: messages }, () => {
    const seq = stored.length + 1
    const data = {
      message_id: randomUUID(),
      from: newAddress(),
      to: recipient,
      content: `${seq}`,
      content_length: 1,
    }
    const event: LoggedEvent = {
      seq,
      ts: new Date().toISOString(),
      type: 'message_sent',
      agent: data.from,
      data,
    }
    stored.push(event)
    return { seq, id: data.message_id }
  })
  return {
    recipient,
    claim: 1,
    standing: 'fast',
    pending: messages,
    lastSeq: stored.length,
    doneSeq: 0,
    retriedSeq: 0,
    attempts: 0,
    failures: 0,
    openUntil: 0,
    bucketFullAt: 0,
    now: Date.now(),
    url: 'https://receiver.test/hook',
    sealedSecret: 'sealed',
    wasHeld: false,
    messages: events,
    ...changes,
  }
}

/** Lets a worker take these lanes, once, and waits until it has given them back. */
async function work(lanes: readonly ClaimedLane[], options: Parameters<typeof start>[1] = {}) {
  start(lanes, options)
  await vi.waitFor(() => expect(released).toHaveLength(lanes.length), { timeout: 20_000 })
  return released
}

function start(
  lanes: readonly ClaimedLane[],
  { perMinute = 1_000, maxBacklog = 1_000, leaseMs = 10_000 } = {},
): void {
  toClaim = [...lanes]
  const log = {
    get: async (seqs: readonly number[]) => seqs.flatMap((seq) => stored[seq - 1] ?? []),
    append: async (event: NewEvent, options?: AppendOptions) => {
      await append()
      appended.push({ event, options })
      return { seq: 0, duplicate: false }
    },
    lastSeq: async () => last ?? stored.length,
  } as Partial<EventLog> as EventLog
  running = runWebhookWorker(
    {
      lanes: {
        claim: async (_holder, _leaseMs, quota) => toClaim.splice(0, quota.total),
        due: async () => 100,
        renew: (_holder, claimed) => renew(claimed.map((each) => each.recipient)),
        release: async (turn) => void released.push({ ...turn }),
        backlog: async () => ({ messages: 0, oldestSeq: undefined, openCircuits: 0 }),
      },
      log,
      removals: { ...noRemovals, ofMessages: async () => removals },
      client: { post },
      secrets: { open: () => openSecret() },
      progress,
      pushes,
      logger: createLogger('silent', 'test'),
      holder: 'test',
      concurrency: 4,
      retry: { maxAttempts: 3, minDelay: 1_000, maxDelay: 60_000, multiplier: 2, jitter: 0.5 },
      circuit: { threshold: 2, duration: MINUTE_MS },
      outbound: { limit: perMinute, periodMs: MINUTE_MS },
      maxBacklog,
      leaseMs,
      random: () => 0,
    },
    stop.signal,
  )
}

const types = () => appended.map(({ event }) => event.type)
const reasons = () =>
  appended.flatMap(({ event }) => (event.type === 'push_failed' ? [event.data.reason] : []))

describe('a webhook worker', () => {
  it('sends the redaction in the place of a content that was removed, and delivers it once', async () => {
    const three = lane(3)
    const redacted = {
      seq: 9,
      ts: '',
      action: 'message_redacted',
      reason: '',
      performed_by: '',
      content_hash: '',
    } as const
    removals.set(three.messages[1]?.id ?? '', redacted)
    await work([three])
    const contents = post.mock.calls.map(
      ([, { body }]) => (JSON.parse(String(body)) as { content: string }).content,
    )
    expect(contents).toEqual(['1', REDACTED, '3'])
    expect(types()).toEqual(['message_delivered', 'message_delivered', 'message_delivered'])
  })

  it('delivers a lane message by message, records each, and says how far it came', async () => {
    const [turn] = await work([lane(3, { standing: 'unknown', failures: 1 })])
    expect(post).toHaveBeenCalledTimes(3)
    expect(types()).toEqual(['message_delivered', 'message_delivered', 'message_delivered'])
    expect(appended[0]).toMatchObject({
      event: { agent: recipient, data: { to: recipient, delivery_method: 'push' } },
      options: { about: 1 },
    })
    expect(turn).toMatchObject({ doneSeq: 3, standing: 'fast', failures: 0, attempts: 0, delay: 0 })
  })

  it('gives the lane back for the time of the back-off, with the attempts so far', async () => {
    post.mockResolvedValueOnce(DELIVERED).mockResolvedValue(FAILED)
    const [turn] = await work([lane(3, { retriedSeq: 2, attempts: 1 })])
    expect(post).toHaveBeenCalledTimes(2)
    expect(turn).toMatchObject({ doneSeq: 1, retriedSeq: 2, attempts: 1, delay: 1_000 })
  })

  it.each([
    ['longer than its own back-off', 30_000, 30_000],
    ['shorter than that', 10, 1_000],
    ['longer than the longest one', 3_600_000, MINUTE_MS],
  ])('waits as a receiver asks it to: %s', async (_what, retryAfterMs, delay) => {
    post.mockResolvedValue({ kind: 'rejected', status: 429, retryAfterMs })
    const [turn] = await work([lane(1)])
    expect(turn).toMatchObject({ doneSeq: 0, attempts: 1, delay })
  })

  it('gives up at once on a receiver that is gone, and counts that as a failure', async () => {
    post.mockResolvedValue({ kind: 'rejected', status: 410 })
    const [turn] = await work([lane(3, { failures: 1 })])
    expect(post).toHaveBeenCalledTimes(1)
    expect(reasons()).toEqual(['undeliverable', 'circuit_open', 'circuit_open'])
    expect(turn).toMatchObject({ doneSeq: 3, failures: 2, standing: 'open' })
  })

  it('says of an endpoint that it holds a slot for long when it did, not when it failed', async () => {
    post.mockResolvedValueOnce(FAILED).mockImplementation(async () => {
      await new Promise((resolve) => setTimeout(resolve, 1_100))
      return DELIVERED
    })
    const [failed] = await work([lane(1, { standing: 'unknown' })])
    expect(failed).toMatchObject({ attempts: 1, standing: 'fast' })
    toClaim = [lane(1)]
    pushes.ring()
    await vi.waitFor(() => expect(released).toHaveLength(2), { timeout: 20_000 })
    expect(released[1]).toMatchObject({ attempts: 0, standing: 'slow' })
  })

  it('counts on where another worker left off', async () => {
    post.mockResolvedValue(FAILED)
    const [turn] = await work([lane(1, { retriedSeq: 1, attempts: 1 })])
    expect(turn).toMatchObject({ doneSeq: 0, attempts: 2, delay: 2_000 })
  })

  it('moves a message to the pull queue when all attempts have failed, and leaves the next one for another turn', async () => {
    post.mockResolvedValue(FAILED)
    const [turn] = await work([lane(2, { retriedSeq: 1, attempts: 2 })])
    expect(post).toHaveBeenCalledTimes(1)
    expect(appended).toMatchObject([
      { event: { type: 'push_failed', data: { reason: 'undeliverable' } }, options: { about: 1 } },
    ])
    expect(turn).toMatchObject({ doneSeq: 1, attempts: 0, failures: 1, openUntil: 0, delay: 0 })
  })

  it('moves the rest too when that opens the circuit', async () => {
    post.mockResolvedValue(FAILED)
    const before = Date.now()
    const [turn] = await work([lane(3, { retriedSeq: 1, attempts: 2, failures: 1 })])
    expect(post).toHaveBeenCalledTimes(1)
    expect(reasons()).toEqual(['undeliverable', 'circuit_open', 'circuit_open'])
    expect(turn).toMatchObject({ doneSeq: 3, failures: 2, standing: 'open' })
    expect(turn?.openUntil).toBeGreaterThanOrEqual(before + MINUTE_MS)
  })

  it('probes with one attempt when the circuit has rested', async () => {
    post.mockResolvedValue(FAILED)
    const [turn] = await work([
      lane(2, { standing: 'open', failures: 2, openUntil: Date.now() - 1 }),
    ])
    expect(post).toHaveBeenCalledTimes(1)
    expect(reasons()).toEqual(['undeliverable', 'circuit_open'])
    expect(turn).toMatchObject({ doneSeq: 2, standing: 'open' })
  })

  it('closes the circuit when the probe arrives', async () => {
    const [turn] = await work([
      lane(2, { standing: 'open', failures: 2, openUntil: Date.now() - 1 }),
    ])
    expect(post).toHaveBeenCalledTimes(2)
    expect(turn).toMatchObject({ doneSeq: 2, failures: 0, openUntil: 0, standing: 'fast' })
  })

  it('holds back what is over the limit of outbound deliveries, without a slot and without giving up', async () => {
    const [turn] = await work([lane(3)], { perMinute: 2 })
    expect(post).toHaveBeenCalledTimes(2)
    expect(turn?.doneSeq).toBe(2)
    expect(turn?.delay).toBeGreaterThan(25_000)
    expect(turn?.delay).toBeLessThanOrEqual(30_000)
  })

  it('a bucket of a time that the clock was set back from is empty, and fills from now on', async () => {
    const later = Date.now() + 3_600_000
    const [first] = await work([lane(1, { bucketFullAt: later })], { perMinute: 2 })
    expect(post).not.toHaveBeenCalled()
    expect(first?.delay).toBeLessThanOrEqual(30_000)
    // Kept so: the next turn has it from there.
    expect(first?.bucketFullAt).toBeLessThanOrEqual(Date.now() + MINUTE_MS)
  })

  it('moves the oldest to the pull queue when more wait than may', async () => {
    await work([lane(3, { pending: 12 })], { maxBacklog: 10 })
    expect(types()).toEqual(['push_failed', 'push_failed', 'message_delivered'])
    expect(reasons()).toEqual(['backlog_full', 'backlog_full'])
  })

  it('sends nothing unsigned: a secret that does not open is a failed attempt', async () => {
    openSecret = () => {
      throw new SecretNotOpened('wrong key')
    }
    const [turn] = await work([lane(1)])
    expect(post).not.toHaveBeenCalled()
    expect(turn).toMatchObject({ doneSeq: 0, attempts: 1 })
  })

  it('sends the authorization that the webhook has, and none where it has none', async () => {
    const secret = newWebhookSecret()
    await work([lane(1)])
    openSecret = () => ({ secret, authorization: 'Basic dTpw' })
    toClaim = [lane(1)]
    pushes.ring()
    await vi.waitFor(() => expect(post).toHaveBeenCalledTimes(2), { timeout: 10_000 })
    const sent = post.mock.calls.map(([, { headers }]) => headers.authorization)
    expect(sent).toEqual([undefined, 'Basic dTpw'])
  })

  it('signs each attempt anew', async () => {
    post.mockResolvedValueOnce(FAILED)
    const claimed = lane(1)
    await work([claimed])
    vi.setSystemTime(Date.now() + 5_000)
    toClaim = [claimed]
    pushes.ring()
    await vi.waitFor(() => expect(post).toHaveBeenCalledTimes(2), { timeout: 10_000 })
    const timestamps = post.mock.calls.map(([, sent]) => sent.headers)
    expect(new Set(timestamps.map((headers) => headers['webhook-timestamp'])).size).toBe(2)
    expect(new Set(timestamps.map((headers) => headers['webhook-id'])).size).toBe(1)
  })

  it('waits for the log to take what it has delivered, and delivers it once', async () => {
    let out = 3
    append = async () => {
      if (out-- > 0) throw new LogUnavailable('out')
    }
    const [turn] = await work([lane(1)])
    expect(post).toHaveBeenCalledTimes(1)
    expect(types()).toEqual(['message_delivered'])
    expect(turn).toMatchObject({ doneSeq: 1 })
  })

  it('ends a lane whose event cannot be read now, and tries again soon', async () => {
    const unread = lane(1)
    stored.length = 0
    const [turn] = await work([unread])
    expect(post).not.toHaveBeenCalled()
    expect(turn).toMatchObject({ doneSeq: 0, attempts: 0, delay: 250 })
  })

  it('breaks off deliveries when it cannot keep its leases, and gives nothing back that is not its own', async () => {
    renew = async () => {
      throw new DatabaseUnavailable('out')
    }
    await expectBrokenOff()
  })

  it('breaks off the delivery of a lane that is another’s by now, whatever its own clock says', async () => {
    let asked = 0
    renew = async () => {
      asked++
      return new Set()
    }
    await expectBrokenOff()
    // By its own clock it would have asked three times before the lease runs out.
    expect(asked).toBe(1)
  })

  async function expectBrokenOff() {
    let signal: AbortSignal | undefined
    post.mockImplementation(async (_url, _message, given) => {
      signal = given
      given?.throwIfAborted()
      return new Promise((_, reject) =>
        given?.addEventListener('abort', () => reject(given.reason), { once: true }),
      )
    })
    start([lane(1)], { leaseMs: 4_000 })
    await vi.waitFor(() => expect(signal?.aborted).toBe(true), { timeout: 20_000 })
    stop.abort()
    await running
    expect(released).toEqual([])
    expect(appended).toEqual([])
  }

  it('prolongs the leases of what it works on, and only those', async () => {
    const { promise, resolve } = Promise.withResolvers<DeliveryOutcome>()
    post.mockReturnValueOnce(promise)
    const asked: (readonly string[])[] = []
    renew = async (recipients) => {
      asked.push(recipients)
      return new Set(recipients)
    }
    start([lane(1)], { leaseMs: 1_000 })
    await vi.waitFor(() => expect(asked.length).toBeGreaterThan(5), { timeout: 20_000 })
    resolve(DELIVERED)
    await vi.waitFor(() => expect(released).toMatchObject([{ doneSeq: 1 }]), { timeout: 10_000 })
    expect(asked.flat().every((each) => each === recipient)).toBe(true)
  })

  it('does not touch a lane that its last worker did not give back until what that one delivered is taken out', async () => {
    await work([lane(1)])
    // The projector is there, but what the last worker delivered is yet to be applied.
    last = 2_000
    toClaim = [lane(2, { wasHeld: true, attempts: 1, retriedSeq: 2 })]
    pushes.ring()
    await vi.waitFor(() => expect(toClaim).toEqual([]), { timeout: 10_000 })
    await new Promise((resolve) => setTimeout(resolve, 300))
    expect([post.mock.calls.length, released.length]).toEqual([1, 1])
    progress.advance(last)
    await vi.waitFor(() => expect(released).toHaveLength(2), { timeout: 20_000 })
    expect(post).toHaveBeenCalledTimes(1)
    expect(released[1]).toMatchObject({ doneSeq: 0, attempts: 1, retriedSeq: 2, delay: 0 })
  })

  it('claims nothing while no projector is heard of: the lanes may be behind the log', async () => {
    clearInterval(heartbeat)
    progress = new Progress()
    start([lane(1)])
    await new Promise((resolve) => setTimeout(resolve, 600))
    expect(toClaim).toHaveLength(1)
    heartbeat = setInterval(() => progress.advance(1_000), 50)
    await vi.waitFor(() => expect(released).toHaveLength(1), { timeout: 20_000 })
  })

  it('finishes what is in flight when it stops, and begins nothing more', async () => {
    const { promise, resolve } = Promise.withResolvers<DeliveryOutcome>()
    post.mockReturnValueOnce(promise)
    start([lane(2)])
    await vi.waitFor(() => expect(post).toHaveBeenCalledTimes(1), { timeout: 10_000 })
    stop.abort()
    resolve(DELIVERED)
    await running
    expect(post).toHaveBeenCalledTimes(1)
    expect(released).toMatchObject([{ doneSeq: 1, delay: 0 }])
  })
})
