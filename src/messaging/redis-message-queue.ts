/**
 * Pull queues in Redis: a stream for each agent, read through a consumer group, so that what is
 * leased to one response is not given to another, and comes back when the lease runs out.
 *
 * Streams belong to a generation. When Redis has lost or forgotten something, the projector builds
 * a new generation from the database and the log, and announces it when it is whole; until then
 * nothing is handed out.
 */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { indexOf, messageOf, seqOf } from '../events/batch.ts'
import type { EventLog } from '../events/event-log.ts'
import { inBackground } from '../platform/background.ts'
import {
  COMMAND_TIMEOUT_MS,
  loadScript,
  type RedisClient,
  RedisFull,
  RedisUnavailable,
} from '../platform/redis.ts'
import type { Removals } from '../removal/removals.ts'
import { MessageLoader, type Queued } from './message-loader.ts'
import {
  type Accept,
  LEASE_MS,
  type Lease,
  type LeasedMessage,
  type MessageQueue,
  QueueUnavailable,
} from './message-queue.ts'

const leaseScript = loadScript('lease', new URL('./lua/lease.lua', import.meta.url), 1)
const releaseScript = loadScript(
  'release_messages',
  new URL('./lua/release.lua', import.meta.url),
  1,
)
const addScript = loadScript('add_messages', new URL('./lua/add.lua', import.meta.url))
const redactScript = loadScript('redact_messages', new URL('./lua/redact.lua', import.meta.url), 2)
const removeScript = loadScript('remove_messages', new URL('./lua/remove.lua', import.meta.url))

/**
 * A queue that the projector has emptied is forgotten after this; one that was frozen for longer
 * would find its lease gone.
 */
export const EMPTY_QUEUE_TTL_MS = 600_000
assert(EMPTY_QUEUE_TTL_MS > LEASE_MS)
/**
 * One that a node has emptied: the projector may be held up for long, and is to pass over what it
 * has added before.
 */
const EMPTIED_AHEAD_TTL_MS = 86_400_000
/**
 * Contents up to this many bytes are kept in the queue; larger ones are fetched from the log when
 * they are delivered.
 */
export const INLINE_CONTENT_BYTES = 1_024

/**
 * What a lease that is given up took is given back as soon as Redis can be reached, for so long at
 * most: later ones must not overtake it.
 */
const RELEASE_OUTAGE_MS = 5_000
const RELEASE_RETRY_MS = 50

/** The first try learns what time it is there; more only where the clocks have jumped meanwhile. */
const LEASE_TRIES = 3

/** What the projector announces: which generation is whole, in which running servers. */
export interface QueueGeneration {
  generation: string
  incarnation: string
}

export function queueKey(generation: string, recipient: string): string {
  return `queue:${generation}:{${recipient}}`
}

/** What a queue keeps of a message beside its sequence number, where that is in the log. */
export const PAYLOADS = {
  /** The content is large. */
  large: '',
  redacted: 'r',
  /** It was to be pushed until now: whether it was redacted meanwhile, this queue does not know. */
  moved: 'p',
} as const

/** What a queue keeps of a message beside its sequence number. */
export function toPayload(message: LeasedMessage): string {
  const { message_id, from, to, content, timestamp } = message
  return Buffer.byteLength(content) > INLINE_CONTENT_BYTES
    ? PAYLOADS.large
    : JSON.stringify([message_id, from, to, content, timestamp])
}

export class RedisMessageQueue implements MessageQueue {
  readonly #redis: RedisClient
  readonly #loader: MessageLoader
  readonly #current: () => QueueGeneration | undefined
  /**
   * Redis's clock less `performance.now()`, in ms, at most: as it was answered last. In Redis
   * Cluster, by whichever master that was.
   */
  #clockOffset = Number.NEGATIVE_INFINITY

  /** `current` gives what the projector announced last. */
  constructor(
    redis: RedisClient,
    log: EventLog,
    removals: Removals,
    current: () => QueueGeneration | undefined,
    options: { maxContentBytes: number },
  ) {
    this.#redis = redis
    this.#loader = new MessageLoader(log, removals, options.maxContentBytes)
    this.#current = current
  }

  async lease(recipient: string, limit: number, accept: Accept = () => true): Promise<Lease> {
    const key = queueKey(this.#generation(), recipient)
    const [now, entries, remaining] = await this.#lease(key, limit)
    try {
      const messages = await this.#loader.load(entries.map(toQueued), accept)
      const [carried, left] = [entries.slice(0, messages.length), entries.slice(messages.length)]
      await this.#release(key, left, now)
      return {
        messages,
        remaining: remaining + left.length,
        release: () => this.#release(key, carried, now),
      }
    } catch (error) {
      // Before the answer: who asks again must not get later ones first.
      await this.#release(key, entries, now).catch(() => {})
      throw error
    }
  }

  async #lease(key: string, limit: number): Promise<Leased> {
    for (let tries = 0; tries < LEASE_TRIES; tries++) {
      const deadline = Math.max(
        0,
        Math.floor(this.#clockOffset + performance.now() + COMMAND_TIMEOUT_MS),
      )
      const answer = (await this.#run(() =>
        this.#redis.script(leaseScript, [key], [limit, LEASE_MS, deadline], (late) =>
          this.#giveBack(key, late),
        ),
      )) as Leased | TooLate
      this.#clockOffset = answer[0] - performance.now()
      if (answer.length === 3) return answer
    }
    throw new QueueUnavailable('Redis answers too late')
  }

  /** The answer to a lease came when nobody waited for it any more. */
  #giveBack(key: string, answer: unknown): void {
    const [now, entries = []] = answer as Leased | TooLate
    inBackground('give_back_lease', this.#release(key, entries, now))
  }

  #generation(): string {
    const current = this.#current()
    if (!current || current.incarnation !== this.#redis.incarnation)
      throw new QueueUnavailable('the queues are being rebuilt')
    return current.generation
  }

  /**
   * Not left to the projection where that is behind: a lease may run out before it gets there, or
   * it waits for the room that this makes.
   */
  async remove(
    recipient: string,
    messages: readonly LeasedMessage[],
    { isProjected = false } = {},
  ): Promise<void> {
    if (messages.length === 0 || isProjected) return
    const change = { recipient, added: [], removed: messages.map(({ seq }) => seq) }
    const generation = this.#generation()
    await this.#run(() =>
      changeQueues(this.#redis, generation, [change], { emptyTtlMs: EMPTIED_AHEAD_TTL_MS }),
    )
  }

  /** Gives back what was leased at `leasedAt`, by Redis's clock. */
  async #release(key: string, entries: readonly Entry[], leasedAt: number): Promise<void> {
    if (entries.length === 0) return
    const args = [leasedAt + LEASE_MS, LEASE_MS, ...entries.map(([id]) => id)]
    const patientUntil = performance.now() + RELEASE_OUTAGE_MS
    for (;;) {
      try {
        await this.#run(() => this.#redis.script(releaseScript, [key], args))
        return
      } catch (error) {
        if (!(error instanceof QueueUnavailable) || performance.now() > patientUntil) throw error
        await sleep(RELEASE_RETRY_MS)
      }
    }
  }

  async #run<T>(command: () => Promise<T>): Promise<T> {
    try {
      return await command()
    } catch (error) {
      if (error instanceof RedisUnavailable)
        throw new QueueUnavailable('Redis is out', { cause: error })
      throw error
    }
  }
}

type Entry = [id: string, fields: [name: string, payload: string]]
/** What lease.lua returns. */
type Leased = [now: number, entries: Entry[], remaining: number]
type TooLate = [now: number]

function toQueued([id, [, payload]]: Entry): Queued {
  const seq = seqOfEntry(id)
  if (payload === PAYLOADS.large) return { seq, redaction: 'no' }
  if (payload === PAYLOADS.redacted) return { seq, redaction: 'yes' }
  if (payload === PAYLOADS.moved) return { seq, redaction: 'ask' }
  const [message_id, from, to, content, timestamp] = JSON.parse(payload) as [
    string,
    string,
    string,
    string,
    string,
  ]
  return { seq, message_id, from, to, content, timestamp }
}

/** Ids of entries are as those of the log: the message of the stream, and the index in it. */
function seqOfEntry(id: string): number {
  const [message, index] = id.split('-')
  return seqOf(Number(message), Number(index))
}

/** What a batch of events does to one queue. */
export interface QueueChange {
  recipient: string
  /** Sequence number and payload of each message to add, in the order of the log. */
  added: readonly [seq: number, payload: string][]
  /** Sequence numbers of the messages to take out, which is done first. None of them is added. */
  removed: readonly number[]
}

/**
 * Messages that one call of the script adds or takes out, about: Redis does nothing else meanwhile.
 */
const CHANGED_AT_ONCE = 200

/** Redis has lost the queues, or they are of another generation. */
export class QueuesLost extends Error {
  override name = 'QueuesLost'
}

export interface ChangeOptions {
  /**
   * Messages that a queue may have; those that are too many are dropped, the oldest first. Default:
   * as many as there are.
   */
  readonly maxQueue?: number
  /**
   * Of a hash whose field `generation` must be that of the queues, or nothing is done. In Redis
   * Cluster, where keys are of different slots, nothing is asked.
   */
  readonly positionKey?: string
  /** After which an empty queue is forgotten. Default: `EMPTY_QUEUE_TTL_MS`. */
  readonly emptyTtlMs?: number
}

/**
 * Applies changes to the queues of a generation: takes out what is to be taken out, which frees
 * memory, then adds. Returns how many messages were dropped. Throws `RedisUnavailable`,
 * `QueuesLost`, and `RedisFull` where not all were added: of each queue the first ones, in order.
 */
export async function changeQueues(
  redis: RedisClient,
  generation: string,
  changes: readonly QueueChange[],
  {
    maxQueue = Number.MAX_SAFE_INTEGER,
    positionKey,
    emptyTtlMs = EMPTY_QUEUE_TTL_MS,
  }: ChangeOptions = {},
): Promise<number> {
  const guard = positionKey !== undefined && redis.keysAtOnce > 1 ? positionKey : undefined
  const keysOf = (call: Part<unknown>[]) =>
    call.map(({ recipient }) => queueKey(generation, recipient))
  const remove = (call: Part<number>[]) =>
    redis.script(removeScript, keysOf(call), [
      emptyTtlMs,
      ...call.flatMap(({ items }) => [items.length, ...items.map(idOf)]),
    ])
  const add = (call: Part<[number, string]>[]) =>
    redis.script(
      addScript,
      [...(guard === undefined ? [] : [guard]), ...keysOf(call)],
      [
        maxQueue,
        guard === undefined ? '' : generation,
        ...call.flatMap(({ items }) => [
          items.length,
          ...items.flatMap(([seq, payload]) => [idOf(seq), payload]),
        ]),
      ],
    )
  const removals = roundsOf(changes, ({ removed }) => removed).flat()
  const [additions = [], ...further] = roundsOf(changes, ({ added }) => added)
  try {
    // All in one write.
    const removing = callsOf(removals, redis.keysAtOnce).map(remove)
    const answers = await allOf([...removing, ...callsOf(additions, redis.keysAtOnce).map(add)])
    const dropped = answers.slice(removing.length)
    // What follows in a queue must not come into it where what is before it was refused.
    for (const round of further)
      dropped.push(...(await allOf(callsOf(round, redis.keysAtOnce).map(add))))
    return dropped.reduce<number>((sum, count) => sum + Number(count), 0)
  } catch (error) {
    throw error instanceof Error && error.message.startsWith('LOST ')
      ? new QueuesLost(error.message)
      : error
  }
}

/**
 * Takes the contents of messages out of the queue of a recipient, for good; those that are there
 * still stay where they are. Those that are not are passed over: whoever adds one later has to say
 * that it was redacted. Throws `RedisUnavailable`.
 */
export async function redactQueued(
  redis: RedisClient,
  generation: string,
  recipient: string,
  seqs: readonly number[],
): Promise<void> {
  const key = queueKey(generation, recipient)
  for (let from = 0; from < seqs.length; from += CHANGED_AT_ONCE) {
    const ids = seqs.slice(from, from + CHANGED_AT_ONCE).map(idOf)
    await redis.script(redactScript, [key, `${key}:redacted`], [PAYLOADS.redacted, ...ids])
  }
}

/**
 * Waits for all, also where one is rejected, so that none is under way any more. Throws what is
 * worst: that Redis is full comes last.
 */
async function allOf(calls: readonly Promise<unknown>[]): Promise<unknown[]> {
  const results = await Promise.allSettled(calls)
  const reasons = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
  if (reasons.length > 0)
    throw reasons.find((reason) => !(reason instanceof RedisFull)) ?? reasons[0]
  return results.map((result) => (result.status === 'fulfilled' ? result.value : undefined))
}

/** Some of what is done to one queue, as much as one call takes at most. */
interface Part<T> {
  recipient: string
  items: readonly T[]
}

/** Divides what is done to each queue into parts: all first ones, all second ones… */
function roundsOf<T>(
  changes: readonly QueueChange[],
  itemsOf: (change: QueueChange) => readonly T[],
): Part<T>[][] {
  const rounds: Part<T>[][] = []
  for (const change of changes) {
    const items = itemsOf(change)
    for (let from = 0, round = 0; from < items.length; from += CHANGED_AT_ONCE, round++) {
      const part = { recipient: change.recipient, items: items.slice(from, from + CHANGED_AT_ONCE) }
      const others = rounds[round]
      if (others) others.push(part)
      else rounds[round] = [part]
    }
  }
  return rounds
}

/**
 * Divides parts into calls of a script, in their order: as few as there can be with so many queues
 * in each.
 */
function callsOf<T>(parts: readonly Part<T>[], queuesAtOnce: number): Part<T>[][] {
  const calls: Part<T>[][] = []
  let room = 0
  for (const part of parts) {
    const last = calls.at(-1)
    const size = part.items.length
    if (last && size <= room && last.length < queuesAtOnce) last.push(part)
    else {
      calls.push([part])
      room = CHANGED_AT_ONCE
    }
    room -= size
  }
  return calls
}

function idOf(seq: number): string {
  return `${messageOf(seq)}-${indexOf(seq)}`
}
