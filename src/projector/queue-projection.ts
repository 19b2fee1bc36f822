/**
 * The projection that Redis holds: a queue for each agent, and the position in the log that they
 * reflect.
 *
 * Redis may lose everything, or come back as it was an hour ago. So the position says which running
 * servers it was written in. Where that has changed, or there is none, the queues are built anew in
 * a new generation: from the database's index of messages not delivered yet, then from the log
 * since.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type SqlBool, sql } from 'kysely'
import { Counter, Gauge } from 'prom-client'
import { changesOf, type LoggedEvent } from '../events/event.ts'
import type { FollowOptions } from '../events/event-log.ts'
import { toLeasedMessage } from '../messaging/messages-of-log.ts'
import { POSITION_KEY, removeGenerations } from '../messaging/queue-generations.ts'
import {
  changeQueues,
  PAYLOADS,
  type QueueChange,
  type QueueGeneration,
  QueuesLost,
  redactQueued,
  toPayload,
} from '../messaging/redis-message-queue.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { loadScript, type RedisClient, RedisFull, RedisUnavailable } from '../platform/redis.ts'
import { LEASE_MS, LeaseLost, type Projection } from './projector.ts'

const LEASE_KEY = '{queues}:lease'
const acquireScript = loadScript('acquire', new URL('./lua/acquire.lua', import.meta.url), 2)
const advanceScript = loadScript('advance', new URL('./lua/advance.lua', import.meta.url), 2)
const buildScript = loadScript('build_generation', new URL('./lua/build.lua', import.meta.url), 2)
const releaseScript = loadScript('release', new URL('./lua/release.lua', import.meta.url), 1)

/** Messages that one page of a rebuild holds. */
const REBUILD_PAGE = 5_000
const REBUILD_TIMEOUT_MS = 10_000
/**
 * Responses that were carrying messages when Redis was lost have recorded their deliveries in the
 * log after this, where it is not busy (an append takes 1.5 s at most then); before, a message
 * might be handed out a second time.
 */
const DELIVERIES_UNDER_WAY_MS = 2_000
/**
 * Redis that is full is asked again so often whether there is room; what waits has been
 * acknowledged.
 */
const ROOM_POLL_MS = 250

const rebuilds = new Counter({
  name: 'tabulum_queue_rebuilds_total',
  help: 'Times that the queues were built anew from database and log.',
})
const dropped = new Counter({
  name: 'tabulum_redis_queue_dropped_total',
  help: 'Messages dropped from full queues in Redis, the oldest first. They stay in the event log.',
})
const full = new Gauge({
  name: 'tabulum_queues_full',
  help: '1 in the process that leads the queues while Redis is at its memory limit and new messages wait in the event log.',
})

/** What acquire.lua found. */
type Found = [
  generation: string | null,
  incarnation: string | null,
  position: string | null,
  /** The generation that is being built, or was when its leader went away. */
  building: string | null,
]

export class QueueProjection implements Projection {
  readonly name = 'queues'
  readonly follows: FollowOptions = {
    types: changesOf('message'),
    // What was delivered is leased for long enough yet.
    mayWait: ({ type }) => type === 'message_delivered',
  }
  readonly #redis: RedisClient
  readonly #database: Database
  readonly #maxQueue: number
  /** What this process has built or taken over; nobody else's business until it leads. */
  #current: QueueGeneration | undefined
  #announced: QueueGeneration | undefined
  #position = -1
  #isCaughtUp = false
  #rebuiltAt = 0
  #holder = ''
  #isHeldUp = false

  constructor(redis: RedisClient, database: Database, options: { maxQueue: number }) {
    this.#redis = redis
    this.#database = database
    this.#maxQueue = options.maxQueue
  }

  /** The generation that agents may be served from; undefined until it is whole. */
  get announced(): QueueGeneration | undefined {
    if (this.#isCaughtUp && performance.now() - this.#rebuiltAt >= DELIVERIES_UNDER_WAY_MS)
      this.#announced ??= this.#current
    return this.#announced
  }

  /**
   * Redis is full. What it holds is handed out and removed all the same, by the nodes, and that
   * makes the room that is waited for.
   */
  get isHeldUp(): boolean {
    return this.#isHeldUp
  }

  async acquire(holder: string, leaseMs: number, signal: AbortSignal): Promise<number | undefined> {
    const found = await this.#lease(holder, leaseMs)
    if (found === null) {
      this.#current = undefined
      this.#announced = undefined
      return undefined
    }
    this.#holder = holder
    const incarnation = this.#redis.incarnation
    if (incarnation === undefined) throw new RedisUnavailable('Redis has just come back')
    const [generation, writtenIn, position, building] = found
    // Whoever was building another may have made room for it by removing queues of this one.
    if (generation === null || position === null || building !== null)
      return this.#rebuild(found, incarnation, signal)
    const known = this.#current?.generation === generation ? this.#position : -1
    // Of several masters one may have lost something that the position, on another, does not tell.
    const isComplete =
      writtenIn === incarnation
        ? Number(position) >= known
        : Number(position) === known && this.#redis.masters.length === 1
    if (!isComplete) return this.#rebuild(found, incarnation, signal)
    this.#current = { generation, incarnation }
    this.#position = Number(position)
    this.#announced = this.#current
    if (writtenIn !== incarnation) await this.#advance(holder, position, this.#position)
    return this.#position
  }

  async renew(holder: string, leaseMs: number): Promise<void> {
    const expected = this.#position
    const found = await this.#lease(holder, leaseMs)
    if (found === null) throw new LeaseLost('another process has taken over')
    if (found[0] !== this.#current?.generation || Number(found[2] ?? -1) < expected)
      throw new LeaseLost('Redis has lost the queues')
    if (this.#redis.incarnation !== this.#current.incarnation)
      throw new LeaseLost('Redis was restarted')
  }

  /** Takes or prolongs the lease; null if another process has it. */
  async #lease(holder: string, leaseMs: number): Promise<Found | null> {
    return (await this.#redis.script(
      acquireScript,
      [LEASE_KEY, POSITION_KEY],
      [holder, leaseMs],
    )) as Found | null
  }

  caughtUp(): void {
    this.#isCaughtUp = true
    // Nothing has happened yet in a new cluster, so no response carries a message.
    if (this.#position === 0) this.#rebuiltAt = Number.NEGATIVE_INFINITY
  }

  async #rebuild([replaced]: Found, incarnation: string, signal: AbortSignal): Promise<number> {
    const holder = this.#holder
    rebuilds.inc()
    this.#announced = undefined
    this.#isCaughtUp = false
    const generation = randomUUID().slice(0, 8)
    const options = { maxQueue: this.#maxQueue }
    const { applied_seq: start } = await roundTrip(this.#database, 'rebuild_position', () =>
      this.#database
        .selectFrom('projections')
        .select('applied_seq')
        .where('name', '=', 'database')
        .executeTakeFirstOrThrow(),
    )
    const isAnnounced = await this.#redis.script(
      buildScript,
      [LEASE_KEY, POSITION_KEY],
      [holder, generation, LEASE_MS],
    )
    if (isAnnounced !== 1) throw new LeaseLost()
    let after = FIRST
    for (;;) {
      const page = await this.#queuedAfter(after)
      const add = () => changeQueues(this.#redis, generation, additions(page), options)
      await this.#whenThereIsRoom(signal, add, async () => {
        // Nobody is served from the other generations any more.
        const removing = removeGenerations(this.#redis, async () => {
          const found = await this.#lease(holder, LEASE_MS)
          return found?.[0] === replaced && found[3] === generation ? [generation] : undefined
        })
        for await (const _ of removing) if (signal.aborted) break
        if ((await this.#lease(holder, LEASE_MS)) === null) throw new LeaseLost()
      })
      if ((await this.#lease(holder, LEASE_MS)) === null) throw new LeaseLost()
      const last = page.at(-1)
      if (!last || page.length < REBUILD_PAGE) break
      after = last
    }
    if (this.#redis.incarnation !== incarnation)
      throw new RedisUnavailable('Redis was restarted during the rebuild')
    this.#current = { generation, incarnation }
    await this.#advance(holder, '', start)
    this.#position = start
    this.#rebuiltAt = performance.now()
    return start
  }

  /** A page of all messages that wait in pull queues, queue by queue. */
  async #queuedAfter({ recipient, seq }: QueuedAt): Promise<Queued[]> {
    return roundTrip(
      this.#database,
      'rebuild_page',
      () =>
        this.#database
          .selectFrom('queued_messages')
          .select(['recipient', 'seq'])
          .select(({ exists, selectFrom }) =>
            exists(
              selectFrom('removals')
                .select('removals.seq')
                .whereRef(
                  'removals.message_id',
                  '=',
                  sql<string>`queued_messages.message_id::text`,
                ),
            ).as('redacted'),
          )
          .where('via_webhook', '=', false)
          .where(({ eb, refTuple, tuple }) =>
            eb(refTuple('recipient', 'seq'), '>', tuple(recipient, seq)),
          )
          .orderBy('recipient')
          .orderBy('seq')
          .limit(REBUILD_PAGE)
          .execute(),
      REBUILD_TIMEOUT_MS,
    )
  }

  async apply(
    holder: string,
    from: number,
    events: readonly LoggedEvent[],
    signal: AbortSignal,
  ): Promise<void> {
    const apply = () => this.#apply(holder, from, events)
    if (events.length <= 1) return this.#whenThereIsRoom(signal, apply)
    try {
      await apply()
    } catch (error) {
      if (!(error instanceof RedisFull)) throw error
      // A smaller one may fit, and the position says where it stands: what is in the queues is not
      // added again when they have been emptied.
      const middle = Math.ceil(events.length / 2)
      await this.apply(holder, from, events.slice(0, middle), signal)
      await this.apply(holder, this.#position, events.slice(middle), signal)
    }
  }

  /**
   * Does what adds to Redis; while that is full, `meanwhile` and then it again. The lease is kept
   * by who leads.
   */
  async #whenThereIsRoom(
    signal: AbortSignal,
    add: () => Promise<unknown>,
    meanwhile = async () => {},
  ): Promise<void> {
    try {
      for (;;) {
        try {
          await add()
          return
        } catch (error) {
          if (!(error instanceof RedisFull)) throw error
        }
        this.#isHeldUp = true
        full.set(1)
        await meanwhile()
        await sleep(ROOM_POLL_MS, undefined, { signal })
      }
    } finally {
      this.#isHeldUp = false
      full.set(0)
    }
  }

  async #apply(holder: string, from: number, events: readonly LoggedEvent[]): Promise<void> {
    const last = events.at(-1)
    const current = this.#current
    if (!last) return
    if (!current || current.incarnation !== this.#redis.incarnation)
      throw new LeaseLost('Redis was restarted')
    const options = { maxQueue: this.#maxQueue, positionKey: POSITION_KEY }
    for (const [recipient, seqs] of redactionsOf(events))
      await redactQueued(this.#redis, current.generation, recipient, seqs)
    try {
      dropped.inc(
        await changeQueues(this.#redis, current.generation, queueChangesOf(events), options),
      )
    } catch (error) {
      throw error instanceof QueuesLost ? new LeaseLost(error.message) : error
    }
    await this.pass(holder, from, last.seq)
  }

  async pass(holder: string, from: number, to: number): Promise<void> {
    await this.#advance(holder, String(from), to)
    this.#position = to
  }

  async #advance(holder: string, from: string, to: number): Promise<void> {
    const { generation = '', incarnation = '' } = this.#current ?? {}
    const moved = await this.#redis.script(
      advanceScript,
      [LEASE_KEY, POSITION_KEY],
      [holder, generation, incarnation, from, to, LEASE_MS],
    )
    if (moved !== 1) throw new LeaseLost(`the queues are not at ${from || 'their start'} any more`)
  }

  async release(holder: string): Promise<void> {
    await this.#redis.script(releaseScript, [LEASE_KEY], [holder])
  }
}

/** Where a message is in the order in which queues are rebuilt. */
interface QueuedAt {
  readonly recipient: string
  readonly seq: number
}
const FIRST: QueuedAt = { recipient: '', seq: 0 }

interface Queued extends QueuedAt {
  readonly redacted: SqlBool
}

function additions(page: readonly Queued[]): QueueChange[] {
  return [...Map.groupBy(page, ({ recipient }) => recipient)].map(([recipient, rows]) => ({
    recipient,
    added: rows.map(({ seq, redacted }): [number, string] => [
      seq,
      redacted ? PAYLOADS.redacted : PAYLOADS.large,
    ]),
    removed: [],
  }))
}

/** The sequence numbers of redacted messages, by whose queue they may wait in. */
function redactionsOf(events: readonly LoggedEvent[]): Map<string, number[]> {
  const redactions = new Map<string, number[]>()
  for (const { type, about, recipient } of events) {
    if (type !== 'message_redacted' || about === undefined || recipient === undefined) continue
    redactions.set(recipient, [...(redactions.get(recipient) ?? []), about])
  }
  return redactions
}

function queueChangesOf(events: readonly LoggedEvent[]): QueueChange[] {
  const changes = new Map<
    string,
    { recipient: string; added: [number, string][]; removed: number[] }
  >()
  const changeOf = (recipient: string) => {
    const change = changes.get(recipient) ?? { recipient, added: [], removed: [] }
    changes.set(recipient, change)
    return change
  }
  // Those of messages that are in their queue already are redacted there.
  const redacted = new Set([...redactionsOf(events).values()].flat())
  for (const event of events) {
    if (event.type === 'message_sent' && event.via !== 'webhook') {
      const payload = redacted.has(event.seq)
        ? PAYLOADS.redacted
        : toPayload(toLeasedMessage(event))
      changeOf(event.data.to).added.push([event.seq, payload])
    } else if (event.type === 'push_failed' && event.about !== undefined) {
      // Fetched from the log when it is delivered. Workers move an agent's messages in their order,
      // so sequence numbers grow here too.
      changeOf(event.data.to).added.push([
        event.about,
        redacted.has(event.about) ? PAYLOADS.redacted : PAYLOADS.moved,
      ])
    } else if (event.type === 'message_delivered' && event.about !== undefined) {
      changeOf(event.data.to).removed.push(event.about)
    }
  }
  // Taken out before it would be added: what was delivered must not come back.
  return [...changes.values()].map(({ added, removed, ...change }) => {
    const gone = new Set(removed)
    return { ...change, removed, added: added.filter(([seq]) => !gone.has(seq)) }
  })
}
