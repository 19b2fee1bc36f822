/**
 * How far each projection is: the process that leads it tells those that wait for it, over NATS.
 *
 * An event says in a header which process appended it. After each batch just the processes whose
 * events were in it are told, and everybody now and then (the projector's `RENEW_MS`). So what a
 * request costs does not grow with the number of processes.
 */
import type { Msg, NatsConnection, NatsError } from 'nats'
import type { LoggedEvent } from '../events/event.ts'
import { PROJECTOR_SILENCE_MS, Progress } from '../events/progress.ts'
import type { QueueGeneration } from '../messaging/redis-message-queue.ts'

export type ProjectionName = 'database' | 'queues'

export interface Announcement {
  /** Sequence number of the last event that has been applied. */
  readonly applied: number
  /** Which queues are to be served, where they can be. */
  readonly queues?: QueueGeneration
  /** The projection waits for room in its store. */
  readonly isHeldUp?: boolean
  /** Sequence number of an event that no replica has: the projection goes no further. */
  readonly lost?: number
}

/** Followed by the projection's name, and by the origin of events for those who wait for them. */
const SUBJECT = 'tabulum.projection'

export class Announcements {
  readonly progress: Readonly<Record<ProjectionName, Progress>> = {
    database: new Progress(),
    queues: new Progress(),
  }
  readonly #nats: Pick<NatsConnection, 'publish'>
  readonly #origin: string
  readonly #latest: Partial<Record<ProjectionName, Announcement>> = {}

  /**
   * Hears from now on what others say.
   *
   * @param origin a name of this process that no other has, as in the events that it appends
   * @param onHeard called with how far a projection is: so far the log is at least
   */
  constructor(
    nats: Pick<NatsConnection, 'publish' | 'subscribe'>,
    origin: string,
    onHeard: (applied: number) => void,
  ) {
    this.#nats = nats
    this.#origin = origin
    for (const name of ['database', 'queues'] as const) {
      const callback = (error: NatsError | null, message: Msg) => {
        if (error) return
        const announcement = message.json<Announcement>()
        this.#latest[name] = announcement
        onHeard(announcement.applied)
        this.progress[name].advance(announcement.applied, announcement.isHeldUp)
      }
      for (const subject of [`${SUBJECT}.${name}`, `${SUBJECT}.${name}.${origin}`])
        nats.subscribe(subject, { callback })
    }
  }

  /**
   * Tells those who wait for `events`, everybody where none are given. What this process itself
   * waits for the projector tells it.
   */
  announce(
    name: ProjectionName,
    announcement: Announcement,
    events?: readonly LoggedEvent[],
  ): void {
    this.#latest[name] = announcement
    const text = JSON.stringify(announcement)
    for (const to of waitingFor(events)) {
      if (to !== this.#origin) this.#nats.publish(`${SUBJECT}.${name}${to && `.${to}`}`, text)
    }
  }

  /** What was said last of a projection, by this process or another; undefined if nothing was. */
  latest(name: ProjectionName): Announcement | undefined {
    return this.#latest[name]
  }

  /** Whether nobody leads the projection, as far as this process has heard. */
  isSilent(name: ProjectionName): boolean {
    return this.progress[name].silenceMs() >= PROJECTOR_SILENCE_MS
  }
}

/** The origins of events, which wait for them; '' is everybody, where one is not known. */
function waitingFor(events?: readonly LoggedEvent[]): Iterable<string> {
  const origins = new Set(events?.map(({ origin = '' }) => origin))
  return origins.size === 0 || origins.has('') ? [''] : origins
}
