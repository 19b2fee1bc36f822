/** What the contract tests share. */
import { expect, vi } from 'vitest'
import { type Agent, type Answer, Client, type Message } from '../../lab/client.ts'
import type { Event } from '../../lab/kernel.ts'
import type { Target } from '../support/target.ts'

/** The code that belongs to each status. */
const CODES: Readonly<Record<number, string>> = {
  400: 'bad_request',
  401: 'unauthorized',
  403: 'verification_failed',
  404: 'not_found',
  405: 'method_not_allowed',
  413: 'value_too_large',
  415: 'unsupported_media_type',
  429: 'rate_limited',
  503: 'unavailable',
  507: 'store_full',
}

/**
 * Expects a refusal with this status, its code, and a body that is an error as the contract has it.
 */
export function expectRefusal(answer: Answer, status: number): void {
  expect(answer.status, String(answer)).toBe(status)
  expect(answer.error).toBe(CODES[status])
}

const lastSeen = new WeakMap<Target, number>()

/** The place of the last event in the log now. */
export async function lastSeq(target: Target): Promise<number> {
  const known = lastSeen.get(target) ?? 0
  const last = (await target.events(known)).at(-1)?.seq ?? known
  lastSeen.set(target, last)
  return last
}

/** For what comes after an answer; long, as a machine may be slow and a process be held up. */
const SOON = { timeout: 25_000, interval: 20 }

/**
 * Reads the log after `since` until the check passes: for events that are written after the answer.
 */
export async function eventually(
  target: Target,
  since: number,
  check: (events: Event[]) => void,
): Promise<Event[]> {
  return vi.waitFor(async () => {
    const events = await target.events(since)
    check(events)
    return events
  }, SOON)
}

const markers = new WeakMap<Target, Agent>()

/**
 * Resolves when every message acknowledged so far is in its queue: an acknowledgement does not wait
 * for a worker that is silent. Queues are filled in the order of the log, so all of them are there
 * once a later message is.
 */
export async function queuesFilled(target: Target): Promise<void> {
  const marker = markers.get(target) ?? (await new Client(target.baseUrl).registerAgent())
  markers.set(target, marker)
  const { message_id } = await marker.send(marker.address, 'marker')
  await vi.waitFor(async () => {
    const { messages } = await marker.receive()
    expect(messages.map((received) => received.message_id)).toContain(message_id)
  }, SOON)
}

/** Receives until there have been so many messages, and returns all that came. */
export async function receiveSoon(agent: Agent, count: number, query = ''): Promise<Message[]> {
  const received: Message[] = []
  await vi.waitFor(async () => {
    received.push(...(await agent.receive(query)).messages)
    expect(received.length).toBeGreaterThanOrEqual(count)
  }, SOON)
  return received
}

export function ofType(events: readonly Event[], ...types: string[]): Event[] {
  return events.filter((event) => types.includes(event.type))
}

export function byteLength(text: string): number {
  return Buffer.byteLength(text, 'utf8')
}

/** How often each status came back. */
export function countStatuses(answers: readonly Answer[]): Record<number, number> {
  const counts: Record<number, number> = {}
  for (const { status } of answers) counts[status] = (counts[status] ?? 0) + 1
  return counts
}

/** Calls it for 0 to count - 1 at the same time. */
export function inParallel<T>(count: number, call: (index: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: count }, (_, index) => call(index)))
}
