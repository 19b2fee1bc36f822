/** Following the log: the feeds of a process, and who follows which. */
import type { JetStreamClient, JetStreamManager } from 'nats'
import { seqOf } from './batch.ts'
import { ChangeFeed } from './change-feed.ts'
import type { LoggedEvent } from './event.ts'
import type { FollowOptions } from './event-log.ts'
import { streamState } from './event-stream.ts'
import { Follower } from './follower.ts'
import type { SkippedMessages } from './skipped-messages.ts'

/** A follower for whom nothing comes is told so often how far the log has got without it. */
const PASSED_MS = 250
/** How long a server's count of what is to come is believed: it may stay too high for ever. */
const COUNT_MS = 500

/** All feeds on one connection, and who follows which. */
export class ChangeFeeds {
  readonly #stream: JetStreamClient
  readonly #manager: JetStreamManager
  readonly #skipped: SkippedMessages
  readonly #isObserver: boolean
  /** The oldest first. */
  readonly #feeds = new Set<ChangeFeed>()

  /**
   * @param isObserver may not remove consumers: the server does so when they have not been used for
   *   a while
   */
  constructor(
    stream: JetStreamClient,
    manager: JetStreamManager,
    skipped: SkippedMessages,
    isObserver: boolean,
  ) {
    this.#stream = stream
    this.#manager = manager
    this.#skipped = skipped
    this.#isObserver = isObserver
  }

  /**
   * As `EventLog.follow`. A follower joins the oldest feed that still has what comes next for it,
   * where there is none a new one; and moves to an older one as soon as it is that far.
   */
  async *follow(
    since: number,
    signal: AbortSignal,
    options: FollowOptions,
  ): AsyncIterable<LoggedEvent[]> {
    const follower = new Follower(since, options)
    const wake = () => follower.wake()
    signal.addEventListener('abort', wake, { once: true })
    try {
      // As the stream's leader says: a consumer may be on a replica that has yet to get what was
      // confirmed.
      let begun = await beginningOfLast(this.#manager)
      let askedAt = performance.now()
      let passed = since
      let passedAt = Number.NEGATIVE_INFINITY
      let isCaughtUp = false
      let hasJoined = false
      const tellPassed = () => {
        passed = follower.position
        passedAt = performance.now()
        options.onPassed?.(passed)
      }
      while (!signal.aborted) {
        if (follower.feed?.failure) throw follower.feed.failure
        const batch = follower.take()
        if (batch) {
          yield batch
          isCaughtUp = false
          continue
        }
        if (follower.isIdle) {
          let feed = this.#covering(follower) ?? follower.feed
          if (feed === undefined) {
            // The log has grown since it left the feed before.
            if (hasJoined) {
              begun = await beginningOfLast(this.#manager)
              askedAt = performance.now()
            }
            feed = await this.#open(follower)
          }
          if (feed !== follower.feed) {
            follower.feed?.leave(follower)
            feed.join(follower)
            hasJoined = true
            continue
          }
          if (!isCaughtUp && feed.position >= begun) {
            if (feed.pending === 0 || performance.now() - askedAt < COUNT_MS) {
              isCaughtUp = true
              if (performance.now() - passedAt >= PASSED_MS) tellPassed()
              yield []
            } else {
              // A server's count of what is to come may stay too high for ever.
              begun = await beginningOfLast(this.#manager)
              askedAt = performance.now()
            }
            continue
          }
        }
        follower.waitsFor = isCaughtUp ? Number.POSITIVE_INFINITY : begun
        const hasWaited = await follower.woken(options.onPassed && PASSED_MS)
        // What came meanwhile was for others.
        if (hasWaited && isCaughtUp && follower.isIdle && follower.position > passed) {
          tellPassed()
          yield []
        }
      }
    } finally {
      signal.removeEventListener('abort', wake)
      follower.end()
      follower.feed?.leave(follower)
    }
  }

  #covering({ position, wantsReads }: Follower): ChangeFeed | undefined {
    for (const feed of this.#feeds)
      if (feed.hasReads === wantsReads && feed.covers(position)) return feed
    return undefined
  }

  async #open({ position, wantsReads }: Follower): Promise<ChangeFeed> {
    const feed = new ChangeFeed(this.#stream, this.#manager, this.#skipped, {
      since: position,
      hasReads: wantsReads,
      removesConsumers: !this.#isObserver,
      onEnd: () => this.#feeds.delete(feed),
    })
    try {
      await feed.begin()
    } catch (error) {
      feed.end()
      throw error
    }
    this.#feeds.add(feed)
    return feed
  }
}

/** The sequence number of the first event of the last message. */
async function beginningOfLast(manager: JetStreamManager): Promise<number> {
  return seqOf((await streamState(manager)).last_seq, 0)
}
